"""The TLS files that a model owner puts into a volume.

Three files, as TensorFlow Serving's users know them:

* ``server.key``: the server's private key, PKCS #8 PEM, mode 0600
* ``server.crt``: a self-signed certificate for one name. Clients that know
  nothing of attestation take it as their only trust root (``--crt``), so the
  server's key is trusted because the owner made it, and no one else's is.
* ``ssl.cfg``: TensorFlow Serving's ``SSLConfig`` in protobuf text form, with both
  inside it, for ``--ssl_config_file``

The certificate is a leaf: it cannot sign another one (RFC 5280, §4.2.1.9).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from google.protobuf import text_format

from sealserve.errors import InputError, Unavailable
from sealserve.files import require_absent, write_atomically
from sealserve.wire.serving import config_pb2

__all__ = ["TlsFiles", "make_tls_files"]

_LABEL: Final = r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
_HOSTNAME: Final = re.compile(rf"(?=.{{1,64}}$){_LABEL}(?:\.{_LABEL})*")
_DAYS: Final = 825  # the longest that common verifiers accept for a server certificate


@dataclass(frozen=True)
class TlsFiles:
    """Where the files are."""

    key: Path
    certificate: Path
    config: Path


def make_tls_files(hostname: str, directory: Path) -> TlsFiles:
    """Make a key (ECDSA P-256), a certificate and TensorFlow Serving's configuration of both.

    Args:
        hostname: DNS name by which clients call the server, at most 64 characters.
        directory: gets the three files; created if it is not there.

    Returns:
        The paths.

    Raises:
        InputError: ``tls.hostname``; ``file.exists`` if one of the files is there.
        Unavailable: ``file.unwritable``.
    """
    if not _HOSTNAME.fullmatch(hostname):
        raise InputError(
            "tls.hostname",
            f"not a DNS name in lower case: {hostname!r}",
            hint="for example: grpc.example.com",
        )
    files = TlsFiles(directory / "server.key", directory / "server.crt", directory / "ssl.cfg")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unavailable(
            "file.unwritable", f"cannot make: {error.strerror}", where=str(directory)
        ) from None
    for path in (files.key, files.certificate, files.config):
        require_absent(path)
    key = ec.generate_private_key(ec.SECP256R1())
    key_pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    certificate_pem = _certificate(hostname, key).public_bytes(serialization.Encoding.PEM)
    config = config_pb2.SSLConfig(
        server_key=key_pem.decode(), server_cert=certificate_pem.decode(), client_verify=False
    )
    write_atomically(files.key, key_pem, mode=0o600, replace=False)
    write_atomically(files.certificate, certificate_pem, replace=False)
    # It holds the private key too.
    text = text_format.MessageToString(config).encode()
    write_atomically(files.config, text, mode=0o600, replace=False)
    return files


def _certificate(hostname: str, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hostname)])
    now = datetime.now(UTC)
    usage = x509.KeyUsage(
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
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # Clocks of clients may be a little behind.
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=_DAYS))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(hostname)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
