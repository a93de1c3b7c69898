"""ECDSA P-256 with SHA-256, the one algorithm of Intel's PKI: raw as DCAP uses it, and in X.509."""

from __future__ import annotations

from typing import TypeGuard

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import SignatureAlgorithmOID

__all__ = ["is_crl_signed", "is_issued", "is_p256", "is_signed", "is_whole", "public_key"]

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


def is_issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether name and signature say that the one was issued by the other."""
    if not is_p256(issuer.public_key()) or not _is_sound(certificate):
        return False
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def is_crl_signed(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    """Whether the issuer's key signed this CRL; names are not looked at."""
    key = issuer.public_key()
    return is_p256(key) and _is_sound(crl) and crl.is_signature_valid(key)


def is_whole(signed: x509.Certificate | x509.CertificateRevocationList) -> bool:
    """Whether the signature is of whole bytes.

    The parser leaves alone the octet before the signature, which counts its
    unused bits (X.690, section 8.6.2.2), and nothing signs that octet.
    """
    return signed.public_bytes(Encoding.DER).endswith(b"\0" + signed.signature)


def _is_sound(signed: x509.Certificate | x509.CertificateRevocationList) -> bool:
    return signed.signature_algorithm_oid == SignatureAlgorithmOID.ECDSA_WITH_SHA256 and is_whole(
        signed
    )
