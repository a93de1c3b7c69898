"""The views of a volume's inside: verified and read-only, or writable and unverified.

Rules this module keeps:

* `check_file` runs before any key derivation and before any other process: exact
  file size, whole hash tree, digest of the header area. It returns the header
  bytes it checked, so that what was checked is what is used.
* `SealedView` hands out a byte only after its block was compared with the tree.
* The header of a writable volume is read once (`check_writable`); what was compared
  with the record's digest is what the key is taken from.
* Errors are `SealserveError`; whoever serves a view to others turns them into EIO.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
from collections.abc import Callable
from dataclasses import dataclass

from sealserve.errors import InputError, Refused
from sealserve.volume.cipher import XTS_KEY_SIZE, SectorCipher, sector_cipher, wipe
from sealserve.volume.luks2 import Header, Layout, check_volume_key, parse_header, unlock
from sealserve.volume.record import BLOCK_SIZE, KEY_SIZE, VolumeRecord, key_id_of
from sealserve.volume.verity import VerityTree, read_exactly

__all__ = [
    "CheckedFile",
    "PlainView",
    "SealedView",
    "WritableView",
    "check_file",
    "check_header",
    "check_key",
    "check_writable",
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
    area: bytearray
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
    return CheckedFile(tree, area, header)


def check_writable(descriptor: int, record: VolumeRecord) -> tuple[Header, bytearray]:
    """Check a writable volume's file against its record: all that can be checked.

    Args:
        descriptor: the file, open for reading.
        record: opened with `sealserve.volume.record.open_record`.

    Returns:
        The accepted header, and the header area as this one private copy.

    Raises:
        Refused: ``volume.not_writable``, ``volume.size_mismatch`` (truncated),
            ``volume.header_mismatch``, ``volume.header_refused``.
    """
    if record.kind != "writable":
        raise Refused(
            "volume.not_writable",
            f"the volume {record.name!r} is sealed: its record vouches for every byte",
            hint="make a new version of it with `volume rebuild`",
        )
    size = os.fstat(descriptor).st_size
    if size < record.file_size:
        raise Refused(
            "volume.size_mismatch",
            f"the volume file has {size} bytes, its record says at least {record.file_size}",
            hint="the file is incomplete, or belongs to another record",
        )
    area = read_exactly(descriptor, record.header.size, 0)
    check_header(area, record)
    return parse_header(area, uuid=record.uuid, layout=layout_of(record)), area


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

    `XTS_KEY_SIZE` bytes are taken for the LUKS volume key itself, as a recovery
    finds it; the header's digest of it decides later.

    Raises:
        InputError: ``volume.key_size``.
        Refused: ``volume.key_wrong``.
    """
    if len(key) == XTS_KEY_SIZE:
        return
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

    def pread(self, offset: int, size: int) -> bytearray:
        """Read up to ``size`` bytes; fewer only at the end of the volume.

        Raises:
            Refused: ``volume.block_mismatch``, ``volume.size_mismatch``.
        """
        size = max(0, min(size, self.size - offset))
        if size == 0:
            return bytearray()
        begin, end = _whole_blocks(offset, size)
        buffer = read_exactly(self._descriptor, end - begin, self._start + begin)
        self._tree.check(buffer, self._start + begin)
        self._cipher.decrypt(buffer, begin)
        return _part(buffer, offset - begin, size)

    def prepare(self, offset: int, size: int) -> None:
        """Let the system fetch the file's bytes there, without waiting for them."""
        if offset < self.size:
            _fetch(self._descriptor, self._start + offset, size)

    def close(self) -> None:
        """Forget the key."""
        self._cipher.close()


