"""HPKE sealing and the formulas of binding."""

from __future__ import annotations

import hashlib
import hmac
import struct

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric import mlkem, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from sealserve.attestation import binding, sealing
from sealserve.errors import InputError, Refused

KEY = sealing.generate_key()
PARTS = {
    "nonce": bytes(32),
    "broker_spki_sha256": b"b" * 32,
    "hpke_public_key": KEY.public,
    "resource": "models/demo",
    "boot_id": bytes(16),
}


@settings(max_examples=25, deadline=None)
@given(st.binary(max_size=2000), st.binary(max_size=200))
def test_only_the_key_and_the_transcript_open(plaintext: bytes, info: bytes) -> None:
    sealed = sealing.seal(KEY.public, plaintext, info)
    assert len(sealed) == len(plaintext) + sealing.OVERHEAD_BYTES
    assert KEY.open(sealed, info) == plaintext
    for key, transcript in ((sealing.generate_key(), info), (KEY, info + b"x")):
        with pytest.raises(Refused) as caught:
            key.open(sealed, transcript)
        assert caught.value.code == "sealing.not_opened"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1120 + 16 + 31), st.integers(1, 255))
def test_any_changed_byte_is_refused(position: int, mask: int) -> None:
    sealed = bytearray(sealing.seal(KEY.public, b"k" * 32, b"info"))
    sealed[position] ^= mask
    with pytest.raises(Refused):
        KEY.open(bytes(sealed), b"info")


@pytest.mark.parametrize("size", [0, 1, 1119, 1120, 1135])
def test_cut_messages_are_refused(size: int) -> None:
    with pytest.raises(Refused):
        KEY.open(sealing.seal(KEY.public, b"", b"info")[:size], b"info")


def test_private_keys_survive_bytes_and_stay_out_of_sight() -> None:
    raw = KEY.private_bytes()
    assert len(raw) == sealing.PRIVATE_KEY_BYTES
    again = sealing.HpkeKey.from_private_bytes(raw)
    assert again.public == KEY.public
    assert again.open(sealing.seal(KEY.public, b"x", b""), b"") == b"x"
    assert raw.hex()[:16] not in repr(KEY)


@pytest.mark.parametrize("public", [b"", bytes(1216), b"\xff" * 1216, bytes(1215)])
def test_keys_that_are_none_are_refused(public: bytes) -> None:
    with pytest.raises(InputError) as caught:
        sealing.seal(public, b"x", b"")
    assert caught.value.code == "sealing.key_malformed"


def test_sizes_are_bounded() -> None:
    with pytest.raises(InputError) as caught:
        sealing.seal(KEY.public, bytes(sealing.MAX_SEALED_BYTES), b"")
    assert caught.value.code == "sealing.too_large"
    with pytest.raises(InputError):
        KEY.open(bytes(sealing.MAX_SEALED_BYTES + 1), b"")
    with pytest.raises(InputError):
        sealing.HpkeKey.from_private_bytes(bytes(95))


# RFC 9180, appendix A.1.1: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-128-GCM, base mode.
RFC_A_1_1 = {
    name: bytes.fromhex(value)
    for name, value in {
        "info": "4f6465206f6e2061204772656369616e2055726e",
        "enc": "37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431",
        "skRm": "4612c550263fc8ad58375df3f557aac531d26850903e55a9f23f21d8534e8ac8",
        "pkRm": "3948cfe0ad1ddb695d780e59077195da6c56506b027329794ab02bca80815c4d",
        "key": "4531685d41d65f03dc48f6b8302c05b0",
        "base_nonce": "56d890e5accaaf011cff4b7d",
        "pt": "4265617574792069732074727574682c20747275746820626561757479",
        "aad": "436f756e742d30",
        "ct": "f938558b5d72f1a23810b4be2ab4f84331acc02fc97babc53a52ae8218a355a96d8770ac83d07bea"
        "87e13c512a",
    }.items()
}


def test_the_librarys_hpke_passes_rfc_9180_a_1_1() -> None:
    """Its interface takes no AAD, which all of the RFC's messages have.

    So a message is made from the vector's own key and nonce: the library opens it only if it
    derives exactly these from the vector's encapsulated key, private key and `info`.
    """
    rfc = RFC_A_1_1
    aead = AESGCM(rfc["key"])
    assert aead.encrypt(rfc["base_nonce"], rfc["pt"], rfc["aad"]) == rfc["ct"]
    private = x25519.X25519PrivateKey.from_private_bytes(rfc["skRm"])
    assert private.public_key().public_bytes_raw() == rfc["pkRm"]
    suite = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_128_GCM)
    message = rfc["enc"] + aead.encrypt(rfc["base_nonce"], rfc["pt"], b"")
    assert suite.decrypt(message, private, info=rfc["info"]) == rfc["pt"]
    for other in (b"", rfc["info"][:-1], rfc["info"] + b"\0"):
        with pytest.raises(InvalidTag):
            suite.decrypt(message, private, info=other)


