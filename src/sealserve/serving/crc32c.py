"""CRC-32C as TensorFlow writes it: masked, so that a checksum of checksums is one too."""

from __future__ import annotations

import google_crc32c

__all__ = ["masked", "masked_of"]

_MASK_DELTA = 0xA282EAD8


def masked(part: bytes) -> int:
    """The masked checksum of some bytes."""
    return masked_of(google_crc32c.value(part))


def masked_of(checksum: int) -> int:
    """A checksum, masked."""
    return ((checksum >> 15 | checksum << 17) + _MASK_DELTA) & 0xFFFFFFFF
