"""Mount a sealed volume, and take the mount away again without a trace.

Rules this module keeps:

* The file is checked against its record (size, hash tree, header digest and
  whitelist) before a key derivation or any other process starts.
* Mounts are ``ro,nodev,nosuid,noexec``: a model is data, never a program.
* Closing goes from the top down: filesystem, mapping, loop device. It can be
  repeated, and it runs by itself when something fails half way.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Literal, Self

import structlog

from sealserve.errors import InputError, Unavailable
from sealserve.volume.child import end_process, lazy_unmount
from sealserve.volume.drivers import driver_named
from sealserve.volume.engine import check_file, check_key
from sealserve.volume.kernel_driver import attach_loop
from sealserve.volume.mapper import Driver, Mapping, open_volume_file
from sealserve.volume.process import Runner, find_tool, is_mounted, run
from sealserve.volume.record import VolumeRecord

__all__ = ["Mount", "mount_sealed"]

_OPTIONS: Final = "ro,nodev,nosuid,noexec"
_UNMOUNT_ATTEMPTS: Final = 20
_UNMOUNT_PAUSE: Final = 0.1
_START_TIMEOUT: Final = 30.0

_log = structlog.get_logger("sealserve.volume")


class Mount:
    """A mounted volume. A context manager; `close` takes it down.

    Attributes:
        mountpoint: where the models are.
        driver: name of the driver that opened it.
        filesystem_by: ``kernel`` (mounted by the kernel) or ``fuse2fs`` (rootless).
    """

    def __init__(
        self,
        mountpoint: Path,
        driver: str,
        filesystem_by: Literal["kernel", "fuse2fs"],
        undo: ExitStack,
    ) -> None:
        self.mountpoint = mountpoint
        self.driver = driver
        self.filesystem_by = filesystem_by
        self._undo = undo

    def close(self) -> None:
        """Filesystem, mapping, loop device: all gone, in this order. Harmless when repeated."""
        self._undo.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def mount_sealed(
    path: Path,
    record: VolumeRecord,
    key: bytes | bytearray,
    mountpoint: Path,
    *,
    driver: str | Driver,
    runner: Runner = run,
) -> Mount:
    """Check, open and mount a sealed volume.

    Args:
        path: the sealed file.
        record: its record, from `sealserve.volume.record.open_record`.
        key: the volume key, 32 bytes; the caller wipes its own copy.
        mountpoint: an empty directory, or a path at which one is made (and removed again).
        driver: ``"kernel"`` or ``"fuse"``; never chosen by this function.
        runner: runs the system's programs; tests put their own in its place.

    Returns:
        The mount.

    Raises:
        Refused: the file or the key is not what the record says (see
            `sealserve.volume.engine.check_file` and `check_key`).
        InputError: ``volume.mountpoint``, ``volume.driver_unknown``, ``volume.key_size``.
        Unavailable: ``volume.unreadable``, ``volume.kernel_driver``, ``volume.fuse_missing``,
            ``volume.fuse_failed``, ``volume.tool_missing``, ``volume.tool_failed``.
    """
    chosen = driver_named(driver, runner) if isinstance(driver, str) else driver
    check_key(key, record)
    with open_volume_file(path) as descriptor:
        check_file(descriptor, record)
    chosen.require()
    with ExitStack() as stack:
        mountpoint = _prepare(mountpoint, stack)
        mapping = chosen.open(path, record, key, mountpoint)
        stack.callback(mapping.close)
        if mapping.is_block_device or _is_real_root():
            by: Literal["kernel", "fuse2fs"] = "kernel"
            _mount_by_kernel(mapping, mountpoint, runner, stack)
        else:
            by = "fuse2fs"
            _mount_by_fuse2fs(mapping, mountpoint, stack)
        _log.info(
            "volume_mounted",
            volume=record.name,
            version=record.version,
            driver=chosen.name,
            filesystem_by=by,
            reason="rootless: only root may mount ext4" if by == "fuse2fs" else "running as root",
        )
        return Mount(mountpoint, chosen.name, by, stack.pop_all())


def _prepare(mountpoint: Path, stack: ExitStack) -> Path:
    """An empty directory at the mount point; its resolved path."""
    mountpoint = mountpoint.resolve()
    try:
        mountpoint.mkdir(mode=0o700)
        stack.callback(_remove_directory, mountpoint)
    except FileExistsError:
        pass
    except OSError as error:
        raise InputError(
            "volume.mountpoint", f"cannot make it: {error.strerror}", where=str(mountpoint)
        ) from None
    if is_mounted(mountpoint):
        raise InputError(
            "volume.mountpoint",
            "something is mounted there already",
            where=str(mountpoint),
            hint=f"umount {mountpoint}",
        )
    if not mountpoint.is_dir() or any(mountpoint.iterdir()):
        raise InputError("volume.mountpoint", "not an empty directory", where=str(mountpoint))
    return mountpoint


def _remove_directory(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.rmdir()


def _is_real_root() -> bool:
    """Root of the machine: root of a user namespace may not mount block devices."""
    if os.geteuid() != 0:
        return False
    return Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]


def _mount_by_kernel(mapping: Mapping, mountpoint: Path, runner: Runner, stack: ExitStack) -> None:
    device = str(mapping.device)
    # Registered first: if `mount` is cut off after the kernel did its work, the mount goes too.
    stack.callback(_unmount, mountpoint, runner)
    with ExitStack() as loop:
        if not mapping.is_block_device:
            device = attach_loop(mapping.device, runner)
            # A detached loop device stays for as long as it is mounted and
            # vanishes with the mount: even a crash of ours leaves none behind.
            loop.callback(runner, ["losetup", "--detach", device])
        runner(["mount", "-t", "ext4", "-o", f"{_OPTIONS},noload", "--", device, str(mountpoint)])


def _unmount(mountpoint: Path, runner: Runner) -> None:
    """Unmount; after two seconds of "busy" from under whoever still holds a file open."""
    for _ in range(_UNMOUNT_ATTEMPTS):
        if not is_mounted(mountpoint):
            return
        try:
            runner(["umount", "--", str(mountpoint)])
        except Unavailable:
            time.sleep(_UNMOUNT_PAUSE)
    if is_mounted(mountpoint):
        _log.warning("volume_busy", mountpoint=str(mountpoint), action="unmounted lazily")
        lazy_unmount(mountpoint)


def _mount_by_fuse2fs(mapping: Mapping, mountpoint: Path, stack: ExitStack) -> None:
    # fakeroot: files inside belong to root, and fuse2fs checks permissions itself;
    # the mount as a whole can be entered by this user only.
    command = [
        find_tool("fuse2fs"),
        "-f",
        "-o",
        f"{_OPTIONS},norecovery,fakeroot",
        str(mapping.device),
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