def test_the_suite_opens_by_the_book() -> None:
    """An independent decryption: X-Wing and RFC 9180's key schedule, written out here."""
    sealed = sealing.seal(KEY.public, b"volume key", b"transcript")
    enc, ciphertext = sealed[:1120], sealed[1120:]
    raw = KEY.private_bytes()
    shared = _xwing_decapsulate(raw[:64], raw[64:], enc)
    suite_id = b"HPKE" + struct.pack(">HHH", 0x647A, 0x0002, 0x0002)
    psk_id_hash = _labeled_extract(b"", suite_id, b"psk_id_hash", b"")
    info_hash = _labeled_extract(b"", suite_id, b"info_hash", b"transcript")
    context = b"\0" + psk_id_hash + info_hash
    secret = _labeled_extract(shared, suite_id, b"secret", b"")
    key = _labeled_expand(secret, suite_id, b"key", context, 32)
    nonce = _labeled_expand(secret, suite_id, b"base_nonce", context, 12)
    assert AESGCM(key).decrypt(nonce, ciphertext, b"") == b"volume key"


def _xwing_decapsulate(seed: bytes, scalar: bytes, enc: bytes) -> bytes:
    """draft-connolly-cfrg-xwing-kem, section 5.4."""
    own = x25519.X25519PrivateKey.from_private_bytes(scalar)
    ss_m = mlkem.MLKEM768PrivateKey.from_seed_bytes(seed).decapsulate(enc[:1088])
    ss_x = own.exchange(x25519.X25519PublicKey.from_public_bytes(enc[1088:]))
    public = own.public_key().public_bytes_raw()
    return hashlib.sha3_256(ss_m + ss_x + enc[1088:] + public + b"\\.//^\\").digest()


def _labeled_extract(salt: bytes, suite_id: bytes, label: bytes, ikm: bytes) -> bytes:
    salt = salt or bytes(48)
    return hmac.new(salt, b"HPKE-v1" + suite_id + label + ikm, hashlib.sha384).digest()


def _labeled_expand(prk: bytes, suite_id: bytes, label: bytes, info: bytes, size: int) -> bytes:
    labeled = struct.pack(">H", size) + b"HPKE-v1" + suite_id + label + info
    return hmac.new(prk, labeled + b"\x01", hashlib.sha384).digest()[:size]


def test_a_release_transcript_is_what_the_docs_say() -> None:
    parts = [
        b"sealserve/v1 key-release",
        bytes(32),
        b"b" * 32,
        KEY.public,
        b"models/demo",
        bytes(16),
    ]
    expected = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    assert binding.release_transcript(**PARTS) == expected  # type: ignore[arg-type]
    assert binding.report_data_of(expected) == hashlib.sha512(expected).digest()


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("nonce", b"\x01" + bytes(31)),
        ("broker_spki_sha256", b"c" * 32),
        ("hpke_public_key", b"\x01" + KEY.public[1:]),
        ("resource", "models/demp"),
        ("boot_id", b"\x01" + bytes(15)),
    ],
)
def test_every_part_of_a_release_is_bound(part: str, value: bytes) -> None:
    transcript = binding.release_transcript(**PARTS)  # type: ignore[arg-type]
    changed = binding.release_transcript(**{**PARTS, part: value})  # type: ignore[arg-type]
    assert binding.report_data_of(changed) != binding.report_data_of(transcript)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("nonce", bytes(31)),
        ("broker_spki_sha256", bytes(48)),
        ("hpke_public_key", bytes(32)),
        ("resource", ""),
        ("resource", "ä" * 129),
        ("boot_id", b""),
    ],
)
def test_parts_of_the_wrong_length_are_refused(part: str, value: bytes) -> None:
    with pytest.raises(InputError) as caught:
        binding.release_transcript(**{**PARTS, part: value})  # type: ignore[arg-type]
    assert caught.value.code == "binding.malformed"


def test_tls_report_data_is_a_digest_and_zeros() -> None:
    assert binding.tls_report_data(b"claims") == hashlib.sha256(b"claims").digest() + bytes(32)


def test_deposits_are_bound_to_one_broker_and_are_no_releases() -> None:
    info = binding.deposit_info(broker_spki_sha256=bytes(32), deposit_public_key=KEY.public)
    other = binding.deposit_info(broker_spki_sha256=b"x" * 32, deposit_public_key=KEY.public)
    assert info != other
    assert b"key-deposit" in info
    with pytest.raises(InputError):
        binding.deposit_info(broker_spki_sha256=bytes(31), deposit_public_key=KEY.public)
