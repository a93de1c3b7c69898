"""A disk that can be told to fail: ``python -m tests.broker.faulty_disk BACKING MOUNTPOINT FAULT``.

A FUSE filesystem that hands everything on to the directory BACKING, except that
while the file FAULT holds an errno's name (``ENOSPC``, ``EROFS``, ``EIO``), every
call that would change something fails with it. An empty FAULT is a sound disk.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mfusepy


class _FaultyDisk(mfusepy.Operations):  # type: ignore[misc]
    use_ns = True

    def __init__(self, backing: Path, fault: Path) -> None:
        self._backing = backing
        self._fault = fault

    def _at(self, path: str) -> Path:
        return self._backing / path.removeprefix("/")

    def _sound(self) -> None:
        name = self._fault.read_text().strip()
        if name:
            raise mfusepy.FuseOSError(getattr(errno, name))

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        status = os.fstat(fh) if fh is not None else self._at(path).lstat()
        names = ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_blocks", "st_mtime_ns")
        values = {name: getattr(status, name) for name in names}
        values["st_mtime"] = values.pop("st_mtime_ns")
        return values

    def readdir(self, path: str, fh: int) -> Iterable[str]:
        return [".", "..", *(each.name for each in self._at(path).iterdir())]

    def open(self, path: str, flags: int) -> int:
        return os.open(self._at(path), flags)

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        self._sound()
        return os.open(self._at(path), os.O_RDWR | os.O_CREAT, mode)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        self._sound()
        return os.pwrite(fh, data, offset)

    def truncate(self, path: str, length: int, fh: int | None = None) -> None:
        self._sound()
        os.truncate(self._at(path), length)

    def fsync(self, path: str, datasync: int, fh: int) -> None:
        self._sound()
        os.fsync(fh)

    def unlink(self, path: str) -> None:
        self._sound()
        self._at(path).unlink()

    def rename(self, old: str, new: str) -> None:
        self._sound()
        self._at(old).rename(self._at(new))

    def mkdir(self, path: str, mode: int) -> None:
        self._sound()
        self._at(path).mkdir(mode)

    def chmod(self, path: str, mode: int) -> None:
        self._sound()
        self._at(path).chmod(mode)

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> None:
        self._sound()

    def release(self, path: str, fh: int) -> None:
        os.close(fh)


if __name__ == "__main__":
    mfusepy.FUSE(
        _FaultyDisk(Path(sys.argv[1]), Path(sys.argv[3])),
        sys.argv[2],
        foreground=True,
        nothreads=True,
    )
