"""The volume record: all that anyone has to know to open a volume.

Rules this module keeps:

* Opening believes nothing in the volume file that the record does not state:
  sizes, offsets, cipher, header digest and the verity root hash all stand here.
* A record has exactly one encoding (canonical JSON: sorted keys, no blanks,
  UTF-8, integers only), inside exactly one envelope. Bytes that decode to a
  valid record but are not that encoding are refused, so ``record_digest`` names
  one record and nothing else.
* The envelope is DSSE (https://github.com/secure-systems-lab/dsse, v1.0): the
  signature covers the payload *type* too, so an owner's signature on something
  else can never be taken for a record.
* A record holds no secret. ``key_id`` names the volume key without revealing it.
* ``kind`` decides what the record can promise. ``sealed``: every byte, by the
  verity tree. ``writable``: the header, and with it cipher, key and offsets; the
  content changes, so nobody can tell an older one from the newest.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from typing import Annotated, Any, Final, Literal, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sealserve.errors import InputError, Refused
from sealserve.volume.provenance import Provenance
from sealserve.wire.limits import MAX_RECORD_BYTES

__all__ = [
    "BLOCK_SIZE",
    "KEY_SIZE",
    "Filesystem",
    "HeaderPin",
    "Kind",
    "ModelEntry",
    "VerityParameters",
    "VolumeRecord",
    "decode_payload",
    "key_id_of",
    "open_record",
    "peek_record",
    "record_digest",
    "sign_record",
    "tree_blocks",
]

BLOCK_SIZE: Final = 4096
"""Bytes of a sector of our own volumes, of a verity data block and of a hash block."""

KEY_SIZE: Final = 32
"""Bytes of the volume key that the broker keeps: it opens the LUKS2 keyslot."""

Kind = Literal["sealed", "writable"]
Filesystem = Literal["ext4", "erofs"]

_FORMAT: Final = "sealserve.volume-record.v2"
_PAYLOAD_TYPE: Final = "application/vnd.sealserve.volume-record+json"
_DIGESTS_PER_BLOCK: Final = BLOCK_SIZE // 32

_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$")]
# JSON numbers are exact in every reader up to 2**53.
_Bytes = Annotated[int, Field(ge=BLOCK_SIZE, le=2**53 - 1, multiple_of=BLOCK_SIZE)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class HeaderPin(_Part):
    """The LUKS2 header area: both metadata copies and the keyslots.

    Attributes:
        sha256: SHA-256 of the whole area, lower-case hex.
        size: bytes from the start of the file to the encrypted segment.
        metadata_size: bytes of one metadata copy, a power of two (LUKS2 §2.2).
    """

    sha256: _Digest
    size: _Bytes
    metadata_size: Literal[
        0x4000, 0x8000, 0x10000, 0x20000, 0x40000, 0x80000, 0x100000, 0x200000, 0x400000
    ] = 0x4000


class VerityParameters(_Part):
    """Geometry of the dm-verity tree (hash type 1, no superblock on disk).

    Attributes:
        algorithm: hash of data and tree blocks.
        block_size: bytes of a data block and of a hash block.
        data_blocks: number of blocks covered: header area and segment.
        hash_offset: byte offset of the tree in the file.
        salt: 32 bytes as hex, hashed before each block.
        root_hash: SHA-256 of the salted top block of the tree, hex.
    """

    algorithm: Literal["sha256"] = "sha256"
    block_size: Literal[4096] = BLOCK_SIZE
    data_blocks: Annotated[int, Field(gt=1, le=2**41)]
    hash_offset: _Bytes
    salt: _Digest
    root_hash: _Digest


class ModelEntry(_Part):
    """A model inside the volume.

    Attributes:
        name: servable name, the directory below ``models/``.
        version: servable version, the directory below the name.
        digest: `sealserve.volume.tree.tree_digest` of that directory, hex.
    """

    name: _Name
    version: Annotated[int, Field(ge=0, le=2**53 - 1)]
    digest: _Digest


class VolumeRecord(_Part):
    """What a volume is, as its owner states it.

    Attributes:
        format: version of this document's meaning.
        kind: ``sealed`` (read-only, verified) or ``writable``.
        name: the owner's name for the volume.
        uuid: UUID of the LUKS2 header.
        version: counts up with each remake of the named volume.
        created: UTC, ``YYYY-MM-DDTHH:MM:SSZ``.
        data_size: bytes of the decrypted filesystem; a writable volume may have grown since.
        header: pin of the LUKS2 header area.
        cipher: dm-crypt name of the cipher.
        key_bits: bits of the LUKS volume key (two AES-256 keys).
        sector_size: bytes of an encryption sector.
        segment_offset: byte offset of the encrypted segment in the file.
        verity: geometry and root hash of the tree over header and segment; none for
            a writable volume. `tree` is the same without the none.
        filesystem: type of the filesystem inside.
        key_id: `key_id_of` the key that opens the keyslot.
        models: sorted by name, then version.
        provenance: whose signatures each model must carry to be served; not in the
            document where nothing is demanded.
    """

    format: Literal["sealserve.volume-record.v2"] = _FORMAT
    kind: Kind = "sealed"
    name: _Name
    uuid: Annotated[
        str, Field(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$")
    ]
    version: Annotated[int, Field(ge=1, le=2**53 - 1)]
    created: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
    data_size: _Bytes
    header: HeaderPin
    cipher: Literal["aes-xts-plain64"] = "aes-xts-plain64"
    key_bits: Literal[512] = 512
    sector_size: Literal[512, 4096] = BLOCK_SIZE
    segment_offset: _Bytes
    verity: VerityParameters | None
    filesystem: Filesystem = "ext4"
    key_id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    models: tuple[ModelEntry, ...] = ()
    provenance: Provenance | None = None

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        if self.header.size != self.segment_offset:
            raise ValueError("the header area does not end where the segment begins")
        if 2 * self.header.metadata_size >= self.header.size:
            raise ValueError("the metadata leave no room for a keyslot")
        if (self.kind == "sealed") != (self.verity is not None):
            raise ValueError("a sealed volume has a verity tree, a writable one has none")
        if self.kind == "writable" and (
            self.models or self.provenance or self.filesystem != "ext4"
        ):
            raise ValueError("a writable volume is ext4, and no record can vouch for its models")
        if self.verity and self.segment_end != self.verity.hash_offset:
            raise ValueError("the verity tree does not begin where the segment ends")
        if self.verity and self.verity.data_blocks * BLOCK_SIZE != self.verity.hash_offset:
            raise ValueError("verity does not cover exactly the header area and the segment")
        order = [(model.name, model.version) for model in self.models]
        if order != sorted(set(order)):
            raise ValueError("models are not sorted, or one stands twice")
        return self

    @property
    def tree(self) -> VerityParameters:
        """The verity tree of a sealed volume.

        Raises:
            Refused: ``volume.not_sealed``.
        """
        if self.verity is None:
            raise Refused(
                "volume.not_sealed",
                f"the volume {self.name!r} is writable: nothing vouches for its content",
                hint="only a sealed volume can be used here",
            )
        return self.verity

    @property
    def segment_end(self) -> int:
        """Bytes of header and segment, as they were when the record was made."""
        return self.segment_offset + self.data_size

    @property
    def file_size(self) -> int:
        """Size of the volume file in bytes: header, segment and tree.

        Exact for a sealed volume; the least that a writable one has.
        """
        if self.verity is None:
            return self.segment_end
        return self.segment_end + tree_blocks(self.verity.data_blocks) * BLOCK_SIZE

    def to_json(self) -> bytes:
        """The record's one encoding: canonical JSON, UTF-8."""
        document = self.model_dump(mode="json")
        if self.provenance is None:
            del document["provenance"]
        return _canonical(document)


