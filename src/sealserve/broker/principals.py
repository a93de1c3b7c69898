"""Who administers: keys on people's machines, certificates the broker knows, callers.

Rules this module keeps:

* There is no certificate authority. A person makes a key and a self-signed
  certificate on his own machine; the broker knows him by that key.
* The key never leaves its file of mode 0600; the certificate is public.
* A person on the broker's own machine is ``local:`` and his user name. So that one
  person is not two, ``local:alice`` and the principal ``alice`` count as the same.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from sealserve.certificates import UNREADABLE, client_certificate, key_pem
from sealserve.errors import InputError
from sealserve.files import read_limited

__all__ = [
    "MAX_CERTIFICATE_BYTES",
    "AdminIdentity",
    "Caller",
    "Role",
    "is_local",
    "local_caller",
    "make_identity",
    "person_of",
    "principal_name",
    "read_certificate",
    "read_role",
    "spki_sha256",
]

Role = Literal["admin", "auditor"]
"""An auditor looks; an admin also acts."""

MAX_CERTIFICATE_BYTES: Final = 8 * 1024

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}", re.ASCII)
_LOCAL: Final = "local:"
_MAX_FILE_BYTES: Final = 16 * 1024


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks for something to be done.

    Attributes:
        name: a principal's name, or ``local:`` and a user of the broker's machine.
        role: what he may do.
        peer: the address he calls from; ``None`` on the broker's machine.
    """

    name: str
    role: Role
    peer: str | None = None


@dataclass(frozen=True, slots=True)
class AdminIdentity:
    """What a person shows to a broker.

    Attributes:
        key_pem: the private key. Secret.
        certificate_pem: the certificate.
    """

    key_pem: bytes = field(repr=False)
    certificate_pem: bytes

    @classmethod
    def load(cls, path: Path) -> AdminIdentity:
        """Read the file that `make_identity` filled.

        Raises:
            InputError: ``principal.identity_malformed``, ``principal.identity_exposed``,
                ``file.too_large``.
            Unavailable: ``file.unreadable``.
        """
        hint = "`sealserve broker admin-identity NAME` makes one"
        pem = read_limited(path, _MAX_FILE_BYTES, hint=hint)
        if path.stat().st_mode & 0o077:
            raise InputError(
                "principal.identity_exposed",
                "others may read or change this private key",
                where=str(path),
                hint=f"chmod 600 {path}, and think about a new one",
            )
        try:
            key = load_pem_private_key(pem, password=None)
            certificate = x509.load_pem_x509_certificate(pem)
            same = _spki(certificate.public_key()) == _spki(key.public_key())
        except UNREADABLE:
            same = False
        if not same:
            raise InputError(
                "principal.identity_malformed",
                "not a private key with its certificate in PEM form",
                where=str(path),
                hint=hint,
            )
        return cls(key_pem=pem, certificate_pem=certificate.public_bytes(Encoding.PEM))


def make_identity(name: str, *, days: int) -> AdminIdentity:
    """Make a key (ECDSA P-256) and a self-signed client certificate.

    Args:
        name: of the person, as `principal_name` wants it.
        days: how long the certificate is good.

    Raises:
        InputError: ``principal.name_invalid``.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = client_certificate(
        key,
        principal_name(name),
        timedelta(days=days),
        organization="sealserve administration",
    )
    return AdminIdentity(key_pem(key), certificate.public_bytes(Encoding.PEM))


def principal_name(text: str) -> str:
    """Check a principal's name.

    Raises:
        InputError: ``principal.name_invalid``.
    """
    if not _NAME.fullmatch(text):
        raise InputError(
            "principal.name_invalid",
            f"{text[:64]!r} is no name for a principal",
            hint="use up to 64 of a-z, 0-9, '_', '.' and '-', such as alice",
        )
    return text


def read_role(text: str) -> Role:
    """Check a role.

    Raises:
        InputError: ``principal.role_unknown``.
    """
    match text:
        case "admin" | "auditor":
            return text
    raise InputError(
        "principal.role_unknown",
        f"{text[:64]!r} is no role",
        hint="an auditor looks, an admin also acts: give admin or auditor",
    )


def read_certificate(pem: bytes, *, now: datetime | None = None) -> x509.Certificate:
    """Read a certificate that shall be a principal's.

    Args:
        pem: exactly one certificate, self-signed, of a client, not a CA's, and in force.
        now: the time it must be good at (UTC); the wall clock's if not given.

    Raises:
        InputError: ``principal.certificate_unsuitable``.
    """
    reason = f"has more than {MAX_CERTIFICATE_BYTES} bytes"
    if len(pem) <= MAX_CERTIFICATE_BYTES:
        try:
            certificates = x509.load_pem_x509_certificates(pem)
            if len(certificates) == 1:
                reason = _unsuitable(certificates[0], now or datetime.now(UTC))
                if not reason:
                    return certificates[0]
            else:
                reason = "is not exactly one certificate"
        except (*UNREADABLE, InvalidSignature, x509.ExtensionNotFound):
            reason = "is not a self-signed client certificate in PEM form"
    raise InputError(
        "principal.certificate_unsuitable",
        f"the certificate {reason}",
        hint="give the NAME.crt that `sealserve broker admin-identity NAME` made",
    )


def spki_sha256(certificate: x509.Certificate) -> str:
    """SHA-256 of a certificate's SubjectPublicKeyInfo, hex: what a principal is known by."""
    return hashlib.sha256(_spki(certificate.public_key())).hexdigest()


def local_caller() -> Caller:
    """The user who runs this process, on the broker's own machine."""
    uid = os.getuid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    return Caller(f"{_LOCAL}{user}", "admin")


def is_local(name: str) -> bool:
    """Whether a caller's name is that of a user of the broker's machine."""
    return name.startswith(_LOCAL)


def person_of(name: str) -> str:
    """Whom a caller's name stands for."""
    return name.removeprefix(_LOCAL)


def _unsuitable(certificate: x509.Certificate, now: datetime) -> str:
    certificate.verify_directly_issued_by(certificate)
    extensions = certificate.extensions
    if extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
        return "is a certificate authority's"
    usages = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    if ExtendedKeyUsageOID.CLIENT_AUTH not in usages:
        return "is not for clients"
    if not certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc:
        first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        return f"is good from {first:%Y-%m-%d} to {last:%Y-%m-%d}"
    return ""


def _spki(key: object) -> bytes:
    encoded: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]
    return encoded