class PlainView:
    """A segment without a tree over it: what is read is only as good as the file.

    For the maker's own file, for writable volumes, and for foreign ones whose
    content their owner imports.
    """

    def __init__(
        self, descriptor: int, cipher: SectorCipher, *, start: int, size: int, unit: int
    ) -> None:
        """Look at a segment.

        Args:
            descriptor: the file, open for reading, and for writing if it is written to.
            cipher: of the segment; closed with the view.
            start: where the segment begins, bytes.
            size: bytes of the filesystem, a multiple of ``unit``.
            unit: bytes of an encryption sector.
        """
        self._descriptor = descriptor
        self._cipher = cipher
        self._start = start
        self._unit = unit
        self._room = self.size = size

    def pread(self, offset: int, size: int) -> bytearray:
        """As `SealedView.pread`, without verification."""
        size = max(0, min(size, self.size - offset))
        if size == 0:
            return bytearray()
        begin, end = _whole_blocks(offset, size, self._unit)
        buffer = read_exactly(self._descriptor, end - begin, self._start + begin)
        self._cipher.decrypt(buffer, begin)
        return _part(buffer, offset - begin, size)

    def prepare(self, offset: int, size: int) -> None:
        """As `SealedView.prepare`."""
        if offset < self.size:
            _fetch(self._descriptor, self._start + offset, size)

    def pwrite(self, offset: int, data: bytes | memoryview) -> int:
        """Write ``data`` at ``offset``; returns its length.

        Raises:
            InputError: ``volume.write_range`` beyond the end of the filesystem.
        """
        if offset < 0 or offset + len(data) > self._room:
            raise InputError("volume.write_range", "write beyond the end of the volume")
        begin, end = _whole_blocks(offset, len(data), self._unit)
        self.size = max(self.size, offset + len(data))
        if (begin, end) == (offset, offset + len(data)):
            buffer = bytearray(data)
        else:
            buffer = read_exactly(self._descriptor, end - begin, self._start + begin)
            self._cipher.decrypt(buffer, begin)
            buffer[offset - begin : offset - begin + len(data)] = data
        self._cipher.encrypt(buffer, begin)
        with memoryview(buffer) as view:
            done = 0
            while done < len(buffer):
                done += os.pwrite(self._descriptor, view[done:], self._start + begin + done)
        return len(data)

    def truncate(self, size: int) -> None:
        """Show ``size`` bytes of the room there is; nothing is written.

        Raises:
            InputError: ``volume.write_range``.
        """
        if not 0 <= size <= self._room:
            raise InputError("volume.write_range", "a size beyond the end of the volume")
        self.size = size

    def flush(self) -> None:
        """Make what was written durable."""
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Forget the key."""
        self._cipher.close()


class WritableView(PlainView):
    """The inside of a volume with a LUKS2 header of our shape, to be written to."""

    def __init__(
        self,
        descriptor: int,
        *,
        uuid: str,
        layout: Layout,
        size: int,
        key: bytes | bytearray,
        area: bytearray | None = None,
    ) -> None:
        """Open the keyslot.

        Args:
            descriptor: the file, open for reading and writing.
            uuid: as given to ``cryptsetup luksFormat``.
            layout: as given to it.
            size: bytes of the filesystem; the file has at least so many behind the offset.
            key: the volume key.
            area: the header area, if the caller has checked it; else it is read here.
        """
        if area is None:
            area = read_exactly(descriptor, layout.segment_offset, 0)
        header = parse_header(area, uuid=uuid, layout=layout)
        cipher = _unlocked_cipher(header, area, key)
        super().__init__(
            descriptor, cipher, start=layout.segment_offset, size=size, unit=layout.sector_size
        )

    @classmethod
    def of_record(
        cls, descriptor: int, record: VolumeRecord, key: bytes | bytearray
    ) -> WritableView:
        """Open a writable volume by its record.

        Raises:
            Refused: as `check_writable` and `check_key`.
            InputError: as `check_key`.
        """
        check_key(key, record)
        _, area = check_writable(descriptor, record)
        room = os.fstat(descriptor).st_size - record.segment_offset
        size = room // BLOCK_SIZE * BLOCK_SIZE
        layout = layout_of(record)
        return cls(descriptor, uuid=record.uuid, layout=layout, size=size, key=key, area=area)


def _unlocked_cipher(header: Header, area: bytearray, key: bytes | bytearray) -> SectorCipher:
    if len(key) == XTS_KEY_SIZE:
        check_volume_key(header, key)
        return sector_cipher(key, header.layout.sector_size)
    volume_key = unlock(header, area, key)
    try:
        return sector_cipher(volume_key, header.layout.sector_size)
    finally:
        wipe(volume_key)


def _whole_blocks(offset: int, size: int, unit: int = BLOCK_SIZE) -> tuple[int, int]:
    return offset // unit * unit, -(-(offset + size) // unit) * unit


def _fetch(descriptor: int, offset: int, size: int) -> None:
    with contextlib.suppress(OSError):  # a hint: the read itself says what is wrong
        os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_WILLNEED)


def _part(buffer: bytearray, begin: int, size: int) -> bytearray:
    return buffer if size == len(buffer) else buffer[begin : begin + size]
