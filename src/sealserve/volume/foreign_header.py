"""Headers of LUKS volumes that others made, read to refuse all but the usual ones.

Such a volume comes back from a machine that its owner does not trust, so its header
may be an attacker's: one with no cipher would make the owner sign the attacker's model.

Rules this module keeps:

* Accepted is what ``cryptsetup luksFormat --cipher aes-xts-plain64 --key-size 512``
  makes, version 1 or 2, with any of its keyslots used, sectors of 512 or 4096 bytes, and
  the key derivations of its time. Every field is looked at; what is not known is refused.
* The costs of all derivations are bounded before one starts.
* One snapshot of the header is parsed here and used afterwards, never the file again.

Formats: LUKS1 On-Disk Format 1.2.3 §2; LUKS2 On-Disk Format Specification 1.1.3.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Any, Final

from sealserve.errors import Refused
from sealserve.volume.cipher import XTS_KEY_SIZE
from sealserve.volume.luks2 import (
    AREA_SIZE,
    CIPHER,
    METADATA_SIZES,
    STRIPES,
    check_derivation,
    read_copies,
)
from sealserve.volume.strict import Unlike, base64_of, bounded, equal, exactly, parse_json

__all__ = ["MAX_AREA", "ForeignHeader", "parse_foreign"]

MAX_AREA: Final = 32 << 20
"""Bytes of the longest header that is read; cryptsetup makes 2 MiB or 16 MiB."""

_MAGIC: Final = b"LUKS\xba\xbe"
_SECTOR: Final = 512
_HASHES: Final = ("sha1", "sha256", "sha512", "ripemd160")
_ITERATIONS: Final = range(1000, 10_000_001)
_UUID: Final = re.compile(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_DIGEST_LENGTHS: Final = (28, 44, 88)  # 20, 32 and 64 bytes as base64
_DECIMAL: Final = re.compile(r"0|[1-9][0-9]{0,18}")

# §2.1: magic, version, cipher, mode, hash, payload offset, key bytes, digest of the
# key, its salt and iterations, UUID; then eight keyslots: state, iterations, salt,
# place of the key material, stripes
_LUKS1: Final = struct.Struct(">6sH32s32s32sII20s32sI40s")
_LUKS1_SLOT: Final = struct.Struct(">II32sII")
_LUKS1_SLOTS: Final = 8
_ENABLED: Final = 0x00AC71F3
_DISABLED: Final = 0x0000DEAD


@dataclass(frozen=True)
class ForeignHeader:
    """An accepted header.

    Attributes:
        version: of LUKS, 1 or 2.
        uuid: of the volume.
        size: bytes of the header with all keyslots.
        start: where the encrypted segment begins, bytes.
        unit: bytes of an encryption sector.
        metadata_size: bytes of one metadata copy of LUKS2.
    """

    version: int
    uuid: str
    size: int
    start: int
    unit: int
    metadata_size: int = 0


def parse_foreign(area: bytes | bytearray) -> ForeignHeader:
    """Check a header of LUKS1 or LUKS2.

    Args:
        area: the file's beginning, as far as it goes, at most `MAX_AREA` bytes.

    Raises:
        Refused: ``volume.foreign_refused`` with the first thing that is unusual.
    """
    magic, version = bytes(area[:6]), int.from_bytes(area[6:8], "big")
    if magic != _MAGIC or version not in (1, 2):
        raise Refused(
            "volume.foreign_refused",
            "the file does not begin with a LUKS header",
            hint="a volume whose header was kept in another file must get it back first",
        )
    try:
        return _luks1(area) if version == 1 else _luks2(area)
    except Unlike as reason:
        raise Refused(
            "volume.foreign_refused",
            f"the LUKS{version} header is none of the usual ones: {reason}",
            hint=f"only {CIPHER} with a 512-bit key, as the scripts made it, is taken; "
            "on a copy, `cryptsetup reencrypt` or `cryptsetup repair` can bring others to that",
        ) from None


def _luks1(area: bytes | bytearray) -> ForeignHeader:
    if len(area) < _LUKS1.size + _LUKS1_SLOTS * _LUKS1_SLOT.size:
        raise Unlike("it is cut off")
    (
        _magic, _version, cipher, mode, hashed, payload, key_bytes, _digest, _salt,
        iterations, uuid,
    ) = _LUKS1.unpack_from(area)  # fmt: skip
    if _text(cipher) + b"-" + _text(mode) != CIPHER.encode() or key_bytes != XTS_KEY_SIZE:
        raise Unlike("cipher or key size")
    if _text(hashed) not in [name.encode() for name in _HASHES]:
        raise Unlike("hash")
    bounded(iterations, _ITERATIONS, "digest iterations")
    start = payload * _SECTOR
    areas = []
    for number in range(_LUKS1_SLOTS):
        at = _LUKS1.size + number * _LUKS1_SLOT.size
        state, iterations, _salt, place, stripes = _LUKS1_SLOT.unpack_from(area, at)
        if state not in (_ENABLED, _DISABLED) or stripes != STRIPES:
            raise Unlike("a keyslot")
        if state == _ENABLED:
            bounded(iterations, _ITERATIONS, "kdf iterations")
            areas.append((place * _SECTOR, XTS_KEY_SIZE * STRIPES))
    _check_areas(areas, 1024, start)
    _check_start(area, start)
    return ForeignHeader(1, _uuid(uuid), start, start, _SECTOR)


def _luks2(area: bytes | bytearray) -> ForeignHeader:
    metadata_size = int.from_bytes(area[8:16], "big")
    if metadata_size not in METADATA_SIZES:
        raise Unlike("metadata size")
    found = read_copies(area, metadata_size)
    root = exactly(
        parse_json(found.text), "metadata", "keyslots", "tokens", "segments", "digests", "config"
    )
    equal(root["tokens"], {}, "tokens")
    segment = exactly(
        exactly(root["segments"], "segments", "0")["0"],
        "segment",
        "type", "offset", "size", "iv_tweak", "encryption", "sector_size",
    )  # fmt: skip
    unit = segment["sector_size"]
    start = _number(segment["offset"], "segment offset")
    if type(unit) is not int or unit not in (512, 4096):
        raise Unlike("sector size")
    wanted = {"type": "crypt", "size": "dynamic", "iv_tweak": "0", "encryption": CIPHER}
    equal({name: segment[name] for name in wanted}, wanted, "segment")
    _check_start(area, start)
    config = exactly(root["config"], "config", "json_size", "keyslots_size")
    equal(config["json_size"], str(metadata_size - 4096), "json size")
    keyslots_end = 2 * metadata_size + _number(config["keyslots_size"], "keyslots size")
    if keyslots_end > start:
        raise Unlike("keyslots within the segment")
    slots = _slots(root["keyslots"], 2 * metadata_size, keyslots_end)
    _check_digest(exactly(root["digests"], "digests", "0")["0"], slots)
    return ForeignHeader(2, _uuid(found.uuid), keyslots_end, start, unit, metadata_size)


def _slots(slots: Any, begin: int, end: int) -> list[str]:
    """The keyslots' names."""
    if not isinstance(slots, dict) or not slots or len(slots) > 32:
        raise Unlike("keyslots")
    areas = []
    for name, slot in slots.items():
        if _number(name, "keyslot number") >= 32:
            raise Unlike("keyslot number")
        if isinstance(slot, dict) and "priority" in slot:  # of no matter here
            slot = {field: value for field, value in slot.items() if field != "priority"}
        fields = exactly(slot, "keyslot", "type", "key_size", "af", "area", "kdf")
        equal(fields["type"], "luks2", "keyslot type")
        equal(fields["key_size"], XTS_KEY_SIZE, "keyslot key size")
        split = exactly(fields["af"], "keyslot stripes", "type", "stripes", "hash")
        equal([split["type"], split["stripes"]], ["luks1", STRIPES], "keyslot stripes")
        _check_hash(split["hash"])
        area = exactly(fields["area"], "area", "type", "offset", "size", "encryption", "key_size")
        kind = [area["type"], area["encryption"], area["key_size"]]
        equal(kind, ["raw", CIPHER, XTS_KEY_SIZE], "keyslot area")
        place, size = _number(area["offset"], "area offset"), _number(area["size"], "area size")
        if size != AREA_SIZE or place % 4096:
            raise Unlike("keyslot area")
        areas.append((place, size))
        check_derivation(fields["kdf"], ("pbkdf2", "argon2i", "argon2id"), _HASHES)
    _check_areas(areas, begin, end)
    return list(slots)


