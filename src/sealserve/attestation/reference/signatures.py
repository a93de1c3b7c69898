"""ECDSA P-256 with SHA-256, in the raw form that DCAP uses."""

from __future__ import annotations

from typing import TypeGuard

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

__all__ = ["is_p256", "is_signed", "public_key"]

_HALF = 32  # bytes of r, s, x and y each


def is_p256(key: object) -> TypeGuard[ec.EllipticCurvePublicKey]:
    """Whether this is a public key on P-256, the one curve in Intel's PKI."""
    return isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)


def public_key(raw: bytes) -> ec.EllipticCurvePublicKey | None:
    """The key with coordinates ``x || y`` (64 bytes); ``None`` if that is no point of P-256."""
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + raw)
    except ValueError:
        return None


def is_signed(key: object, signature: bytes, data: bytes) -> bool:
    """Whether ``signature`` (``r || s``) is by this key over these bytes."""
    if not is_p256(key) or len(signature) != 2 * _HALF:
        return False
    r = int.from_bytes(signature[:_HALF], "big")
    s = int.from_bytes(signature[_HALF:], "big")
    try:
        key.verify(utils.encode_dss_signature(r, s), data, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True
