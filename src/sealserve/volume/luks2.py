"""LUKS2 headers, read only to refuse, and the keyslot, opened in user space.

LUKS2 metadata is not authenticated and the host holds the file. Headers made by
an attacker (null ciphers, his own volume key, endless key derivations) broke
eight confidential-computing systems in 2025. So:

* A header is looked at only after its digest was compared with the signed record.
* It must then *still* be exactly the shape that `sealserve.volume.maker` makes:
  a whitelist, every key and every value, at every level. What is not known is
  refused, without an attempt to understand it.
* Bounds on the key derivation are checked before a derivation starts.
* JSON is read strictly: no doubled keys, no fractions, nothing behind the end.

Format: LUKS2 On-Disk Format Specification 1.1.3, §2 (binary header), §3 (JSON).
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass
from typing import Any, Final

from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from sealserve.errors import Refused
from sealserve.volume.cipher import XTS_KEY_SIZE, sector_cipher, wipe
from sealserve.volume.strict import Unlike, base64_of, bounded, equal, exactly, parse_json

__all__ = [
    "AREA_SIZE",
    "CIPHER",
    "KEYSLOTS_SIZE",
    "METADATA_SIZE",
    "METADATA_SIZES",
    "STRIPES",
    "Copy",
    "Derivation",
    "Header",
    "Layout",
    "check_derivation",
    "check_volume_key",
    "parse_header",
    "read_copies",
    "unlock",
]

METADATA_SIZE: Final = 0x4000
"""Bytes of one metadata copy of ours: 4096 binary, the rest JSON."""

KEYSLOTS_SIZE: Final = 16_744_448
"""Bytes behind the two metadata copies, so that the segment begins at 16 MiB."""

METADATA_SIZES: Final = frozenset(0x4000 << power for power in range(9))
"""All that LUKS2 allows: to 4 MiB (§2.2)."""

CIPHER: Final = "aes-xts-plain64"
"""Of segment and keyslots, as dm-crypt names it."""

STRIPES: Final = 4000
"""Into which a keyslot splits a key."""

AREA_SIZE: Final = 258_048
"""Bytes of a keyslot: a 64-byte key in `STRIPES` stripes, rounded up to 4096."""

_BINARY_SIZE: Final = 4096
_LARGEST_TEXT: Final = 0x3000  # what the smallest metadata holds; ours needs a tenth of it

# magic, version, header size, sequence id, label, checksum algorithm, salt,
# UUID, subsystem, header offset, padding, checksum, padding (§2.2)
_BINARY: Final = struct.Struct(">6sHQQ48s32s64s40s48sQ184s64s3584s")
_CHECKSUM_AT: Final = 448

_PBKDF2_ITERATIONS: Final = range(1000, 10_000_001)
_ARGON2_TIME: Final = range(1, 17)
_ARGON2_MEMORY_KIB: Final = range(64, 1024 * 1024 + 1)
_ARGON2_LANES: Final = range(1, 5)


@dataclass(frozen=True)
class Derivation:
    """A key derivation whose costs are inside our bounds.

    Attributes:
        kind: ``pbkdf2``, ``argon2id`` or, in foreign headers, ``argon2i``.
        salt: 32 bytes.
        iterations: of either kind.
        memory_kib: of Argon2.
        lanes: of Argon2.
    """

    kind: str
    salt: bytes
    iterations: int = 0
    memory_kib: int = 0
    lanes: int = 0


@dataclass(frozen=True)
class Layout:
    """What whoever opens a volume knows of its header beforehand, and the header must repeat.

    Attributes:
        segment_offset: where the encrypted segment begins, bytes; the keyslots fill
            all that lies between it and the metadata.
        sector_size: bytes of an encryption sector, 512 or 4096.
        metadata_size: bytes of one metadata copy.
    """

    segment_offset: int
    sector_size: int = 4096
    metadata_size: int = METADATA_SIZE

    @property
    def slot_offset(self) -> int:
        """Where the only keyslot's area begins, bytes."""
        return 2 * self.metadata_size

    @property
    def keyslots_size(self) -> int:
        """Bytes between metadata and segment."""
        return self.segment_offset - self.slot_offset


@dataclass(frozen=True)
class Header:
    """The few facts of an accepted header that are not fixed by the whitelist.

    Attributes:
        uuid: as in the binary header.
        layout: as it was asked for.
        slot: how the key of the only keyslot is derived.
        digest_iterations: PBKDF2-SHA256 iterations of the volume key's digest.
        digest_salt: its salt, 32 bytes.
        digest: what it must come to, 32 bytes.
    """

    uuid: str
    layout: Layout
    slot: Derivation
    digest_iterations: int
    digest_salt: bytes
    digest: bytes


