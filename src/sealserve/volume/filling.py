"""The steps of making a volume: its header, its filesystem, and who owns what is in it.

Rules this module keeps:

* ``cryptsetup luksFormat`` writes the header in the one shape that
  `sealserve.volume.luks2` insists on, with a fresh random volume key: XTS is
  deterministic, so two volumes must never share one.
* The filesystem is written through the encrypting FUSE file: nothing of it is ever on
  a disk in the clear.
"""

from __future__ import annotations

import contextlib
import os
import uuid as uuids
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sealserve.errors import Unavailable
from sealserve.volume.child import FuseChild
from sealserve.volume.luks2 import KEYSLOTS_SIZE, METADATA_SIZE, Layout
from sealserve.volume.process import Runner, secret_pipe
from sealserve.volume.record import BLOCK_SIZE, Filesystem, Kind

__all__ = ["OUR_LAYOUT", "RANDOM_KEY", "SEGMENT_OFFSET", "Arrangement", "Inside", "format_header"]

SEGMENT_OFFSET: Final = 2 * METADATA_SIZE + KEYSLOTS_SIZE
"""Bytes before the encrypted segment: 16 MiB, cryptsetup's own default."""

OUR_LAYOUT: Final = Layout(SEGMENT_OFFSET)
"""What we make."""

RANDOM_KEY: Final = ("--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000")
"""For a keyslot that 256 random bits open: there is nothing to stretch."""

_FILL_TIMEOUT: Final = 6 * 3600.0
_FORMAT_TIMEOUT: Final = 120.0


def format_header(
    path: Path,
    uuid: str,
    key: bytes | bytearray,
    runner: Runner,
    *,
    derivation: Sequence[str] = RANDOM_KEY,
    volume_key: bytes | bytearray | None = None,
    layout: Layout = OUR_LAYOUT,
    inherited: Sequence[int] = (),
) -> None:
    """Write a LUKS2 header in our shape over the beginning of a file.

    Args:
        path: a file that reaches beyond the header.
        uuid: of the volume.
        key: opens the only keyslot.
        runner: runs the system's programs.
        derivation: options of ``cryptsetup`` for the keyslot's key derivation.
        volume_key: the LUKS volume key; a fresh one if absent.
        layout: ours, or that of an adopted volume.
        inherited: descriptors by which ``cryptsetup`` reaches the path.
    """
    with secret_pipe(key) as reader, contextlib.ExitStack() as stack:
        descriptors, given = [*inherited, reader], []
        if volume_key is not None:
            descriptors.append(stack.enter_context(secret_pipe(volume_key)))
            given = [f"--volume-key-file=/proc/self/fd/{descriptors[-1]}"]
        command = [
            "cryptsetup",
            "luksFormat",
            "--type=luks2",
            "--batch-mode",
            # Its lock for plain files is flock(2), which the maker itself holds.
            "--disable-locks",
            "--cipher=aes-xts-plain64",
            "--key-size=512",
            f"--sector-size={layout.sector_size}",
            "--hash=sha256",
            *derivation,
            f"--luks2-metadata-size={layout.metadata_size}",
            f"--luks2-keyslots-size={layout.keyslots_size}",
            f"--offset={layout.segment_offset // 512}",
            f"--uuid={uuid}",
            f"--key-file=/proc/self/fd/{reader}",
            *given,
            str(path),
        ]
        runner(command, pass_fds=descriptors, timeout=_FORMAT_TIMEOUT)


@dataclass(frozen=True)
class Arrangement:
    """How a tree is arranged anew on its way into an ext4 volume.

    Attributes:
        moved: (name in the source, name in the volume), both at the top.
        added: (name at the top, content) of new files.
    """

    moved: tuple[tuple[str, str], ...] = ()
    added: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True)
