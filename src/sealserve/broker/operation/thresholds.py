"""From when on something is worth an operator's while. Every such number stands here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sealserve.attestation.collateral import WARNING_DAYS

__all__ = ["THRESHOLDS", "Thresholds"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """Days, counts and sizes.

    Attributes:
        collateral_days: notice before a part of the collateral ends.
        certificate_days: before the broker's certificate ends; every guest needs its successor.
        principal_days: before an administrator's certificate ends.
        secret_days: before a secret expires.
        grace_days: before a platform's grace ends.
        live_days: a measurement that matched a guest within these days is alive.
        rotation_days: how long two versions of a secret may be live together.
        checkpoint_days: how old a line of the audit log without a signature over it may become.
        free_bytes: disk space below which the audit log may soon not be written.
        denials_an_hour: from so many on, somebody should look.
        clock_seconds: how far the database's clock may be from this machine's.
        lines: how many audit lines are read, from the end.
    """

    collateral_days: int = WARNING_DAYS[0]
    certificate_days: int = 90
    principal_days: int = 30
    secret_days: int = 14
    grace_days: int = 30
    live_days: int = 30
    rotation_days: int = 14
    checkpoint_days: int = 7
    free_bytes: int = 512 << 20
    denials_an_hour: int = 20
    clock_seconds: int = 30
    lines: int = 200_000


THRESHOLDS: Final = Thresholds()
"""The ones in force."""