def parse_header(area: bytes | bytearray, *, uuid: str, layout: Layout) -> Header:
    """Check a header area against the whitelist.

    Args:
        area: the file from its start to the segment, already compared with the record.
        uuid: what the record states.
        layout: what the record states.

    Returns:
        What `unlock` needs.

    Raises:
        Refused: ``volume.header_refused`` with the first thing that is not as we make it.
    """
    try:
        return _parse(area, uuid, layout)
    except Unlike as reason:
        raise Refused(
            "volume.header_refused",
            f"the volume's LUKS2 header is not of the kind that sealserve makes: {reason}",
            hint="open only volumes made by `sealserve volume create`",
        ) from None


def unlock(header: Header, area: bytes | bytearray, key: bytes | bytearray) -> bytearray:
    """Open the keyslot.

    Args:
        header: from `parse_header`.
        area: the same header area.
        key: the bytes that open the keyslot.

    Returns:
        The LUKS volume key, `XTS_KEY_SIZE` bytes. The caller wipes it.

    Raises:
        Refused: ``volume.key_wrong``.
    """
    begin = header.layout.slot_offset
    material = bytearray(area[begin : begin + XTS_KEY_SIZE * STRIPES])
    slot_key = bytearray(_derive(header.slot, key))
    cipher = sector_cipher(slot_key, 512)
    try:
        cipher.decrypt(material, 0)
        volume_key = _merge_stripes(material)
    finally:
        cipher.close()
        wipe(slot_key)
        wipe(material)
    try:
        check_volume_key(header, volume_key)
    except Refused:
        wipe(volume_key)
        raise
    return volume_key


def check_volume_key(header: Header, volume_key: bytes | bytearray) -> None:
    """Compare a LUKS volume key with the header's digest of it.

    Raises:
        Refused: ``volume.key_wrong``.
    """
    found = hashlib.pbkdf2_hmac(
        "sha256", volume_key, header.digest_salt, header.digest_iterations, 32
    )
    if not hmac.compare_digest(found, header.digest):
        raise Refused(
            "volume.key_wrong",
            "the key does not open this volume",
            hint="the key and the record must come from the same `volume create`",
        )


@dataclass(frozen=True)
class Copy:
    """One metadata copy.

    Attributes:
        sequence: counts up with each change.
        uuid: as text, padded with NULs to 40 bytes.
        names: label and subsystem, 48 bytes each; ours have none.
        text: the JSON.
    """

    sequence: int
    uuid: bytes
    names: bytes
    text: bytes


def read_copies(area: bytes | bytearray, metadata_size: int) -> Copy:
    """Check both metadata copies, which must say the same.

    Args:
        area: a file from its start.
        metadata_size: bytes of a copy.

    Raises:
        Unlike: not the two copies of a LUKS2 header as it is when nothing goes on.
    """
    first = _read_copy(area, 0, b"LUKS\xba\xbe", metadata_size)
    second = _read_copy(area, metadata_size, b"SKUL\xba\xbe", metadata_size)
    if first != second:
        raise Unlike("the two metadata copies differ")
    return first


def _read_copy(area: bytes | bytearray, offset: int, wanted_magic: bytes, wanted_size: int) -> Copy:
    binary = bytes(area[offset : offset + _BINARY_SIZE])
    rest = bytes(area[offset + _BINARY_SIZE : offset + wanted_size])
    if len(binary) + len(rest) != wanted_size:
        raise Unlike("the metadata are cut off")
    (
        magic, version, size, sequence, label, algorithm, _salt, uuid, subsystem,
        own_offset, padding, checksum, tail,
    ) = _BINARY.unpack(binary)  # fmt: skip
    if magic != wanted_magic or version != 2:
        raise Unlike("not a LUKS2 header")
    if size != wanted_size or own_offset != offset:
        raise Unlike("metadata size or offset")
    if algorithm.rstrip(b"\0") != b"sha256":
        raise Unlike("checksum algorithm")
    if padding.strip(b"\0") or tail.strip(b"\0"):
        raise Unlike("padding is not empty")
    without_checksum = binary[:_CHECKSUM_AT] + bytes(64) + binary[_CHECKSUM_AT + 64 :]
    found = hashlib.sha256(without_checksum + rest).digest()
    if not hmac.compare_digest(found + bytes(32), checksum):
        raise Unlike("metadata checksum")
    text, _, behind = rest.partition(b"\0")
    if behind.strip(b"\0"):
        raise Unlike("bytes behind the JSON text")
    if len(text) > _LARGEST_TEXT:
        raise Unlike("the JSON text is longer than any that is made")
    return Copy(sequence, uuid, label + subsystem, text)


def _parse(area: bytes | bytearray, uuid: str, layout: Layout) -> Header:
    if layout.metadata_size not in METADATA_SIZES or layout.sector_size not in (512, 4096):
        raise Unlike("a metadata or sector size that LUKS2 does not have")
    if len(area) != layout.segment_offset or layout.keyslots_size < AREA_SIZE:
        raise Unlike("the segment does not begin where it should")
    found = read_copies(area, layout.metadata_size)
    if found.names.strip(b"\0"):
        raise Unlike("label or subsystem is not empty")
    if found.uuid.rstrip(b"\0") != uuid.encode():
        raise Unlike("UUID is not the record's")
    return _parse_metadata(parse_json(found.text), uuid, layout)


