"""Files that hold a secret of the broker's own: its key file, a PIN, a token.

Rules this module keeps: such a file is read only if it is a regular file that
nobody but its owner may read or write, and the owner is us or root; what is
checked is what is read. Nothing that was read stands in an error.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from sealserve.errors import Refused, Unavailable

__all__ = ["read_private"]


def read_private(path: Path, size: int, what: str, *, hint: str) -> bytes:
    """Read a private file.

    Args:
        path: the file.
        size: how many bytes to read at most; one more is read so that it shows.
        what: names it in errors.
        hint: what to do if it cannot be read.

    Raises:
        Unavailable: ``kek.unreadable``.
        Refused: ``kek.not_a_file``, ``kek.mode_too_wide``, ``kek.wrong_owner``.
    """
    try:
        # O_NOFOLLOW and checks on the open file: what is checked is what is read.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Unavailable(
            "kek.unreadable",
            f"{what} cannot be opened: {error.strerror}",
            where=str(path),
            hint=hint,
        ) from None
    try:
        _check(os.fstat(descriptor), path, what)
        return os.read(descriptor, size + 1)
    finally:
        os.close(descriptor)


def _check(status: os.stat_result, path: Path, what: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise Refused("kek.not_a_file", f"{what} is no regular file", where=str(path))
    if status.st_uid not in (os.geteuid(), 0):
        raise Refused(
            "kek.wrong_owner",
            f"{what} belongs to another user",
            where=str(path),
            hint="chown it to the user the broker runs as",
        )
    if stat.S_IMODE(status.st_mode) & 0o177:
        raise Refused(
            "kek.mode_too_wide",
            f"{what} has mode {stat.S_IMODE(status.st_mode):04o}",
            where=str(path),
            hint="others may have read it: run `chmod 600`, and think about a new one",
        )
