"""What a verifier establishes about a TD, whichever verifier it was."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from sealserve.tdx.quote import TdReport

__all__ = ["VerifiedTd", "differences"]


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
        advisory_ids: Intel security advisories that apply, to the TCB the TD
            was launched with or to the one it runs on now.
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


def differences(one: VerifiedTd, other: VerifiedTd) -> tuple[str, ...]:
    """Names of the facts in which two verifiers differ."""
    names = (field.name for field in fields(VerifiedTd))
    return tuple(name for name in names if getattr(one, name) != getattr(other, name))
