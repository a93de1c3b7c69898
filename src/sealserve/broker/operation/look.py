"""What the doctor's checks look at, taken before they begin."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sealserve.attestation.collateral import Collateral
from sealserve.broker.operation.seen import Seen
from sealserve.broker.operation.snapshot import Snapshot
from sealserve.broker.operation.thresholds import THRESHOLDS, Thresholds

__all__ = ["Look"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """All that the checks look at.

    Attributes:
        now: the time of the look.
        snapshot: the tables.
        seen: what the audit log tells of guests.
        certificate_ends: of the broker's own certificate.
        simulated: whether the broker decides under a SIMULATION anchor; ``None``: not known.
        collateral: in force, of each platform model; empty if it was not given.
        early: what Intel will put in force next, if it was given.
        audit_problem: what is wrong with the chain; ``None`` if it is whole.
        kek_problem: why the key-encryption key cannot be used; ``None`` if it can.
        free_bytes: on the disk of the broker's directory.
        open_directory: whether others may write into the broker's directory.
        thresholds: from when on something counts.
    """

    now: datetime
    snapshot: Snapshot
    seen: Seen
    certificate_ends: datetime
    simulated: bool | None
    collateral: tuple[Collateral, ...]
    early: tuple[Collateral, ...] = ()
    audit_problem: str | None
    kek_problem: str | None
    free_bytes: int
    open_directory: bool = False
    thresholds: Thresholds = THRESHOLDS

    def days_ago(self, days: int) -> datetime:
        """So many days before the look."""
        return self.now - timedelta(days=days)
