"""How the kernel's attribute files are read and written: whole, in one go, with a limit."""

from __future__ import annotations

import errno
import os
from pathlib import Path

__all__ = ["SMALL", "read_attribute", "write_attribute"]

SMALL = 4096
"""Bytes of a page, which no text attribute exceeds."""


def read_attribute(path: Path, limit: int = SMALL) -> bytes:
    """At most ``limit`` bytes; the sizes that sysfs reports mean nothing.

    Raises:
        OSError: as the kernel answers.
    """
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while limit > 0 and (part := os.read(file, limit)):
            parts.append(part)
            limit -= len(part)
        return b"".join(parts)
    finally:
        os.close(file)


def write_attribute(path: Path, data: bytes) -> None:
    """All of ``data`` in one write at offset 0: an attribute takes it whole or not.

    Raises:
        OSError: as the kernel answers. A configfs attribute commits when the
            file is closed, and its error is lost there.
    """
    file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        if os.write(file, data) != len(data):
            raise OSError(errno.EIO, "short write")
    finally:
        os.close(file)
