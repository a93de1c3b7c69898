"""How tensors, tf.Examples and packed bodies are read."""

from __future__ import annotations

import gzip
import struct
import zlib
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError, Message

from fuzz.target import Target, promised
from sealserve.errors import InputError
from sealserve.serving.rest_body import unzip
from sealserve.serving.runtimes.examples import DenseFeature, parse_examples
from sealserve.wire.tensorflow import example_pb2
from sealserve.wire.tensorflow import tensor_pb2 as pb
from sealserve.wire.tensors import numpy_dtype, to_array, to_proto

__all__ = ["FEATURES", "LIMIT", "TARGETS", "example_seeds", "message_of"]

LIMIT = 1 << 16

FEATURES = (
    DenseFeature("x", "x", pb.DT_FLOAT, (), None),
    DenseFeature("n", "n", pb.DT_INT64, (2,), np.zeros(2, "i8")),
    DenseFeature("t", "t", pb.DT_STRING, (1,), np.array([b"none"], object)),
)


def message_of(kind: type[Message], data: bytes) -> Any:
    """A message, or the refusal that the fronts give."""
    try:
        return kind.FromString(data)
    except DecodeError:
        raise InputError("request.malformed", "no such message") from None


# --- tensors -------------------------------------------------------------------


def _tensor(data: bytes) -> None:
    """Ours and a reading that takes google.protobuf's lists one by one say the same."""
    proto = message_of(pb.TensorProto, data)
    array = to_array(proto, LIMIT)
    promised(_same(array.reshape(-1).tolist(), _plainly(proto, array.size)))
    for typed in (True, False):
        wire = to_proto(array, data_type=proto.dtype, typed_fields=typed).SerializeToString()
        back = to_array(pb.TensorProto.FromString(wire), 2 * LIMIT)
        promised(back.shape == array.shape and back.dtype == array.dtype)
        promised(_same(back.reshape(-1).tolist(), array.reshape(-1).tolist()))


def _plainly(proto: pb.TensorProto, count: int) -> list[Any]:
    kinds: dict[int, tuple[str, str]] = {
        pb.DT_FLOAT: ("float_val", "f"),
        pb.DT_DOUBLE: ("double_val", "d"),
        pb.DT_INT8: ("int_val", "b"),
        pb.DT_UINT8: ("int_val", "B"),
        pb.DT_INT16: ("int_val", "h"),
        pb.DT_UINT16: ("int_val", "H"),
        pb.DT_INT32: ("int_val", "i"),
        pb.DT_INT64: ("int64_val", "q"),
        pb.DT_UINT32: ("uint32_val", "I"),
        pb.DT_UINT64: ("uint64_val", "Q"),
        pb.DT_BOOL: ("bool_val", "?"),
        pb.DT_HALF: ("half_val", "e"),
        pb.DT_BFLOAT16: ("half_val", "H"),
        pb.DT_COMPLEX64: ("scomplex_val", "f"),
        pb.DT_COMPLEX128: ("dcomplex_val", "d"),
        pb.DT_STRING: ("string_val", ""),
    }
    field, code = kinds[proto.dtype]
    pairs = proto.dtype in (pb.DT_COMPLEX64, pb.DT_COMPLEX128)
    if proto.tensor_content and proto.dtype == pb.DT_STRING:
        values: list[Any] = _packed_strings(proto.tensor_content, count)
    elif proto.tensor_content:
        values = list(struct.unpack(f"<{count * (1 + pairs)}{code}", proto.tensor_content))
    else:
        values = list(getattr(proto, field))
        if proto.dtype == pb.DT_HALF:
            values = [struct.unpack("<e", struct.pack("<H", each))[0] for each in values]
    if proto.dtype == pb.DT_BFLOAT16:
        values = [struct.unpack("<f", struct.pack("<I", each << 16))[0] for each in values]
    if pairs:
        values = [complex(*values[at : at + 2]) for at in range(0, len(values), 2)]
    missing = values[-1:] or [b"" if proto.dtype == pb.DT_STRING else 0]
    return values + missing * (count - len(values))


def _packed_strings(content: bytes, count: int) -> list[Any]:
    sizes, at = [], 0
    for _ in range(count):
        size = shift = 0
        while True:
            byte = content[at]
            at += 1
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        sizes.append(size)
    values = []
    for size in sizes:
        values.append(content[at : at + size])
        at += size
    return values


def _same(left: list[Any], right: list[Any]) -> bool:
    """Equal, with NaN equal to itself."""
    return len(left) == len(right) and all(
        one == other or (one != one and other != other)
        for one, other in zip(left, right, strict=True)
    )


def _tensor_seeds() -> list[bytes]:
    arrays = [
        np.array([[1.5, np.nan], [-0.0, np.inf]], dtype) for dtype in ("f4", "f8", "f2", "c8")
    ]
    arrays += [np.arange(3).astype(dtype) for dtype in ("i1", "u2", "i4", "i8", "u8", "?")]
    arrays.append(np.array([b"", b"ab"], object))
    return [
        to_proto(array, typed_fields=typed).SerializeToString()
        for array in arrays
        for typed in (True, False)
    ] + [to_proto(np.ones(2, "f4"), data_type=pb.DT_BFLOAT16).SerializeToString()]


# --- bodies and examples -------------------------------------------------------


def _packed_body(data: bytes) -> None:
    """A first byte says which packing; what is unpacked is what zlib itself unpacks."""
    encoding = ("gzip", "deflate")[data[0] % 2] if data else "gzip"
    unpacked = unzip(data[1:], LIMIT, encoding)
    promised(len(unpacked) <= LIMIT)
    theirs = gzip.decompress if encoding == "gzip" else zlib.decompress
    promised(theirs(data[1:]) == unpacked)


def _packed_seeds() -> list[bytes]:
    body = b'{"instances": [1.0]}'
    return [b"\0" + gzip.compress(body), b"\1" + zlib.compress(body), b"\0" + gzip.compress(b"")]


def _examples(data: bytes) -> None:
    """Two bytes of length before each example."""
    items, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 2], "big")
        items.append(data[at + 2 : at + 2 + size])
        at += 2 + size
    serialized = np.empty(len(items), object)
    serialized[:] = items
    columns = parse_examples(serialized, FEATURES)
    for each in FEATURES:
        promised(columns[each.input].shape == (len(items), *each.shape))
        promised(columns[each.input].dtype == numpy_dtype(each.dtype))
    for row, item in enumerate(items):
        found = example_pb2.Example.FromString(item).features.feature
        promised(_same([columns["x"][row]], list(found["x"].float_list.value)))


def example_seeds() -> list[bytes]:
    example = example_pb2.Example()
    example.features.feature["x"].float_list.value.append(1.5)
    example.features.feature["n"].int64_list.value.extend([1, -2])
    example.features.feature["t"].bytes_list.value.append(b"t")
    small = example_pb2.Example()
    small.features.feature["x"].float_list.value.append(2.0)
    return [example.SerializeToString(), small.SerializeToString()]


def _framed_seeds() -> list[bytes]:
    framed = [len(each).to_bytes(2, "big") + each for each in example_seeds()]
    return [framed[0], b"".join(framed)]


TARGETS: dict[str, Target] = {
    "tensor": Target(_tensor, _tensor_seeds, 512),
    "examples": Target(_examples, _framed_seeds, 1024),
    "packed-body": Target(_packed_body, _packed_seeds),
}
