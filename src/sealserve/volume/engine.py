"""The two views of a volume's inside: verified and read-only, or writable for the maker.

Rules this module keeps:

* `check_file` runs before any key derivation and before any other process: exact
  file size, whole hash tree, digest of the header area. It returns the header
  bytes it checked, so that what was checked is what is used.
* `SealedView` hands out a byte only after its block was compared with the tree.
* Errors are `SealserveError`; whoever serves a view to others turns them into EIO.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable
from dataclasses import dataclass

from sealserve.errors import InputError, Refused
from sealserve.volume.cipher import SectorCipher, sector_cipher, wipe
from sealserve.volume.luks2 import Header, Layout, parse_header, unlock
from sealserve.volume.record import BLOCK_SIZE, KEY_SIZE, VolumeRecord, key_id_of
from sealserve.volume.verity import VerityTree, read_exactly

__all__ = [
    "CheckedFile",
    "SealedView",
    "WritableView",
    "check_file",
    "check_header",
    "check_key",
    "layout_of",
    "verify_file",
]

_CHUNK = 256 * BLOCK_SIZE


@dataclass(frozen=True)
class CheckedFile:
    """What `check_file` proved, as one snapshot.

    Attributes:
        tree: the verity tree, checked up to the root hash.
        area: the header area, equal to the record's digest.
        header: the header area, accepted by the whitelist.
    """

    tree: VerityTree
    area: bytes
    header: Header


def check_file(descriptor: int, record: VolumeRecord) -> CheckedFile:
    """Check an open volume file against its record, data blocks excepted.

    Args:
        descriptor: the file, open for reading.
        record: opened with `sealserve.volume.record.open_record`.

    Raises:
        Refused: ``volume.size_mismatch`` (truncated, extended), ``volume.tree_mismatch``,
            ``volume.header_mismatch``, ``volume.block_mismatch``, ``volume.header_refused``.
    """
    size = os.fstat(descriptor).st_size
    if size != record.file_size:
        raise Refused(
            "volume.size_mismatch",
            f"the volume file has {size} bytes, its record says {record.file_size}",
            hint="the file is incomplete, was extended, or belongs to another record",
        )
    tree = VerityTree.load(descriptor, record.tree)
    area = read_exactly(descriptor, record.header.size, 0)
    check_header(area, record)
    tree.check(area, 0)
    header = parse_header(area, uuid=record.uuid, layout=layout_of(record))
    return CheckedFile(tree, bytes(area), header)


def layout_of(record: VolumeRecord) -> Layout:
    """The layout that a record states."""
    return Layout(record.segment_offset, record.sector_size, record.header.metadata_size)


def check_header(area: bytes | bytearray, record: VolumeRecord) -> None:
    """Compare a header area with the record's pin.

    Raises:
        Refused: ``volume.header_mismatch``.
    """
    found = hashlib.sha256(area).hexdigest()
    if not hmac.compare_digest(found, record.header.sha256):
        raise Refused(
            "volume.header_mismatch",
            "the volume's LUKS2 header is not the one its owner signed",
            hint="the file was changed; fetch it again from its owner",
        )


def check_key(key: bytes | bytearray, record: VolumeRecord) -> None:
    """Compare a key with the record's key id.

    Raises:
        InputError: ``volume.key_size``.
        Refused: ``volume.key_wrong``.
    """
    if len(key) != KEY_SIZE:
        raise InputError("volume.key_size", f"a volume key has {KEY_SIZE} bytes, not {len(key)}")
    if not hmac.compare_digest(key_id_of(key), record.key_id):
        raise Refused(
            "volume.key_wrong",
            f"the key is not the one this record names ({record.key_id})",
            hint="the key and the record must come from the same `volume create`",
        )


def verify_file(
    descriptor: int, record: VolumeRecord, progress: Callable[[int, int], None] | None = None
) -> None:
    """Check every byte of a volume file; needs no key.

    Args:
        descriptor: the file, open for reading.
        record: the record to hold it against.
        progress: called with (bytes done, bytes in all).

    Raises:
        Refused: as `check_file`, and ``volume.block_mismatch`` for data blocks.
    """
    tree = check_file(descriptor, record).tree
    total = record.segment_end
    for offset in range(0, total, _CHUNK):
        chunk = read_exactly(descriptor, min(_CHUNK, total - offset), offset)
        tree.check(chunk, offset)
        if progress:
            progress(offset + len(chunk), total)


class SealedView:
    """The decrypted filesystem of a sealed volume, verified block by block."""

    def __init__(self, descriptor: int, record: VolumeRecord, key: bytes | bytearray) -> None:
        """Check the file, then open the keyslot.

        Args:
            descriptor: the file, open for reading; stays the caller's to close.
            record: the volume's record.
            key: the volume key; the caller wipes its own copy.

        Raises:
            Refused: as `check_file` and `check_key`.
            InputError: as `check_key`.
        """
        check_key(key, record)
        checked = check_file(descriptor, record)
        self._descriptor = descriptor
        self._tree = checked.tree
        self._start = record.segment_offset
        self._cipher = _unlocked_cipher(checked.header, checked.area, key)
        self.size = record.data_size

    def pread(self, offset: int, size: int) -> bytes | bytearray:
        """Read up to ``size`` bytes; fewer only at the end of the volume.

        Raises:
            Refused: ``volume.block_mismatch``, ``volume.size_mismatch``.
        """
        size = max(0, min(size, self.size - offset))
        if size == 0:
            return b""
        begin, end = _whole_blocks(offset, size)
        buffer = read_exactly(self._descriptor, end - begin, self._start + begin)
        self._tree.check(buffer, self._start + begin)
        self._cipher.decrypt(buffer, begin)
        if (begin, end) == (offset, offset + size):
            return buffer
        return bytes(memoryview(buffer)[offset - begin : offset - begin + size])

    def close(self) -> None:
        """Forget the key."""
        self._cipher.close()


class WritableView:
    """The inside of a volume that is being made: no tree over it yet.

    Only for the maker, on the owner's own machine and disk.
    """

    def __init__(
        self, descriptor: int, *, uuid: str, layout: Layout, size: int, key: bytes | bytearray
    ) -> None:
        """Open the keyslot of a fresh LUKS2 file.

        Args:
            descriptor: the file, open for reading and writing.
            uuid: as given to ``cryptsetup luksFormat``.
            layout: as given to it.
            size: bytes of the filesystem; the file has at least so many behind the offset.
            key: the volume key.
        """
        area = bytes(read_exactly(descriptor, layout.segment_offset, 0))
        header = parse_header(area, uuid=uuid, layout=layout)
        self._descriptor = descriptor
        self._start = layout.segment_offset
        self._cipher = _unlocked_cipher(header, area, key)
        self.size = size

    def pread(self, offset: int, size: int) -> bytes | bytearray:
        """As `SealedView.pread`, without verification."""
        size = max(0, min(size, self.size - offset))
        if size == 0:
            return b""
        begin, end = _whole_blocks(offset, size)
        buffer = read_exactly(self._descriptor, end - begin, self._start + begin)
        self._cipher.decrypt(buffer, begin)
        return bytes(memoryview(buffer)[offset - begin : offset - begin + size])

    def pwrite(self, offset: int, data: bytes) -> int:
        """Write ``data`` at ``offset``; returns its length.

        Raises:
            InputError: ``volume.write_range`` beyond the end of the filesystem.
        """
        if offset < 0 or offset + len(data) > self.size:
            raise InputError("volume.write_range", "write beyond the end of the volume")
        begin, end = _whole_blocks(offset, len(data))
        if (begin, end) == (offset, offset + len(data)):
            buffer = bytearray(data)
        else:
            buffer = bytearray(self.pread(begin, end - begin))
            buffer[offset - begin : offset - begin + len(data)] = data
        self._cipher.encrypt(buffer, begin)
        with memoryview(buffer) as view:
            done = 0
            while done < len(buffer):
                done += os.pwrite(self._descriptor, view[done:], self._start + begin + done)
        return len(data)

    def flush(self) -> None:
        """Make what was written durable."""
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Forget the key."""
        self._cipher.close()


def _unlocked_cipher(header: Header, area: bytes, key: bytes | bytearray) -> SectorCipher:
    volume_key = unlock(header, area, key)
    try:
        return sector_cipher(volume_key, header.layout.sector_size)
    finally:
        wipe(volume_key)


def _whole_blocks(offset: int, size: int) -> tuple[int, int]:
    return offset // BLOCK_SIZE * BLOCK_SIZE, -(-(offset + size) // BLOCK_SIZE) * BLOCK_SIZE
