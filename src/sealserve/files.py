"""Small files, read with a limit and written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from sealserve.errors import InputError, Unavailable

__all__ = [
    "fsync_directory",
    "read_limited",
    "require_absent",
    "require_writable_place",
    "write_atomically",
]


def read_limited(path: Path | str, limit: int) -> bytes:
    """Read a file that must not be larger than ``limit`` bytes.

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


def require_absent(path: Path) -> None:
    """Refuse to go on where a file would be replaced.

    Raises:
        InputError: ``file.exists``.
    """
    if os.path.lexists(path):
        raise InputError(
            "file.exists",
            "is there already and is not replaced",
            where=str(path),
            hint="choose another place, or move the old file away",
        )


def require_writable_place(path: Path) -> None:
    """Find out before long work whether its result could be written.

    Raises:
        Unavailable: ``file.unwritable``.
    """
    if path.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise Unavailable(
            "file.unwritable",
            "cannot write a file here",
            where=str(path),
            hint="its directory must be there and be writable",
        )


def write_atomically(
    path: Path, content: bytes, *, mode: int = 0o644, replace: bool = True
) -> None:
    """Write a file so that, at any moment, either all of it is there or nothing new.

    Args:
        path: target; its directory must exist.
        content: the whole content.
        mode: permission bits, in force before the first byte is written.
        replace: whether a file of that name may be replaced.

    Raises:
        InputError: ``file.exists`` when ``replace`` is off.
        Unavailable: ``file.unwritable``.
    """
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            os.fchmod(descriptor, mode)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                Path(temporary).replace(path)
            else:
                # link(2) fails where rename(2) would replace.
                os.link(temporary, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                Path(temporary).unlink()
        fsync_directory(path.parent)
    except OSError as error:
        if isinstance(error, FileExistsError):
            require_absent(path)
        raise Unavailable(
            "file.unwritable", f"cannot write: {error.strerror}", where=str(path)
        ) from None


def fsync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