def _check_digest(digest: Any, slots: list[str]) -> None:
    fields = exactly(
        digest, "digest", "type", "keyslots", "segments", "hash", "iterations", "salt", "digest"
    )
    equal(fields["type"], "pbkdf2", "digest type")
    equal(fields["segments"], ["0"], "digest segments")
    named = fields["keyslots"]
    if not isinstance(named, list) or sorted(map(str, named)) != sorted(slots):
        raise Unlike("digest keyslots")
    _check_hash(fields["hash"])
    bounded(fields["iterations"], _ITERATIONS, "digest iterations")
    base64_of(fields["salt"], 32, "digest salt")
    if not isinstance(fields["digest"], str) or len(fields["digest"]) not in _DIGEST_LENGTHS:
        raise Unlike("digest")


def _check_areas(areas: list[tuple[int, int]], begin: int, end: int) -> None:
    """Key material lies between header and segment, none over another."""
    if not areas:
        raise Unlike("no keyslot")
    for place, size in sorted(areas):
        if place < begin:
            raise Unlike("keyslots overlap")
        begin = place + size
    if begin > end:
        raise Unlike("a keyslot beyond the header")


def _check_start(area: bytes | bytearray, start: int) -> None:
    if start > MAX_AREA:
        raise Unlike(f"more than {MAX_AREA >> 20} MiB before the segment")
    if start % _SECTOR or start > len(area):
        raise Unlike("the segment begins beyond the end of the file")


def _check_hash(name: Any) -> None:
    if name not in _HASHES:
        raise Unlike("hash")


def _number(text: Any, what: str) -> int:
    if not isinstance(text, str) or not _DECIMAL.fullmatch(text):
        raise Unlike(what)
    return int(text)


def _text(field: bytes) -> bytes:
    """A padded text; all of it if something stands behind the padding."""
    text, _, behind = field.partition(b"\0")
    return field if behind.strip(b"\0") else text


def _uuid(field: bytes) -> str:
    text = _text(field)
    if not _UUID.fullmatch(text):
        raise Unlike("UUID")
    return text.decode()
