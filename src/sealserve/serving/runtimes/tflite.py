"""The signatures of a TensorFlow Lite file, which OpenVINO does not tell.

Rules this module keeps: only the few tables on the way to the signatures are
walked, every offset is checked against the file, and a file can make the walk
neither long nor large. What the file computes is OpenVINO's business.

Source: TensorFlow's ``schema.fbs`` (tables Model, SubGraph, Tensor, SignatureDef,
TensorMap) and the FlatBuffers binary format.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError

from sealserve.errors import InputError
from sealserve.serving.runtimes.flexbuffers import read_string_map
from sealserve.wire.tensorflow import graph_pb2

__all__ = ["LiteSignature", "is_elementwise", "read_signatures"]

_IDENTIFIER: Final = b"TFL3"
_MAX_ITEMS: Final = 65_536
_MAX_NAME_BYTES: Final = 1024
_MAX_LEGACY_BYTES: Final = 2**20
# Before the schema had signatures, files carried SignatureDefs under this name.
_LEGACY: Final = "signature_defs_metadata"

# Field numbers, in the order of the schema.
_MODEL_SUBGRAPHS, _MODEL_BUFFERS, _MODEL_METADATA, _MODEL_SIGNATURES = 2, 4, 6, 7
_MODEL_OPERATORS = 1
_OPERATOR_OLD_CODE, _OPERATOR_CODE = 0, 3
_METADATA_NAME, _METADATA_BUFFER, _BUFFER_DATA = 0, 1, 0
_SUBGRAPH_TENSORS, _TENSOR_NAME = 0, 3
_SIGNATURE_INPUTS, _SIGNATURE_OUTPUTS, _SIGNATURE_KEY, _SIGNATURE_SUBGRAPH = 0, 1, 2, 4
_MAP_NAME, _MAP_TENSOR = 0, 1


# BuiltinOperators that take each number by itself and broadcast as NumPy does, at any rank: ADD,
# LOGISTIC, MUL, RELU, RELU6, TANH, SUB, DIV, EXP, MAXIMUM, MINIMUM, NEG, SQRT, RSQRT, SQUARE, ABS.
_ELEMENTWISE: Final = frozenset((0, 14, 18, 19, 21, 28, 41, 42, 47, 55, 57, 59, 75, 76, 92, 101))


@dataclass(frozen=True)
class LiteSignature:
    """One signature: its keys, and the tensors of the file that they name."""

    key: str
    inputs: dict[str, str]
    outputs: dict[str, str]


def read_signatures(content: bytes | memoryview) -> list[LiteSignature]:
    """Read the signatures of the first subgraph.

    Raises:
        InputError: ``servable.file_malformed``.
    """
    view = memoryview(content)
    if bytes(view[4:8]) != _IDENTIFIER:
        raise _malformed("it does not begin as one")
    try:
        model = _Table(view, _offset(view, 0))
        return list(_signatures(model)) or _legacy_signatures(model)
    except (struct.error, ValueError, IndexError, DecodeError):
        raise _malformed("a table reaches beyond the file") from None


def is_elementwise(content: bytes | memoryview) -> bool:
    """Whether a file states no operation but elementwise ones.

    Raises:
        InputError: ``servable.file_malformed``.
    """
    view = memoryview(content)
    try:
        operators = list(_Table(view, _offset(view, 0)).tables(_MODEL_OPERATORS))
        # Codes up to 127 used to stand in a byte; newer files have both.
        codes = {
            max(each.byte(_OPERATOR_OLD_CODE), each.number(_OPERATOR_CODE)) for each in operators
        }
    except (struct.error, ValueError, IndexError):
        raise _malformed("a table reaches beyond the file") from None
    return bool(codes) and codes <= _ELEMENTWISE


def _signatures(model: _Table) -> Iterator[LiteSignature]:
    subgraphs = list(model.tables(_MODEL_SUBGRAPHS))
    if not subgraphs:
        raise _malformed("it has no subgraph")
    tensors = [tensor.text(_TENSOR_NAME) for tensor in subgraphs[0].tables(_SUBGRAPH_TENSORS)]
    for signature in model.tables(_MODEL_SIGNATURES):
        if signature.number(_SIGNATURE_SUBGRAPH) == 0:
            yield LiteSignature(
                signature.text(_SIGNATURE_KEY),
                _named(signature, _SIGNATURE_INPUTS, tensors),
                _named(signature, _SIGNATURE_OUTPUTS, tensors),
            )


def _legacy_signatures(model: _Table) -> list[LiteSignature]:
    buffers = list(model.tables(_MODEL_BUFFERS))
    found = []
    for entry in model.tables(_MODEL_METADATA):
        if entry.text(_METADATA_NAME) != _LEGACY:
            continue
        raw = buffers[entry.number(_METADATA_BUFFER)].data(_BUFFER_DATA)
        for key, content in sorted(read_string_map(raw).items()):
            wire = graph_pb2.SignatureDef.FromString(content)
            found.append(LiteSignature(key, _tensors(wire.inputs), _tensors(wire.outputs)))
    return found


def _tensors(infos: Mapping[str, graph_pb2.TensorInfo]) -> dict[str, str]:
    return {key: info.name for key, info in infos.items()}


def _named(signature: _Table, number: int, tensors: list[str]) -> dict[str, str]:
    return {
        entry.text(_MAP_NAME): tensors[entry.number(_MAP_TENSOR)]
        for entry in signature.tables(number)
    }


class _Table:
    """A FlatBuffers table: fields found by way of its vtable."""

    def __init__(self, view: memoryview, position: int) -> None:
        self._view = view
        self._position = position
        self._vtable = position - struct.unpack_from("<i", view, position)[0]
        if self._vtable < 0:
            raise IndexError
        (self._vtable_size,) = struct.unpack_from("<H", view, self._vtable)

    def number(self, field: int) -> int:
        """A uint32 field; 0 where it is absent."""
        at = self._field(field)
        return 0 if at is None else int(struct.unpack_from("<I", self._view, at)[0])

    def byte(self, field: int) -> int:
        """An int8 field; 0 where it is absent."""
        at = self._field(field)
        return 0 if at is None else int(struct.unpack_from("<b", self._view, at)[0])

    def text(self, field: int) -> str:
        """A string field; empty where it is absent."""
        at = self._field(field)
        if at is None:
            return ""
        start = _offset(self._view, at)
        (size,) = struct.unpack_from("<I", self._view, start)
        if size > _MAX_NAME_BYTES:
            raise IndexError
        return bytes(struct.unpack_from(f"<{size}s", self._view, start + 4)[0]).decode()

    def data(self, field: int) -> bytes:
        """A vector of bytes; empty where it is absent."""
        at = self._field(field)
        if at is None:
            return b""
        start = _offset(self._view, at)
        (size,) = struct.unpack_from("<I", self._view, start)
        if size > _MAX_LEGACY_BYTES:
            raise IndexError
        return bytes(struct.unpack_from(f"<{size}s", self._view, start + 4)[0])

    def tables(self, field: int) -> Iterator[_Table]:
        """A vector of tables; nothing where it is absent."""
        at = self._field(field)
        if at is None:
            return
        start = _offset(self._view, at)
        (count,) = struct.unpack_from("<I", self._view, start)
        if count > _MAX_ITEMS:
            raise IndexError
        for item in range(count):
            yield _Table(self._view, _offset(self._view, start + 4 + 4 * item))

    def _field(self, number: int) -> int | None:
        entry = 4 + 2 * number
        if entry + 2 > self._vtable_size:
            return None
        (offset,) = struct.unpack_from("<H", self._view, self._vtable + entry)
        return self._position + offset if offset else None


def _offset(view: memoryview, at: int) -> int:
    return at + int(struct.unpack_from("<I", view, at)[0])


def _malformed(what: str) -> InputError:
    return InputError("servable.file_malformed", f"not a TensorFlow Lite model: {what}")
