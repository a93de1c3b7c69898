"""How a volume's inside becomes something that can be mounted: the interface of drivers.

Rules this module keeps:

* An open volume is locked with flock(2): a sealed one shared, a writable one
  exclusively, by whoever serves it, for as long as it does. Two writers of one
  filesystem destroy it.
* A loop device that a crash left behind holds no lock, so it is looked for too.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Protocol

from sealserve.errors import InputError, Unavailable
from sealserve.volume.process import filesystem_type
from sealserve.volume.record import VolumeRecord

__all__ = ["Driver", "DriverName", "Mapping", "locked_volume_file", "loops_on", "open_volume_file"]

DriverName = Literal["kernel", "fuse"]


class Mapping(Protocol):
    """An opened volume, not yet mounted."""

    @property
    def device(self) -> Path:
        """A block device or a file: the decrypted, verified filesystem."""

    @property
    def is_block_device(self) -> bool:
        """Whether `device` can be mounted without a loop device."""

    def close(self) -> None:
        """Take everything down again, in order; harmless when repeated."""


class Driver(Protocol):
    """A way to open volumes."""

    @property
    def name(self) -> DriverName:
        """The name it is asked for by."""

    def require(self) -> None:
        """Raise Unavailable, with the reason, if this machine cannot run the driver."""

    def open(
        self,
        path: Path,
        record: VolumeRecord,
        key: bytes | bytearray,
        mountpoint: Path,
        token: str | None = None,
    ) -> Mapping:
        """Open a volume, a writable one for writing; on failure nothing is left behind.

        Args:
            path: the volume file.
            record: its record; the file has been checked against it.
            key: the volume key.
            mountpoint: where the inside will be mounted.
            token: the last part of the names of what is set up; random if absent.
        """


@contextmanager
def open_volume_file(path: Path, *, write: bool = False) -> Iterator[int]:
    """A volume file as a descriptor, for reading, or for both.

    Raises:
        Unavailable: ``volume.unreadable``, also for errors of the disk while the block runs.
    """
    try:
        # O_NONBLOCK: a pipe in place of the file must not make us wait for its writer.
        access = os.O_RDWR if write else os.O_RDONLY
        descriptor = os.open(path, access | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
    except OSError as error:
        raise Unavailable(
            "volume.unreadable", f"cannot use the volume: {error.strerror}", where=str(path)
        ) from None


@contextmanager
def locked_volume_file(path: Path, *, write: bool = False) -> Iterator[int]:
    """As `open_volume_file`, and locked: exclusively for writing, else shared.

    Raises:
        InputError: ``volume.in_use``.
    """
    with open_volume_file(path, write=write) as descriptor:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if write else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                "volume.in_use",
                "the volume is open already, or is being changed",
                where=str(path),
                hint="`volume list` shows who has it",
            ) from None
        if write and (loops := loops_on(path)):
            raise InputError(
                "volume.in_use",
                f"{loops[0]} still stands on the volume",
                where=str(path),
                hint="if nothing uses it, `volume doctor --fix` takes it away",
            )
        yield descriptor


def loops_on(path: Path) -> list[str]:
    """The loop devices that stand on a file.

    What stands on a file of FUSE is compared by its name alone: that file's process may
    hang, and then whoever looks at the file hangs with it.
    """
    try:
        resolved = path.resolve()
        wanted = resolved.stat()
    except OSError:
        return []
    found = []
    for backing in sorted(Path("/sys/block").glob("loop*/loop/backing_file")):
        try:
            name = backing.read_text().removesuffix("\n")
            if name != str(resolved):
                if filesystem_type(name).startswith("fuse"):
                    continue
                status = Path(name).stat()
                if (status.st_dev, status.st_ino) != (wanted.st_dev, wanted.st_ino):
                    continue
        except OSError:  # gone in the meantime
            continue
        found.append(f"/dev/{backing.parent.parent.name}")
    return found