def _parse_metadata(root: Any, uuid: str, layout: Layout) -> Header:
    """§3: the five objects of the JSON area."""
    parts = exactly(root, "metadata", "keyslots", "tokens", "segments", "digests", "config")
    equal(parts["tokens"], {}, "tokens")
    json_size = layout.metadata_size - _BINARY_SIZE
    config = {"json_size": str(json_size), "keyslots_size": str(layout.keyslots_size)}
    equal(parts["config"], config, "config")
    segment = {
        "type": "crypt",
        "offset": str(layout.segment_offset),
        "size": "dynamic",
        "iv_tweak": "0",
        "encryption": CIPHER,
        "sector_size": layout.sector_size,
    }
    equal(parts["segments"], {"0": segment}, "segments")
    slots = exactly(parts["keyslots"], "keyslots", "0")
    slot = exactly(slots["0"], "keyslot", "type", "key_size", "af", "area", "kdf")
    equal(slot["type"], "luks2", "keyslot type")
    equal(slot["key_size"], XTS_KEY_SIZE, "keyslot key size")
    equal(slot["af"], {"type": "luks1", "stripes": STRIPES, "hash": "sha256"}, "keyslot stripes")
    area = {
        "type": "raw",
        "offset": str(layout.slot_offset),
        "size": str(AREA_SIZE),
        "encryption": CIPHER,
        "key_size": XTS_KEY_SIZE,
    }
    equal(slot["area"], area, "keyslot area")
    digests = exactly(parts["digests"], "digests", "0")
    digest = exactly(
        digests["0"],
        "digest",
        "type", "keyslots", "segments", "hash", "iterations", "salt", "digest",
    )  # fmt: skip
    equal(digest["type"], "pbkdf2", "digest type")
    equal(digest["hash"], "sha256", "digest hash")
    equal(digest["keyslots"], ["0"], "digest keyslots")
    equal(digest["segments"], ["0"], "digest segments")
    return Header(
        uuid=uuid,
        layout=layout,
        slot=check_derivation(slot["kdf"]),
        digest_iterations=bounded(digest["iterations"], _PBKDF2_ITERATIONS, "digest iterations"),
        digest_salt=base64_of(digest["salt"], 32, "digest salt"),
        digest=base64_of(digest["digest"], 32, "digest"),
    )


def check_derivation(
    kdf: Any, kinds: tuple[str, ...] = ("pbkdf2", "argon2id"), hashes: tuple[str, ...] = ("sha256",)
) -> Derivation:
    """Hold a keyslot's key derivation to our bounds.

    Raises:
        Unlike: what is not within them.
    """
    if not isinstance(kdf, dict) or kdf.get("type") not in kinds:
        raise Unlike("kdf type")
    if kdf["type"] == "pbkdf2":
        fields = exactly(kdf, "kdf", "type", "hash", "iterations", "salt")
        if fields["hash"] not in hashes:
            raise Unlike("kdf hash")
        iterations = bounded(fields["iterations"], _PBKDF2_ITERATIONS, "kdf iterations")
        return Derivation("pbkdf2", base64_of(fields["salt"], 32, "kdf salt"), iterations)
    fields = exactly(kdf, "kdf", "type", "time", "memory", "cpus", "salt")
    return Derivation(
        kdf["type"],
        base64_of(fields["salt"], 32, "kdf salt"),
        bounded(fields["time"], _ARGON2_TIME, "kdf time"),
        bounded(fields["memory"], _ARGON2_MEMORY_KIB, "kdf memory"),
        bounded(fields["cpus"], _ARGON2_LANES, "kdf lanes"),
    )


def _derive(slot: Derivation, key: bytes | bytearray) -> bytes:
    if slot.kind == "pbkdf2":
        return hashlib.pbkdf2_hmac("sha256", key, slot.salt, slot.iterations, XTS_KEY_SIZE)
    kdf = Argon2id(
        salt=slot.salt,
        length=XTS_KEY_SIZE,
        iterations=slot.iterations,
        lanes=slot.lanes,
        memory_cost=slot.memory_kib,
    )
    return kdf.derive(bytes(key))


def _merge_stripes(material: bytearray) -> bytearray:
    """The anti-forensic merge (LUKS1 On-Disk Format §2.4), hash SHA-256."""
    state = 0
    for at in range(0, len(material) - XTS_KEY_SIZE, XTS_KEY_SIZE):
        mixed = state ^ int.from_bytes(material[at : at + XTS_KEY_SIZE], "big")
        state = int.from_bytes(_diffuse(mixed.to_bytes(XTS_KEY_SIZE, "big")), "big")
    state ^= int.from_bytes(material[-XTS_KEY_SIZE:], "big")
    return bytearray(state.to_bytes(XTS_KEY_SIZE, "big"))


def _diffuse(block: bytes) -> bytes:
    return b"".join(
        hashlib.sha256(index.to_bytes(4, "big") + block[at : at + 32]).digest()
        for index, at in enumerate(range(0, len(block), 32))
    )
