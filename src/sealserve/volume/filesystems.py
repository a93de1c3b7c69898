"""ext4 and erofs, as far as `sealserve.volume.maker` writes them: read without any mount.

Rules this module keeps:

* It reads through a view that verifies every block, so what it parses is what the
  volume's owner sealed. It still believes no number: each is bounded, each error typed.
* Only what our maker writes is read: regular files, directories, symbolic links;
  extents, no inline data, no compression. Anything else is refused by name.

Formats: the kernel's ``Documentation/filesystems/ext4`` and ``erofs.rst``
(``fs/erofs/erofs_fs.h``).
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NoReturn, Protocol

from sealserve.errors import Refused
from sealserve.volume.record import BLOCK_SIZE, Filesystem

__all__ = ["Node", "Readable", "Tree", "open_tree", "read_node"]

_MAX_DIRECTORY: Final = 256 << 20
_MAX_LINK: Final = 4096


class Readable(Protocol):
    """What is read from: a view of a volume's inside."""

    size: int

    def pread(self, offset: int, size: int) -> bytes | bytearray:
        """Up to ``size`` bytes at ``offset``."""


@dataclass(frozen=True)
class Node:
    """A file, directory or link.

    Attributes:
        mode: type and permissions, as `os.stat` has them.
        size: bytes of its content.
        runs: where the content stands: (offset in the file, offset in the
            filesystem, bytes), in order; what no run covers is zeros.
        inline: the content, where it stands in the inode itself.
    """

    mode: int
    size: int
    runs: tuple[tuple[int, int, int], ...] = ()
    inline: bytes = b""


class Tree(Protocol):
    """A filesystem."""

    def root(self) -> Node:
        """The directory on top."""

    def entries(self, directory: Node) -> Iterator[tuple[bytes, Node]]:
        """Names and nodes in a directory, in no order, without ``.`` and ``..``."""


def open_tree(view: Readable, filesystem: Filesystem) -> Tree:
    """The filesystem in a view.

    Raises:
        Refused: ``volume.filesystem_refused`` when it is not of the kind that we make.
    """
    return _Ext4(view) if filesystem == "ext4" else _Erofs(view)


def read_node(view: Readable, node: Node, offset: int, size: int) -> bytes:
    """A piece of a node's content; shorter only at its end.

    Raises:
        Refused: ``volume.block_mismatch``, ``volume.filesystem_refused``.
    """
    size = max(0, min(size, node.size - offset))
    if node.inline:
        return node.inline[offset : offset + size]
    content = bytearray(size)
    for begin, place, length in node.runs:
        first, last = max(begin, offset), min(begin + length, offset + size)
        if first < last:
            piece = view.pread(place + first - begin, last - first)
            if len(piece) != last - first:
                _refuse("a file's content lies outside")
            content[first - offset : last - offset] = piece
    return bytes(content)


def _content(view: Readable, node: Node, limit: int) -> bytes:
    if node.size > limit:
        _refuse("a directory or link is too large")
    return read_node(view, node, 0, node.size)


def _checked_name(name: bytes) -> bytes:
    if not name or b"/" in name or b"\0" in name or name in (b".", b".."):
        _refuse("a name that no file can have")
    return name


# --- ext4 ------------------------------------------------------------------------


_EXT4_MAGIC: Final = 0xEF53
# filetype, extents, 64bit, flex_bg, csum_seed
_EXT4_KNOWN: Final = 0x2 | 0x40 | 0x80 | 0x200 | 0x2000
_EXT4_EXTENTS: Final = 0x80000
_EXT4_ROOT: Final = 2
_EXTENT_MAGIC: Final = 0xF30A
_EXTENT_DEPTH: Final = 5
_UNWRITTEN: Final = 32768


