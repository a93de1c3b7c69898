"""Collateral: what Intel signs so that a quote can be judged.

Rules this module keeps:

* Reading proves nothing: signatures are checked by the verifier, each time,
  under its own anchor. A collateral file needs no protection but freshness.
* Exactly the known fields, bounded size, and the deadlines inside are found
  when it is read: a file that cannot be judged is refused at the door.

The fields are those of Intel's PCS, API version 4, as ``dcap-qvl`` names them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dcap_qvl
from cryptography import x509

from sealserve.errors import InputError
from sealserve.files import read_limited

__all__ = ["MAX_COLLATERAL_BYTES", "Collateral", "Deadline"]

MAX_COLLATERAL_BYTES = 8 << 20
"""Intel's PCK CRLs grow with every revocation; today a bundle has 16-24 KB."""

_PEM_CHAINS = ("pck_crl_issuer_chain", "tcb_info_issuer_chain", "qe_identity_issuer_chain")
_CRLS = ("root_ca_crl", "pck_crl")
_DOCUMENTS = ("tcb_info", "qe_identity")
_REQUIRED = (*_PEM_CHAINS, *_CRLS, *_DOCUMENTS, "tcb_info_signature", "qe_identity_signature")
# What the parsers of JSON, DER and PEM raise on bytes that are none.
_UNREADABLE = (
    ValueError,
    TypeError,
    KeyError,
    OverflowError,
    RecursionError,
    x509.InvalidVersion,
)
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
        fmspc: platform model the TCB info is about, 12 hexadecimal digits.
        library: the same collateral as the verification library takes it.
    """

    deadlines: tuple[Deadline, ...]
    evaluation_number: int
    fmspc: str
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
    def first_to_end(self) -> Deadline:
        """The part that expires first."""
        return min(self.deadlines, key=lambda deadline: deadline.ends)

    @classmethod
    def load(cls, path: Path | str) -> Collateral:
        """Read a collateral file.

        Raises:
            Unavailable: ``file.unreadable``.
            InputError: ``file.too_large``, and as :meth:`from_json`.
        """
        return cls.from_json(read_limited(path, MAX_COLLATERAL_BYTES))

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
            documents = {name: json.loads(fields[name]) for name in _DOCUMENTS}
            deadlines = tuple(_deadlines(fields, documents))
            number = documents["tcb_info"]["tcbEvaluationDataNumber"]
            fmspc = documents["tcb_info"]["fmspc"]
            library = dcap_qvl.QuoteCollateralV3.from_json(json.dumps(fields))
        except _UNREADABLE as error:
            raise InputError(
                "collateral.malformed",
                f"the collateral cannot be read: {type(error).__name__}",
                hint="fetch it again from Intel's PCS or your PCCS",
            ) from None
        if type(number) is not int or not isinstance(fmspc, str) or len(fmspc) != 12:
            raise InputError(
                "collateral.malformed", "the TCB info has no evaluation number or no FMSPC"
            )
        return cls(
            deadlines=deadlines,
            evaluation_number=number,
            fmspc=fmspc.lower(),
            library=library,
        )


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


def _deadlines(fields: dict[str, str], documents: dict[str, Any]) -> list[Deadline]:
    found = [
        Deadline(name, _time(document["issueDate"]), _time(document["nextUpdate"]))
        for name, document in documents.items()
    ]
    for name in _CRLS:
        crl = x509.load_der_x509_crl(bytes.fromhex(fields[name]))
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
