"""Collateral: what Intel signs so that a quote can be judged.

Rules this module keeps:

* Reading proves nothing: signatures are checked by the verifier, each time,
  under its own anchor. A collateral file needs no protection but freshness.
* Exactly the known fields, bounded size, and the deadlines inside are found
  when it is read: a file that cannot be judged is refused at the door.
* The strings that are signed are kept as they are, byte for byte.

The fields are those of Intel's PCS, API version 4, as ``dcap-qvl`` names them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dcap_qvl
from cryptography import x509

from sealserve.attestation.anchor import SIMULATION
from sealserve.certificates import UNREADABLE
from sealserve.errors import InputError, Refused
from sealserve.files import read_limited

__all__ = [
    "MAX_COLLATERAL_BYTES",
    "WARNING_DAYS",
    "Collateral",
    "Deadline",
    "ending_soon",
    "require_current",
]

MAX_COLLATERAL_BYTES = 8 << 20
"""Intel's PCK CRLs grow with every revocation; today a bundle has 16-24 KB."""

WARNING_DAYS = (14, 7, 1)
"""Days before an end at which the warning about it becomes more urgent."""

_PEM_CHAINS = ("pck_crl_issuer_chain", "tcb_info_issuer_chain", "qe_identity_issuer_chain")
_CRLS = ("root_ca_crl", "pck_crl")
_DOCUMENTS = ("tcb_info", "qe_identity")
_REQUIRED = (*_PEM_CHAINS, *_CRLS, *_DOCUMENTS, "tcb_info_signature", "qe_identity_signature")
# What the parsers of JSON, DER and PEM raise on bytes that are none.
_UNREADABLE = (*UNREADABLE, KeyError, OverflowError, RecursionError, AttributeError)
_OPTIONAL = ("pck_certificate_chain",)


@dataclass(frozen=True, slots=True)
class Deadline:
    """The validity window of one part of the collateral; both ends are UTC and inclusive."""

    part: str
    begins: datetime
    ends: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Collateral:
    """One set of collateral for one platform model (FMSPC). Unverified.

    Attributes:
        deadlines: validity window of each part.
        evaluation_number: TCB evaluation data number of the TCB info; a higher
            number is newer knowledge.
        qe_evaluation_number: the same of the QE identity.
        fmspc: platform model the TCB info is about, 12 hexadecimal digits.
        ca: whose PCK CRL is here: ``"platform"`` or ``"processor"``.
        simulated: whether its issuer calls itself a SIMULATION.
        parts: the JSON object's fields as they were read.
        library: the same collateral as the verification library takes it.
    """

    deadlines: tuple[Deadline, ...]
    evaluation_number: int
    qe_evaluation_number: int
    fmspc: str
    ca: str
    simulated: bool
    parts: Mapping[str, str] = field(repr=False)
    library: Any = field(repr=False, compare=False)

    @property
    def begins(self) -> datetime:
        """When the last part becomes valid."""
        return max(deadline.begins for deadline in self.deadlines)

    @property
    def ends(self) -> datetime:
        """When the first part expires."""
        return self.first_to_end.ends

    @property
    def issued(self) -> dict[str, datetime]:
        """When Intel signed each document and CRL."""
        signed = (*_DOCUMENTS, *_CRLS)
        return {each.part: each.begins for each in self.deadlines if each.part in signed}

    @property
    def ends_by_part(self) -> dict[str, datetime]:
        """When each part expires; a chain with its first certificate."""
        ends: dict[str, datetime] = {}
        for deadline in self.deadlines:
            ends[deadline.part] = min(deadline.ends, ends.get(deadline.part, deadline.ends))
        return ends

    @property
    def first_to_end(self) -> Deadline:
        """The part that expires first."""
        return min(self.deadlines, key=lambda deadline: deadline.ends)

    def for_any_machine(self) -> Collateral:
        """The same without a PCK certificate chain, which is of one machine and no model."""
        if not set(self.parts) & set(_OPTIONAL):
            return self
        parts = {name: value for name, value in self.parts.items() if name not in _OPTIONAL}
        return Collateral.from_json(json.dumps(parts).encode())

    def to_json(self) -> bytes:
        """The JSON object that :meth:`from_json` reads."""
        return json.dumps(dict(self.parts), indent=1).encode() + b"\n"

    @classmethod
    def load(cls, path: Path | str) -> Collateral:
        """Read a collateral file.

        Raises:
            Unavailable: ``file.unreadable``.
            InputError: ``file.too_large``, and as :meth:`from_json`.
        """
        raw = read_limited(path, MAX_COLLATERAL_BYTES)
        try:
            return cls.from_json(raw)
        except InputError as error:
            error.where = str(path)
            raise

    @classmethod
    def from_json(cls, raw: bytes) -> Collateral:
        """Read collateral from its JSON object.

        Args:
            raw: at most :data:`MAX_COLLATERAL_BYTES`; CRLs and signatures in
                hexadecimal, chains in PEM, TCB info and QE identity as the
                exact strings that are signed.

        Raises:
            InputError: ``collateral.too_large`` or ``collateral.malformed``.
        """
        if len(raw) > MAX_COLLATERAL_BYTES:
            raise InputError(
                "collateral.too_large",
                f"collateral of more than {MAX_COLLATERAL_BYTES} bytes is not read",
            )
        fields = _read_fields(raw)
        try:
            return cls(**_read_parts(fields))
        except _UNREADABLE as error:
            raise InputError(
                "collateral.malformed",
                f"the collateral cannot be read: {type(error).__name__}",
                hint="fetch it again from Intel's PCS or your PCCS",
            ) from None