def tree_blocks(data_blocks: int) -> int:
    """Number of hash blocks in a verity tree over ``data_blocks`` blocks (at least 2)."""
    total, level = 0, data_blocks
    while level > 1:
        level = -(-level // _DIGESTS_PER_BLOCK)
        total += level
    return total


def key_id_of(key: bytes | bytearray) -> str:
    """A public name for a volume key.

    A hash of 256 random bits reveals nothing of them; it lets a guest notice a
    wrong key before it spends time on the keyslot.

    Args:
        key: the volume key, `KEY_SIZE` random bytes.

    Returns:
        32 lower-case hex digits.
    """
    digest = hashlib.sha256(b"sealserve volume key id\x00")
    digest.update(key)
    return digest.hexdigest()[:32]


def record_digest(raw: bytes) -> bytes:
    """SHA-384 of a *signed* record, 48 bytes: the payload of the runtime event ``volume``."""
    return hashlib.sha384(raw).digest()


def sign_record(record: VolumeRecord, owner_key: Ed25519PrivateKey) -> bytes:
    """Sign a record.

    Args:
        record: what to sign.
        owner_key: the owner's Ed25519 private key.

    Returns:
        The signed record: a DSSE envelope in canonical JSON.

    Raises:
        InputError: ``record.too_large``: too many models for one volume.
    """
    payload = record.to_json()
    signature = owner_key.sign(_pre_authentication_encoding(payload))
    signed = _envelope(payload, signature, owner_key.public_key())
    _check_size(signed)
    return signed


def open_record(raw: bytes, owner_public_key: Ed25519PublicKey) -> VolumeRecord:
    """Check a signed record and decode it.

    Args:
        raw: what `sign_record` returned; at most `MAX_RECORD_BYTES` bytes are looked at.
        owner_public_key: the only key whose signature counts.

    Returns:
        The record that the owner signed.

    Raises:
        InputError: ``record.too_large``, ``record.malformed``, ``record.version_unknown``.
        Refused: ``record.signature_invalid`` when the owner did not sign these bytes.
    """
    payload, signature = _open_envelope(raw)
    try:
        owner_public_key.verify(signature, _pre_authentication_encoding(payload))
    except InvalidSignature:
        raise Refused(
            "record.signature_invalid",
            "the volume record is not signed by this owner",
            hint="compare the owner's public key with the one the record was made with",
        ) from None
    if _envelope(payload, signature, owner_public_key) != raw:
        raise _malformed("the envelope is not in its canonical form")
    return decode_payload(payload)


def decode_payload(payload: bytes) -> VolumeRecord:
    """Decode a record's canonical JSON, whose origin the caller has checked.

    Raises:
        InputError: ``record.malformed``, ``record.version_unknown``.
    """
    _check_format(payload)
    try:
        record = VolumeRecord.model_validate_json(payload)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "record"
        raise _malformed(f"{place}: {first['msg']}") from None
    if record.to_json() != payload:
        raise _malformed("the record is not in its canonical form")
    return record


def peek_record(raw: bytes) -> VolumeRecord:
    """Decode a signed record WITHOUT checking its signature: for showing it to people.

    Raises:
        InputError: ``record.too_large``, ``record.malformed``, ``record.version_unknown``.
    """
    return decode_payload(_open_envelope(raw)[0])


def _check_format(payload: bytes) -> None:
    """A record of another version is no garbage: say which one it is."""
    try:
        found = json.loads(payload)["format"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return  # the model says what is wrong with it
    known = isinstance(found, str) and re.fullmatch(r"sealserve\.volume-record\.v\d{1,6}", found)
    if known and found != _FORMAT:
        raise InputError(
            "record.version_unknown",
            f"the record is of the form {found}, and this program reads {_FORMAT}",
            hint="use the version of sealserve that made it, or make the volume anew",
        )


def _open_envelope(raw: bytes) -> tuple[bytes, bytes]:
    _check_size(raw)
    try:
        envelope = json.loads(raw)
        (entry,) = envelope["signatures"]
        if envelope["payloadType"] != _PAYLOAD_TYPE:
            raise _malformed("the envelope holds something other than a volume record")
        payload = base64.b64decode(envelope["payload"], validate=True)
        return payload, base64.b64decode(entry["sig"], validate=True)
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error):
        raise _malformed("not a signed volume record") from None


def _envelope(payload: bytes, signature: bytes, owner: Ed25519PublicKey) -> bytes:
    spki = owner.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    entry = {"keyid": hashlib.sha256(spki).hexdigest(), "sig": _text(signature)}
    return _canonical(
        {"payload": _text(payload), "payloadType": _PAYLOAD_TYPE, "signatures": [entry]}
    )


def _pre_authentication_encoding(payload: bytes) -> bytes:
    """PAE of the DSSE protocol: what is signed in place of the bare payload."""
    kind = _PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def _canonical(value: Any) -> bytes:
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _check_size(raw: bytes) -> None:
    if len(raw) > MAX_RECORD_BYTES:
        raise InputError(
            "record.too_large",
            f"the volume record has {len(raw)} bytes; the limit is {MAX_RECORD_BYTES}",
        )


def _malformed(reason: str) -> InputError:
    return InputError("record.malformed", f"volume record: {reason}")
