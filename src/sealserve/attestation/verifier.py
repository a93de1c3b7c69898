"""From evidence to fact: is this quote genuine, by whom, and with what TCB status?

Rules this module keeps:

* The cryptography is ``dcap-qvl``'s, asked for claims only; it is never left to
  decide. What it returns is read field by field.
* We parse first, by ourselves, and refuse if the library read another report.
* ``verify`` answers "genuine", never "trusted": measurements, TCB status,
  platform flags, nonce and freshness belong to
  :mod:`~sealserve.attestation.appraisal` and
  :mod:`~sealserve.attestation.binding`.
* Library errors are free text. Known texts become stable codes; an unknown
  text is a refusal too.
* One verifier has one anchor. A simulation anchor marks everything it verifies.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dcap_qvl
from cryptography import x509

from sealserve.attestation.collateral import Collateral
from sealserve.errors import InputError, InternalError, Refused
from sealserve.files import read_limited
from sealserve.tdx.quote import Quote, TdReport, parse_quote

__all__ = ["INTEL", "Anchor", "VerifiedTd", "Verifier"]

_MAX_ANCHOR_BYTES = 16 * 1024
_ASK_FOR_NEW = "fetch collateral for this platform again and retry"


@dataclass(frozen=True, slots=True)
class Anchor:
    """The root certificate a verifier believes.

    Attributes:
        root_der: a root in DER; ``None`` is Intel's SGX root CA, built into
            the verification library.
        simulated: whether everything below this root is a simulation.
    """

    root_der: bytes | None
    simulated: bool

    @classmethod
    def simulation(cls, root_der: bytes) -> Anchor:
        """The anchor of a simulated platform.

        Args:
            root_der: its root certificate in DER, at most 16 KiB.

        Raises:
            InputError: ``chain.anchor_malformed``.
            Refused: ``chain.anchor_not_simulation`` for a root whose subject
                does not say SIMULATION.
        """
        try:
            if len(root_der) > _MAX_ANCHOR_BYTES:
                raise ValueError("too large")
            subject = x509.load_der_x509_certificate(root_der).subject.rfc4514_string()
        except (ValueError, x509.InvalidVersion):
            raise InputError(
                "chain.anchor_malformed",
                "the anchor is not an X.509 certificate in DER",
                hint="`sealserve simulate platform DIR` writes one as DIR/anchor.der",
            ) from None
        if "SIMULATION" not in subject:
            raise Refused(
                "chain.anchor_not_simulation",
                f"the anchor {subject!r} does not say SIMULATION in its subject",
                hint="own anchors exist for simulation only; production has Intel's root alone",
            )
        return cls(root_der, simulated=True)

    @classmethod
    def load(cls, path: Path | str | None) -> Anchor:
        """Intel's anchor for ``None``, else the simulation anchor in a DER file.

        Raises:
            Unavailable: ``file.unreadable``.
            InputError, Refused: ``file.too_large``, and as :meth:`simulation`.
        """
        if path is None:
            return INTEL
        return cls.simulation(read_limited(path, _MAX_ANCHOR_BYTES))

    @property
    def name(self) -> str:
        """For log lines: ``"Intel"``, or ``"SIMULATION"`` with the root's fingerprint."""
        if self.root_der is None:
            return "Intel"
        return f"SIMULATION {hashlib.sha256(self.root_der).hexdigest()[:16]}"


