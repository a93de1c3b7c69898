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
from datetime import timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf import text_format

from sealserve.certificates import key_pem, server_certificate
from sealserve.errors import InputError
from sealserve.files import make_directory, require_absent, write_atomically
from sealserve.wire.serving import config_pb2

__all__ = ["TlsFiles", "make_tls_files"]

_LABEL: Final = r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
_HOSTNAME: Final = re.compile(rf"(?=.{{1,64}}$){_LABEL}(?:\.{_LABEL})*")
# The longest that common verifiers accept for a server certificate.
_LIFETIME: Final = timedelta(days=825)


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
    make_directory(directory)
    for path in (files.key, files.certificate, files.config):
        require_absent(path)
    key = ec.generate_private_key(ec.SECP256R1())
    private_pem = key_pem(key)
    certificate = server_certificate(key, hostname, [x509.DNSName(hostname)], _LIFETIME)
    certificate_pem = certificate.public_bytes(serialization.Encoding.PEM)
    config = config_pb2.SSLConfig(
        server_key=private_pem.decode(), server_cert=certificate_pem.decode(), client_verify=False
    )
    write_atomically(files.key, private_pem, mode=0o600, replace=False)
    write_atomically(files.certificate, certificate_pem, replace=False)
    # It holds the private key too.
    text = text_format.MessageToString(config).encode()
    write_atomically(files.config, text, mode=0o600, replace=False)
    return files
