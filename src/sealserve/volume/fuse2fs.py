"""ext4 mounted by ``fuse2fs``: e2fsprogs' own code, in user space, without root."""

from __future__ import annotations

import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from sealserve.errors import Unavailable
from sealserve.volume.child import end_process, lazy_unmount
from sealserve.volume.process import find_tool, is_mounted

__all__ = ["mount_by_fuse2fs"]

_OPTIONS: Final = "nodev,nosuid,noexec"
_START_TIMEOUT: Final = 30.0


def mount_by_fuse2fs(file: Path, mountpoint: Path, stack: ExitStack, *, write: bool) -> None:
    """Mount a file with an ext4 filesystem.

    Args:
        file: the filesystem.
        mountpoint: an empty directory.
        stack: takes what takes the mount down again.
        write: whether it can be written to; else its journal is left alone, too.

    Raises:
        Unavailable: ``volume.fuse2fs_failed``, ``volume.tool_missing``.
    """
    # fakeroot: files inside belong to root, and fuse2fs checks permissions itself;
    # the mount as a whole can be entered by this user only.
    access = "rw" if write else "ro,norecovery"
    command = [
        find_tool("fuse2fs"),
        "-f",
        "-o",
        f"{access},{_OPTIONS},fakeroot",
        str(file),
        str(mountpoint),
    ]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    stack.callback(lazy_unmount, mountpoint)
    stack.callback(end_process, process)
    deadline = time.monotonic() + _START_TIMEOUT
    while not is_mounted(mountpoint):
        if process.poll() is not None or time.monotonic() > deadline:
            raise Unavailable(
                "volume.fuse2fs_failed",
                f"fuse2fs did not mount the filesystem (status {process.poll()})",
                where=str(mountpoint),
                hint="can this user mount FUSE filesystems here?",
            )
        time.sleep(0.02)
