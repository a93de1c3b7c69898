"""What a running broker knows of itself, brought up to date when somebody looks.

Rules this module keeps: a look is kept for a few seconds, so that nobody loads the
database by reloading a page; the audit log is followed (`chain_watch`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from sealserve.attestation.collateral import Collateral
from sealserve.broker.directory import Broker
from sealserve.broker.operation.chain_watch import ChainView, ChainWatch
from sealserve.broker.operation.doctor import free_bytes, is_open_directory, report_on
from sealserve.broker.operation.findings import Report
from sealserve.broker.operation.look import Look
from sealserve.broker.operation.snapshot import take

__all__ = ["View", "Watch"]

_FRESH: Final = timedelta(seconds=3)


@dataclass(frozen=True, slots=True)
class View:
    """One look and what follows from it.

    Attributes:
        look: what was seen.
        report: what the doctor says to it.
        chain: what was checked of the audit chain.
    """

    look: Look
    report: Report
    chain: ChainView


class Watch:
    """Looks at one running broker.

    Args:
        broker: whose directory and store are looked at.
        chain: follows its audit chain.
        collateral: what it decides by, now.
        simulated: whether its anchor is a SIMULATION.
        now: the wall clock, with a time zone.
    """

    def __init__(
        self,
        broker: Broker,
        chain: ChainWatch,
        collateral: Callable[[], tuple[Collateral, ...]],
        *,
        simulated: bool,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._broker = broker
        self._chain = chain
        self._collateral = collateral
        self._simulated = simulated
        self._now = now
        self._lock = threading.Lock()
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
        chain = self._chain.look(now)
        look = Look(
            now=now,
            snapshot=snapshot,
            seen=chain.seen,
            certificate_ends=self._broker.identity.x509.not_valid_after_utc,
            simulated=self._simulated,
            collateral=self._collateral(),
            audit_problem=chain.problem,
            kek_problem=None,  # a broker with such a problem does not run
            free_bytes=free_bytes(self._broker.root),
            open_directory=is_open_directory(self._broker.root),
        )
        return View(look, report_on(look), chain)
