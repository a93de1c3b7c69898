"""A FlexBuffers map of strings: how older TensorFlow Lite files carry their SignatureDefs.

Rules this module keeps: every offset is checked against the buffer, sizes are limited,
and what is no map of strings is refused. Source: the FlexBuffers format of FlatBuffers
(root at the end; a map is keys and values, widths in the low bits of types).
"""

from __future__ import annotations

from typing import Final

__all__ = ["read_string_map"]

_MAP: Final = 9
_STRING: Final = 5
_MAX_ENTRIES: Final = 1024


def read_string_map(buffer: bytes) -> dict[str, bytes]:
    """The entries of the map that the buffer holds.

    Raises:
        ValueError: it holds something else, or reaches beyond itself.
    """
    if len(buffer) < 3:
        raise ValueError("too short")
    root_width, root_type = buffer[-1], buffer[-2]
    if root_type >> 2 != _MAP:
        raise ValueError("no map")
    root = len(buffer) - 2 - root_width
    values = _back(buffer, root, root_width)
    width = 1 << (root_type & 3)
    count = _number(buffer, values - width, width)
    if count > _MAX_ENTRIES:
        raise ValueError("too many entries")
    keys = _back(buffer, values - 3 * width, width)
    key_width = _number(buffer, values - 2 * width, width)
    found = {}
    for entry in range(count):
        key = _back(buffer, keys + entry * key_width, key_width)
        end = buffer.find(b"\0", key)
        type_at = values + count * width + entry
        if end < 0 or type_at >= len(buffer) or buffer[type_at] >> 2 != _STRING:
            raise ValueError("no string")
        text = _back(buffer, values + entry * width, width)
        size_width = 1 << (buffer[type_at] & 3)
        size = _number(buffer, text - size_width, size_width)
        if text + size > len(buffer):
            raise ValueError("beyond the end")
        found[buffer[key:end].decode()] = buffer[text : text + size]
    return found


def _number(buffer: bytes, at: int, width: int) -> int:
    if at < 0 or at + width > len(buffer) or width not in (1, 2, 4, 8):
        raise ValueError("beyond the end")
    return int.from_bytes(buffer[at : at + width], "little")


def _back(buffer: bytes, at: int, width: int) -> int:
    """Follow an offset; they all point backwards."""
    target = at - _number(buffer, at, width)
    if target < 0:
        raise ValueError("beyond the start")
    return target
