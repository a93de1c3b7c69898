"""Whose signatures count: public keys, and the roots of certificates.

Rules this module keeps:

* A document of trust is PEM: ``PUBLIC KEY`` and ``CERTIFICATE`` blocks, nothing else. A
  private key among them is refused loudly.
* It has one encoding (`Trust.pem`): that is what stands in a volume's record.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from sealserve.errors import InputError
from sealserve.files import read_limited

__all__ = ["CURVES", "MAX_SIGNERS", "Trust", "key_hint", "load_trust", "public_pem"]

MAX_SIGNERS: Final = 8
"""Keys and roots together: they share a volume's record with its models."""

CURVES: Final = ("secp256r1", "secp384r1", "secp521r1")
"""What OpenSSF Model Signing allows."""

_MAX_PEM: Final = 16 * 1024
_BLOCK: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,40})-----\r?\n.*?-----END \1-----", re.S)


@dataclass(frozen=True)
class Trust:
    """Whose signatures count.

    Attributes:
        keys: public keys by the name that signatures call them by (`key_hint`), as PEM.
        roots: certificates under which a signer's certificate must stand, as PEM.
    """

    keys: tuple[tuple[str, bytes], ...]
    roots: tuple[bytes, ...] = ()

    @classmethod
    def from_pem(cls, raw: bytes, *, where: str = "the trusted signers") -> Trust:
        """Read a document of trust.

        Args:
            raw: PEM blocks.
            where: what they came from, for errors.

        Raises:
            InputError: ``provenance.trust_malformed``, ``provenance.trust_private``.
        """
        keys: dict[str, bytes] = {}
        roots: dict[bytes, None] = {}
        blocks = list(_BLOCK.finditer(raw)) if len(raw) <= _MAX_PEM else []
        for block in blocks:
            label = block[1].decode("ascii")
            if "PRIVATE" in label:
                raise InputError(
                    "provenance.trust_private",
                    "a private key stands among the trusted signers",
                    where=where,
                    hint="give its public key, and ask who else has read this file",
                )
            try:
                if label == "PUBLIC KEY":
                    pem = public_pem(serialization.load_pem_public_key(block[0]))
                    keys[key_hint(pem)] = pem
                elif label == "CERTIFICATE":
                    roots[_certificate_pem(block[0])] = None
                else:
                    raise ValueError(f"a block {label!r}")
            except (ValueError, UnsupportedAlgorithm) as error:
                raise _malformed(str(error), where) from None
        if not blocks:
            raise _malformed("there is no PEM block", where)
        if len(keys) + len(roots) > MAX_SIGNERS:
            raise _malformed(f"more than {MAX_SIGNERS} keys and certificates", where)
        return cls(tuple(sorted(keys.items())), tuple(sorted(roots)))

    @property
    def pem(self) -> bytes:
        """The one encoding of this trust."""
        return b"".join([*(pem for _, pem in self.keys), *self.roots])

    @property
    def names(self) -> tuple[str, ...]:
        """What to call the signers in lists and logs."""
        roots = (hashlib.sha256(_der(root)).hexdigest() for root in self.roots)
        return (
            *(f"key sha256:{hint}" for hint, _ in self.keys),
            *(f"root sha256:{digest}" for digest in roots),
        )


def load_trust(path: Path) -> Trust:
    """Read a document of trust from a file.

    Raises:
        InputError: ``file.too_large``, and what `Trust.from_pem` raises.
        Unavailable: ``file.unreadable``.
    """
    return Trust.from_pem(read_limited(path, _MAX_PEM), where=str(path))


def public_pem(key: object) -> bytes:
    """A public key as PEM.

    Raises:
        ValueError: it is none that models can be signed with.
    """
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in CURVES:
        raise ValueError("models are signed with ECDSA keys on P-256, P-384 or P-521")
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def key_hint(pem: bytes) -> str:
    """How a signature names the key that made it: SHA-256 of the public key's PEM, hex."""
    return hashlib.sha256(pem).hexdigest()


def _certificate_pem(block: bytes) -> bytes:
    return x509.load_pem_x509_certificate(block).public_bytes(serialization.Encoding.PEM)


def _der(pem: bytes) -> bytes:
    return x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)


def _malformed(why: str, where: str) -> InputError:
    return InputError(
        "provenance.trust_malformed",
        f"this names no trusted signers: {why}",
        where=where,
        hint="PEM blocks of public keys (ECDSA) and of root certificates, at most "
        f"{MAX_SIGNERS}, {_MAX_PEM} bytes",
    )
