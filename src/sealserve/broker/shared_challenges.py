"""Challenges that several brokers share, in their common PostgreSQL.

Rules this module keeps:

* Of any number of uses of one nonce, on any number of brokers, exactly one gets
  through: one UPDATE decides, and it is on the disk before the quote is looked at.
* Age is measured by the database's clock, the only one that all brokers share.
* The table is bounded as the one in memory is, up to what arrives within a
  second: each broker counts the rows once a second and its own in between.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Final

from sqlalchemy import delete, func, insert, select, text, update
from sqlalchemy.orm import Session

from sealserve.attestation.binding import NONCE_BYTES
from sealserve.broker.challenges import CAPACITY, require_usable, table_full, unknown, used_before
from sealserve.broker.protocol import NONCE_LIFETIME_SECONDS
from sealserve.broker.store import Store
from sealserve.broker.tables import ChallengeRow

__all__ = ["SharedChallenges"]

_COUNT_SECONDS: Final = 1.0


class SharedChallenges:
    """The nonces of all brokers on one database.

    Args:
        store: the shared store.
        capacity: how many nonces are kept at most.
        lifetime: seconds from issue to expiry.
        clock: when to count again, in seconds that never go back.
    """

    def __init__(
        self,
        store: Store,
        *,
        capacity: int = CAPACITY,
        lifetime: float = NONCE_LIFETIME_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._capacity = capacity
        self._lifetime = lifetime
        self._clock = clock
        self._lock = threading.Lock()
        self._counted = -_COUNT_SECONDS
        self._estimate = 0

    def __len__(self) -> int:
        with self._store.reading() as session:
            return _count(session)

    def issue(self, resource: str, peer: str) -> bytes:
        """As `challenges.Challenges.issue`.

        Raises:
            Unavailable: ``release.too_many_challenges``, ``store.unavailable``.
        """
        nonce = os.urandom(NONCE_BYTES)
        with self._store.writing() as session:
            # A nonce that a crash forgets is only unknown: this commit need not wait for the disk.
            session.execute(text("SET LOCAL synchronous_commit = off"))
            now = self._store.clock(session)
            if self._about(session, now) >= self._capacity:
                self._make_room(session, peer)
            session.execute(
                insert(ChallengeRow).values(
                    nonce=nonce, resource=resource, peer=peer, issued=now, used=False
                )
            )
        with self._lock:
            self._estimate += 1
        return nonce

    def consume(self, nonce: bytes, resource: str) -> None:
        """As `challenges.Challenges.consume`.

        Raises:
            Refused: ``release.nonce_*``.
            Unavailable: ``store.unavailable``.
        """
        with self._store.writing() as session:
            won = session.execute(
                update(ChallengeRow)
                .where(ChallengeRow.nonce == nonce, ChallengeRow.used.is_(False))
                .values(used=True)
                .returning(ChallengeRow.resource, ChallengeRow.issued)
            ).one_or_none()
            now = self._store.clock(session)
            known = won is not None or session.get(ChallengeRow, nonce) is not None
        # Only now: the nonce is used up, on the disk, whatever comes of it.
        if not known:
            raise unknown()
        if won is None:
            raise used_before()
        require_usable(now - won.issued, self._lifetime, issued_for=won.resource, used_for=resource)

    def _about(self, session: Session, now: float) -> int:
        with self._lock:
            if self._clock() - self._counted < _COUNT_SECONDS:
                return self._estimate
            self._counted = self._clock()
        # Used and expired nonces stay one lifetime longer, as in memory.
        old = (
            select(ChallengeRow.nonce)
            .where(ChallengeRow.issued <= now - 2 * self._lifetime)
            .order_by(ChallengeRow.issued)
            .limit(self._capacity)
            .with_for_update(skip_locked=True)
        )
        session.execute(delete(ChallengeRow).where(ChallengeRow.nonce.in_(old)))
        counted = _count(session)
        with self._lock:
            self._estimate = counted
        return counted

    def _make_room(self, session: Session, asker: str) -> None:
        held = func.count().label("held")
        by_peer = select(ChallengeRow.peer, held).group_by(ChallengeRow.peer)
        heaviest = session.execute(by_peer.order_by(held.desc()).limit(1)).one_or_none()
        if heaviest is None:
            return
        own = select(func.count()).where(ChallengeRow.peer == asker)
        if (session.scalar(own) or 0) >= heaviest.held:
            raise table_full()
        oldest = (
            select(ChallengeRow.nonce)
            .where(ChallengeRow.peer == heaviest.peer)
            .order_by(ChallengeRow.issued)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        gone = session.execute(
            delete(ChallengeRow).where(ChallengeRow.nonce.in_(oldest)).returning(ChallengeRow.nonce)
        ).all()
        with self._lock:
            self._estimate -= len(gone)


def _count(session: Session) -> int:
    return session.scalar(select(func.count()).select_from(ChallengeRow)) or 0