class _Ext4:
    def __init__(self, view: Readable) -> None:
        block = view.pread(1024, 1024)
        if len(block) < 1024:
            _refuse("it is too small")
        (magic,) = struct.unpack_from("<H", block, 56)
        self._inodes, log_size = struct.unpack_from("<I20xI", block, 0)
        (self._per_group,) = struct.unpack_from("<I", block, 40)
        (self._inode_size,) = struct.unpack_from("<H", block, 88)
        (incompatible,) = struct.unpack_from("<I", block, 96)
        (descriptor,) = struct.unpack_from("<H", block, 254)
        self._descriptor_size = descriptor if incompatible & 0x80 else 32
        if magic != _EXT4_MAGIC or log_size != 2:
            _refuse("no ext4 with blocks of 4096 bytes")
        if incompatible & ~_EXT4_KNOWN or not incompatible & 0x40:
            _refuse(f"ext4 with features {incompatible:#x}")
        if not (self._per_group and 128 <= self._inode_size <= BLOCK_SIZE):
            _refuse("its inodes")
        if self._descriptor_size not in (32, 64):
            _refuse("its group descriptors")
        self._view = view

    def root(self) -> Node:
        return self._node(_EXT4_ROOT)

    def entries(self, directory: Node) -> Iterator[tuple[bytes, Node]]:
        content = _content(self._view, directory, _MAX_DIRECTORY)
        at = 0
        while at + 8 <= len(content):
            number, length, name_length = struct.unpack_from("<IHB", content, at)
            if length < 8 or at + length > len(content) or name_length + 8 > length:
                _refuse("a directory's entries")
            name = content[at + 8 : at + 8 + name_length]
            at += length
            if number and name not in (b".", b".."):
                yield _checked_name(name), self._node(number)

    def _node(self, number: int) -> Node:
        if not 0 < number <= self._inodes:
            _refuse("an inode's number")
        group, index = divmod(number - 1, self._per_group)
        raw = self._read(BLOCK_SIZE + group * self._descriptor_size, self._descriptor_size)
        (table,) = struct.unpack_from("<I", raw, 8)
        if self._descriptor_size == 64:
            table |= struct.unpack_from("<I", raw, 40)[0] << 32
        inode = self._read(table * BLOCK_SIZE + index * self._inode_size, 128)
        mode, low = struct.unpack_from("<H2xI", inode, 0)
        (flags,) = struct.unpack_from("<I", inode, 32)
        size = low | struct.unpack_from("<I", inode, 108)[0] << 32
        if stat.S_ISLNK(mode) and not flags & _EXT4_EXTENTS:
            if size > 60:
                _refuse("a link's length")
            return Node(mode, size, inline=inode[40 : 40 + size])
        if not flags & _EXT4_EXTENTS:
            _refuse("a file without extents")
        return Node(mode, size, tuple(sorted(self._runs(inode[40:100], _EXTENT_DEPTH))))

    def _runs(self, raw: bytes, depth_left: int) -> Iterator[tuple[int, int, int]]:
        magic, count, _, depth = struct.unpack_from("<HHHH", raw, 0)
        if magic != _EXTENT_MAGIC or 12 + 12 * count > len(raw) or depth > depth_left:
            _refuse("a file's extents")
        for at in range(12, 12 + 12 * count, 12):
            if depth:
                low, high = struct.unpack_from("<4xIH", raw, at)
                place = (high << 32 | low) * BLOCK_SIZE
                yield from self._runs(self._read(place, BLOCK_SIZE), depth - 1)
                continue
            block, length, high, low = struct.unpack_from("<IHHI", raw, at)
            if length <= _UNWRITTEN:  # else it was reserved only, and reads as zeros
                place = (high << 32 | low) * BLOCK_SIZE
                yield block * BLOCK_SIZE, place, length * BLOCK_SIZE

    def _read(self, offset: int, size: int) -> bytes:
        return _exactly(self._view, offset, size)


# --- erofs -----------------------------------------------------------------------


_EROFS_MAGIC: Final = 0xE0F5E1E2
_EROFS_PLAIN: Final = 0
_EROFS_INLINE: Final = 2
_EROFS_SLOT: Final = 32


class _Erofs:
    def __init__(self, view: Readable) -> None:
        block = view.pread(1024, 128)
        if len(block) < 128 or struct.unpack_from("<I", block, 0)[0] != _EROFS_MAGIC:
            _refuse("no erofs")
        block_bits, self._root = struct.unpack_from("<BxH", block, 12)
        (self._meta,) = struct.unpack_from("<I", block, 40)
        (incompatible,) = struct.unpack_from("<I", block, 80)
        if block_bits != 12 or incompatible & ~1:  # bit 0: zero padding of compressed data
            _refuse(f"erofs with features {incompatible:#x}")
        self._view = view

    def root(self) -> Node:
        return self._node(self._root)

    def entries(self, directory: Node) -> Iterator[tuple[bytes, Node]]:
        content = _content(self._view, directory, _MAX_DIRECTORY)
        for at in range(0, len(content), BLOCK_SIZE):
            yield from self._block_entries(content[at : at + BLOCK_SIZE])

    def _block_entries(self, block: bytes) -> Iterator[tuple[bytes, Node]]:
        if len(block) < 12:
            _refuse("a directory's entries")
        (first,) = struct.unpack_from("<H", block, 8)
        if first % 12 or not 12 <= first <= len(block):
            _refuse("a directory's entries")
        heads = [struct.unpack_from("<QH", block, at) for at in range(0, first, 12)]
        ends = [offset for _, offset in heads[1:]] + [len(block)]
        for (number, begin), end in zip(heads, ends, strict=True):
            if not first <= begin <= end <= len(block):
                _refuse("a directory's names")
            name = block[begin:end].partition(b"\0")[0]
            if name not in (b".", b".."):
                yield _checked_name(name), self._node(number)

    def _node(self, number: int) -> Node:
        place = self._meta * BLOCK_SIZE + number * _EROFS_SLOT
        raw = _exactly(self._view, place, 64)
        kind, attributes, mode = struct.unpack_from("<HHH", raw, 0)
        extended, layout = kind & 1, kind >> 1 & 7
        (size,) = struct.unpack_from("<Q" if extended else "<I", raw, 8)
        (block,) = struct.unpack_from("<I", raw, 16)
        if layout == _EROFS_PLAIN:
            return Node(mode, size, ((0, block * BLOCK_SIZE, size),))
        if layout != _EROFS_INLINE:
            _refuse(f"erofs data layout {layout}")
        # The last, incomplete block stands behind the inode and its attributes.
        tail = place + (64 if extended else 32) + (12 + 4 * (attributes - 1) if attributes else 0)
        whole = size // BLOCK_SIZE * BLOCK_SIZE
        return Node(mode, size, ((0, block * BLOCK_SIZE, whole), (whole, tail, size - whole)))


def _exactly(view: Readable, offset: int, size: int) -> bytes:
    content = bytes(view.pread(offset, size))
    if len(content) != size:
        _refuse("a structure lies outside")
    return content


def _refuse(what: str) -> NoReturn:
    raise Refused(
        "volume.filesystem_refused",
        f"the filesystem is not of the kind that sealserve makes: {what}",
        hint="mount the volume instead",
    )
