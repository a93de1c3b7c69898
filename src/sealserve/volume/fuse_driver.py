"""The ``fuse`` driver: user space all the way, no device-mapper, no root."""

from __future__ import annotations

from pathlib import Path

from sealserve.volume.child import FuseChild, require_fuse
from sealserve.volume.mapper import DriverName, locked_volume_file
from sealserve.volume.record import VolumeRecord

__all__ = ["FuseDriver"]


class FuseDriver:
    """Opens a volume in a child process that shows it as one file."""

    name: DriverName = "fuse"

    def require(self) -> None:
        """See `sealserve.volume.mapper.Driver`."""
        require_fuse()

    def open(
        self,
        path: Path,
        record: VolumeRecord,
        key: bytes | bytearray,
        mountpoint: Path,
        token: str | None = None,
    ) -> FuseMapping:
        """See `sealserve.volume.mapper.Driver`."""
        del token
        settings = {"record": record.to_json().decode(), "mountpoint": str(mountpoint)}
        write = record.kind == "writable"
        # The child inherits the descriptor, and the lock with it.
        with locked_volume_file(path, write=write) as descriptor:
            mode = "write" if write else "read"
            return FuseMapping(FuseChild(mode, descriptor, settings, key))


class FuseMapping:
    """The child's one file."""

    is_block_device = False

    def __init__(self, child: FuseChild) -> None:
        self._child = child

    @property
    def device(self) -> Path:
        """The decrypted volume as a file."""
        return self._child.file

    @property
    def pid(self) -> int:
        """Process id of the child, for logs."""
        return self._child.pid

    def close(self) -> None:
        """End the child; its mount goes with it."""
        self._child.close()
