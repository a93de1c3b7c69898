"""dm-verity hash trees: make them, check them, check data against them.

Rules this module keeps:

* Format: hash type 1 (salt before the block), SHA-256, 4096-byte blocks, no
  superblock (kernel: ``Documentation/admin-guide/device-mapper/verity``). The
  geometry comes from the signed record alone.
* The whole tree is checked up to the root hash when it is loaded; from then on
  only the leaf digests are kept in memory (8 MiB per GiB of data), so the file
  cannot change its tree under a reader.
* No byte of a data block is handed on before its digest was compared.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from sealserve.errors import Refused
from sealserve.volume.record import BLOCK_SIZE, VerityParameters

if TYPE_CHECKING:
    from hashlib import _Hash

__all__ = ["VerityTree", "append_tree", "read_exactly"]

_DIGEST: Final = 32
_PER_BLOCK: Final = BLOCK_SIZE // _DIGEST
_CHUNK: Final = 256 * BLOCK_SIZE


def read_exactly(descriptor: int, size: int, offset: int) -> bytearray:
    """Read ``size`` bytes at ``offset``.

    Raises:
        Refused: ``volume.size_mismatch`` when the file ends before.
    """
    buffer = bytearray(size)
    view, done = memoryview(buffer), 0
    while done < size:
        count = os.preadv(descriptor, [view[done:]], offset + done)
        if count == 0:
            raise Refused("volume.size_mismatch", f"the file ends before byte {offset + size}")
        done += count
    view.release()
    return buffer


def append_tree(
    descriptor: int, data_blocks: int, salt: bytes, progress: Callable[[int], None] | None = None
) -> bytes:
    """Hash the first ``data_blocks`` blocks of a file and write the tree behind them.

    Args:
        descriptor: the file, open for reading and writing.
        data_blocks: number of blocks to cover, at least 2.
        salt: 32 bytes.
        progress: called with the number of data bytes hashed so far.

    Returns:
        The root hash, 32 bytes.
    """
    seed = hashlib.sha256(salt)
    leaves = bytearray()
    total = data_blocks * BLOCK_SIZE
    for offset in range(0, total, _CHUNK):
        chunk = read_exactly(descriptor, min(_CHUNK, total - offset), offset)
        for digest in _digests(seed, chunk):
            leaves += digest
        if progress:
            progress(offset + len(chunk))
    levels = [_padded(leaves)]
    while len(levels[-1]) > BLOCK_SIZE:
        levels.append(_padded(bytearray().join(_digests(seed, levels[-1]))))
    offset = total
    for level in reversed(levels):  # the top stands first on disk
        _write_all(descriptor, level, offset)
        offset += len(level)
    return next(_digests(seed, levels[-1]))


class VerityTree:
    """The leaf digests of a tree that was checked up to its root hash."""

    def __init__(self, seed: _Hash, leaves: bytearray) -> None:
        self._seed = seed
        self._leaves = leaves

    @classmethod
    def load(cls, descriptor: int, parameters: VerityParameters) -> VerityTree:
        """Read a tree and check all of it.

        Args:
            descriptor: the volume file.
            parameters: geometry, salt and root hash from the signed record.

        Raises:
            Refused: ``volume.tree_mismatch`` when the tree does not lead to the
                root hash, ``volume.size_mismatch`` when the file ends within it.
        """
        seed = hashlib.sha256(bytes.fromhex(parameters.salt))
        expected = bytearray.fromhex(parameters.root_hash)
        offset = parameters.hash_offset
        for blocks in reversed(_level_sizes(parameters.data_blocks)):
            level = read_exactly(descriptor, blocks * BLOCK_SIZE, offset)
            found = b"".join(_digests(seed, level))
            if not hmac.compare_digest(found, expected[: len(found)]):
                raise Refused(
                    "volume.tree_mismatch",
                    "the volume's hash tree does not lead to the root hash of its record",
                    hint="the file is damaged, was changed, or is another version of the volume",
                )
            expected = level
            offset += len(level)
        return cls(seed, expected)

    def check(self, buffer: bytearray, offset: int) -> None:
        """Compare whole data blocks with the tree.

        Args:
            buffer: the blocks as read from the file.
            offset: their byte offset in the file, a multiple of `BLOCK_SIZE`.

        Raises:
            Refused: ``volume.block_mismatch`` at the first block that differs.
        """
        leaves = self._leaves
        at = offset // BLOCK_SIZE * _DIGEST
        # Both sides are public (the host has the file and the tree), so a plain
        # comparison gives nothing away; it runs once for each 4 KiB.
        for digest in _digests(self._seed, buffer):
            if digest != leaves[at : at + _DIGEST]:
                raise Refused(
                    "volume.block_mismatch",
                    f"block {at // _DIGEST} of the volume is not what its owner sealed",
                    hint="the file is damaged or was changed; fetch it again",
                )
            at += _DIGEST


def _level_sizes(data_blocks: int) -> list[int]:
    """Hash blocks in each level, leaves first."""
    sizes = [-(-data_blocks // _PER_BLOCK)]
    while sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // _PER_BLOCK))
    return sizes


def _digests(seed: _Hash, blocks: bytearray) -> Iterator[bytes]:
    with memoryview(blocks) as view:
        for at in range(0, len(blocks), BLOCK_SIZE):
            digest = seed.copy()  # already holds the salt
            digest.update(view[at : at + BLOCK_SIZE])
            yield digest.digest()


def _padded(level: bytearray) -> bytearray:
    return level + bytes(-len(level) % BLOCK_SIZE)


def _write_all(descriptor: int, content: bytearray, offset: int) -> None:
    with memoryview(content) as view:
        done = 0
        while done < len(content):
            done += os.pwrite(descriptor, view[done:], offset + done)
