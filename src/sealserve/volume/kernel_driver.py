"""The ``kernel`` driver: loop device, dm-verity over the whole file, dm-crypt on top.

Rules this module keeps:

* The order is the security: verity first, with geometry and root hash from the
  record. Everything later, the LUKS2 header included, is read *through* the
  verity device, so nothing can change between a check and its use.
* The header is compared with the record and held against the whitelist before
  ``cryptsetup`` sees it.
* What was set up is taken down in reverse order, also after a failure half way.
"""

from __future__ import annotations

import os
import secrets
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from sealserve.errors import Unavailable
from sealserve.volume.engine import check_header, layout_of
from sealserve.volume.luks2 import parse_header
from sealserve.volume.mapper import DriverName, open_volume_file
from sealserve.volume.process import Runner, find_tool, run, secret_pipe
from sealserve.volume.record import BLOCK_SIZE, VolumeRecord
from sealserve.volume.verity import read_exactly

__all__ = ["KernelDriver", "attach_loop"]

_CRYPT_TIMEOUT: Final = 120.0


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
        self, path: Path, record: VolumeRecord, key: bytes | bytearray, mountpoint: Path
    ) -> KernelMapping:
        """See `sealserve.volume.mapper.Driver`."""
        del mountpoint
        # Random, so that a name left over from a crash can not be mistaken for ours.
        name = f"sealserve-{record.uuid}-{secrets.token_hex(4)}"
        with ExitStack() as stack:
            loop = attach_loop(path, self._run)
            stack.callback(self._run, ["losetup", "--detach", loop])
            self._run(_verity_command(record, loop, f"{name}-verity"))
            stack.callback(self._run, ["veritysetup", "close", f"{name}-verity"])
            verified = self._mapper_directory / f"{name}-verity"
            self._check_header(verified, record)
            with secret_pipe(key) as reader:
                command = _crypt_command(verified, name, reader)
                self._run(command, pass_fds=[reader], timeout=_CRYPT_TIMEOUT)
            stack.callback(self._run, ["cryptsetup", "close", name])
            return KernelMapping(self._mapper_directory / name, stack.pop_all())

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
        """dm-crypt, dm-verity, loop device, in this order."""
        self._undo.close()


def attach_loop(path: Path, runner: Runner) -> str:
    """Attach a read-only loop device to a file; returns the device's path."""
    command = ["losetup", "--read-only", "--direct-io=on", "--find", "--show", "--", str(path)]
    try:
        return runner(command).strip()
    except BaseException:
        # Cut off between its work and its answer: the file still knows its device.
        listing = ["losetup", "--noheadings", "--output=NAME", "--associated", str(path)]
        for device in runner(listing).split():
            runner(["losetup", "--detach", device])
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


def _crypt_command(device: Path, name: str, key_reader: int) -> list[str]:
    return [
        "cryptsetup",
        "open",
        "--type=luks2",
        "--readonly",
        "--batch-mode",
        "--tries=1",
        "--key-slot=0",
        f"--key-file=/proc/self/fd/{key_reader}",
        str(device),
        name,
    ]
