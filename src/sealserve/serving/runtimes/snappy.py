"""Snappy, read only: TensorFlow packed the indexes of its older checkpoints with it.

Rules this module keeps: what the data say of their size is held to a limit before memory
is taken, nothing is copied from before the beginning, and the end is exactly the size.

Source: Snappy's ``format_description.txt``.
"""

from __future__ import annotations

__all__ = ["unpack"]

_MAX_SIZE_BYTES = 5
_LONG_LITERAL = 60


def unpack(packed: bytes, limit: int) -> bytes:
    """Unpack one block.

    Raises:
        ValueError, IndexError: it is damaged, or larger than ``limit`` bytes.
    """
    size, at = _size(packed)
    if size > limit:
        raise ValueError(f"it unpacks to more than {limit} bytes")
    out = bytearray()
    while at < len(packed):
        tag = packed[at]
        at += 1
        length, kind = tag >> 2, tag & 3
        if kind == 0:
            if length >= _LONG_LITERAL:
                wide = length - _LONG_LITERAL + 1
                length = int.from_bytes(packed[at : at + wide], "little")
                at += wide
            out += packed[at : at + length + 1]
            at += length + 1
        else:
            if kind == 1:
                offset, length = (tag >> 5) << 8 | packed[at], (length & 7) + 4
                at += 1
            else:
                wide = 2 if kind == 2 else 4
                offset, length = int.from_bytes(packed[at : at + wide], "little"), length + 1
                at += wide
            _copy(out, offset, length)
        if len(out) > size:
            raise ValueError("it unpacks to more than it says")
    if len(out) != size or at != len(packed):
        raise ValueError("it unpacks to less than it says")
    return bytes(out)


def _copy(out: bytearray, offset: int, length: int) -> None:
    """Repeat what stands so far back; it may overlap with what it makes."""
    if not 0 < offset <= len(out):
        raise ValueError("it copies from before its beginning")
    piece = out[-offset:]
    out += (piece * (length // offset + 1))[:length]


def _size(packed: bytes) -> tuple[int, int]:
    size = 0
    for at in range(_MAX_SIZE_BYTES):
        size |= (packed[at] & 127) << 7 * at
        if packed[at] < 128:
            return size, at + 1
    raise ValueError("its size has no end")
