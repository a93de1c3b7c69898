"""Read files out of a sealed volume without any mount, process or privilege.

    with SealedReader(path, record, key) as volume:
        volume.read("models.config")
        with volume.open("models/net/1/weights") as file: ...

Every byte is verified and decrypted on its way, by `sealserve.volume.engine`.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Final, Self, cast

from sealserve.errors import InputError, Unavailable
from sealserve.files import make_directory
from sealserve.volume.engine import SealedView
from sealserve.volume.filesystems import Node, open_tree, read_node
from sealserve.volume.mapper import locked_volume_file
from sealserve.volume.record import VolumeRecord

__all__ = ["SealedReader"]

_CHUNK: Final = 1 << 20
_BUFFER: Final = 128 << 10
_MAX_DEPTH: Final = 64


class SealedReader:
    """The files of a sealed volume. A context manager."""

    def __init__(self, path: Path, record: VolumeRecord, key: bytes | bytearray) -> None:
        """Check the file, open the keyslot, look at the filesystem.

        Args:
            path: the sealed file.
            record: its record, from `sealserve.volume.record.open_record`.
            key: the volume key; the caller wipes its own copy.

        Raises:
            Refused: as `sealserve.volume.engine.check_file` and `check_key`;
                ``volume.filesystem_refused``.
            InputError: ``volume.key_size``, ``volume.in_use``.
            Unavailable: ``volume.unreadable``.
        """
        with ExitStack() as stack:
            descriptor = stack.enter_context(locked_volume_file(path))
            self._view = SealedView(descriptor, record, key)
            stack.callback(self._view.close)
            self._tree = open_tree(self._view, record.filesystem)
            self._undo = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Forget the key. Harmless when repeated."""
        self._undo.close()

    def names(self, directory: str = "") -> list[str]:
        """What is in a directory, sorted.

        Raises:
            InputError: ``volume.no_such_file``.
        """
        node = self._find(directory, stat.S_ISDIR)
        return sorted(os.fsdecode(name) for name, _ in self._tree.entries(node))

    def read(self, name: str) -> bytes:
        """All of a file.

        Raises:
            InputError: ``volume.no_such_file``.
            Refused: ``volume.block_mismatch``.
        """
        node = self._find(name, stat.S_ISREG)
        return read_node(self._view, node, 0, node.size)

    def open(self, name: str) -> BinaryIO:
        """A file, to be read in pieces.

        Raises:
            InputError: ``volume.no_such_file``.
        """
        raw = _File(self._view, self._find(name, stat.S_ISREG))
        return cast("BinaryIO", io.BufferedReader(raw, _BUFFER))

    def extract(self, target: Path) -> int:
        """Copy all files out, IN THE CLEAR, into a new directory.

        Args:
            target: is made, for this user alone.

        Returns:
            The number of files.

        Raises:
            InputError: ``volume.target_exists``.
            Unavailable: ``file.unwritable``.
        """
        if os.path.lexists(target):
            raise InputError("volume.target_exists", "is there already", where=str(target))
        make_directory(target, mode=0o700)
        count = 0
        try:
            for path, node in self._walk(self._tree.root(), target, _MAX_DEPTH):
                count += _write(self._view, path, node)
        except OSError as error:
            raise Unavailable(
                "file.unwritable", f"cannot write: {error.strerror}", where=str(target)
            ) from None
        return count

    def _walk(self, directory: Node, place: Path, depth: int) -> Iterator[tuple[Path, Node]]:
        if not depth:
            raise InputError("volume.too_deep", f"more than {_MAX_DEPTH} directories deep")
        for name, node in self._tree.entries(directory):
            path = place / os.fsdecode(name)
            if path.name == "lost+found" and depth == _MAX_DEPTH:
                continue
            yield path, node
            if stat.S_ISDIR(node.mode):
                yield from self._walk(node, path, depth - 1)

    def _find(self, name: str, wanted: object) -> Node:
        node = self._tree.root()
        for part in filter(None, name.split("/")):
            found = None
            if stat.S_ISDIR(node.mode):
                entries = self._tree.entries(node)
                found = next((n for text, n in entries if text == os.fsencode(part)), None)
            if found is None:
                raise InputError("volume.no_such_file", "not in the volume", where=name)
            node = found
        if not callable(wanted) or not wanted(node.mode):
            raise InputError("volume.no_such_file", "is something else", where=name)
        return node


class _File(io.RawIOBase):
    """A file of the volume, as Python reads files."""

    def __init__(self, view: SealedView, node: Node) -> None:
        self._view = view
        self._node = node
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._node.size}[whence]
        if base + offset < 0:
            raise ValueError("a negative place")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: object) -> int:
        with memoryview(buffer) as view:  # type: ignore[arg-type]  # any writable buffer
            piece = read_node(self._view, self._node, self._at, len(view))
            view[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)


def _write(view: SealedView, path: Path, node: Node) -> int:
    permissions = stat.S_IMODE(node.mode) & 0o777
    if stat.S_ISDIR(node.mode):
        path.mkdir(mode=permissions | 0o700)
    elif stat.S_ISLNK(node.mode):
        path.symlink_to(os.fsdecode(read_node(view, node, 0, min(node.size, 4096))))
    elif stat.S_ISREG(node.mode):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with os.fdopen(os.open(path, flags, permissions), "wb") as file:
            for offset in range(0, node.size, _CHUNK):
                file.write(read_node(view, node, offset, _CHUNK))
        return 1
    return 0
