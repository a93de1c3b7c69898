"""The ``kernel`` driver: loop device, dm-verity over the whole file, dm-crypt on top.

A writable volume has no verity: dm-crypt stands on the loop device.

Rules this module keeps:

* The order is the security: verity first, with geometry and root hash from the
  record. Everything later, the LUKS2 header included, is read *through* the
  verity device, so nothing can change between a check and its use.
* The header is compared with the record and held against the whitelist before
  ``cryptsetup`` sees it. That of a writable volume is copied into memory first and
  ``cryptsetup`` gets that copy: on the disk the host could change it meanwhile.
* What was set up is taken down in reverse order, also after a failure half way. A
  loop device is detached as soon as something stands on it: it stays for as long as
  that does, and no number has to be kept that may be somebody else's later.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from sealserve.errors import Unavailable
from sealserve.volume.cipher import XTS_KEY_SIZE
from sealserve.volume.engine import check_header, check_writable, layout_of
from sealserve.volume.luks2 import parse_header
from sealserve.volume.mapper import DriverName, locked_volume_file, open_volume_file
from sealserve.volume.process import Runner, find_tool, run, secret_pipe
from sealserve.volume.record import BLOCK_SIZE, VolumeRecord
from sealserve.volume.takedown import close_mapping
from sealserve.volume.verity import read_exactly

__all__ = ["KernelDriver", "attach_loop", "loop_device"]

_OPEN_TIMEOUT: Final = 120.0


class KernelDriver:
    """Opens a volume by the kernel's own device-mapper targets."""

    name: DriverName = "kernel"

    def __init__(
        self,
        runner: Runner = run,
        *,
        mapper_directory: Path = Path("/dev/mapper"),
        misc_devices: Path = Path("/proc/misc"),
    ) -> None:
        """Set up the driver.

        Args:
            runner: runs the programs.
            mapper_directory: where device-mapper devices appear.
            misc_devices: the kernel's table that names device-mapper.
        """
        self._run = runner
        self._mapper_directory = mapper_directory
        self._misc_devices = misc_devices

    def require(self) -> None:
        """See `sealserve.volume.mapper.Driver`.

        Raises:
            Unavailable: ``volume.kernel_driver``, ``volume.tool_missing``.
        """
        if os.geteuid() != 0:
            raise Unavailable(
                "volume.kernel_driver",
                "the kernel driver needs root",
                hint="run as root, or choose the driver fuse",
            )
        if "device-mapper" not in self._misc_devices.read_text().split():
            raise Unavailable(
                "volume.kernel_driver",
                "this kernel has no device-mapper",
                hint="modprobe dm_mod dm_verity dm_crypt, or choose the driver fuse",
            )
        for tool in ("losetup", "veritysetup", "cryptsetup"):
            find_tool(tool)

    def open(
        self,
        path: Path,
        record: VolumeRecord,
        key: bytes | bytearray,
        mountpoint: Path,
        token: str | None = None,
    ) -> KernelMapping:
        """See `sealserve.volume.mapper.Driver`."""
        del mountpoint
        # Random, so that a name left over from a crash can not be mistaken for ours.
        name = f"sealserve-{record.uuid}-{token or secrets.token_hex(4)}"
        with ExitStack() as stack:
            if record.kind == "writable":
                self._open_writable(path, record, key, name, stack)
            else:
                self._open_sealed(path, record, key, name, stack)
            return KernelMapping(self._mapper_directory / name, stack.pop_all())

    def _open_sealed(
        self,
        path: Path,
        record: VolumeRecord,
        key: bytes | bytearray,
        name: str,
        stack: ExitStack,
    ) -> None:
        stack.enter_context(locked_volume_file(path))
        with loop_device(path, self._run) as loop:
            self._set_up(_verity_command(record, loop, f"{name}-verity"), f"{name}-verity", stack)
        verified = self._mapper_directory / f"{name}-verity"
        self._check_header(verified, record)
        with secret_pipe(key) as reader:
            command = _crypt_command(str(verified), name, reader, len(key), ["--readonly"])
            self._set_up(command, name, stack, pass_fds=[reader])

    def _open_writable(
        self,
        path: Path,
        record: VolumeRecord,
        key: bytes | bytearray,
        name: str,
        stack: ExitStack,
    ) -> None:
        descriptor = stack.enter_context(locked_volume_file(path, write=True))
        _, area = check_writable(descriptor, record)
        with (
            loop_device(path, self._run, read_only=False) as loop,
            os.fdopen(os.memfd_create("header"), "wb") as copy,
            secret_pipe(key) as reader,
        ):
            copy.write(area)
            copy.flush()
            header = [f"--header=/proc/self/fd/{copy.fileno()}"]
            command = _crypt_command(loop, name, reader, len(key), header)
            self._set_up(command, name, stack, pass_fds=[reader, copy.fileno()])

    def _set_up(
        self, command: list[str], name: str, stack: ExitStack, *, pass_fds: Sequence[int] = ()
    ) -> None:
        """Run a program that makes a device; the device goes with the stack."""
        program = command[0]
        try:
            self._run(command, pass_fds=pass_fds, timeout=_OPEN_TIMEOUT)
        except BaseException:
            # Cut off between its work and its answer.
            if (self._mapper_directory / name).exists():
                self._close(program, name)
            raise
        stack.callback(self._close, program, name)

    def _close(self, program: str, name: str) -> None:
        close_mapping(program, name, self._run, mapper_directory=self._mapper_directory)

    def _check_header(self, device: Path, record: VolumeRecord) -> None:
        with open_volume_file(device) as descriptor:
            area = read_exactly(descriptor, record.header.size, 0)
        check_header(area, record)
        parse_header(area, uuid=record.uuid, layout=layout_of(record))


