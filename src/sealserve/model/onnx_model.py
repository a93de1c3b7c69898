"""ONNX files: what they take and give, and the files beside them that hold their weights.

Rules this module keeps:

* External data lies below the model's own directory, in plain files reached without a
  link: a model from elsewhere cannot name ``../../etc/passwd`` and have it served.
* Only the structure is read here; whether OpenVINO can run it is asked of OpenVINO.

Source: ``onnx/onnx.proto`` and ``docs/ExternalData.md`` of ONNX.
"""

from __future__ import annotations

import shutil
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from google.protobuf.message import DecodeError

from sealserve.errors import InputError, Unavailable
from sealserve.files import read_limited
from sealserve.model.signature import PREDICT_METHOD, Signature, TensorSpec
from sealserve.wire.onnx import onnx_pb2
from sealserve.wire.tensorflow import tensor_pb2 as pb

__all__ = ["FILE_NAME", "OnnxModel", "copy_onnx", "parse_onnx", "read_onnx"]

FILE_NAME: Final = "model.onnx"
_MAX_BYTES: Final = 2**31 - 1
_MAX_EXTERNAL_FILES: Final = 10_000
_MAX_EXTERNAL_BYTES: Final = 64 << 30
_EXTERNAL: Final = 1  # TensorProto.DataLocation

# TensorProto.DataType of ONNX -> DataType of TensorFlow, which our signatures speak.
_DATA_TYPES: Final = {
    1: pb.DT_FLOAT,
    2: pb.DT_UINT8,
    3: pb.DT_INT8,
    4: pb.DT_UINT16,
    5: pb.DT_INT16,
    6: pb.DT_INT32,
    7: pb.DT_INT64,
    8: pb.DT_STRING,
    9: pb.DT_BOOL,
    10: pb.DT_HALF,
    11: pb.DT_DOUBLE,
    12: pb.DT_UINT32,
    13: pb.DT_UINT64,
    16: pb.DT_BFLOAT16,
}


@dataclass(frozen=True)
class OnnxModel:
    """What an ONNX file says of itself.

    Attributes:
        signature: its inputs and outputs, as ``serving_default``.
        operators: the operator sets it uses, as ``(domain, version)``; ONNX's own is ``ai.onnx``.
        external: the files that hold its weights, relative to its directory.
    """

    signature: Signature
    operators: tuple[tuple[str, int], ...]
    external: tuple[PurePosixPath, ...]

    def notes(self) -> tuple[str, ...]:
        """What whoever serves it should know."""
        sets = ", ".join(f"{domain} {version}" for domain, version in self.operators)
        found = [f"operator sets: {sets}"]
        if self.external:
            found.append(f"weights in {', '.join(map(str, self.external))}")
        found += [
            f"input {spec.key!r} takes exactly {spec.shape[0]} at a time; "
            "export it with a dynamic first dimension to send other numbers of rows"
            for spec in self.signature.inputs
            if spec.shape and spec.shape[0] is not None
        ]
        return tuple(found)


def read_onnx(path: Path) -> OnnxModel:
    """Read an ONNX file's structure.

    Raises:
        InputError: ``onnx.malformed``, ``onnx.external_data``, ``file.too_large``.
        Unavailable: ``file.unreadable``.
    """
    content = read_limited(
        path, _MAX_BYTES, hint_if_large="keep the weights in external data; protobuf ends at 2 GiB"
    )
    return parse_onnx(content, str(path))


def parse_onnx(content: bytes, where: str) -> OnnxModel:
    """Read an ONNX model's structure from its bytes; see `read_onnx`."""
    try:
        model = onnx_pb2.ModelProto.FromString(content)
    except DecodeError:
        raise _malformed("the file is not an ONNX model", where) from None
    if not model.opset_import or not model.graph.output:
        raise _malformed("it states no operator set, or its graph has no output", where)
    initialized = {tensor.name for tensor in model.graph.initializer}
    initialized |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    signature = Signature(
        "serving_default",
        PREDICT_METHOD,
        # Before IR version 4 weights were listed among the inputs.
        tuple(_spec(info, where) for info in model.graph.input if info.name not in initialized),
        tuple(_spec(info, where) for info in model.graph.output),
    )
    operators = sorted({(each.domain or "ai.onnx", each.version) for each in model.opset_import})
    external = {_location(tensor, where) for tensor in _tensors(model) if _is_external(tensor)}
    return OnnxModel(signature, tuple(operators), tuple(sorted(external)))


