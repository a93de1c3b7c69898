"""Signatures and documents of trust, as somebody hostile writes them."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from sealserve.certificates import key_pem
from sealserve.errors import InputError, Unavailable
from sealserve.provenance import SIGNATURE_NAME, Signing, Trust, load_trust, sign_model
from sealserve.provenance.bundle import read_bundle
from sealserve.provenance.trust import MAX_SIGNERS
from tests.provenance.conftest import Signer, make_model


@pytest.fixture
def document(signed: Path) -> dict[str, Any]:
    return dict(json.loads((signed / SIGNATURE_NAME).read_bytes()))


def refused(raw: bytes) -> str:
    with pytest.raises(InputError) as caught:
        read_bundle(raw, where="model.sig")
    assert caught.value.code == "provenance.signature_malformed"
    assert len(caught.value.message) < 400
    return caught.value.message


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"\xff\xfe", b"null", b"[]", b"{}", b"[" * 200_000, b'{"mediaType":' * 100_000,
        b'{"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json"}', b"1e999999999",
    ],
)  # fmt: skip
def test_junk_is_refused(raw: bytes) -> None:
    refused(raw)


def _at(document: Any, path: str) -> tuple[Any, Any]:
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in parents:
        document = document[part]
    return document, last


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("mediaType", "application/vnd.dev.sigstore.bundle+json;version=0.1"),
        ("dsse_envelope", {}),  # a second name for the same part: two readers, two documents
        ("dsseEnvelope.payloadType", "text/plain"),
        ("dsseEnvelope.payload", "not base64!"),
        ("dsseEnvelope.payload", ""),
        ("dsseEnvelope.signatures", []),
        ("dsseEnvelope.signatures.0.sig", "?"),
        ("verificationMaterial.publicKey", None),
        ("verificationMaterial.publicKey.hint", None),
        ("verificationMaterial.publicKey.hint", "A" * 64),
        ("verificationMaterial.x509CertificateChain", {"certificates": [{"rawBytes": "AA=="}]}),
        ("verificationMaterial.certificate", {"rawBytes": "AA=="}),
    ],
)
def test_a_bundle_of_another_form_is_refused(
    path: str, value: object, document: dict[str, Any]
) -> None:
    parent, name = _at(document, path)
    parent[name] = value
    refused(json.dumps(document).encode())


def test_two_signatures_are_refused(document: dict[str, Any]) -> None:
    document["dsseEnvelope"]["signatures"] *= 2
    refused(json.dumps(document).encode())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("_type", "https://in-toto.io/Statement/v0.1"),
        ("predicateType", "https://model_signing/Digests/v0.1"),  # of before version 1.0
        ("subject", []),
        ("predicate.serialization.method", "shards"),
        ("predicate.serialization.hash_type", "blake3"),
        ("predicate.serialization.allow_symlinks", True),
        ("predicate.resources.0.algorithm", "md5"),
        ("predicate.resources.0.digest", "00"),
        ("predicate.resources.0.name", ""),
        ("predicate.resources.1.name", "saved_model.pb"),  # twice
    ],
)
def test_a_statement_of_another_form_is_refused(
    path: str, value: object, document: dict[str, Any]
) -> None:
    statement = json.loads(base64.b64decode(document["dsseEnvelope"]["payload"]))
    parent, name = _at(statement, path)
    parent[name] = value
    payload = base64.b64encode(json.dumps(statement).encode()).decode()
    document["dsseEnvelope"]["payload"] = payload
    refused(json.dumps(document).encode())


def test_what_is_handed_on_is_what_was_read(document: dict[str, Any]) -> None:
    """Witnesses of a transparency log need a network to be asked; they are not handed on."""
    raw = json.dumps(document).encode()
    document["verificationMaterial"]["tlogEntries"] = [{"logIndex": "1"}]
    with_witness = read_bundle(json.dumps(document).encode(), where="model.sig")
    assert with_witness == read_bundle(raw, where="model.sig")
    assert b"logIndex" not in with_witness.raw
    assert set(with_witness.files) == {"saved_model.pb", "variables/data"}


def trust_refused(raw: bytes) -> str:
    with pytest.raises(InputError) as caught:
        Trust.from_pem(raw)
    return caught.value.code


def test_trust_is_public_keys_and_certificates_in_one_form(signer: Signer, tmp_path: Path) -> None:
    first, second = signer.trust.pem, Signer.new(tmp_path / "second").trust.pem
    one, other = Trust.from_pem(first + second), Trust.from_pem(b"# note\n" + second + first * 2)
    assert one == other
    assert Trust.from_pem(one.pem) == one
    assert len(one.names) == 2


def test_what_names_no_signers_is_refused(signer: Signer, tmp_path: Path) -> None:
    malformed = "provenance.trust_malformed"
    ed = ed25519.Ed25519PrivateKey.generate()
    secp256k1 = ec.generate_private_key(ec.SECP256K1())
    publics = [
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        for key in (ed, secp256k1)
    ]
    many = b"".join(Signer.new(tmp_path / f"{n}").trust.pem for n in range(MAX_SIGNERS + 1))
    for raw in (b"", b"junk", *publics, many, b"x" * 20_000 + signer.trust.pem):
        assert trust_refused(raw) == malformed
    broken = signer.trust.pem.replace(b"MFkw", b"AAAA")
    assert trust_refused(broken) == malformed
    assert trust_refused(broken.replace(b"PUBLIC KEY", b"CERTIFICATE")) == malformed
    assert trust_refused(broken.replace(b"PUBLIC KEY", b"X509 CRL")) == malformed
    assert trust_refused(signer.private.read_bytes()) == "provenance.trust_private"
    with pytest.raises(Unavailable):
        load_trust(tmp_path / "nowhere")


def test_keys_that_cannot_sign_are_refused(signer: Signer, tmp_path: Path) -> None:
    file = tmp_path / "other.key"
    file.touch(mode=0o600)
    for content in (b"junk", key_pem(ed25519.Ed25519PrivateKey.generate()), signer.trust.pem):
        file.write_bytes(content)
        with pytest.raises(InputError) as caught:
            Signing.load(file)
        assert caught.value.code == "provenance.key_malformed"
    signer.private.chmod(0o640)
    with pytest.raises(InputError) as caught:
        Signing.load(signer.private)
    assert caught.value.code == "provenance.key_exposed"


def test_a_key_is_not_in_what_is_printed(signer: Signer) -> None:
    assert signer.signing.key.decode()[40:80] not in repr(signer.signing)


def test_what_cannot_be_signed_is_refused(signer: Signer, tmp_path: Path) -> None:
    model = make_model(tmp_path / "1")
    (model / "link").symlink_to("saved_model.pb")
    with pytest.raises(InputError) as caught:
        sign_model(model, signer.signing)
    assert caught.value.code == "provenance.unsignable"
    assert not (model / SIGNATURE_NAME).exists()
    with pytest.raises(InputError) as caught:
        sign_model(tmp_path / "nowhere", signer.signing)
    assert caught.value.code == "provenance.model_missing"


def test_a_signature_that_is_there_is_not_replaced(signed: Path, signer: Signer) -> None:
    before = (signed / SIGNATURE_NAME).read_bytes()
    with pytest.raises(InputError) as caught:
        sign_model(signed, signer.signing)
    assert caught.value.code == "file.exists"
    assert (signed / SIGNATURE_NAME).read_bytes() == before
    sign_model(signed, signer.signing, replace=True)
    assert (signed / SIGNATURE_NAME).read_bytes() != before
