"""The primary verifier: dcap-qvl does the cryptography, we read its claims.

Rules this module keeps:

* The library is asked for claims only; it is never left to decide. What it
  returns is read field by field.
* We parse first, by ourselves, and refuse if the library read another report.
* What Intel's verifier checks and this library does not is checked here: the
  PCE id, the version of the TCB info, and that documents are not signed by a
  platform's own key.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

import dcap_qvl
from cryptography import x509

from sealserve.attestation.admission import Evidence, admit, load_chain
from sealserve.attestation.anchor import Anchor
from sealserve.attestation.collateral import Collateral
from sealserve.attestation.library_texts import refusal
from sealserve.attestation.verified import VerifiedTd
from sealserve.certificates import UNREADABLE
from sealserve.errors import InputError, InternalError, Refused

__all__ = ["LibraryVerifier"]

_SGX_EXTENSION: Final = x509.ObjectIdentifier("1.2.840.113741.1.13.1")
_ISSUER_CHAINS: Final = ("tcb_info_issuer_chain", "qe_identity_issuer_chain")


class LibraryVerifier:
    """Verifies quotes under one anchor with dcap-qvl. Holds no state between calls.

    A call takes about a millisecond and holds the interpreter lock.
    """

    def __init__(self, anchor: Anchor) -> None:
        self.anchor = anchor
        self._root_name = anchor.certificate.subject
        self._library = dcap_qvl.QuoteVerifier(anchor.root_der)

    def verify(self, quote: bytes, collateral: Collateral, now: datetime) -> VerifiedTd:
        """As :meth:`sealserve.attestation.verifier.Verifier.verify`."""
        return self.judge(admit(quote, collateral, now))

    def judge(self, evidence: Evidence) -> VerifiedTd:
        """Verify evidence that has passed the door.

        Raises:
            InputError, Refused: the reasons of
                :meth:`sealserve.attestation.verifier.Verifier.verify`.
        """
        with _panics_refused():
            answer = self._claims(evidence)
        _check_roles(evidence.collateral, self._root_name)
        try:
            claims = json.loads(answer)
            _check_tcb_info(evidence.collateral, claims)
            return _facts(evidence, claims, self.anchor)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise InternalError(
                "internal.claims_unreadable",
                f"the verification library's claims are not as expected: {type(error).__name__}",
                hint="check that dcap-qvl has a version sealserve supports",
            ) from None

    def _claims(self, evidence: Evidence) -> str:
        seconds = int(evidence.now.timestamp())
        policy = dcap_qvl.QuotePolicy.claims_only(seconds)
        raw, library = evidence.quote.raw, evidence.collateral.library
        try:
            claims = self._library.verify_with_policy(raw, library, seconds, policy)
        except ValueError as error:
            raise refusal(self._reason(raw, library, seconds) or str(error)) from None
        return str(claims.to_json())

    def _reason(self, quote: bytes, collateral: Any, seconds: int) -> str:
        """The library's full reason for a refusal; empty if it has none.

        The policy interface of dcap-qvl 0.7 gives the outermost sentence only
        ("Failed to verify certificate chain"); the older one gives its causes.
        The answer is no already: this only says why.
        """
        try:
            if self.anchor.root_der is None:
                dcap_qvl.verify(quote, collateral, seconds)
            else:
                dcap_qvl.verify_with_root_ca(quote, collateral, self.anchor.root_der, seconds)
        except ValueError as error:
            return str(error)
        return ""


@contextlib.contextmanager
def _panics_refused() -> Iterator[None]:
    """A panic in the library is no ``Exception``: it must refuse one quote, not end a server."""
    try:
        yield
    except BaseException as error:
        if type(error).__module__ != "pyo3_runtime":
            raise
        raise Refused(
            "quote.not_verified",
            f"the verification library gave up on this quote: {type(error).__name__}",
            hint="keep the quote and report this: it must not happen",
        ) from None


def _check_roles(collateral: Collateral, root_name: x509.Name) -> None:
    """The library takes any certificate below the root as a signer of documents."""
    for place in _ISSUER_CHAINS:
        signer = load_chain(collateral.parts[place].encode(), place)[0]
        try:
            oids = {extension.oid for extension in signer.extensions}
            issuer = signer.issuer
        except UNREADABLE:
            raise InputError(
                "chain.malformed", "the signer's certificate cannot be read", where=place
            ) from None
        if _SGX_EXTENSION in oids or issuer != root_name:
            raise Refused(
                "chain.wrong_role",
                "this is not signed by Intel's TCB signing key, whose certificate the root issues",
                where=place,
            )


def _check_tcb_info(collateral: Collateral, claims: dict[str, Any]) -> None:
    """What the library reads without judging it: form of the TCB info, and the PCE it is about."""
    tcb_info = json.loads(collateral.parts["tcb_info"])
    form = (tcb_info["version"], tcb_info["tcbType"])
    if form != (3, 0):
        raise Refused(
            "collateral.unsupported",
            f"TCB info of version {form[0]} and type {form[1]}; known are version 3 and type 0",
        )
    pce_id = bytes(claims["platform"]["pck"]["pce_id"]).hex()
    if tcb_info["pceId"].lower() != pce_id:
        raise Refused(
            "tcb.platform_mismatch",
            f"the TCB info is about PCE {tcb_info['pceId']}, the PCK certificate of PCE {pce_id}",
        )


def _facts(evidence: Evidence, claims: dict[str, Any], anchor: Anchor) -> VerifiedTd:
    quote = evidence.quote
    if _flat_report(claims["report"]) != quote.report.to_dict():
        raise Refused(
            "quote.parsers_disagree",
            "the verification library read another report from this quote than we did",
            hint="keep the quote and report this: it must not happen",
        )
    platform = claims["platform"]
    pck = platform["pck"]
    piid = pck["platform_instance_id"]
    library_ends = datetime.fromtimestamp(claims["earliest_expiration_date"], UTC)
    return VerifiedTd(
        report=quote.report,
        quote_version=quote.version,
        signed_part_sha256=quote.signed_digest,
        tcb_status=claims["tcb"]["status"],
        tcb_date=min(_date(platform["tcb_level"]), _date(claims["qe"]["tcb_level"])),
        advisory_ids=_advisories(claims),
        tcb_evaluation=claims["tcb"]["eval_data_number"],
        fmspc=bytes(pck["fmspc"]),
        ppid=bytes(pck["ppid"]),
        piid=None if piid is None else bytes(piid),
        dynamic_platform=_flag(pck["dynamic_platform"]),
        cached_keys=_flag(pck["cached_keys"]),
        smt=_flag(pck["smt_enabled"]),
        collateral_ends=min(library_ends, evidence.collateral.ends),
        verified_at=evidence.asked_at,
        anchor=anchor.name,
        simulated=anchor.simulated,
    )


def _date(level: dict[str, Any]) -> datetime:
    try:
        moment = datetime.fromisoformat(level["tcbDate"])
        if moment.tzinfo is None:
            raise ValueError("no time zone")
    except ValueError:
        raise InputError(
            "collateral.malformed", "a TCB level's date is not a time with zone"
        ) from None
    return moment.astimezone(UTC)


def _advisories(claims: dict[str, Any]) -> tuple[str, ...]:
    """The library's verdict leaves out what holds for the TCB a relaunched TD runs on now."""
    current = claims["platform"]["current_tcb_level"] or {"advisoryIDs": []}
    return tuple(sorted({*claims["tcb"]["advisory_ids"], *current["advisoryIDs"]}))


def _flat_report(report: dict[str, Any]) -> dict[str, str]:
    """The library's report with its nesting undone and our names."""
    (fields,) = report.values()
    flat: dict[str, Any] = {}
    while isinstance(fields, dict):
        flat = {**fields, **flat}
        fields = flat.pop("base", None)
    if "vmid" in flat:
        flat["vmid"] = bytes([flat["vmid"]]).hex()
    return {_OUR_NAME.get(name, name): value for name, value in flat.items()}


_OUR_NAME: Final = {
    "mr_seam": "mrseam",
    "mr_signer_seam": "mrsignerseam",
    "mr_td": "mrtd",
    "mr_config_id": "mrconfigid",
    "mr_owner": "mrowner",
    "mr_owner_config": "mrownerconfig",
    "rt_mr0": "rtmr0",
    "rt_mr1": "rtmr1",
    "rt_mr2": "rtmr2",
    "rt_mr3": "rtmr3",
    "mr_service_td": "mrservicetd",
}


def _flag(text: str) -> bool | None:
    return {"True": True, "False": False}.get(text)
