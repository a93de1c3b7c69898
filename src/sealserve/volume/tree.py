"""The directory tree that goes into a volume: what may be in it, how large it is, its digest."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from sealserve.errors import InputError, Unavailable
from sealserve.volume.record import BLOCK_SIZE, ModelEntry

__all__ = ["SourceTree", "find_models", "scan", "tree_digest"]

_MAX_ENTRIES: Final = 1_000_000
_MIB: Final = 1 << 20


@dataclass(frozen=True)
class SourceTree:
    """What `scan` found.

    Attributes:
        inodes: number of files, directories and links; hard links count once.
        foreign: whether any of them belongs to someone other than root.
        content: bytes of all files, each rounded up to whole blocks.
        state: one digest over names, sizes and times: tells whether it was changed.
    """

    inodes: int
    foreign: bool
    content: int
    state: bytes

    @property
    def volume_size(self) -> int:
        """Bytes of a filesystem that holds the tree, with a margin; whole MiB.

        Inodes take 256 bytes, a directory at least a block, block maps and
        bitmaps well below 2 %.
        """
        needed = self.content + self.inodes * (256 + BLOCK_SIZE) + self.content // 50
        return (needed // _MIB + 8) * _MIB


def scan(source: Path) -> SourceTree:
    """Look through a source directory and refuse what has no place in a volume.

    Raises:
        InputError: ``volume.source_kind`` (device, socket, pipe), ``volume.source_link``
            (a link that leads out of the tree), ``volume.source_large``,
            ``volume.source_missing``.
        Unavailable: ``volume.source_unreadable``.
    """
    if not source.is_dir():
        raise InputError("volume.source_missing", "not a directory", where=str(source))
    root = source.resolve()
    seen: set[tuple[int, int]] = set()
    foreign = False
    content = 0
    state = hashlib.sha256()
    for path, status in _walk(source):
        if path.parent == source and path.name == "lost+found" and path.is_dir():
            continue  # each ext4 has its own; what is in it goes along
        if len(seen) >= _MAX_ENTRIES:
            raise InputError(
                "volume.source_large", f"more than {_MAX_ENTRIES} files", where=str(source)
            )
        identity = (status.st_dev, status.st_ino)
        foreign = foreign or bool(status.st_uid or status.st_gid)
        if stat.S_ISREG(status.st_mode) and identity not in seen:
            content += -(-status.st_size // BLOCK_SIZE) * BLOCK_SIZE
        elif stat.S_ISLNK(status.st_mode):
            _check_link(path, root)
        elif not (stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)):
            raise InputError(
                "volume.source_kind",
                "only files, directories and links can go into a volume",
                where=str(path),
            )
        seen.add(identity)
        state.update(
            b"%b\0%d %d %d\n"
            % (os.fsencode(path), status.st_mode, status.st_size, status.st_mtime_ns)
        )
    return SourceTree(len(seen), foreign, content, state.digest())


def tree_digest(directory: Path) -> str:
    """The digest of a model: SHA-256 over a sorted manifest of its directory.

    The manifest has one entry for each regular file and each symbolic link, in
    the byte order of their paths: ``file`` or ``link``, a blank, the SHA-256 (hex)
    of the content or of the link's target, a blank, the path relative to
    ``directory`` with ``/`` between its parts, and a NUL. Permissions, owners,
    times and empty directories do not count.

    Args:
        directory: ``models/<name>/<version>``.

    Returns:
        64 lower-case hex digits.

    Raises:
        Unavailable: ``volume.source_unreadable``.
    """
    lines = []
    for path, status in _walk(directory):
        name = os.fsencode(path.relative_to(directory))
        if stat.S_ISREG(status.st_mode):
            with path.open("rb") as file:
                lines.append((name, b"file", hashlib.file_digest(file, "sha256")))
        elif stat.S_ISLNK(status.st_mode):
            target = os.fsencode(path.readlink())
            lines.append((name, b"link", hashlib.sha256(target)))
    manifest = hashlib.sha256()
    for name, kind, digest in sorted(lines, key=lambda line: line[0]):
        manifest.update(b"%b %b %b\0" % (kind, digest.hexdigest().encode(), name))
    return manifest.hexdigest()


def find_models(source: Path, directory: str = "models") -> tuple[ModelEntry, ...]:
    """Every ``models/<name>/<version>`` of a source directory, with its digest, sorted.

    Args:
        source: the directory.
        directory: what ``models`` is called there.

    Raises:
        InputError: ``volume.model_name``.
        Unavailable: ``volume.source_unreadable``.
    """
    found = []
    for path in source.glob(f"{directory}/*/*"):
        name, version = path.parent.name, path.name
        if not (path.is_dir() and version.isascii() and version.isdecimal()):
            continue
        try:
            entry = ModelEntry(name=name, version=int(version), digest=tree_digest(path))
        except ValidationError:
            entry = None
        if entry is None or version != str(entry.version):
            raise InputError(
                "volume.model_name",
                "a model's name has letters, digits and . _ -; its version no leading zero",
                where=str(path),
            )
        found.append(entry)
    return tuple(sorted(found, key=lambda entry: (entry.name, entry.version)))


def _walk(directory: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Everything below a directory in a fixed order; links are not followed."""

    def fail(error: OSError) -> None:
        raise Unavailable(
            "volume.source_unreadable",
            f"cannot read: {error.strerror}",
            where=os.fsdecode(error.filename or directory),
        ) from None

    for parent, directories, files in os.walk(directory, onerror=fail):
        directories.sort()
        for name in sorted(directories + files):
            path = Path(parent, name)
            try:
                yield path, path.lstat()
            except OSError as error:
                fail(error)


def _check_link(path: Path, root: Path) -> None:
    target = path.readlink()
    if target.is_absolute() or not path.resolve().is_relative_to(root):
        raise InputError(
            "volume.source_link",
            "a link that leads out of the source directory",
            where=str(path),
            hint="put the file itself there",
        )