def copy_onnx(source: Path, target: Path) -> OnnxModel:
    """Copy an ONNX file, as ``model.onnx``, and its external data into a directory.

    Raises:
        InputError: see `read_onnx`.
        Unavailable: ``file.unreadable``.
    """
    model = read_onnx(source)
    size = 0
    _copy(source, target / FILE_NAME)
    for relative in model.external:
        if relative == PurePosixPath(FILE_NAME):
            raise _external(f"it would be overwritten: call it otherwise than {FILE_NAME}", source)
        size += _plain_size(source.parent, relative, source)
        if size > _MAX_EXTERNAL_BYTES:
            raise _external(f"it is larger than {_MAX_EXTERNAL_BYTES >> 30} GiB", source)
        _copy(source.parent / relative, target / relative)
    return model


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copyfile(source, target, follow_symlinks=True)
    except OSError as error:
        raise Unavailable(
            "file.unreadable", f"cannot copy the file: {error.strerror}", where=str(source)
        ) from error


def _plain_size(directory: Path, relative: PurePosixPath, source: Path) -> int:
    """The size of a file that is reached without following a link."""
    path = directory
    for part in relative.parts:
        path /= part
        try:
            status = path.lstat()
        except OSError as error:
            raise _external(f"{str(relative)!r} cannot be read: {error.strerror}", source) from None
        if stat.S_ISLNK(status.st_mode):
            raise _external(f"{str(relative)!r} is a link, or lies behind one", source)
    if not stat.S_ISREG(status.st_mode):
        raise _external(f"{str(relative)!r} is not a plain file", source)
    return status.st_size


def _location(tensor: onnx_pb2.TensorProto, where: str) -> PurePosixPath:
    (text,) = [each.value for each in tensor.external_data if each.key == "location"] or [""]
    path = PurePosixPath(text)
    if not text or "\0" in text or "\\" in text or path.is_absolute() or ".." in path.parts:
        raise _external(f"the location {text!r} does not lie below the model's directory", where)
    if not path.parts or len(text) > 1024:
        raise _external(f"{text[:80]!r} names no file", where)
    return path


def _is_external(tensor: onnx_pb2.TensorProto) -> bool:
    return tensor.data_location == _EXTERNAL or bool(tensor.external_data)


def _tensors(model: onnx_pb2.ModelProto) -> Iterator[onnx_pb2.TensorProto]:
    """Every constant of a model: initializers, and attributes of nodes, however deep."""
    graphs = [model.graph]
    nodes = [node for function in model.functions for node in function.node]
    while graphs or nodes:
        if not nodes:
            graph = graphs.pop()
            yield from graph.initializer
            yield from _parts(graph.sparse_initializer)
            nodes.extend(graph.node)
            continue
        for attribute in nodes.pop().attribute:
            yield from (attribute.t, *attribute.tensors)
            yield from _parts([attribute.sparse_tensor, *attribute.sparse_tensors])
            graphs.append(attribute.g)
            graphs.extend(attribute.graphs)


def _parts(tensors: Iterable[onnx_pb2.SparseTensorProto]) -> Iterator[onnx_pb2.TensorProto]:
    for tensor in tensors:
        yield from (tensor.values, tensor.indices)


def _spec(info: onnx_pb2.ValueInfoProto, where: str) -> TensorSpec:
    stated = info.type.tensor_type
    if not info.name or stated.elem_type not in _DATA_TYPES:
        raise _malformed(f"{info.name!r} is not a tensor of a known type", where)
    shape = None
    if stated.HasField("shape"):
        shape = tuple(
            dim.dim_value if dim.WhichOneof("value") == "dim_value" and dim.dim_value > 0 else None
            for dim in stated.shape.dim
        )
    # Servers call it so too (`sealserve.serving.runtimes.model_files`).
    return TensorSpec(info.name.removesuffix(":0"), info.name, _DATA_TYPES[stated.elem_type], shape)


def _malformed(what: str, where: str) -> InputError:
    return InputError("onnx.malformed", f"cannot read the ONNX model: {what}", where=where)


def _external(what: str, where: Path | str) -> InputError:
    return InputError(
        "onnx.external_data", f"the model's external data is refused: {what}", where=str(where)
    )
