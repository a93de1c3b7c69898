"""Files read with a limit and written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from sealserve.errors import InputError, Unavailable

__all__ = ["PROTOBUF_LIMIT", "read_limited", "write_whole"]

# protobuf refuses to read or write a message of this size or more.
PROTOBUF_LIMIT = 2**31 - 1


def read_limited(path: Path, max_bytes: int) -> bytes:
    """Read a file of at most ``max_bytes`` bytes.

    Raises:
        Unavailable: ``model.file_unreadable``.
        InputError: ``model.file_too_large``.
    """
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise Unavailable(
            "model.file_unreadable", f"cannot read the file: {error.strerror}", where=str(path)
        ) from error
    if len(content) > max_bytes:
        limit = "protobuf's 2 GiB" if max_bytes == PROTOBUF_LIMIT else f"{max_bytes} bytes"
        raise InputError(
            "model.file_too_large",
            f"the file has more than {limit}",
            where=str(path),
            hint="a larger model has to keep its weights outside the graph, as a SavedModel does",
        )
    return content


def write_whole(path: Path, content: bytes) -> None:
    """Write a new file so that a crash leaves either all of it or nothing.

    Raises:
        InputError: ``model.exists``: there is such a file already.
        Unavailable: ``model.cannot_write``.
    """
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        os.link(temporary, path)  # a rename would replace a file that is already there
    except FileExistsError as error:
        raise InputError(
            "model.exists",
            "there is such a file already",
            where=str(path),
            hint="remove it first, or give another name",
        ) from error
    except OSError as error:
        raise Unavailable(
            "model.cannot_write", f"cannot write the file: {error.strerror}", where=str(path)
        ) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