class KernelMapping:
    """A dm-crypt device on a dm-verity device on a loop device."""

    is_block_device = True

    def __init__(self, device: Path, undo: ExitStack) -> None:
        self._device = device
        self._undo = undo

    @property
    def device(self) -> Path:
        """The dm-crypt device."""
        return self._device

    def close(self) -> None:
        """dm-crypt, dm-verity and with it the loop device, in this order."""
        self._undo.close()


@contextlib.contextmanager
def loop_device(path: Path, runner: Runner, *, read_only: bool = True) -> Iterator[str]:
    """A loop device that lasts as long as the block, or what the block set up on it."""
    device = attach_loop(path, runner, read_only=read_only)
    try:
        yield device
    finally:
        _detach_loop(device, runner)


def _detach_loop(device: str, runner: Runner) -> None:
    """Once more if it did not work: nobody else would ever take this device away."""
    try:
        runner(["losetup", "--detach", device])
    except Unavailable:
        # 1: it goes with its last user. Not there: it has gone.
        autoclear = Path("/sys/block", Path(device).name, "loop/autoclear")
        if autoclear.exists() and autoclear.read_text().strip() == "0":
            runner(["losetup", "--detach", device])


def attach_loop(path: Path, runner: Runner, *, read_only: bool = True) -> str:
    """Attach a loop device to a file; returns the device's path."""
    access = ["--read-only"] if read_only else []
    command = ["losetup", *access, "--direct-io=on", "--find", "--show", "--", str(path)]
    try:
        return runner(command).strip()
    except BaseException:
        # Cut off between its work and its answer: the file still knows its device.
        listing = ["losetup", "--noheadings", "--output=NAME", "--associated", str(path)]
        for device in runner(listing).split():
            _detach_loop(device, runner)
        raise


def _verity_command(record: VolumeRecord, loop: str, name: str) -> list[str]:
    verity = record.tree
    return [
        "veritysetup",
        "open",
        "--no-superblock",
        "--format=1",
        f"--hash={verity.algorithm}",
        f"--data-block-size={BLOCK_SIZE}",
        f"--hash-block-size={BLOCK_SIZE}",
        f"--data-blocks={verity.data_blocks}",
        f"--hash-offset={verity.hash_offset}",
        f"--salt={verity.salt}",
        loop,
        name,
        loop,
        verity.root_hash,
    ]


def _crypt_command(
    device: str, name: str, key_reader: int, key_size: int, options: list[str]
) -> list[str]:
    key_file = f"/proc/self/fd/{key_reader}"
    if key_size == XTS_KEY_SIZE:
        key = [f"--volume-key-file={key_file}"]
    else:
        key = ["--key-slot=0", f"--key-file={key_file}"]
    return [
        "cryptsetup",
        "open",
        "--type=luks2",
        "--batch-mode",
        "--tries=1",
        *options,
        *key,
        device,
        name,
    ]
