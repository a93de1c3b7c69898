"""Give a writable volume more room, while it is not mounted.

The file grows first, then the filesystem: interrupted in between, the volume is as it
was, in a larger file.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from sealserve.errors import InputError
from sealserve.volume.drivers import driver_named
from sealserve.volume.engine import check_key, check_writable
from sealserve.volume.mapper import Driver, locked_volume_file
from sealserve.volume.process import Runner, run
from sealserve.volume.record import BLOCK_SIZE, VolumeRecord

__all__ = ["grow"]

_TIMEOUT: Final = 3600.0
_CORRECTED: Final = 1  # e2fsck(8): errors were found, and are no more


def grow(
    path: Path,
    record: VolumeRecord,
    key: bytes | bytearray,
    size: int,
    *,
    driver: str | Driver,
    runner: Runner = run,
) -> int:
    """Grow a volume's file and its filesystem.

    Args:
        path: the volume file.
        record: its record, of kind ``writable``; it stays valid.
        key: the volume key.
        size: bytes that the filesystem is to have, a multiple of 4096.
        driver: as for mounting.
        runner: runs the system's programs.

    Returns:
        Bytes of the filesystem before.

    Raises:
        InputError: ``volume.size`` when that is not more than it has; ``volume.in_use``.
        Refused: as `sealserve.volume.engine.check_writable` and `check_key`.
        Unavailable: as mounting.
    """
    chosen = driver_named(driver, runner) if isinstance(driver, str) else driver
    chosen.require()
    check_key(key, record)
    with locked_volume_file(path, write=True) as descriptor:
        check_writable(descriptor, record)
        before = os.fstat(descriptor).st_size - record.segment_offset
        if size <= before or size % BLOCK_SIZE:
            raise InputError(
                "volume.size",
                f"{size} bytes: not a multiple of {BLOCK_SIZE} larger than the {before} there are",
                where=str(path),
            )
        os.ftruncate(descriptor, record.segment_offset + size)
        os.fsync(descriptor)
    mapping = chosen.open(path, record, key, path)
    try:
        # resize2fs insists on a check since the last mount.
        runner(
            ["e2fsck", "-f", "-p", str(mapping.device)], timeout=_TIMEOUT, accept=(0, _CORRECTED)
        )
        runner(["resize2fs", str(mapping.device)], timeout=_TIMEOUT)
    finally:
        mapping.close()
    return before