class Inside:
    """The filesystem of a volume that is being made.

    Attributes:
        uuid: of the volume; the filesystem's own is derived from it.
        kind: a writable one gets a journal and room to grow.
        filesystem: its type.
        size: bytes of it, or of the room for it where the filesystem decides.
        inodes: of the tree that goes in.
        foreign: whether any of them belongs to someone other than root.
        arrangement: what is elsewhere in the volume than in its source.
    """

    uuid: str
    kind: Kind
    filesystem: Filesystem
    size: int
    inodes: int
    foreign: bool
    arrangement: Arrangement = Arrangement()

    def fill(
        self, descriptor: int, source: Path | None, key: bytes | bytearray, runner: Runner
    ) -> int:
        """Make the filesystem in an open volume file, with a directory's content in it.

        Returns:
            Bytes of the filesystem, whole blocks.
        """
        with self._encrypting_file(descriptor, key) as file:
            runner(self._command(file, source), timeout=_FILL_TIMEOUT)
            if self.filesystem == "ext4":
                self._edit(file, runner)
            return -(-file.stat().st_size // BLOCK_SIZE) * BLOCK_SIZE

    @contextlib.contextmanager
    def _encrypting_file(self, descriptor: int, key: bytes | bytearray) -> Iterator[Path]:
        """The inside as a writable file; all on the disk when the block ends."""
        settings = {"uuid": self.uuid, "segment_offset": SEGMENT_OFFSET, "size": self.size}
        child = FuseChild("fill", descriptor, settings, key)
        try:
            yield child.file
            with child.file.open("rb") as file:
                os.fsync(file.fileno())
        finally:
            status = child.close()
        if status != 0:
            raise Unavailable("volume.fuse_failed", f"the FUSE process ended with status {status}")

    def _command(self, target: Path, source: Path | None) -> list[str]:
        # What mkfs would choose at random is derived from the volume's UUID.
        inner = uuids.uuid5(uuids.UUID(self.uuid), self.filesystem)
        if self.filesystem == "erofs":
            # Uncompressed: weights hardly shrink, and reading them must be fast.
            return [
                "mkfs.erofs",
                "--quiet",
                "--all-root",
                "--exclude-path=lost+found",
                "-x-1",
                f"-U{inner}",
                str(target),
                str(source),
            ]
        extended = f"root_owner=0:0,hash_seed={inner},lazy_itable_init=0,nodiscard"
        command = ["mkfs.ext4", "-q", "-F", f"-b{BLOCK_SIZE}", "-m0", f"-U{inner}"]
        if self.kind == "sealed":
            # Never written again: a journal and room to grow would be wasted.
            command += [f"-N{self.inodes + 32}", "-O^has_journal,^resize_inode", f"-E{extended}"]
        else:
            command += [f"-E{extended},lazy_journal_init=0"]
        if source is not None:
            command.append(f"-d{source}")
        return [*command, str(target), f"{self.size // 1024}k"]

    def _edit(self, file: Path, runner: Runner) -> None:
        """What mkfs cannot do: give all to root, and arrange the top anew."""
        commands = []
        if self.foreign:  # ``mkfs -d`` copies the owners of the source
            # lost+found is inode 11; mkfs gives the next numbers to the tree, in a row.
            numbers = range(12, 12 + self.inodes)
            commands += [f"sif <{n}> {whose} 0" for n in numbers for whose in ("uid", "gid")]
        for old, new in self.arrangement.moved:
            commands += [f"ln /{old} /{new}", f"unlink /{old}"]
        with contextlib.ExitStack() as stack:
            descriptors = []
            for name, content in self.arrangement.added:
                descriptors.append(stack.enter_context(_in_memory(content)))
                commands += [f"write /proc/self/fd/{descriptors[-1]} {name}"]
                commands += [f"sif /{name} mode 0100644"]
                commands += [f"sif /{name} {whose} 0" for whose in ("uid", "gid")]
            if commands:
                script = stack.enter_context(_in_memory("\n".join([*commands, ""]).encode()))
                path = f"/proc/self/fd/{script}"
                runner(["debugfs", "-w", "-f", path, str(file)], pass_fds=[script, *descriptors])


@contextlib.contextmanager
def _in_memory(content: bytes) -> Iterator[int]:
    with os.fdopen(os.memfd_create("content"), "wb") as file:
        file.write(content)
        file.flush()
        yield file.fileno()
