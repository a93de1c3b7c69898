"""Reading small files from outside, never more than they may hold."""

from __future__ import annotations

from pathlib import Path

from sealserve.errors import InputError, Unavailable

__all__ = ["read_limited"]


def read_limited(path: Path | str, limit: int) -> bytes:
    """Read a file of at most ``limit`` bytes.

    Raises:
        InputError: ``file.too_large``.
        Unavailable: ``file.unreadable``.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise Unavailable(
            "file.unreadable", f"cannot read: {error.strerror}", where=str(path)
        ) from None
    if len(content) > limit:
        raise InputError(
            "file.too_large", f"more than the {limit} bytes that are read", where=str(path)
        )
    return content
