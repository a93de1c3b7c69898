"""A broker's public identity: the one document that owners and guests hold of it.

Rules this module keeps:

* Nothing in the document is secret; everything that can be derived from the
  certificate is derived, not stored a second time.
* Whoever holds the document trusts exactly this certificate: its key is pinned
  in TLS, and its SPKI digest stands in every report data made for this broker.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import ipaddress
from collections.abc import Sequence
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Annotated, Final, Literal

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from sealserve.attestation.sealing import PUBLIC_KEY_BYTES
from sealserve.certificates import key_pem, server_certificate
from sealserve.errors import InputError
from sealserve.files import read_limited

__all__ = ["NAME_PATTERN", "SERVER_NAME", "BrokerIdentity", "make_tls_identity"]

NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9_ .-]{0,63}$"
"""A broker's name: what a certificate's common name may hold, and a file's name too."""

SERVER_NAME: Final = "broker.sealserve.internal"
"""The DNS name in every broker's certificate; guests ask for it whatever the address."""

_LIFETIME: Final = timedelta(days=5 * 365)
_MAX_BYTES: Final = 16 * 1024
_MAX_HOSTS: Final = 16
_AUDIT_KEY_BYTES: Final = 32


class BrokerIdentity(BaseModel):
    """What owners and guests know of a broker.

    Attributes:
        format: names this document and its version.
        name: the broker's name, for people.
        certificate: its TLS certificate, PEM.
        deposit_key: its HPKE public key for deposits, base64 of 1216 bytes.
        audit_key: its Ed25519 public key for audit checkpoints, base64 of 32 bytes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    format: Literal["sealserve-broker-identity/1"] = "sealserve-broker-identity/1"
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    certificate: str
    deposit_key: str
    audit_key: str

    @field_validator("certificate")
    @classmethod
    def _one_certificate(cls, pem: str) -> str:
        try:
            certificates = x509.load_pem_x509_certificates(pem.encode())
            certificates[0].public_key()
            names = certificates[0].extensions.get_extension_for_class(x509.SubjectAlternativeName)
        except Exception:  # the X.509 parser has many ways to say no
            raise ValueError("is not a certificate with a subject alternative name") from None
        if len(certificates) != 1:
            raise ValueError("must be exactly one certificate")
        if SERVER_NAME not in names.value.get_values_for_type(x509.DNSName):
            raise ValueError(f"does not name {SERVER_NAME}")
        return pem

    @field_validator("deposit_key", "audit_key")
    @classmethod
    def _right_size(cls, text: str, info: ValidationInfo) -> str:
        wanted = PUBLIC_KEY_BYTES if info.field_name == "deposit_key" else _AUDIT_KEY_BYTES
        try:
            size = len(base64.b64decode(text, validate=True))
        except (binascii.Error, ValueError):
            raise ValueError("is not base64") from None
        if size != wanted:
            raise ValueError(f"has {size} bytes instead of {wanted}")
        return text

    @classmethod
    def from_json(cls, raw: bytes, *, where: str | None = None) -> BrokerIdentity:
        """Parse the document.

        Args:
            raw: at most 16 KiB of JSON.
            where: the file's name, for the error.

        Raises:
            InputError: ``identity.malformed``.
        """
        reason = f"is larger than {_MAX_BYTES} bytes"
        if len(raw) <= _MAX_BYTES:
            try:
                return cls.model_validate_json(raw)
            except ValidationError as error:
                first = error.errors()[0]
                place = ".".join(str(part) for part in first["loc"])
                reason = f"is wrong: {place + ': ' if place else ''}{first['msg']}"
        raise InputError(
            "identity.malformed",
            f"the broker's identity document {reason}",
            where=where,
            hint="ask the broker's operator for the broker.json of `sealserve broker init`",
        ) from None

    @classmethod
    def load(cls, path: Path) -> BrokerIdentity:
        """Read the document from a file.

        Raises:
            Unavailable: ``file.unreadable``.
            InputError: ``file.too_large``, ``identity.malformed``.
        """
        hint = "it is the broker.json that `sealserve broker init` made"
        raw = read_limited(path, _MAX_BYTES, hint=hint)
        return cls.from_json(raw, where=str(path))

    def to_json(self) -> bytes:
        """The document as UTF-8 JSON, ending in a newline."""
        return self.model_dump_json(indent=2).encode() + b"\n"

    @cached_property
    def x509(self) -> x509.Certificate:
        """The certificate, parsed."""
        return x509.load_pem_x509_certificate(self.certificate.encode())

    @cached_property
    def spki_sha256(self) -> bytes:
        """SHA-256 of the certificate's SubjectPublicKeyInfo, 32 bytes."""
        key = self.x509.public_key()
        spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return hashlib.sha256(spki).digest()

    @cached_property
    def deposit_public_key(self) -> bytes:
        """The HPKE public key for deposits, 1216 bytes."""
        return base64.b64decode(self.deposit_key)

    @cached_property
    def audit_public_key(self) -> bytes:
        """The Ed25519 public key that checks audit checkpoints, 32 bytes."""
        return base64.b64decode(self.audit_key)


def make_tls_identity(name: str, hosts: Sequence[str]) -> tuple[bytes, str]:
    """Make a broker's TLS key (ECDSA P-256) and self-signed certificate.

    Args:
        name: the broker's name; the certificate's common name.
        hosts: DNS names and IP addresses it is reached at, beside `SERVER_NAME`.

    Returns:
        The private key and the certificate, both PEM. The key is not encrypted:
        wrap it before storing.

    Raises:
        InputError: ``identity.host_invalid``.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = server_certificate(
        key, name, _alternative_names(hosts), _LIFETIME, organization="sealserve broker"
    )
    return key_pem(key), certificate.public_bytes(Encoding.PEM).decode()


def _alternative_names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    if len(hosts) > _MAX_HOSTS:
        raise InputError(
            "identity.host_invalid", f"{len(hosts)} host names are more than {_MAX_HOSTS}"
        )
    return [x509.DNSName(SERVER_NAME), *(_general_name(host) for host in dict.fromkeys(hosts))]


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    labels = host.split(".")
    if len(host) > 253 or not all(
        label.isascii() and label.replace("-", "a").isalnum() and len(label) <= 63
        for label in labels
    ):
        raise InputError(
            "identity.host_invalid",
            f"{host[:64]!r} is neither a DNS name nor an IP address",
            hint="give --host broker.example.com or --host 192.0.2.7",
        )
    return x509.DNSName(host)
