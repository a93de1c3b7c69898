"""The door before any cryptography: what is not worth a verifier's time.

Rules this module keeps:

* It only ever refuses. Nothing that passes here is believed, so both
  verifiers can share it and still be two opinions.
* Sizes, framing and windows are looked at; signatures are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509

from sealserve.attestation.collateral import Collateral, require_current
from sealserve.certificates import UNREADABLE
from sealserve.errors import InputError, InternalError, Refused
from sealserve.tdx.quote import Quote, parse_quote
from sealserve.tdx.signature_data import PCK_CHAIN, SignatureData, split_signature_data

__all__ = ["Evidence", "admit", "load_chain"]

_MAX_CHAIN = 5  # leaf, intermediate and root are what Intel uses; the library stops here


@dataclass(frozen=True, slots=True)
class Evidence:
    """Well-formed, current and unverified.

    Attributes:
        quote: the parsed quote.
        signature_data: what follows its TD report.
        pck_chain: the PCK certificate first; from the collateral if that has
            a chain, else from the quote.
        collateral: as it was read; every part is inside its window.
        now: the time to verify for, UTC, whole seconds.
        asked_at: the same as the caller gave it.
    """

    quote: Quote
    signature_data: SignatureData
    pck_chain: tuple[x509.Certificate, ...]
    collateral: Collateral
    now: datetime
    asked_at: datetime


def admit(quote: bytes, collateral: Collateral, now: datetime) -> Evidence:
    """Read a quote and hold the collateral's windows against the clock.

    Args:
        quote: the quote as it arrived.
        collateral: Intel's statements about its platform.
        now: the time to verify for, with a time zone.

    Raises:
        InputError: as :func:`~sealserve.tdx.quote.parse_quote`, and
            ``chain.malformed``.
        Refused: likewise, and ``collateral.not_yet_valid``,
            ``collateral.expired`` or ``chain.not_verified``.
    """
    if now.tzinfo is None:
        raise InternalError("internal.naive_time", "a verification time has no time zone")
    parsed = parse_quote(quote)
    signature_data = split_signature_data(parsed)
    require_current(collateral, now)
    return Evidence(
        parsed,
        signature_data,
        _pck_chain(signature_data, collateral),
        collateral,
        now.astimezone(UTC).replace(microsecond=0),
        now,
    )


def load_chain(pem: bytes, what: str) -> tuple[x509.Certificate, ...]:
    """Certificates from PEM, in the order they stand there.

    Raises:
        InputError: ``chain.malformed``.
        Refused: ``chain.not_verified`` for more certificates than a chain can have.
    """
    try:
        chain = tuple(x509.load_pem_x509_certificates(pem))
    except UNREADABLE:
        raise InputError(
            "chain.malformed", f"the {what} is not a list of X.509 certificates in PEM"
        ) from None
    if len(chain) > _MAX_CHAIN:
        raise Refused(
            "chain.not_verified",
            f"the {what} has {len(chain)} certificates; at most {_MAX_CHAIN} are looked at",
        )
    return chain


def _pck_chain(data: SignatureData, collateral: Collateral) -> tuple[x509.Certificate, ...]:
    given = collateral.parts.get("pck_certificate_chain")
    if given is not None:
        return load_chain(given.encode(), "PCK certificate chain of the collateral")
    if data.certification_type != PCK_CHAIN:
        raise Refused(
            "quote.certification_data",
            f"the quote names its PCK certificate in form {data.certification_type} "
            "and the collateral does not bring it",
            hint="fetch collateral that has the PCK certificate chain",
        )
    return load_chain(data.certification, "PCK certificate chain of the quote")
