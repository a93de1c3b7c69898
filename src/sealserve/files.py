"""Small files, read with a limit and written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from sealserve.errors import InputError, Unavailable

__all__ = [
    "Stamp",
    "atomic_file",
    "make_directory",
    "read_limited",
    "require_absent",
    "require_writable_place",
    "stamp_of",
    "sync_path",
    "write_atomically",
]

Stamp = tuple[int, int, int, int] | None
"""What changes when a file is rewritten or replaced; None while there is no such file."""


def read_limited(
    path: Path | str, limit: int, *, hint: str | None = None, hint_if_large: str | None = None
) -> bytes:
    """Read a file that must not be larger than ``limit`` bytes.

    Args:
        path: the file.
        limit: in bytes.
        hint: what to do if the file is missing or cannot be read.
        hint_if_large: what to do if it is too large.

    Raises:
        InputError: ``file.too_large``.
        Unavailable: ``file.unreadable``.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise Unavailable(
            "file.unreadable", f"cannot read: {error.strerror}", where=str(path), hint=hint
        ) from None
    if len(content) > limit:
        raise InputError(
            "file.too_large",
            f"more than the {limit} bytes that are read",
            where=str(path),
            hint=hint_if_large,
        )
    return content


def stamp_of(path: Path) -> Stamp:
    """The stamp to compare with later: another one means that the file is to be read again.

    Taken before the file is read, so that a change in between is seen the next time.
    """
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def require_absent(path: Path, *, hint: str | None = None) -> None:
    """Refuse to go on where a file would be replaced.

    Raises:
        InputError: ``file.exists``.
    """
    if os.path.lexists(path):
        raise InputError(
            "file.exists",
            "is there already and is not replaced",
            where=str(path),
            hint=hint or "choose another place, or move the old file away",
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


def make_directory(path: Path, *, mode: int = 0o777) -> None:
    """Make a directory and those above it, where they are not there yet.

    Args:
        path: the directory.
        mode: permission bits of a new one, less the umask.

    Raises:
        Unavailable: ``file.unwritable``.
    """
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
    except OSError as error:
        raise Unavailable(
            "file.unwritable", f"cannot make: {error.strerror}", where=str(path)
        ) from None


def write_atomically(
    path: Path, content: bytes, *, mode: int = 0o644, replace: bool = True, hint: str | None = None
) -> None:
    """Write a file of which all is at hand; as `atomic_file`."""
    with atomic_file(path, mode=mode, replace=replace, hint=hint) as file:
        file.write(content)


@contextlib.contextmanager
def atomic_file(
    path: Path, *, mode: int = 0o644, replace: bool = True, hint: str | None = None
) -> Iterator[IO[bytes]]:
    """Write a file so that, at any moment, either all of it is there or nothing new.

    It takes its place, flushed to the disk, when the block ends without an exception.

    Args:
        path: target; its directory must exist.
        mode: permission bits, in force before the first byte is written.
        replace: whether a file of that name may be replaced.
        hint: what to do if it cannot be written.

    Raises:
        InputError: ``file.exists`` when ``replace`` is off.
        Unavailable: ``file.unwritable``, also for errors of the disk while the block runs.
    """
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(descriptor, mode)
                yield file
                file.flush()
                os.fsync(descriptor)
            if replace:
                Path(temporary).replace(path)
            else:
                # link(2) fails where rename(2) would replace.
                os.link(temporary, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                Path(temporary).unlink()
        sync_path(path.parent)
    except OSError as error:
        if isinstance(error, FileExistsError):
            require_absent(path)
        raise Unavailable(
            "file.unwritable", f"cannot write: {error.strerror}", where=str(path), hint=hint
        ) from None


def sync_path(path: Path) -> None:
    """Make a file's content, or the names in a directory, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
