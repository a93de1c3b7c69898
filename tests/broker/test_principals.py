"""Keys and certificates of people, and the files they are in."""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from sealserve.broker.principals import (
    AdminIdentity,
    local_caller,
    make_identity,
    principal_name,
    read_certificate,
    read_role,
    spki_sha256,
)
from sealserve.certificates import server_certificate
from sealserve.errors import InputError, SealserveError
from tests.broker.admin import Person


def _code(act: Callable[[], object]) -> str:
    with pytest.raises(SealserveError) as caught:
        act()
    return caught.value.code


def test_a_certificate_is_a_clients_and_signs_for_itself(tmp_path: Path) -> None:
    alice = Person.make("alice", tmp_path)
    certificate = read_certificate(alice.certificate.read_bytes())
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate.verify_directly_issued_by(certificate)
    assert "alice" in certificate.subject.rfc4514_string()
    assert len(spki_sha256(certificate)) == 64
    assert b"PRIVATE" not in alice.certificate.read_bytes()


def test_an_identity_survives_its_file_and_shows_no_key(tmp_path: Path) -> None:
    alice = Person.make("alice", tmp_path)
    loaded = AdminIdentity.load(alice.file)
    assert loaded == alice.identity
    assert "PRIVATE" not in repr(loaded)


def test_an_identity_that_others_may_read_is_refused(tmp_path: Path) -> None:
    alice = Person.make("alice", tmp_path)
    alice.file.chmod(0o640)
    assert _code(lambda: AdminIdentity.load(alice.file)) == "principal.identity_exposed"


def test_what_is_no_identity(tmp_path: Path) -> None:
    alice, bob = Person.make("alice", tmp_path), Person.make("bob", tmp_path)
    for content in (b"", b"nonsense", alice.certificate.read_bytes()):
        alice.file.write_bytes(content)
        assert _code(lambda: AdminIdentity.load(alice.file)) == "principal.identity_malformed"
    mixed = bob.file.read_bytes().partition(b"-----BEGIN CERT")[0] + alice.certificate.read_bytes()
    alice.file.write_bytes(mixed)
    assert _code(lambda: AdminIdentity.load(alice.file)) == "principal.identity_malformed"
    alice.file.write_bytes(bytes(1 << 20))
    assert _code(lambda: AdminIdentity.load(alice.file)) == "file.too_large"
    assert _code(lambda: AdminIdentity.load(tmp_path / "absent")) == "file.unreadable"


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


def test_what_is_no_principals_certificate(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    names = [x509.DNSName("example.com")]
    good = make_identity("alice", days=1).certificate_pem
    server = _pem(server_certificate(key, "server", names, timedelta(days=1)))
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ca")])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=1))
    )  # fmt: skip
    from cryptography.hazmat.primitives import hashes

    bare = _pem(builder.sign(key, hashes.SHA256()))
    authority = _pem(
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    other = ec.generate_private_key(ec.SECP256R1())
    issued = _pem(
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(other, hashes.SHA256())
    )  # fmt: skip
    for pem in (b"", b"junk", good + good, server, bare, authority, issued, bytes(1 << 20)):
        assert _code(lambda pem=pem: read_certificate(pem)) == "principal.certificate_unsuitable"
    later = now + timedelta(days=2)
    assert _code(lambda: read_certificate(good, now=later)) == "principal.certificate_unsuitable"
    earlier = now - timedelta(days=2)
    assert _code(lambda: read_certificate(good, now=earlier)) == "principal.certificate_unsuitable"


@given(st.binary(max_size=300))
def test_any_bytes_for_a_certificate(raw: bytes) -> None:
    with pytest.raises(InputError):
        read_certificate(raw)


# A changed serial number or version makes the parser complain of what it still reads.
@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@given(st.data())
def test_a_certificate_with_any_byte_changed(data: st.DataObject) -> None:
    raw = bytearray(_GOOD)
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    try:
        read_certificate(bytes(raw))
    except InputError:
        return
    # PEM has bytes that mean nothing, such as the kind of a line's end.
    assert spki_sha256(x509.load_pem_x509_certificate(bytes(raw))) == spki_sha256(
        x509.load_pem_x509_certificate(_GOOD)
    )


_GOOD = make_identity("alice", days=1).certificate_pem


@pytest.mark.parametrize("name", ["", "A", "local:root", "a b", "é", "x" * 65, "-a", "a\n"])
def test_what_is_no_name(name: str) -> None:
    assert _code(lambda: principal_name(name)) == "principal.name_invalid"


def test_roles_are_two() -> None:
    assert [read_role(text) for text in ("admin", "auditor")] == ["admin", "auditor"]
    assert _code(lambda: read_role("Admin")) == "principal.role_unknown"


def test_the_local_caller_is_the_os_user() -> None:
    caller = local_caller()
    assert caller.role == "admin"
    user = "root" if os.getuid() == 0 else getpass.getuser()
    assert caller.name == f"local:{user}"
