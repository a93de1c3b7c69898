"""How a sealed volume's inside becomes something that can be mounted: the interface of drivers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Protocol

from sealserve.errors import Unavailable
from sealserve.volume.record import VolumeRecord

__all__ = ["Driver", "DriverName", "Mapping", "open_volume_file"]

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
        self, path: Path, record: VolumeRecord, key: bytes | bytearray, mountpoint: Path
    ) -> Mapping:
        """Open a volume; on failure nothing is left behind.

        Args:
            path: the sealed file.
            record: its record; the file has been checked against it.
            key: the volume key.
            mountpoint: where the inside will be mounted.
        """


@contextmanager
def open_volume_file(path: Path) -> Iterator[int]:
    """A volume file as a descriptor, for reading.

    Raises:
        Unavailable: ``volume.unreadable``, also for errors of the disk while the block runs.
    """
    try:
        # O_NONBLOCK: a pipe in place of the file must not make us wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
    except OSError as error:
        raise Unavailable(
            "volume.unreadable", f"cannot read the volume: {error.strerror}", where=str(path)
        ) from None
