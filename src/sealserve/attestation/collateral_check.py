"""Is this collateral really Intel's? Asked before it is kept, without any quote.

Rules this module keeps:

* It guards the store: junk must not replace what is good, and a forged
  evaluation number must not lock out the true ones that follow.
* Signed documents must also be such as the verifiers can read.
* It replaces nothing: the verifier checks every signature again, each time,
  with a quote at hand.

Source: Intel SGX PCK Certificate and CRL Profile Specification (chains, CRLs);
PCS API version 4 (documents, signed as raw ``r || s`` over their exact bytes).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from sealserve.attestation.anchor import Anchor
from sealserve.attestation.collateral import Collateral
from sealserve.attestation.reference.documents import read_qe_identity, read_tcb_info
from sealserve.attestation.reference.signatures import is_crl_signed, is_issued, is_signed
from sealserve.certificates import UNREADABLE
from sealserve.errors import InputError, Refused

__all__ = ["check_signatures"]

_WHENCE: Final = "ask another source for it; the one that gave it is damaged or dishonest"


def check_signatures(collateral: Collateral, anchor: Anchor) -> None:
    """Check each signature in the collateral down from the anchor.

    Args:
        collateral: as it was read.
        anchor: the root to believe.

    Raises:
        InputError: ``collateral.malformed``, ``collateral.not_tdx``.
        Refused: ``chain.wrong_root``, ``chain.not_verified``,
            ``chain.revoked``, ``crl.signature`` or ``collateral.signature``.
    """
    try:
        _check(collateral.parts, anchor)
    except UNREADABLE as error:
        raise InputError(
            "collateral.malformed",
            f"a certificate or CRL cannot be read: {type(error).__name__}",
            hint=_WHENCE,
        ) from None


def _check(parts: Mapping[str, str], anchor: Anchor) -> None:
    _check_kind(parts)
    root_crl = x509.load_der_x509_crl(bytes.fromhex(parts["root_ca_crl"]))
    pck_crl = x509.load_der_x509_crl(bytes.fromhex(parts["pck_crl"]))
    pck_ca, root = _chain(parts["pck_crl_issuer_chain"], "pck_crl_issuer_chain", anchor)
    _check_crl(root_crl, root, "root_ca_crl")
    _check_crl(pck_crl, pck_ca, "pck_crl")
    _check_not_revoked(pck_ca, root_crl, "pck_crl_issuer_chain")
    for name in ("tcb_info", "qe_identity"):
        place = f"{name}_issuer_chain"
        signer, _ = _chain(parts[place], place, anchor)
        _check_not_revoked(signer, root_crl, place)
        _check_document(parts[name], parts[f"{name}_signature"], signer, name)
    read_tcb_info(parts["tcb_info"])
    read_qe_identity(parts["qe_identity"])


def _check_kind(parts: Mapping[str, str]) -> None:
    """The same platform model has statements about SGX, which say nothing about TDX."""
    kinds = tuple(json.loads(parts[name]).get("id") for name in ("tcb_info", "qe_identity"))
    if kinds != ("TDX", "TD_QE"):
        raise InputError(
            "collateral.not_tdx",
            f"TCB info and QE identity are of {str(kinds)[:80]}, not of ('TDX', 'TD_QE')",
            hint="ask the service under /tdx/certification/v4",
        )


def _chain(pem: str, where: str, anchor: Anchor) -> tuple[x509.Certificate, x509.Certificate]:
    """The issuing certificate and the root, the one signed by the other."""
    certificates = x509.load_pem_x509_certificates(pem.encode())
    if len(certificates) != 2:
        raise InputError(
            "collateral.malformed",
            f"an issuer chain has 2 certificates; this one has {len(certificates)}",
            where=where,
        )
    issuer, root = certificates
    if root != anchor.certificate:
        raise Refused(
            "chain.wrong_root",
            "the chain ends in a root that is not the anchor: SHA-256 "
            f"{root.fingerprint(hashes.SHA256()).hex()}",
            where=where,
            hint="collateral of a SIMULATED platform needs its anchor; Intel's needs none",
        )
    if not is_issued(issuer, root):
        raise Refused(
            "chain.not_verified", "the root did not sign this chain", where=where, hint=_WHENCE
        )
    return issuer, root


def _check_crl(crl: x509.CertificateRevocationList, issuer: x509.Certificate, where: str) -> None:
    if crl.issuer != issuer.subject or not is_crl_signed(crl, issuer):
        raise Refused(
            "crl.signature", "the CRL is not signed by its issuer", where=where, hint=_WHENCE
        )


def _check_not_revoked(
    certificate: x509.Certificate, crl: x509.CertificateRevocationList, where: str
) -> None:
    if crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None:
        raise Refused(
            "chain.revoked", "Intel has revoked the certificate that signs this", where=where
        )


def _check_document(text: str, signature: str, signer: x509.Certificate, where: str) -> None:
    try:
        raw = bytes.fromhex(signature)
    except ValueError:
        raw = b""
    if not is_signed(signer.public_key(), raw, text.encode()):
        raise Refused(
            "collateral.signature",
            "the signature does not fit the document",
            where=where,
            hint=_WHENCE,
        )