def require_current(collateral: Collateral, now: datetime) -> None:
    """Refuse collateral that is out of its time, and say which part it is.

    Raises:
        Refused: ``collateral.not_yet_valid`` or ``collateral.expired``.
    """
    for deadline in collateral.deadlines:
        if now < deadline.begins:
            raise Refused(
                "collateral.not_yet_valid",
                f"{deadline.part} is valid from {_utc(deadline.begins)}, "
                f"and the time to verify for is {_utc(now)}",
                hint="check the clock of this machine",
            )
        if now > deadline.ends:
            raise Refused(
                "collateral.expired",
                f"{deadline.part} expired after {_utc(deadline.ends)}, "
                f"and the time to verify for is {_utc(now)}",
                hint="fetch collateral for this platform again and retry",
            )


def ending_soon(ends: datetime, now: datetime, *, of: str = "the collateral") -> str | None:
    """The warning that an end is near, or ``None`` beyond the first of :data:`WARNING_DAYS`.

    Args:
        ends: when it ends; an end that has passed is a refusal, not a warning.
        now: the time of the decision, with a time zone.
        of: what ends.
    """
    left = ends - now
    passed = [days for days in WARNING_DAYS if left <= timedelta(days=days)]
    if not passed or left < timedelta(0):
        return None
    urgency = "URGENT: " if passed[-1] == WARNING_DAYS[-1] else ""
    return (
        f"{urgency}{of} ends in {left.days} day(s), at {_utc(ends)}: "
        "fetch it again before, or guests of this platform are locked out"
    )


def _read_parts(fields: dict[str, str]) -> dict[str, Any]:
    """What :class:`Collateral` holds; raises any of ``_UNREADABLE``."""
    documents = {name: json.loads(fields[name]) for name in _DOCUMENTS}
    crls = {name: x509.load_der_x509_crl(bytes.fromhex(fields[name])) for name in _CRLS}
    tcb_info, qe_identity = documents["tcb_info"], documents["qe_identity"]
    issuer = crls["pck_crl"].issuer.rfc4514_string()
    (ca,) = (name for name in ("platform", "processor") if f"PCK {name.title()} CA" in issuer)
    return {
        "deadlines": tuple(_deadlines(fields, documents, crls)),
        "evaluation_number": _number(tcb_info["tcbEvaluationDataNumber"]),
        "qe_evaluation_number": _number(qe_identity["tcbEvaluationDataNumber"]),
        "fmspc": _fmspc(tcb_info["fmspc"]),
        "ca": ca,
        "simulated": SIMULATION in issuer,
        "parts": fields,
        "library": dcap_qvl.QuoteCollateralV3.from_json(json.dumps(fields)),
    }


def _read_fields(raw: bytes) -> dict[str, str]:
    try:
        fields = json.loads(raw, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError):
        raise InputError(
            "collateral.malformed", "the collateral is not a JSON object with unique keys"
        ) from None
    if not isinstance(fields, dict):
        raise InputError("collateral.malformed", "the collateral is not a JSON object")
    absent = [name for name in _REQUIRED if name not in fields]
    unknown = [name for name in fields if name not in _REQUIRED + _OPTIONAL]
    if absent or unknown:
        raise InputError(
            "collateral.malformed",
            f"missing fields: {', '.join(absent) or 'none'}; "
            f"unknown fields: {', '.join(unknown)[:200] or 'none'}",
        )
    if fields.get("pck_certificate_chain", "") is None:
        del fields["pck_certificate_chain"]
    if not all(isinstance(value, str) for value in fields.values()):
        raise InputError("collateral.malformed", "every field of the collateral is a string")
    return fields


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("duplicate key")
    return result


def _deadlines(
    fields: dict[str, str],
    documents: dict[str, Any],
    crls: dict[str, x509.CertificateRevocationList],
) -> list[Deadline]:
    found = [
        Deadline(name, _time(document["issueDate"]), _time(document["nextUpdate"]))
        for name, document in documents.items()
    ]
    for name, crl in crls.items():
        if crl.next_update_utc is None:
            raise ValueError("a CRL without nextUpdate never expires")
        # A CRL is good *before* nextUpdate: that second is already too late.
        last_second = crl.next_update_utc - timedelta(seconds=1)
        found.append(Deadline(name, crl.last_update_utc, last_second))
    for name in _PEM_CHAINS:
        chain = x509.load_pem_x509_certificates(fields[name].encode())
        found += [Deadline(name, c.not_valid_before_utc, c.not_valid_after_utc) for c in chain]
    return found


def _time(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time without zone")
    return moment.astimezone(UTC)


def _utc(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _number(value: Any) -> int:
    if type(value) is not int:
        raise ValueError("no evaluation number")
    return value


def _fmspc(value: str) -> str:
    if len(value) != 12:
        raise ValueError("no FMSPC")
    return bytes.fromhex(value).hex()
