"""LUKS volumes that others made: opened read-only, without root and device-mapper.

Rules this module keeps:

* `sealserve.volume.foreign_header` accepts the header before anything else is done.
* ``cryptsetup`` opens the keyslots, of which there are many kinds, and it does so on a
  copy in memory of the header that was accepted; the passphrase goes to it and the volume
  key comes from it through memory, never by way of a disk.
* Nothing vouches for what is inside. It is decrypted by our engine, checked by
  ``e2fsck`` and read by ``fuse2fs``: e2fsprogs in user space. The kernel never mounts it.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import struct
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sealserve.errors import InputError, Refused, Unavailable
from sealserve.volume.child import DIRECTORY_PREFIX, FuseChild
from sealserve.volume.cipher import XTS_KEY_SIZE, sector_cipher, wipe
from sealserve.volume.engine import PlainView
from sealserve.volume.foreign_header import MAX_AREA, ForeignHeader, parse_foreign
from sealserve.volume.fuse2fs import mount_by_fuse2fs
from sealserve.volume.mapper import locked_volume_file, loops_on
from sealserve.volume.process import Runner, read_key, run, secret_pipe
from sealserve.volume.verity import read_exactly

__all__ = ["MAX_PASSPHRASE", "Foreign", "files_of", "open_foreign"]

MAX_PASSPHRASE: Final = 4096
"""Bytes of the longest passphrase."""

_KEYSLOT_TIMEOUT: Final = 600.0  # 32 keyslots, each at its bound
_CHECK_TIMEOUT: Final = 3600.0
_DUMP_LIMIT: Final = 65536
_NO_KEY: Final = 2  # cryptsetup(8), RETURN CODES: no permission (bad passphrase)


@dataclass(frozen=True)
class Foreign:
    """A volume of others, opened.

    Attributes:
        descriptor: its file, locked.
        header: what was accepted.
        area: the header as it was read.
        size: bytes of the encrypted segment, whole sectors.
        volume_key: of LUKS; wiped when the volume is closed.
        block_size: bytes of a block of the ext4 filesystem inside.
    """

    descriptor: int
    header: ForeignHeader
    area: bytes
    size: int
    volume_key: bytearray
    block_size: int


@contextmanager
def open_foreign(
    path: Path, passphrase: bytes | bytearray, runner: Runner = run
) -> Iterator[Foreign]:
    """Open a LUKS1 or LUKS2 volume with an ext4 filesystem inside.

    Args:
        path: its file.
        passphrase: of any keyslot, byte for byte.
        runner: runs the system's programs.

    Raises:
        InputError: ``volume.passphrase_size``, ``volume.in_use``, ``volume.foreign_kind``.
        Refused: ``volume.foreign_refused``, ``volume.foreign_passphrase``,
            ``volume.size_mismatch`` (truncated), ``volume.foreign_filesystem``,
            ``volume.foreign_unclean``.
        Unavailable: ``volume.unreadable``, ``volume.tool_missing``, ``volume.tool_failed``.
    """
    if not 0 < len(passphrase) <= MAX_PASSPHRASE:
        raise InputError(
            "volume.passphrase_size",
            f"a passphrase has 1 to {MAX_PASSPHRASE} bytes, not {len(passphrase)}",
        )
    with locked_volume_file(path) as descriptor:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InputError("volume.foreign_kind", "not an ordinary file", where=str(path))
        if loops := loops_on(path):
            raise InputError(
                "volume.in_use",
                f"{loops[0]} stands on the volume: it may be mounted",
                where=str(path),
                hint="unmount it first; the original's scripts leave loop devices behind: "
                f"`losetup -d {loops[0]}`",
            )
        area = bytes(read_exactly(descriptor, min(status.st_size, MAX_AREA), 0))
        header = parse_foreign(area)
        size = (status.st_size - header.start) // header.unit * header.unit
        volume_key = _volume_key(area[: header.size], passphrase, runner)
        try:
            block_size = _look_inside(descriptor, header, size, volume_key)
            yield Foreign(descriptor, header, area[: header.start], size, volume_key, block_size)
        finally:
            wipe(volume_key)


@contextmanager
def files_of(foreign: Foreign, runner: Runner = run) -> Iterator[Path]:
    """The files of an opened volume, read-only, as a directory of this user's alone.

    Raises:
        Refused: ``volume.foreign_filesystem`` when ``e2fsck`` finds anything wrong.
        Unavailable: ``volume.fuse_missing``, ``volume.fuse_failed``,
            ``volume.fuse2fs_failed``, ``volume.tool_missing``.
    """
    with ExitStack() as stack:
        mountpoint = Path(tempfile.mkdtemp(prefix=DIRECTORY_PREFIX))
        stack.callback(_remove_directory, mountpoint)
        settings = {
            "start": foreign.header.start,
            "size": foreign.size,
            "unit": foreign.header.unit,
            "mountpoint": str(mountpoint),
        }
        child = FuseChild("foreign", foreign.descriptor, settings, foreign.volume_key)
        stack.callback(child.close)
        try:
            runner(["e2fsck", "-f", "-n", str(child.file)], timeout=_CHECK_TIMEOUT)
        except Unavailable as error:
            if error.code != "volume.tool_failed":
                raise
            raise Refused(
                "volume.foreign_filesystem",
                f"the filesystem inside is damaged, or was tampered with: {error.message}",
                hint="take another copy; or mount it elsewhere and look what can be believed",
            ) from None
        mount_by_fuse2fs(child.file, mountpoint, stack, write=False)
        yield mountpoint


def _volume_key(area: bytes, passphrase: bytes | bytearray, runner: Runner) -> bytearray:
    with (
        os.fdopen(os.memfd_create("header"), "wb") as header,
        os.fdopen(os.memfd_create("volume-key"), "r+b", buffering=0) as answer,
        secret_pipe(passphrase) as reader,
    ):
        header.write(area)
        header.flush()
        command = [
            "cryptsetup", "luksDump", "--dump-volume-key", "--batch-mode", "--disable-locks",
            f"--key-file=/proc/self/fd/{reader}", f"/proc/self/fd/{header.fileno()}",
        ]  # fmt: skip
        # It writes a volume key to new files or to stdout; so stdout is memory of ours.
        runner(
            command,
            pass_fds=[reader, header.fileno()],
            timeout=_KEYSLOT_TIMEOUT,
            accept=(0, _NO_KEY),
            stdout=answer.fileno(),
        )
        answer.seek(0)
        text = read_key(os.dup(answer.fileno()), _DUMP_LIMIT)
    try:
        if not text:
            raise Refused(
                "volume.foreign_passphrase",
                "the passphrase opens no keyslot of this volume",
                hint="it is taken byte for byte: a line break at its end counts (printf, not echo)",
            )
        return _key_in(text)
    finally:
        wipe(text)


def _key_in(text: bytearray) -> bytearray:
    """The key in what ``luksDump --dump-volume-key`` prints: pairs of hexadecimal digits."""
    volume_key = bytearray()
    begin = text.rfind(b"dump:")
    for pair in re.finditer(rb"\b[0-9a-f]{2}\b", text[begin:] if begin >= 0 else b""):
        volume_key.append(int(pair[0], 16))
    if len(volume_key) != XTS_KEY_SIZE:
        wipe(volume_key)
        raise Refused(
            "volume.foreign_refused",
            "cryptsetup did not give the volume's key in the form that is known",
            hint="use cryptsetup 2.4 to 2.7",
        )
    return volume_key


# ext4's superblock: (offset, struct format)
_BLOCKS: Final = (4, "<I")
_LOG_BLOCK_SIZE: Final = (24, "<I")
_MAGIC: Final = (56, "<H")
_STATE: Final = (58, "<H")
_INCOMPATIBLE: Final = (96, "<I")
_BLOCKS_HIGH: Final = (336, "<I")
_NEEDS_RECOVERY: Final = 0x4
_64BIT: Final = 0x80


def _look_inside(descriptor: int, header: ForeignHeader, size: int, volume_key: bytearray) -> int:
    """See to it that there is all of an ext4 filesystem, closed in order; its block size."""
    cipher = sector_cipher(volume_key, header.unit)
    view = PlainView(descriptor, cipher, start=header.start, size=size, unit=header.unit)
    try:
        block = bytes(view.pread(1024, 1024))
    finally:
        view.close()
    if len(block) < 1024:
        raise Refused("volume.size_mismatch", "the file ends before its filesystem begins")

    def field(place: tuple[int, str]) -> int:
        value: int = struct.unpack_from(place[1], block, place[0])[0]
        return value

    features = field(_INCOMPATIBLE)
    if field(_MAGIC) != 0xEF53 or field(_LOG_BLOCK_SIZE) > 6:
        raise Refused(
            "volume.foreign_filesystem",
            "there is no ext4 filesystem inside",
            hint="mount the volume elsewhere and seal its files with `volume create --from`",
        )
    block_size = 1024 << field(_LOG_BLOCK_SIZE)
    blocks = field(_BLOCKS) | (field(_BLOCKS_HIGH) << 32 if features & _64BIT else 0)
    if blocks * block_size > size:
        raise Refused(
            "volume.size_mismatch",
            "the file is shorter than the filesystem inside",
            hint="it is incomplete; copy it again",
        )
    if features & _NEEDS_RECOVERY or field(_STATE) != 1:
        raise Refused(
            "volume.foreign_unclean",
            "the filesystem inside was not unmounted in order",
            hint="mount and unmount it once more where it comes from, then copy it again",
        )
    return block_size


def _remove_directory(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.rmdir()
