"""Prometheus metrics of one broker process, in a registry of their own.

Rules this module keeps: labels are names from the source (steps, verdicts, codes)
or from the operator's collateral, so that no peer can make a new series. What the tables
know is read when somebody scrapes, and not counted a second time here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from time import perf_counter
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from sealserve import __version__
from sealserve.broker.observer import Outcome, Step
from sealserve.broker.operation.look import Look
from sealserve.errors import SealserveError

__all__ = ["CONTENT_TYPE", "BrokerMetrics"]

CONTENT_TYPE: Final = "text/plain; version=1.0.0; charset=utf-8"

_PREFIX: Final = "sealserve_broker"
_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class BrokerMetrics:
    """Counts what an observer is told, and reads the rest when asked.

    Args:
        look: the newest look at the broker, for what its tables know.
        nonces: how many challenges are open.
    """

    def __init__(self, look: Callable[[], Look], nonces: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        self._challenges = Counter(
            f"{_PREFIX}_challenges",
            "Challenges, by outcome code.",
            ["code"],
            registry=self._registry,
        )
        self._releases = Counter(
            f"{_PREFIX}_releases",
            "Decisions, by verdict and the code that the peer was told.",
            ["verdict", "code"],
            registry=self._registry,
        )
        self._reasons = Counter(
            f"{_PREFIX}_denial_reasons",
            "Rules that failed; one request may fail several.",
            ["code"],
            registry=self._registry,
        )
        self._store_errors = Counter(
            f"{_PREFIX}_store_errors",
            "Requests that failed because of the database.",
            ["code"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            f"{_PREFIX}_step_seconds",
            "Time of whole calls (challenge, release) and of a release's parts.",
            ["step"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._registry.register(_FromTables(look, nonces))

    @contextmanager
    def step(self, name: Step) -> Iterator[None]:
        """Time a step; count a challenge."""
        began = perf_counter()
        code = "issued"
        try:
            yield
        except SealserveError as error:
            code = error.code
            raise
        except BaseException:
            code = "internal.unexpected"
            raise
        finally:
            self._seconds.labels(name).observe(perf_counter() - began)
            if name == "challenge":
                self._challenges.labels(code).inc()
                self._count_store_error(code)

    def decided(self, outcome: Outcome) -> None:
        """Count a decision."""
        self._releases.labels(outcome.verdict, outcome.code).inc()
        for code in outcome.reasons:
            self._reasons.labels(code).inc()
        self._count_store_error(outcome.cause)

    def exposition(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self._registry)

    def _count_store_error(self, code: str) -> None:
        if code.startswith("store."):
            self._store_errors.labels(code).inc()


class _FromTables(Collector):
    """Gauges that a scrape reads from the newest look."""

    def __init__(self, look: Callable[[], Look], nonces: Callable[[], int]) -> None:
        self._look = look
        self._nonces = nonces

    def collect(self) -> Iterator[GaugeMetricFamily | InfoMetricFamily]:
        """Everything that the tables, the collateral and the table of nonces know."""
        yield InfoMetricFamily(_PREFIX, "The broker's version.", {"version": __version__})
        try:
            nonces, look = self._nonces(), self._look()
        except SealserveError:
            yield _gauge("store_up", "Whether the database answered this scrape.", 0)
            return
        yield _gauge("store_up", "Whether the database answered this scrape.", 1)
        yield _gauge("nonces", "Challenges that are kept.", nonces)
        yield _gauge("simulation", "1 under a SIMULATION anchor.", int(bool(look.simulated)))
        snapshot = look.snapshot
        yield _gauge("resources", "Resources that guests can ask for.", len(snapshot.resources))
        yield _gauge("leases_active", "Leases that have not ended.", snapshot.active_leases)
        yield _gauge("audit_lines", "Lines of the audit chain.", snapshot.audit.lines)
        yield _gauge(
            "audit_unsigned_lines",
            "Lines of the audit chain after its last signed checkpoint.",
            snapshot.audit.lines - snapshot.audit.signed_lines,
        )
        yield _gauge(
            "audit_whole", "0 if the audit chain is broken.", int(look.audit_problem is None)
        )
        yield _gauge("disk_free_bytes", "Free on the disk of the directory.", look.free_bytes)
        yield _gauge(
            "certificate_days_left",
            "Until the broker's certificate ends.",
            _days(look.certificate_ends, look.now),
        )
        yield _collateral_days(look)


def _collateral_days(look: Look) -> GaugeMetricFamily:
    family = GaugeMetricFamily(
        f"{_PREFIX}_collateral_days_left",
        "Until a part of the collateral ends; negative once it has.",
        labels=["fmspc", "ca", "part"],
    )
    for collateral in look.collateral:
        for part, end in collateral.ends_by_part.items():
            labels = [collateral.fmspc, collateral.ca, part]
            family.add_metric(labels, _days(end, look.now))
    return family


def _gauge(name: str, help_text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{_PREFIX}_{name}", help_text, value=value)


def _days(end: datetime, now: datetime) -> float:
    return round((end - now).total_seconds() / 86400, 3)
