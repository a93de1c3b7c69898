"""Attested certificates: key, claims, log and quote hold together, or nothing does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from sealserve.attestation import binding, cbor, ratls
from sealserve.errors import InputError, Refused, SealserveError
from sealserve.tdx.eventlog import RuntimeEvent, encode_log
from tests.simulated import EVENTS, NOW, collateral, fitting_policy, platform, report, verifier

DER = serialization.Encoding.DER


def quote(data: bytes) -> bytes:
    return platform().quote(report(report_data=data))


IDENTITY = ratls.make_identity(quote, EVENTS, hostnames=("grpc.tf.service.com",), simulated=True)
CERTIFICATE = x509.load_pem_x509_certificate(IDENTITY.certificate_pem)
GOOD = CERTIFICATE.public_bytes(DER)


def check(der: bytes, now: datetime = NOW) -> ratls.TrustReport:
    return ratls.check_certificate(der, verifier(), collateral(), fitting_policy(), now)


def refusal(der: bytes, now: datetime = NOW) -> str:
    with pytest.raises(SealserveError) as caught:
        check(der, now)
    return caught.value.code


def certificate(evidence: bytes | None, key: ec.EllipticCurvePrivateKey | None = None) -> bytes:
    """A certificate of any key with any evidence."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - timedelta(hours=1))
        .not_valid_after(NOW + timedelta(hours=1))
    )
    if evidence is not None:
        extension = x509.UnrecognizedExtension(ratls.EVIDENCE_OID, evidence)
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(DER)


def build(
    *,
    claims: Callable[[dict[str, Any]], dict[str, Any]] = lambda claims: claims,
    report_data: Callable[[bytes], bytes] = binding.tls_report_data,
    tag: int = 60000,
) -> bytes:
    """A certificate made as ours are, with one thing done otherwise."""
    key = ec.generate_private_key(ec.SECP256R1())
    spki = key.public_key().public_bytes(DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    honest: dict[str, Any] = {
        "pubkey-hash": cbor.encode((7, hashlib.sha384(spki).digest())),
        "sealserve-expires": int((NOW + timedelta(minutes=30)).timestamp()),
        "sealserve-runtime-log": encode_log(EVENTS),
    }
    buffer = cbor.encode(claims(honest))
    return certificate(cbor.encode(cbor.Tag(tag, (quote(report_data(buffer)), buffer))), key)


def test_a_good_certificate_is_trusted_and_says_why() -> None:
    trust = check(GOOD)
    assert trust.events == EVENTS
    assert trust.verdict.trusted
    assert trust.td.simulated
    assert trust.certificate_pem == IDENTITY.certificate_pem
    spki = CERTIFICATE.public_key().public_bytes(
        DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert trust.key_sha384 == hashlib.sha384(spki).digest()
    text = str(trust)
    for expected in ("SIMULATION", "UpToDate", "good", report().mrtd.hex(), "lite0 1", "sealed"):
        assert expected in text
    assert json.loads(json.dumps(trust.to_dict()))["verdict"]["trusted"] is True


def test_the_identity_is_a_key_and_its_certificate() -> None:
    key = serialization.load_pem_private_key(IDENTITY.key_pem, password=None)
    assert key.public_key() == CERTIFICATE.public_key()
    names = CERTIFICATE.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [ratls.SERVER_NAME, "grpc.tf.service.com"]
    assert "SIMULATION" in CERTIFICATE.subject.rfc4514_string()
    assert CERTIFICATE.not_valid_after_utc - IDENTITY.expires <= timedelta(seconds=2)
    assert "PRIVATE" not in repr(IDENTITY)
    assert len({ratls.make_identity(quote, EVENTS).key_pem for _ in range(3)}) == 3


def test_a_real_guests_certificate_does_not_say_simulation() -> None:
    pem = ratls.make_identity(quote, EVENTS).certificate_pem
    assert "SIMULATION" not in x509.load_pem_x509_certificate(pem).subject.rfc4514_string()


def test_what_we_build_by_hand_is_believed_too() -> None:
    """So the refusals below come from the one thing that each does otherwise."""
    check(build())


def test_stolen_evidence_in_another_keys_certificate_is_refused() -> None:
    evidence = CERTIFICATE.extensions.get_extension_for_oid(ratls.EVIDENCE_OID).value
    assert isinstance(evidence, x509.UnrecognizedExtension)
    assert refusal(certificate(evidence.value)) == "binding.key_mismatch"


def test_claims_rewritten_for_another_key_are_refused() -> None:
    """The thief rewrites the claims for his own key; the quote does not follow."""
    assert refusal(build(report_data=lambda _: bytes(64))) == "binding.claims_mismatch"


def test_all_64_bytes_of_report_data_count() -> None:
    code = refusal(build(report_data=lambda claims: binding.tls_report_data(claims)[:32] * 2))
    assert code == "binding.claims_mismatch"


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({}, "binding.no_key_claim"),
        ({"pubkey-hash": cbor.encode((1, bytes(32)))}, "binding.no_key_claim"),
        ({"pubkey-hash": cbor.encode((7, bytes(48)))}, "binding.key_mismatch"),
        ({"pubkey-hash": cbor.encode((7, b""))}, "binding.key_mismatch"),
        ({"pubkey-hash": "text"}, "binding.no_key_claim"),
        ({"pubkey-hash": b""}, "cbor.malformed"),
    ],
)
def test_a_key_must_be_claimed(claims: dict[str, Any], code: str) -> None:
    ends = {"sealserve-expires": 2**40}
    assert refusal(build(claims=lambda _: {**ends, **claims})) == code


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        ({}, "binding.no_end_claim"),
        ({"sealserve-expires": b"\xff"}, "binding.no_end_claim"),
        ({"sealserve-expires": int(NOW.timestamp()) - 1}, "binding.certificate_time"),
        ({"sealserve-expires": 0}, "binding.certificate_time"),
    ],
)
def test_a_leaked_key_does_not_outlive_what_the_quote_says(ends: dict[str, Any], code: str) -> None:
    """Its holder writes certificates with any dates; the evidence inside he cannot change."""

    def claims(honest: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in honest.items() if k != "sealserve-expires"} | ends

    assert refusal(build(claims=claims)) == code


