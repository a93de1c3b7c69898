"""Signers with certificates: what stands under a trusted root counts, and nothing else."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from sealserve.certificates import key_pem
from sealserve.errors import InputError, Refused
from sealserve.provenance import (
    SIGNATURE_NAME,
    Signing,
    Trust,
    load_trust,
    sign_model,
    verify_model,
)
from tests.provenance.conftest import Signer, theirs


@dataclass(frozen=True)
class Authority:
    """A root, and a signer's certificate under it."""

    directory: Path

    @classmethod
    def new(cls, directory: Path, *, may_sign: bool = True) -> Authority:
        directory.mkdir()
        root_key, leaf_key = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
        root = _certificate("root", root_key, "root", root_key, authority=True)
        leaf = _certificate("signer", leaf_key, "root", root_key, may_sign=may_sign)
        (directory / "leaf.key").touch(mode=0o600)
        (directory / "leaf.key").write_bytes(key_pem(leaf_key))
        for name, content in (("root", root), ("leaf", leaf), ("chain", leaf + root)):
            (directory / f"{name}.pem").write_bytes(content)
        return cls(directory)

    def __getattr__(self, name: str) -> Path:
        return self.directory / ("leaf.key" if name == "key" else f"{name}.pem")

    @property
    def signing(self) -> Signing:
        return Signing.load(self.key, self.chain)

    @property
    def trust(self) -> Trust:
        return load_trust(self.root)


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    authority: bool = False,
    may_sign: bool = True,
) -> bytes:
    now = dt.datetime.now(dt.UTC)
    subject, above = (
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each)]) for each in (name, issuer)
    )
    usage = x509.KeyUsage(
        digital_signature=may_sign, key_cert_sign=authority, crl_sign=False,
        content_commitment=False, key_encipherment=not may_sign, data_encipherment=False,
        key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(above)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .sign(issuer_key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.new(tmp_path / "authority")


def refused(model: Path, trust: Trust) -> str:
    with pytest.raises(Refused) as caught:
        verify_model(model, trust)
    return caught.value.code


def test_a_certificate_under_the_root_is_believed(model: Path, authority: Authority) -> None:
    sign_model(model, authority.signing)
    verified = verify_model(model, authority.trust)
    assert verified.signer.startswith("certificate sha256:")
    assert "CN=signer" in verified.signer


def test_another_root_of_the_same_name_is_not_enough(
    model: Path, authority: Authority, tmp_path: Path
) -> None:
    sign_model(model, authority.signing)
    other = Authority.new(tmp_path / "other")
    assert refused(model, other.trust) == "provenance.signer_unknown"


def test_without_a_root_no_certificate_counts_not_even_the_systems(
    model: Path, authority: Authority, signer: Signer
) -> None:
    """Given no root, the library would take those of the operating system."""
    sign_model(model, authority.signing)
    assert refused(model, signer.trust) == "provenance.signer_unknown"


def test_a_certificate_that_may_not_sign_is_refused(model: Path, tmp_path: Path) -> None:
    authority = Authority.new(tmp_path / "authority", may_sign=False)
    sign_model(model, authority.signing)
    assert refused(model, authority.trust) == "provenance.signature_invalid"


def test_a_changed_model_is_refused(model: Path, authority: Authority) -> None:
    sign_model(model, authority.signing)
    (model / "saved_model.pb").write_bytes(b"another")
    assert refused(model, authority.trust) == "provenance.content_differs"


@pytest.mark.parametrize("file", ["root", "leaf", "key"])
def test_a_chain_that_is_not_the_keys_is_refused(file: str, authority: Authority) -> None:
    with pytest.raises(InputError) as caught:
        Signing.load(authority.key, getattr(authority, file))
    assert caught.value.code == "provenance.certificate_malformed"


def test_the_projects_own_command_and_we_agree(model: Path, authority: Authority) -> None:
    signature = model / SIGNATURE_NAME
    sign_model(model, authority.signing)
    check = ("verify", "certificate", model, "--signature", signature)
    assert theirs(*check, "--certificate_chain", authority.root).returncode == 0
    done = theirs(
        "sign", "certificate", model, "--signature", signature, "--private_key", authority.key,
        "--signing_certificate", authority.leaf, "--certificate_chain", authority.root,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "CN=signer" in verify_model(model, authority.trust).signer
