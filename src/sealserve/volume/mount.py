"""Mount a volume, and take the mount away again without a trace.

Rules this module keeps:

* The file is checked against its record (size, hash tree, header digest and
  whitelist) before a key derivation or any other process starts.
* Mounts are ``nodev,nosuid,noexec``, and ``ro`` unless the record says writable: a
  model is data, never a program.
* Writing goes through the kernel driver. A filesystem that the kernel writes through
  a process of this machine can hang with it when memory is short, so the fuse driver
  writes only when it is asked to by a name that says so.
* Closing goes from the top down: filesystem, mapping, loop device. It can be
  repeated, and it runs by itself when something fails half way.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Literal, Self

import structlog

from sealserve.errors import InputError, Refused, Unavailable
from sealserve.volume import state as states
from sealserve.volume.drivers import driver_named
from sealserve.volume.engine import check_file, check_key, check_writable
from sealserve.volume.fuse2fs import mount_by_fuse2fs
from sealserve.volume.keeper import Keeper
from sealserve.volume.kernel_driver import loop_device
from sealserve.volume.mapper import Driver, DriverName, Mapping, open_volume_file
from sealserve.volume.process import Runner, is_mounted, run
from sealserve.volume.record import VolumeRecord
from sealserve.volume.state import MountState
from sealserve.volume.takedown import unmount

__all__ = ["Mount", "mount_sealed", "mount_writable"]

_OPTIONS: Final = "nodev,nosuid,noexec"

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

    @property
    def is_up(self) -> bool:
        """False once somebody else has unmounted it; `close` is still needed then."""
        return is_mounted(self.mountpoint)

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
    chosen = _driver(driver, runner)
    check_key(key, record)
    with open_volume_file(path) as descriptor:
        check_file(descriptor, record)
    return _mount(path, record, key, mountpoint, chosen, runner)


def mount_writable(
    path: Path,
    record: VolumeRecord,
    key: bytes | bytearray,
    mountpoint: Path,
    *,
    driver: str | Driver,
    development: bool = False,
    runner: Runner = run,
) -> Mount:
    """Check, open and mount a writable volume.

    Args:
        path: the volume file.
        record: its record, of kind ``writable``.
        key: the volume key; the caller wipes its own copy.
        mountpoint: as for `mount_sealed`.
        driver: ``"kernel"``; ``"fuse"`` only together with ``development``.
        development: allow the fuse driver to write. Not for production: see above.
        runner: as for `mount_sealed`.

    Raises:
        Refused: as `sealserve.volume.engine.check_writable` and `check_key`;
            ``volume.fuse_writable``.
        InputError: as `mount_sealed`, and ``volume.in_use``.
        Unavailable: as `mount_sealed`.
    """
    chosen = _driver(driver, runner)
    if chosen.name == "fuse" and not development:
        raise Refused(
            "volume.fuse_writable",
            "the fuse driver writes only in development: it can hang when memory is short",
            hint="use the driver kernel, or say --development",
        )
    check_key(key, record)
    with open_volume_file(path) as descriptor:
        check_writable(descriptor, record)
    if chosen.name == "fuse":
        _log.warning("volume_writable_by_fuse", volume=record.name, note="DEVELOPMENT ONLY")
    return _mount(path, record, key, mountpoint, chosen, runner)


def _driver(driver: str | Driver, runner: Runner) -> Driver:
    return driver_named(driver, runner) if isinstance(driver, str) else driver


def _mount(
    path: Path,
    record: VolumeRecord,
    key: bytes | bytearray,
    mountpoint: Path,
    driver: Driver,
    runner: Runner,
) -> Mount:
    """Open and mount a volume whose file has been checked."""
    driver.require()
    by: Literal["kernel", "fuse2fs"] = "kernel"
    if driver.name == "fuse" and not _is_real_root():
        by = "fuse2fs"
        if record.filesystem != "ext4":
            raise Unavailable(
                "volume.filesystem_unsupported",
                f"without root, {record.filesystem} cannot be mounted",
                hint="read it with `volume extract`, or mount it as root",
            )
    with ExitStack() as stack:
        mountpoint, made = _prepare(mountpoint, stack)
        token = secrets.token_hex(4)
        _hold(path, record, mountpoint, made, driver.name, token, stack)
        mapping = driver.open(path, record, key, mountpoint, token)
        stack.callback(mapping.close)
        if by == "kernel":
            _mount_by_kernel(mapping, record, mountpoint, runner, stack)
        else:
            write = record.kind == "writable"
            mount_by_fuse2fs(mapping.device, mountpoint, stack, write=write)
        _log.info(
            "volume_mounted",
            volume=record.name,
            version=record.version,
            kind=record.kind,
            driver=driver.name,
            filesystem_by=by,
            reason="rootless: only root may mount ext4" if by == "fuse2fs" else "running as root",
        )
        return Mount(mountpoint, driver.name, by, stack.pop_all())


def _hold(
    path: Path,
    record: VolumeRecord,
    mountpoint: Path,
    made: bool,
    driver: DriverName,
    token: str,
    stack: ExitStack,
) -> None:
    """Announce the mount, and see to it that a kernel mount goes with this process."""
    state = MountState.of_this_process(
        mountpoint=str(mountpoint),
        made=made,
        volume=str(path.resolve()),
        name=record.name,
        version=record.version,
        uuid=record.uuid,
        kind=record.kind,
        driver=driver,
        token=token,
    )
    announced = state.announce()
    if not announced:
        _log.info("volume_unannounced", reason="cannot write below /run")
    if announced and driver == "kernel":
        stack.callback(Keeper(mountpoint).close)
    stack.callback(states.forget, mountpoint)


def _prepare(mountpoint: Path, stack: ExitStack) -> tuple[Path, bool]:
    """An empty directory at the mount point; its resolved path, and whether it is new."""
    mountpoint = mountpoint.resolve()
    made = False
    try:
        mountpoint.mkdir(mode=0o700)
        stack.callback(_remove_directory, mountpoint)
        made = True
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
            hint="`volume unmount` takes a volume away",
        )
    if not mountpoint.is_dir() or any(mountpoint.iterdir()):
        raise InputError("volume.mountpoint", "not an empty directory", where=str(mountpoint))
    return mountpoint, made


def _remove_directory(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.rmdir()


def _is_real_root() -> bool:
    """Root of the machine: root of a user namespace may not mount block devices."""
    if os.geteuid() != 0:
        return False
    return Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]


def _mount_by_kernel(
    mapping: Mapping, record: VolumeRecord, mountpoint: Path, runner: Runner, stack: ExitStack
) -> None:
    _require_filesystem(record, runner)
    write = record.kind == "writable"
    options = f"rw,{_OPTIONS}" if write else f"ro,{_OPTIONS}"
    if record.filesystem == "ext4" and not write:
        options += ",noload"
    command = ["mount", "-t", record.filesystem, "-o", options, "--"]
    # Registered first: if `mount` is cut off after the kernel did its work, the mount goes too.
    stack.callback(_unmount, mountpoint, runner)
    if mapping.is_block_device:
        runner([*command, str(mapping.device), str(mountpoint)])
        return
    # A detached loop device stays for as long as it is mounted and vanishes with
    # the mount: even a crash of ours leaves none behind.
    with loop_device(mapping.device, runner, read_only=not write) as device:
        runner([*command, device, str(mountpoint)])


def _require_filesystem(record: VolumeRecord, runner: Runner) -> None:
    """ext4 is everywhere; another one may be a module, or missing."""
    if record.filesystem == "ext4" or _kernel_has(record.filesystem):
        return
    with contextlib.suppress(Unavailable):
        runner(["modprobe", record.filesystem])
    if not _kernel_has(record.filesystem):
        raise Unavailable(
            "volume.filesystem_unsupported",
            f"this kernel has no {record.filesystem}",
            hint="load its module, or make the volume with --fs ext4",
        )


def _kernel_has(filesystem: str) -> bool:
    return filesystem in Path("/proc/filesystems").read_text().split()


def _unmount(mountpoint: Path, runner: Runner) -> None:
    if not unmount(mountpoint, runner):
        _log.warning("volume_busy", mountpoint=str(mountpoint), action="unmounted lazily")
