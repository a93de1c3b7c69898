"""The doctor: what will lock guests out, and when.

Rules this module keeps: it reads only, and it examines also a broker that would
not start: what keeps it from starting is a finding and not an error.
"""

from __future__ import annotations

import shutil
import stat
from datetime import datetime
from pathlib import Path

from sealserve.attestation.collateral import Collateral
from sealserve.broker.audit import AuditLog
from sealserve.broker.directory import open_broker, open_without_kek
from sealserve.broker.identity import BrokerIdentity
from sealserve.broker.operation.checks import CHECKS
from sealserve.broker.operation.findings import Report
from sealserve.broker.operation.look import Look
from sealserve.broker.operation.seen import Seen
from sealserve.broker.operation.snapshot import take
from sealserve.broker.operation.thresholds import THRESHOLDS
from sealserve.broker.store import Store
from sealserve.errors import Refused, SealserveError

__all__ = ["examine", "free_bytes", "is_open_directory", "report_on"]


def examine(
    root: Path,
    *,
    now: datetime,
    collateral: tuple[Collateral, ...] = (),
    early: tuple[Collateral, ...] = (),
) -> Report:
    """Examine a broker's directory, whether a broker process runs on it or not.

    Args:
        root: the directory.
        now: the time to look from, with a time zone.
        collateral: what the broker serves with.
        early: what was fetched with ``update="early"``: Intel's next.

    Raises:
        Unavailable: ``broker.directory_missing``, ``store.unavailable``.
        Refused: ``store.version_unknown``, ``broker.key_mismatch``.
        InputError: ``identity.malformed``.
    """
    kek_problem = None
    try:
        with open_broker(root):
            pass
    except SealserveError as error:
        if not error.code.startswith("kek."):
            raise
        kek_problem = str(error)
    identity, _, store = open_without_kek(root)
    try:
        return report_on(_look(root, identity, store, now, collateral, early, kek_problem))
    finally:
        store.close()


def report_on(look: Look) -> Report:
    """Run every check on one look."""
    return Report.of((finding for check in CHECKS for finding in check(look)), look.now)


def free_bytes(root: Path) -> int:
    """What an ordinary user may still write on the directory's disk."""
    return shutil.disk_usage(root).free


def is_open_directory(root: Path) -> bool:
    """Whether group or others may write into it."""
    return bool(root.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def _look(
    root: Path,
    identity: BrokerIdentity,
    store: Store,
    now: datetime,
    collateral: tuple[Collateral, ...],
    early: tuple[Collateral, ...],
    kek_problem: str | None,
) -> Look:
    log = AuditLog(store)
    problem = None
    try:
        log.verify()
    except Refused as error:
        problem = str(error)
    seen = Seen()
    for line in log.lines(last=THRESHOLDS.lines):
        seen.feed(line)
    return Look(
        now=now,
        snapshot=take(store, now),
        seen=seen,
        certificate_ends=identity.x509.not_valid_after_utc,
        simulated=None if seen.anchor is None else "SIMULATION" in seen.anchor,
        collateral=collateral,
        early=early,
        audit_problem=problem,
        kek_problem=kek_problem,
        free_bytes=free_bytes(root),
        open_directory=is_open_directory(root),
    )
