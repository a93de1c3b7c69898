"""Certificates from a leaf up to the anchor, none of them revoked.

Rules this module keeps:

* The anchor is given, never taken from a chain: a root that comes along is one
  candidate among others.
* Every certificate of a path needs a CRL of its issuer that is signed and
  current; no CRL is a refusal.
* Only what Intel's PKI uses is known: X.509 version 3, ECDSA P-256 with
  SHA-256, a handful of extensions. Anything critical beyond that is refused.

Source: Intel SGX PCK Certificate and CRL Profile Specification; RFC 5280,
sections 5 and 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.x509.oid import ExtensionOID

from sealserve.attestation.reference.signatures import (
    is_crl_signed,
    is_issued,
    is_p256,
    is_whole,
)
from sealserve.certificates import UNREADABLE
from sealserve.errors import InputError, Refused

__all__ = ["Pki"]

_CERTIFICATE_EXTENSIONS: Final = {ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE}
_CRL_EXTENSIONS: Final = {ExtensionOID.CRL_NUMBER, ExtensionOID.AUTHORITY_KEY_IDENTIFIER}
_HINT: Final = "check that collateral and anchor belong together"


class Pki:
    """An anchor and the CRLs below it, at one time.

    Args:
        anchor: the root certificate to believe.
        root_crl: CRL of the anchor, DER.
        pck_crl: CRL of the CA that issued the PCK certificate, DER.
        now: the time to verify for.

    Raises:
        InputError: ``crl.malformed``.
        Refused: ``chain.wrong_root`` if the anchor did not sign the root CRL,
            ``chain.revoked`` if it names the anchor, ``crl.expired``.
    """

    def __init__(
        self, anchor: x509.Certificate, root_crl: bytes, pck_crl: bytes, now: datetime
    ) -> None:
        self._anchor = anchor
        self._now = now
        root, pck = _load_crl(root_crl, "root CA CRL"), _load_crl(pck_crl, "PCK CRL")
        if root.issuer != anchor.subject or not is_crl_signed(root, anchor):
            raise Refused("chain.wrong_root", "the anchor did not sign the root CA CRL", hint=_HINT)
        if not is_whole(pck):
            raise InputError("crl.malformed", "the PCK CRL's signature is not of whole bytes")
        # Serial numbers are unique per issuer, so a CRL is found by its issuer.
        self._crls = {crl.issuer.public_bytes(): crl for crl in (pck, root)}
        for crl in self._crls.values():
            self._check_current(crl)
        self._check_revocation(anchor, anchor)

    def verify(self, chain: Sequence[x509.Certificate], what: str) -> list[x509.Certificate]:
        """Find and verify the path from the first certificate to the anchor.

        Args:
            chain: the leaf, then candidates for its issuers in any order.
            what: names the chain in an error.

        Returns:
            The path: leaf first, without the anchor.

        Raises:
            Refused: ``chain.*``, ``crl.missing`` or ``crl.signature``.
        """
        try:
            return self._verify(chain, what)
        except UNREADABLE:
            raise _untrusted(what, "has a certificate that cannot be read") from None

    def _verify(self, chain: Sequence[x509.Certificate], what: str) -> list[x509.Certificate]:
        path = [chain[0]]
        while not is_issued(path[-1], self._anchor):
            candidates = (each for each in chain[1:] if each not in path)
            issuer = next((each for each in candidates if is_issued(path[-1], each)), None)
            if issuer is None:
                raise _untrusted(what, "does not lead to the anchor")
            path.append(issuer)
        for above, certificate in enumerate(path):
            self._check_certificate(certificate, above, what)
        for certificate, issuer in zip(path, [*path[1:], self._anchor], strict=True):
            self._check_revocation(certificate, issuer)
        return path

    def _check_certificate(self, certificate: x509.Certificate, above: int, what: str) -> None:
        """Everything but its issuer. ``above`` is the number of certificates below this one."""
        name = certificate.subject.rfc4514_string()
        if self._now < certificate.not_valid_before_utc:
            raise Refused("chain.not_yet_valid", f"{name} is not valid yet", where=what)
        if self._now > certificate.not_valid_after_utc:
            raise Refused("chain.expired", f"{name} has expired", where=what)
        if certificate.version != x509.Version.v3:
            raise _untrusted(what, f"has {name}, which is not of X.509 version 3")
        if not is_p256(certificate.public_key()):
            raise _untrusted(what, f"has {name}, whose key is not on P-256")
        extensions = {each.oid: each for each in certificate.extensions}
        for oid, extension in extensions.items():
            if extension.critical and oid not in _CERTIFICATE_EXTENSIONS:
                raise _untrusted(what, f"has {name} with unknown critical extension")
        _check_constraints(extensions, name, above, what)

    def _check_current(self, crl: x509.CertificateRevocationList) -> None:
        begins, ends = crl.last_update_utc, crl.next_update_utc
        # A CRL is good before nextUpdate, not at it.
        if self._now < begins or ends is None or self._now >= ends:
            raise Refused(
                "crl.expired",
                f"the CRL of {crl.issuer.rfc4514_string()} is for another time: from {begins} "
                f"to {ends or 'no end'}",
                hint="fetch collateral for this platform again and retry",
            )

    def _check_revocation(self, certificate: x509.Certificate, issuer: x509.Certificate) -> None:
        crl = self._crls.get(certificate.issuer.public_bytes())
        name = certificate.subject.rfc4514_string()
        if crl is None:
            raise Refused("crl.missing", f"there is no CRL that could name {name}", hint=_HINT)
        if not is_crl_signed(crl, issuer):
            raise Refused("crl.signature", f"the CRL about {name} is not signed by its issuer")
        if any(each.oid not in _CRL_EXTENSIONS for each in crl.extensions):
            # A scope or a base CRL would be such an extension: what it leaves out is not said.
            raise InputError("crl.malformed", f"the CRL about {name} has an unknown extension")
        if crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None:
            raise Refused("chain.revoked", f"{name} is revoked")


def _check_constraints(
    extensions: dict[x509.ObjectIdentifier, x509.Extension[x509.ExtensionType]],
    name: str,
    above: int,
    what: str,
) -> None:
    constraints = extensions.get(ExtensionOID.BASIC_CONSTRAINTS)
    is_ca, length = False, None
    if constraints is not None and isinstance(constraints.value, x509.BasicConstraints):
        is_ca, length = constraints.value.ca, constraints.value.path_length
    if is_ca != (above > 0):
        raise _untrusted(what, f"has {name} as {'an issuer' if above else 'its leaf'}")
    if above and length is not None and length < above - 1:
        raise _untrusted(what, f"is longer than {name} allows")
    usage = extensions.get(ExtensionOID.KEY_USAGE)
    # Stricter than the primary, which does not look at the key usage of issuers.
    may_sign = (
        usage is None or not isinstance(usage.value, x509.KeyUsage) or usage.value.key_cert_sign
    )
    if above and not may_sign:
        raise _untrusted(what, f"has {name}, which may not sign certificates")


def _load_crl(raw: bytes, what: str) -> x509.CertificateRevocationList:
    try:
        crl = x509.load_der_x509_crl(raw)
        # What is read later is read once here: after this it can be.
        crl.issuer.rfc4514_string(), crl.last_update_utc, crl.next_update_utc, crl.extensions
    except UNREADABLE:
        raise InputError("crl.malformed", f"the {what} is not a CRL in DER") from None
    return crl


def _untrusted(what: str, reason: str) -> Refused:
    return Refused("chain.not_verified", f"the {what} {reason}", hint=_HINT)
