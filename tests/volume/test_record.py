"""Records: one encoding, one signer, nothing that does not fit together."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sealserve.errors import InputError, Refused, SealserveError
from sealserve.volume.record import (
    HeaderPin,
    ModelEntry,
    VerityParameters,
    VolumeRecord,
    key_id_of,
    open_record,
    peek_record,
    record_digest,
    sign_record,
    tree_blocks,
)
from sealserve.wire.limits import MAX_RECORD_BYTES

OWNER = Ed25519PrivateKey.from_private_bytes(b"o" * 32)
MIB = 1 << 20


def example(**changes: Any) -> VolumeRecord:
    fields: dict[str, Any] = {
        "name": "models",
        "uuid": "11111111-2222-3333-4444-555555555555",
        "version": 1,
        "created": "2026-01-02T03:04:05Z",
        "data_size": 8 * MIB,
        "header": HeaderPin(sha256="a" * 64, size=16 * MIB),
        "segment_offset": 16 * MIB,
        "verity": VerityParameters(
            data_blocks=24 * MIB // 4096,
            hash_offset=24 * MIB,
            salt="b" * 64,
            root_hash="c" * 64,
        ),
        "key_id": "d" * 32,
        "models": (ModelEntry(name="net", version=1, digest="e" * 64),),
    }
    return VolumeRecord(**{**fields, **changes})


SIGNED = sign_record(example(), OWNER)


def test_what_was_signed_comes_back() -> None:
    assert open_record(SIGNED, OWNER.public_key()) == example()
    assert peek_record(SIGNED) == example()
    assert record_digest(SIGNED) == hashlib.sha384(SIGNED).digest()


def test_the_signature_is_the_published_dsse_form() -> None:
    """Built here from the protocol's text: "DSSEv1" SP LEN(type) SP type SP LEN(body) SP body."""
    envelope = json.loads(SIGNED)
    body = base64.b64decode(envelope["payload"])
    kind = envelope["payloadType"]
    signed = f"DSSEv1 {len(kind)} {kind} {len(body)} ".encode() + body
    signature = base64.b64decode(envelope["signatures"][0]["sig"])
    OWNER.public_key().verify(signature, signed)
    with pytest.raises(InvalidSignature):
        OWNER.public_key().verify(signature, body)


def test_json_is_canonical() -> None:
    payload = example().to_json()
    loaded = json.loads(payload)
    again = json.dumps(loaded, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert payload == again.encode()
    assert b"." not in json.dumps([v for v in loaded.values() if isinstance(v, int)]).encode()


def test_another_owner_is_refused() -> None:
    with pytest.raises(Refused) as caught:
        open_record(SIGNED, Ed25519PrivateKey.generate().public_key())
    assert caught.value.code == "record.signature_invalid"


@given(st.integers(0, len(SIGNED) - 1), st.integers(0, 7))
def test_no_flipped_bit_passes(at: int, bit: int) -> None:
    spoilt = bytearray(SIGNED)
    spoilt[at] ^= 1 << bit
    with pytest.raises(SealserveError):
        open_record(bytes(spoilt), OWNER.public_key())


@given(st.binary(max_size=300))
def test_rubbish_raises_only_our_errors(raw: bytes) -> None:
    with pytest.raises(InputError):
        open_record(raw, OWNER.public_key())


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b'{"signatures":[]}',
        b"[" * 40_000,
        json.dumps(json.loads(SIGNED), indent=1).encode(),
        SIGNED + b"\n",
        SIGNED.replace(b'{"payload"', b'{"payload":"","payload"'),
        SIGNED.replace(b"volume-record+json", b"something-else+json"),
    ],
    ids=["empty", "null", "list", "no signature", "deep", "spaced", "newline", "doubled", "type"],
)
def test_other_forms_are_refused(raw: bytes) -> None:
    with pytest.raises(InputError) as caught:
        open_record(raw, OWNER.public_key())
    assert caught.value.code == "record.malformed"


def test_the_size_is_limited() -> None:
    with pytest.raises(InputError) as caught:
        open_record(b" " * (MAX_RECORD_BYTES + 1), OWNER.public_key())
    assert caught.value.code == "record.too_large"
    many = tuple(ModelEntry(name=f"n{i:04}", version=1, digest="e" * 64) for i in range(500))
    with pytest.raises(InputError) as caught:
        sign_record(example(models=many), OWNER)
    assert caught.value.code == "record.too_large"