INTEL = Anchor(None, simulated=False)
"""Production: Intel's SGX root CA."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedTd:
    """A genuine TD. Whether it is *trusted* is for a policy to say.

    Attributes:
        report: its registers.
        quote_version: 4 or 5.
        signed_part_sha256: the one stable name of the quote (32 bytes).
        tcb_status: Intel's status, platform and quoting enclave merged.
        tcb_date: date of the TCB level reached, the older of platform and
            quoting enclave.
        advisory_ids: Intel security advisories that apply.
        tcb_evaluation: evaluation data number of the collateral used.
        fmspc: platform model (6 bytes).
        ppid: processor id (16 bytes).
        piid: platform instance id (16 bytes); ``None`` if the PCK certificate
            has none (single-socket "processor" CA).
        dynamic_platform, cached_keys, smt: platform flags; ``None`` if the PCK
            certificate does not state them.
        collateral_ends: when the first part of what was used expires.
        verified_at: the time this was verified for.
        anchor: name of the anchor.
        simulated: True for a SIMULATED platform.
    """

    report: TdReport
    quote_version: int
    signed_part_sha256: bytes
    tcb_status: str
    tcb_date: datetime
    advisory_ids: tuple[str, ...]
    tcb_evaluation: int
    fmspc: bytes
    ppid: bytes
    piid: bytes | None
    dynamic_platform: bool | None
    cached_keys: bool | None
    smt: bool | None
    collateral_ends: datetime
    verified_at: datetime
    anchor: str
    simulated: bool

    def to_dict(self) -> dict[str, Any]:
        """Everything verified, as a JSON object."""
        return {
            "simulated": self.simulated,
            "anchor": self.anchor,
            "quote_version": self.quote_version,
            "signed_part_sha256": self.signed_part_sha256.hex(),
            "tcb_status": self.tcb_status,
            "tcb_date": self.tcb_date.isoformat(),
            "advisory_ids": list(self.advisory_ids),
            "tcb_evaluation": self.tcb_evaluation,
            "fmspc": self.fmspc.hex(),
            "ppid": self.ppid.hex(),
            "piid": self.piid.hex() if self.piid is not None else None,
            "dynamic_platform": self.dynamic_platform,
            "cached_keys": self.cached_keys,
            "smt": self.smt,
            "collateral_ends": self.collateral_ends.isoformat(),
            "verified_at": self.verified_at.isoformat(),
            "report": self.report.to_dict(),
        }


class Verifier:
    """Verifies quotes under one anchor. Holds no state between calls.

    A call takes about a millisecond and holds the interpreter lock.
    """

    def __init__(self, anchor: Anchor) -> None:
        self.anchor = anchor
        self._library = dcap_qvl.QuoteVerifier(anchor.root_der)

    def verify(self, quote: bytes, collateral: Collateral, now: datetime) -> VerifiedTd:
        """Verify that a quote is genuine.

        Args:
            quote: the quote as it arrived.
            collateral: Intel's statements about its platform.
            now: the time to verify for, with a time zone.

        Returns:
            The facts. They say nothing yet about trust.

        Raises:
            InputError: as :func:`~sealserve.tdx.quote.parse_quote`, and
                ``*.malformed`` for what the library cannot decode.
            Refused: ``quote.*``, ``chain.*``, ``crl.*``, ``tcb.*``, ``qe.*``,
                ``td.*`` or ``collateral.*``: not genuine, or not provably so.
        """
        if now.tzinfo is None:
            raise InternalError("internal.naive_time", "a verification time has no time zone")
        parsed = parse_quote(quote)
        _check_window(collateral, now)
        seconds = int(now.timestamp())
        policy = dcap_qvl.QuotePolicy.claims_only(seconds)
        try:
            claims = json.loads(
                self._library.verify_with_policy(
                    parsed.raw, collateral.library, seconds, policy
                ).to_json()
            )
        except ValueError as error:
            raise _refusal(self._reason(parsed.raw, collateral, seconds) or str(error)) from None
        return _facts(parsed, claims, collateral, now, self.anchor)

    def _reason(self, quote: bytes, collateral: Collateral, seconds: int) -> str:
        """The library's full reason for a refusal; empty if it has none.

        The policy interface of dcap-qvl 0.7 gives the outermost sentence only
        ("Failed to verify certificate chain"); the older one gives its causes.
        The answer is no already: this only says why.
        """
        try:
            if self.anchor.root_der is None:
                dcap_qvl.verify(quote, collateral.library, seconds)
            else:
                dcap_qvl.verify_with_root_ca(
                    quote, collateral.library, self.anchor.root_der, seconds
                )
        except ValueError as error:
            return str(error)
        return ""


def _check_window(collateral: Collateral, now: datetime) -> None:
    """Refuse what is out of its time, and say which part it is.

    The library would not name the part, and it does not look at a CRL's
    ``thisUpdate`` at all.
    """
    for deadline in collateral.deadlines:
        if now < deadline.begins:
            raise Refused(
                "collateral.not_yet_valid",
                f"{deadline.part} is valid from {deadline.begins:%Y-%m-%dT%H:%M:%SZ}, "
                f"and the time to verify for is {now.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}",
                hint="check the clock of this machine",
            )
        if now > deadline.ends:
            raise Refused(
                "collateral.expired",
                f"{deadline.part} expired after {deadline.ends:%Y-%m-%dT%H:%M:%SZ}, "
                f"and the time to verify for is {now.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}",
                hint=_ASK_FOR_NEW,
            )


def _facts(
    parsed: Quote, claims: dict[str, Any], collateral: Collateral, now: datetime, anchor: Anchor
) -> VerifiedTd:
    try:
        if _flat_report(claims["report"]) != parsed.report.to_dict():
            raise Refused(
                "quote.parsers_disagree",
                "the verification library read another report from this quote than we did",
                hint="keep the quote and report this: it must not happen",
            )
        pck = claims["platform"]["pck"]
        piid = pck["platform_instance_id"]
        levels = (claims["platform"]["tcb_level"], claims["qe"]["tcb_level"])
        library_ends = datetime.fromtimestamp(claims["earliest_expiration_date"], UTC)
        return VerifiedTd(
            report=parsed.report,
            quote_version=parsed.version,
            signed_part_sha256=parsed.signed_digest,
            tcb_status=claims["tcb"]["status"],
            tcb_date=min(datetime.fromisoformat(level["tcbDate"]) for level in levels),
            advisory_ids=tuple(sorted(claims["tcb"]["advisory_ids"])),
            tcb_evaluation=claims["tcb"]["eval_data_number"],
            fmspc=bytes(pck["fmspc"]),
            ppid=bytes(pck["ppid"]),
            piid=None if piid is None else bytes(piid),
            dynamic_platform=_flag(pck["dynamic_platform"]),
            cached_keys=_flag(pck["cached_keys"]),
            smt=_flag(pck["smt_enabled"]),
            collateral_ends=min(library_ends, collateral.ends),
            verified_at=now,
            anchor=anchor.name,
            simulated=anchor.simulated,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InternalError(
            "internal.claims_unreadable",
            f"the verification library's claims are not as expected: {type(error).__name__}",
            hint="check that dcap-qvl has a version sealserve supports",
        ) from None


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


_OUR_NAME = {
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


# What dcap-qvl 0.7 says, and our code for it. The first fragment found in the
# text wins, so the order is from the particular to the general.
_KNOWN_TEXTS: tuple[tuple[str, str], ...] = (
    ("CertRevoked", "chain.revoked"),
    ("CertExpired", "chain.expired"),
    ("CertNotValidYet", "chain.expired"),
    ("CrlExpired", "crl.expired"),
    ("root CA CRL", "chain.wrong_root"),
    ("InvalidCrlSignature", "crl.signature"),
    ("CRL", "crl.malformed"),
    ("Unknown QE vendor", "quote.qe_vendor"),
    ("ISV enclave report signature", "quote.signature"),
    ("Failed to decode quote", "quote.malformed"),
    ("Unsupported DCAP PCK cert format", "quote.certification_data"),
    ("QE report hash mismatch", "qe.key_binding"),
    ("QE auth data", "qe.key_binding"),
    ("Signature is invalid for qe_report", "qe.signature"),
    ("QE MRSIGNER", "qe.identity_mismatch"),
    ("QE ISVPRODID", "qe.identity_mismatch"),
    ("QE MISCSELECT", "qe.identity_mismatch"),
    ("QE ATTRIBUTES", "qe.identity_mismatch"),
    ("QE report validation", "qe.identity_mismatch"),
    ("QE ISVSVN", "qe.out_of_date"),
    ("No TCB levels found in QE Identity", "qe.out_of_date"),
    ("Failed to decode QE report", "qe.malformed"),
    ("Signature is invalid for tcb_info", "collateral.signature"),
    ("Signature is invalid for qe_identity", "collateral.signature"),
    ("is in the future", "collateral.not_yet_valid"),
    ("expired", "collateral.expired"),
    ("Expired", "collateral.expired"),
    ("Fmspc mismatch", "tcb.platform_mismatch"),
    ("non-TDX TCB info", "tcb.platform_mismatch"),
    ("Invalid key length", "collateral.signature"),
    ("TDX module", "tcb.module_mismatch"),
    ("QE Identity", "collateral.malformed"),
    ("TCB Info", "collateral.malformed"),
    ("TcbInfo", "collateral.malformed"),
    ("QeIdentity", "collateral.malformed"),
    ("Revoked", "tcb.revoked"),
    ("No matching TCB level", "tcb.no_matching_level"),
    ("TEE_TCB_SVN2", "tcb.no_matching_level"),
    ("Debug mode", "td.debug"),
    ("TD profiling", "td.profiling"),
    ("SERVTD", "td.service_td"),
    ("MR service TD", "td.service_td"),
    ("SEPT_VE_DISABLE", "td.sept_ve_disable"),
    ("TD migration", "td.migratable"),
    ("Reserved bits", "td.reserved_bits"),
    ("certificate chain", "chain.not_verified"),
    ("Certificate chain", "chain.not_verified"),
    ("PCK certificate", "chain.not_verified"),
    ("root ca", "chain.not_verified"),
    ("Intel extension", "chain.not_verified"),
)


def _refusal(text: str) -> InputError | Refused:
    text = " ".join(text.removeprefix("Verification failed:").split())[:300]
    code = next((code for part, code in _KNOWN_TEXTS if part in text), "quote.not_verified")
    kind = InputError if code.endswith(".malformed") else Refused
    return kind(
        code,
        f"the quote is not verified: {text}",
        hint=_HINTS.get(code.partition(".")[0]),
    )


_HINTS = {
    "collateral": _ASK_FOR_NEW,
    "chain": "check that collateral and anchor belong together; " + _ASK_FOR_NEW,
    "tcb": "the platform's firmware needs an update, or the collateral is of another platform",
    "td": "the guest was launched in a way that is never trusted; launch it without this",
}