def test_a_certificate_is_good_to_the_end_that_the_quote_names() -> None:
    built = build()
    check(built, NOW + timedelta(minutes=30))
    assert refusal(built, NOW + timedelta(minutes=30, seconds=1)) == "binding.certificate_time"


def test_the_log_is_bound_and_replayed() -> None:
    without = build(
        claims=lambda honest: {k: v for k, v in honest.items() if k != "sealserve-runtime-log"}
    )
    assert refusal(without) == "policy.events_missing"
    other = encode_log([*EVENTS[:1], RuntimeEvent("sealed")])
    swapped = build(claims=lambda honest: {**honest, "sealserve-runtime-log": other})
    assert refusal(swapped) == "eventlog.replay_mismatch"
    broken = build(claims=lambda honest: {**honest, "sealserve-runtime-log": b"{}"})
    assert refusal(broken) == "eventlog.malformed"
    text = build(claims=lambda honest: {**honest, "sealserve-runtime-log": "[]"})
    assert refusal(text) == "binding.evidence_malformed"


@pytest.mark.parametrize(
    ("evidence", "code"),
    [
        (None, "binding.no_evidence"),
        (b"", "cbor.malformed"),
        (cbor.encode((b"", b"")), "binding.evidence_malformed"),
        (cbor.encode(cbor.Tag(60000, (b"",))), "binding.evidence_malformed"),
        (cbor.encode(cbor.Tag(60000, (b"", b"\x80"))), "binding.evidence_malformed"),
    ],
)
def test_certificates_without_sound_evidence(evidence: bytes | None, code: str) -> None:
    assert refusal(certificate(evidence)) == code


def test_another_tag_is_not_evidence() -> None:
    assert refusal(build(tag=60001)) == "binding.evidence_malformed"


def test_the_policy_decides_last() -> None:
    with pytest.raises(Refused) as caught:
        ratls.check_certificate(
            GOOD, verifier(), collateral(), fitting_policy(simulation="denied"), NOW
        )
    assert caught.value.code == "policy.simulation_denied"


@pytest.mark.parametrize("away", [timedelta(hours=-2), timedelta(hours=25)])
def test_a_certificate_has_its_time(away: timedelta) -> None:
    assert refusal(GOOD, NOW + away) == "binding.certificate_time"


@pytest.mark.parametrize("der", [b"", b"0", bytes(200_000), GOOD[:-1], GOOD + b"\0"])
def test_what_is_no_certificate(der: bytes) -> None:
    assert refusal(der) == "binding.certificate_malformed"


def test_a_certificate_of_a_version_that_does_not_exist() -> None:
    version_1_to_3 = bytes.fromhex("a003020102")  # [0] EXPLICIT INTEGER 2
    assert GOOD.count(version_1_to_3) == 1
    unknown = GOOD.replace(version_1_to_3, bytes.fromhex("a003020159"))
    assert refusal(unknown) == "binding.certificate_malformed"


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_mutants_are_refused_or_leave_what_matters_alone(offset: int, mask: int) -> None:
    der = bytearray(GOOD)
    der[offset] ^= mask
    try:
        trust = check(bytes(der))
    except (InputError, Refused):
        return
    # Serial, names and our own signature are no evidence; TLS proves the key.
    assert trust.key_sha384 == check(GOOD).key_sha384
    assert trust.td == check(GOOD).td
    assert trust.events == EVENTS