def test_a_signed_record_that_is_not_canonical_is_refused() -> None:
    """Not even the owner's own signature makes a second encoding of one record."""
    from sealserve.volume import record as module

    payload = json.dumps(json.loads(example().to_json()), indent=1).encode()
    signature = OWNER.sign(module._pre_authentication_encoding(payload))
    raw = module._envelope(payload, signature, OWNER.public_key())
    with pytest.raises(InputError) as caught:
        open_record(raw, OWNER.public_key())
    assert caught.value.code == "record.malformed"


@pytest.mark.parametrize(
    "changes",
    [
        {"data_size": 8 * MIB + 4096},
        {"segment_offset": 8 * MIB},
        {"data_size": 8 * MIB + 1},
        {"cipher": "cipher_null-ecb"},
        {"sector_size": 1024},
        {"filesystem": "xfs"},
        {"format": "sealserve.volume-record.v3"},
        {"kind": "open"},
        {"kind": "writable"},  # with a tree
        {"verity": None},  # and sealed
        {"kind": "writable", "verity": None},  # with models
        {"kind": "writable", "verity": None, "models": (), "filesystem": "erofs"},
        {"header": HeaderPin(sha256="a" * 64, size=32 * MIB)},
        {"name": "../evil"},
        {"name": ""},
        {"uuid": "no uuid"},
        {"version": 0},
        {"version": True},
        {"version": "1"},
        {"created": "yesterday"},
        {"key_id": "D" * 32},
        {"surprise": 1},
        {
            "models": (
                ModelEntry(name="b", version=1, digest="e" * 64),
                ModelEntry(name="a", version=1, digest="e" * 64),
            )
        },
        {"models": (ModelEntry(name="a", version=1, digest="e" * 64),) * 2},
    ],
)
def test_what_does_not_fit_is_no_record(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        example(**changes)


def test_metadata_leave_room_for_the_keyslot() -> None:
    pin = HeaderPin(sha256="a" * 64, size=8 * MIB, metadata_size=4 * MIB)
    with pytest.raises(ValidationError, match="no room"):
        example(
            header=pin,
            segment_offset=8 * MIB,
            verity=VerityParameters(
                data_blocks=16 * MIB // 4096,
                hash_offset=16 * MIB,
                salt="b" * 64,
                root_hash="c" * 64,
            ),
        )


def test_a_writable_record_says_that_it_promises_less() -> None:
    writable = example(kind="writable", verity=None, models=())
    assert open_record(sign_record(writable, OWNER), OWNER.public_key()) == writable
    assert writable.file_size == 24 * MIB
    with pytest.raises(Refused) as caught:
        _ = writable.tree
    assert caught.value.code == "volume.not_sealed"


def test_foreign_layouts_can_be_stated() -> None:
    for power in range(9):
        size = 0x4000 << power
        pin = HeaderPin(sha256="a" * 64, size=16 * MIB, metadata_size=size)
        record = example(header=pin, sector_size=512)
        assert open_record(sign_record(record, OWNER), OWNER.public_key()) == record


def test_a_record_of_another_version_is_named() -> None:
    from sealserve.volume import record as module

    text = example().to_json().replace(b"record.v2", b"record.v1")
    signature = OWNER.sign(module._pre_authentication_encoding(text))
    with pytest.raises(InputError, match=r"form sealserve\.volume-record\.v1") as caught:
        open_record(module._envelope(text, signature, OWNER.public_key()), OWNER.public_key())
    assert caught.value.code == "record.version_unknown"


@given(st.integers(2, 1 << 30))
def test_tree_blocks_counts_each_level(data_blocks: int) -> None:
    expected, level = 0, data_blocks
    while True:
        level = (level + 127) // 128
        expected += level
        if level == 1:
            break
    assert tree_blocks(data_blocks) == expected


def test_key_ids_differ_and_do_not_show_the_key() -> None:
    key = bytes(range(32))
    assert key_id_of(key) == key_id_of(bytearray(key)) != key_id_of(key[::-1])
    assert key_id_of(key) not in (hashlib.sha256(key).hexdigest()[:32], key.hex()[:32])
