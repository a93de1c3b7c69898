"""Keys and certificates of TLS peers that sign for themselves; and how damaged ones are told.

Nobody vouches for such a certificate: whoever connects pins it, or checks the
evidence inside it. What all of them have in common stands here.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

__all__ = [
    "BACKDATE",
    "UNREADABLE",
    "client_certificate",
    "key_pem",
    "load_key_pair",
    "server_certificate",
]

BACKDATE: Final = timedelta(minutes=5)
"""A certificate begins this much earlier: clocks of clients may be a little behind."""

UNREADABLE: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What is raised when a damaged certificate or CRL is loaded, or asked for its parts.

Names, keys and extensions are parsed when they are asked for, and each has its
own way to fail: a name with a bit string for text is a TypeError.
"""

_SIGN_HANDSHAKES: Final = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)


def key_pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    """A private key as unencrypted PKCS #8 PEM. Secret."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def server_certificate(
    key: ec.EllipticCurvePrivateKey,
    common_name: str,
    names: Sequence[x509.GeneralName],
    lifetime: timedelta,
    *,
    organization: str | None = None,
    evidence: x509.UnrecognizedExtension | None = None,
) -> x509.Certificate:
    """A self-signed certificate of a TLS server: a leaf, which cannot sign another one.

    Args:
        key: the server's.
        common_name: for people, at most 64 characters.
        names: the subject alternative names, at least one.
        lifetime: from now, in whole seconds.
        organization: for people, at most 64 characters.
        evidence: an extension of attestation evidence.
    """
    builder = _leaf(key, common_name, lifetime, organization, ExtendedKeyUsageOID.SERVER_AUTH)
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if evidence is not None:
        builder = builder.add_extension(evidence, critical=False)
    return builder.sign(key, hashes.SHA256())


def client_certificate(
    key: ec.EllipticCurvePrivateKey,
    common_name: str,
    lifetime: timedelta,
    *,
    organization: str | None = None,
) -> x509.Certificate:
    """A self-signed certificate of a TLS client: a leaf, which cannot sign another one.

    Args:
        key: the client's.
        common_name: for people, at most 64 characters.
        lifetime: from now, in whole seconds.
        organization: for people, at most 64 characters.
    """
    usage = ExtendedKeyUsageOID.CLIENT_AUTH
    return _leaf(key, common_name, lifetime, organization, usage).sign(key, hashes.SHA256())


def _leaf(
    key: ec.EllipticCurvePrivateKey,
    common_name: str,
    lifetime: timedelta,
    organization: str | None,
    usage: x509.ObjectIdentifier,
) -> x509.CertificateBuilder:
    subject = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    if organization is not None:
        subject.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    name = x509.Name(subject)
    now = datetime.now(UTC).replace(microsecond=0)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + lifetime)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_SIGN_HANDSHAKES, critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def load_key_pair(context: ssl.SSLContext, pem: bytes) -> None:
    """Give a context its key and chain.

    The standard library reads them from files only; this one has no name on a disk.

    Args:
        context: of a server.
        pem: private key and certificate chain.

    Raises:
        ssl.SSLError: they do not belong together, or are malformed.
    """
    descriptor = os.memfd_create("tls")
    try:
        os.write(descriptor, pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)
