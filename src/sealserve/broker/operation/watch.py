"""What a running broker knows of itself, brought up to date when somebody looks.

Rules this module keeps:

* The audit log is followed, not re-read: each look checks and reads the lines
  that are new. The first look begins at most `FIRST_LINES` from the end; what is
  before that, and what is changed behind a look's back, `audit verify` finds.
* A look is kept for a few seconds, so that nobody loads the database by
  reloading a page.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from sealserve.attestation.collateral import Collateral
from sealserve.broker.audit import GENESIS, ChainHead
from sealserve.broker.directory import Broker
from sealserve.broker.operation.doctor import free_bytes, is_open_directory, report_on
from sealserve.broker.operation.findings import Report
from sealserve.broker.operation.look import Look
from sealserve.broker.operation.seen import Seen
from sealserve.broker.operation.snapshot import take
from sealserve.errors import Refused

__all__ = ["View", "Watch"]

FIRST_LINES: Final = 20_000
_FRESH: Final = timedelta(seconds=3)


@dataclass(frozen=True, slots=True)
class View:
    """One look and what follows from it.

    Attributes:
        look: what was seen.
        report: what the doctor says to it.
        checked_from: the first line of the audit chain that was checked; the last is its end.
    """

    look: Look
    report: Report
    checked_from: int


class Watch:
    """Looks at one running broker.

    Args:
        broker: whose directory and store are looked at.
        collateral: what it decides by, now.
        simulated: whether its anchor is a SIMULATION.
        now: the wall clock, with a time zone.
    """

    def __init__(
        self,
        broker: Broker,
        collateral: Callable[[], Collateral],
        *,
        simulated: bool,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._broker = broker
        self._collateral = collateral
        self._simulated = simulated
        self._now = now
        self._lock = threading.Lock()
        self._seen = Seen()
        self._end: ChainHead | None = None
        self._from = 1
        self._problem: str | None = None
        self._view: View | None = None

    def view(self) -> View:
        """The newest look, a few seconds old at most.

        Raises:
            Unavailable: ``store.unavailable``.
        """
        with self._lock:
            now = self._now()
            if self._view is None or not timedelta(0) <= now - self._view.look.now < _FRESH:
                self._view = self._take(now)
            return self._view

    def look(self) -> Look:
        """What `view` looked at."""
        return self.view().look

    def _take(self, now: datetime) -> View:
        before = self._view.look.snapshot if self._view else None
        snapshot = take(self._broker.store, now, before=before)
        self._follow(snapshot.audit.lines)
        look = Look(
            now=now,
            snapshot=snapshot,
            seen=self._seen.copy(),
            certificate_ends=self._broker.identity.x509.not_valid_after_utc,
            simulated=self._simulated,
            collateral=self._collateral(),
            audit_problem=self._problem,
            kek_problem=None,  # a broker with such a problem does not run
            free_bytes=free_bytes(self._broker.root),
            open_directory=is_open_directory(self._broker.root),
        )
        return View(look, report_on(look), self._from)

    def _follow(self, lines: int) -> None:
        if self._problem is not None:
            return  # a broken chain does not become whole again
        log = self._broker.audit
        if self._end is None:
            start = max(0, lines - FIRST_LINES)
            self._end = (start and log.end_at(start)) or ChainHead(0, GENESIS)
            self._from = self._end.count + 1
        try:
            self._end = log.follow(self._end, self._seen.feed)
        except Refused as error:
            self._problem = str(error)
