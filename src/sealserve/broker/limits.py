"""Rate limits: token buckets for each peer's calls and each resource's releases.

Rules this module keeps:

* A peer's bucket is asked before anything else is done for it; a resource's only
  once a guest has passed the policy, so that no stranger can use it up.
* Several brokers share their buckets through the database. A call that this
  broker's own bucket refuses already does not reach the database: a flood costs
  it no more than what is allowed.
* Buckets in memory are bounded in number: those that have been left alone the
  longest go first, and they are full again anyhow.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from sqlalchemy import delete, select, text, tuple_
from sqlalchemy.orm import Session

from sealserve.broker.config import LimitsConfig
from sealserve.broker.store import Store
from sealserve.broker.tables import RateRow
from sealserve.errors import Unavailable

__all__ = [
    "Limits",
    "LocalLimits",
    "Scope",
    "SharedLimits",
    "limits_for",
    "peer_limited",
    "resource_limited",
]

Scope = Literal["peer", "resource"]

_MAX_BUCKETS: Final = 65_536
_SWEEP_SECONDS: Final = 10.0


class Limits(Protocol):
    """What a broker asks before it works for somebody."""

    def take(self, scope: Scope, name: str) -> float:
        """Take one token.

        Returns:
            0 if there was one; else in how many seconds there will be.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Bucket:
    rate: float
    burst: float

    @property
    def full_after(self) -> float:
        """Seconds from empty to full: a bucket left alone so long need not be kept."""
        return self.burst / self.rate


def _buckets(config: LimitsConfig) -> dict[Scope, _Bucket]:
    return {
        "peer": _Bucket(config.peer_calls_per_second, config.peer_burst),
        "resource": _Bucket(config.resource_releases_per_second, config.resource_burst),
    }


class LocalLimits:
    """Buckets of one process, in memory.

    Args:
        config: rates and bursts.
        clock: seconds that never go back.
    """

    def __init__(
        self, config: LimitsConfig, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._shapes = _buckets(config)
        self._clock = clock
        self._lock = threading.Lock()
        # (tokens, when); in the order of last use.
        self._levels: dict[tuple[Scope, str], tuple[float, float]] = {}

    def __len__(self) -> int:
        return len(self._levels)

    def take(self, scope: Scope, name: str) -> float:
        """As `Limits.take`."""
        shape, key = self._shapes[scope], (scope, name)
        with self._lock:
            now = self._clock()
            tokens, when = self._levels.pop(key, (shape.burst, now))
            tokens = min(shape.burst, tokens + (now - when) * shape.rate)
            wait = max(0.0, (1 - tokens) / shape.rate)
            self._levels[key] = (tokens if wait else tokens - 1, now)
            if len(self._levels) > _MAX_BUCKETS:
                del self._levels[next(iter(self._levels))]
        return wait


# One statement, so that brokers cannot take the same token twice. No row comes back
# when the bucket is empty, and then nothing was written either.
_TAKE: Final = text("""
    INSERT INTO rates AS r (scope, name, tokens, updated)
    VALUES (:scope, :name, :burst - 1, extract(epoch FROM clock_timestamp())::float8)
    ON CONFLICT (scope, name) DO UPDATE SET
        tokens = least(:burst, r.tokens + (excluded.updated - r.updated) * :rate) - 1,
        updated = excluded.updated
    WHERE least(:burst, r.tokens + (excluded.updated - r.updated) * :rate) >= 1
    RETURNING tokens
""")
_LEVEL: Final = text("""
    SELECT tokens + (extract(epoch FROM clock_timestamp())::float8 - updated) * :rate
    FROM rates WHERE scope = :scope AND name = :name
""")


class SharedLimits:
    """Buckets of all brokers on one PostgreSQL.

    Args:
        config: rates and bursts; the same for all brokers, or the strictest one refuses first.
        store: the shared store.
        clock: for this broker's own buckets and for sweeping.
    """

    def __init__(
        self, config: LimitsConfig, store: Store, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._shapes = _buckets(config)
        self._own = LocalLimits(config, clock=clock)
        self._store = store
        self._clock = clock
        self._swept = clock()

    def take(self, scope: Scope, name: str) -> float:
        """As `Limits.take`.

        Raises:
            Unavailable: ``store.unavailable``.
        """
        wait = self._own.take(scope, name)
        if wait:
            return wait
        shape = self._shapes[scope]
        values = {"scope": scope, "name": name, "rate": float(shape.rate)}
        with self._store.writing() as session:
            # What a crash forgets of a bucket is a few tokens.
            session.execute(text("SET LOCAL synchronous_commit = off"))
            self._sweep(session)
            taken = session.execute(_TAKE, {**values, "burst": float(shape.burst)}).one_or_none()
            if taken is not None:
                return 0.0
            level = session.scalar(_LEVEL, values)
        return max(0.001, (1 - (level or 0.0)) / shape.rate)

    def _sweep(self, session: Session) -> None:
        now = self._clock()
        if now - self._swept < _SWEEP_SECONDS:
            return
        self._swept = now
        limit = self._store.clock(session)
        for scope, shape in self._shapes.items():
            idle = (
                select(RateRow.scope, RateRow.name)
                .where(RateRow.scope == scope, RateRow.updated < limit - shape.full_after)
                .with_for_update(skip_locked=True)
            )
            session.execute(delete(RateRow).where(tuple_(RateRow.scope, RateRow.name).in_(idle)))


def peer_limited() -> Unavailable:
    """What a peer is told whose bucket is empty."""
    return Unavailable(
        "release.peer_limited",
        "this address asks more often than the broker allows",
        hint="wait; the operator sets `limits` in broker.yaml",
    )


def resource_limited() -> Unavailable:
    """What a guest is told whose resource is released too often at present."""
    return Unavailable(
        "release.resource_limited",
        "the resource is released more often than the broker allows",
        hint="wait; the operator sets `limits` in broker.yaml",
    )


def limits_for(config: LimitsConfig, store: Store) -> Limits:
    """The buckets that fit the store: shared if it is, else in memory."""
    return SharedLimits(config, store) if store.shared else LocalLimits(config)
