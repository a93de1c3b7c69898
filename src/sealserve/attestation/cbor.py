"""CBOR, as little of it as evidence needs: deterministic, definite lengths, bounded.

Rules this module keeps:

* The data model is unsigned integers, byte strings, text strings, arrays,
  maps and tags. Floats, negatives, simple values and indefinite lengths are
  refused.
* One value has one encoding (RFC 8949, section 4.2.1, core deterministic
  encoding): shortest heads, map keys sorted by their encoding, no duplicates.
  :func:`decode` refuses every other form, so ``encode(decode(x)) == x``.
* Depth, item count and size are bounded before memory is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, Union

from sealserve.errors import InputError

__all__ = ["MAX_CBOR_BYTES", "Tag", "Value", "decode", "encode"]

MAX_CBOR_BYTES = 128 * 1024
_MAX_DEPTH = 8
_MAX_ITEMS = 1024

_UINT, _BYTES, _TEXT, _ARRAY, _MAP, _TAG = 0, 2, 3, 4, 5, 6


@dataclass(frozen=True, slots=True)
class Tag:
    """A tagged value."""

    number: int
    value: Value


Value: TypeAlias = Union[int, bytes, str, "Sequence[Value]", "Mapping[Value, Value]", Tag]


def encode(value: Value) -> bytes:
    """The one encoding of a value.

    Raises:
        InputError: ``cbor.unsupported`` outside the data model.
    """
    return _encode(value, _MAX_DEPTH)


def decode(raw: bytes) -> Value:
    """Read exactly one value; arrays become tuples.

    Raises:
        InputError: ``cbor.malformed`` or ``cbor.too_large``.
    """
    if len(raw) > MAX_CBOR_BYTES:
        raise InputError(
            "cbor.too_large", f"{len(raw)} bytes of CBOR exceed the limit of {MAX_CBOR_BYTES}"
        )
    reader = _Reader(bytes(raw))
    value = reader.value(_MAX_DEPTH)
    if reader.offset != len(raw):
        raise _malformed(reader.offset, "bytes follow the value")
    return value


def _encode(value: Value, depth: int) -> bytes:
    if depth == 0:
        raise InputError("cbor.unsupported", f"values nest deeper than {_MAX_DEPTH}")
    match value:
        case bool():
            raise InputError("cbor.unsupported", "booleans are not in the data model")
        case int() if 0 <= value < 1 << 64:
            return _head(_UINT, value)
        case bytes():
            return _head(_BYTES, len(value)) + value
        case str():
            text = value.encode()
            return _head(_TEXT, len(text)) + text
        case Tag():
            return _head(_TAG, value.number) + _encode(value.value, depth - 1)
        case Mapping():
            pairs = sorted((_encode(k, depth - 1), _encode(v, depth - 1)) for k, v in value.items())
            return _head(_MAP, len(pairs)) + b"".join(key + item for key, item in pairs)
        case Sequence():
            return _head(_ARRAY, len(value)) + b"".join(_encode(v, depth - 1) for v in value)
    raise InputError("cbor.unsupported", f"a {type(value).__name__} cannot be encoded")


def _head(major: int, argument: int) -> bytes:
    if argument < 24:
        return bytes([major << 5 | argument])
    for code, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if argument < 1 << (8 * size):
            return bytes([major << 5 | code]) + argument.to_bytes(size, "big")
    raise InputError("cbor.unsupported", "an integer does not fit in 64 bits")


class _Reader:
    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._items = _MAX_ITEMS
        self.offset = 0

    def value(self, depth: int) -> Value:
        self._items -= 1
        if depth == 0 or self._items < 0:
            raise InputError(
                "cbor.too_large", f"more than {_MAX_ITEMS} items or deeper than {_MAX_DEPTH}"
            )
        start = self.offset
        major, argument = self._read_head()
        match major:
            case 0:  # unsigned integer
                return argument
            case 2:  # byte string
                return self._take(argument)
            case 3:  # text string
                try:
                    return self._take(argument).decode("utf-8")
                except UnicodeDecodeError:
                    raise _malformed(start, "text that is not UTF-8") from None
            case 4:  # array
                return tuple(self.value(depth - 1) for _ in range(self._count(argument)))
            case 5:  # map
                return self._map(self._count(argument), depth)
            case 6:  # tag
                return Tag(argument, self.value(depth - 1))
        raise _malformed(start, f"major type {major} is not in the data model")

    def _map(self, pairs: int, depth: int) -> dict[Value, Value]:
        result: dict[Value, Value] = {}
        previous = b""
        for _ in range(pairs):
            start = self.offset
            key = self.value(depth - 1)
            if not isinstance(key, (int, bytes, str)):
                raise _malformed(start, "a map key that is not an integer or a string")
            encoded = self._raw[start : self.offset]
            if encoded <= previous:
                raise _malformed(start, "map keys out of order or given twice")
            previous = encoded
            result[key] = self.value(depth - 1)
        return result

    def _count(self, argument: int) -> int:
        if argument > self._items:
            raise InputError("cbor.too_large", f"more than {_MAX_ITEMS} items")
        return argument

    def _read_head(self) -> tuple[int, int]:
        start = self.offset
        first = self._take(1)[0]
        major, code = first >> 5, first & 0x1F
        if code < 24:
            return major, code
        if code > 27:
            raise _malformed(start, "an indefinite or reserved length")
        argument = int.from_bytes(self._take(1 << (code - 24)), "big")
        if _head(major, argument) != self._raw[start : self.offset]:
            raise _malformed(start, "a length that is not in its shortest form")
        return major, argument

    def _take(self, size: int) -> bytes:
        end = self.offset + size
        if end > len(self._raw):
            raise _malformed(self.offset, "the data end inside a value")
        part = self._raw[self.offset : end]
        self.offset = end
        return part


def _malformed(offset: int, what: str) -> InputError:
    return InputError("cbor.malformed", f"{what} (at byte {offset})")
