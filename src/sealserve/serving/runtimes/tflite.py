"""The signatures of a TensorFlow Lite file, which OpenVINO does not tell.

Rules this module keeps: only the few tables on the way to the signatures are
walked, every offset is checked against the file, and a file can make the walk
neither long nor large. What the file computes is OpenVINO's business.

Source: TensorFlow's ``schema.fbs`` (tables Model, SubGraph, Tensor, SignatureDef,
TensorMap) and the FlatBuffers binary format.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from sealserve.errors import InputError

__all__ = ["LiteSignature", "read_signatures"]

_IDENTIFIER: Final = b"TFL3"
_MAX_ITEMS: Final = 65_536
_MAX_NAME_BYTES: Final = 1024

# Field numbers, in the order of the schema.
_MODEL_SUBGRAPHS, _MODEL_SIGNATURES = 2, 7
_SUBGRAPH_TENSORS, _TENSOR_NAME = 0, 3
_SIGNATURE_INPUTS, _SIGNATURE_OUTPUTS, _SIGNATURE_KEY, _SIGNATURE_SUBGRAPH = 0, 1, 2, 4
_MAP_NAME, _MAP_TENSOR = 0, 1


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
        return list(_signatures(_Table(view, _offset(view, 0))))
    except (struct.error, UnicodeDecodeError, IndexError):
        raise _malformed("a table reaches beyond the file") from None


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
