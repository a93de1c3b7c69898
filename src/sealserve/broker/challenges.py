"""Challenges: nonces that live 60 seconds and count once.

Rules this module keeps:

* Of any number of uses of one nonce, exactly one gets through.
* Age is measured by a monotonic clock: setting the wall clock revives nothing.
* The table is bounded. When it is full, the peer that holds the most nonces
  pays: its oldest one goes, or, if the asker is that peer, the asker is turned
  away. So a flood from one address cannot push out another guest's challenge.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from sealserve.attestation.binding import NONCE_BYTES
from sealserve.broker.protocol import NONCE_LIFETIME_SECONDS
from sealserve.errors import Refused, Unavailable

__all__ = [
    "CAPACITY",
    "ChallengeTable",
    "Challenges",
    "require_usable",
    "table_full",
    "unknown",
    "used_before",
]

CAPACITY: Final = 16_384
"""How many nonces a table keeps at most."""


class Challenges(Protocol):
    """What the release needs of a table of nonces, wherever it is kept."""

    def __len__(self) -> int:
        """How many nonces there are, used and expired ones included."""
        ...

    def issue(self, resource: str, peer: str) -> bytes:
        """A fresh nonce of 32 bytes for this resource."""
        ...

    def consume(self, nonce: bytes, resource: str) -> None:
        """Use the nonce up, or raise `Refused`."""
        ...


@dataclass(slots=True)
class _Entry:
    resource: str
    peer: str
    issued: float
    used: bool = False


class ChallengeTable:
    """The nonces of one broker process, in memory.

    Args:
        capacity: how many nonces are kept at most.
        lifetime: seconds from issue to expiry.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        *,
        capacity: int = CAPACITY,
        lifetime: float = NONCE_LIFETIME_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._capacity = capacity
        self._lifetime = lifetime
        self._clock = clock
        self._lock = threading.Lock()
        # Both keep the order of issue, which is the order of expiry.
        self._entries: dict[bytes, _Entry] = {}
        self._nonces_of: dict[str, dict[bytes, None]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def issue(self, resource: str, peer: str) -> bytes:
        """Make a nonce.

        Args:
            resource: the only resource it will be good for.
            peer: who asks; the unit of fairness.

        Returns:
            32 random bytes.

        Raises:
            Unavailable: ``release.too_many_challenges``.
        """
        nonce = os.urandom(NONCE_BYTES)
        with self._lock:
            now = self._clock()
            self._forget_before(now - 2 * self._lifetime)
            if len(self._entries) >= self._capacity:
                self._make_room(peer)
            self._entries[nonce] = _Entry(resource, peer, now)
            self._nonces_of.setdefault(peer, {})[nonce] = None
        return nonce

    def consume(self, nonce: bytes, resource: str) -> None:
        """Use a nonce up. It is used up whatever the answer.

        Raises:
            Refused: ``release.nonce_unknown``, ``release.nonce_used``,
                ``release.nonce_expired`` or ``release.nonce_other_resource``.
        """
        with self._lock:
            entry = self._entries.get(nonce)
            if entry is None:
                raise unknown()
            if entry.used:
                raise used_before()
            entry.used = True
            age = self._clock() - entry.issued
        require_usable(age, self._lifetime, issued_for=entry.resource, used_for=resource)

    def _forget_before(self, limit: float) -> None:
        # Used and expired nonces stay one lifetime longer, so that a late or
        # second use is answered with its true reason.
        while self._entries:
            nonce, entry = next(iter(self._entries.items()))
            if entry.issued > limit:
                return
            self._drop(nonce)

    def _make_room(self, asker: str) -> None:
        heaviest = max(self._nonces_of, key=lambda peer: len(self._nonces_of[peer]))
        if len(self._nonces_of.get(asker, ())) >= len(self._nonces_of[heaviest]):
            raise table_full()
        self._drop(next(iter(self._nonces_of[heaviest])))

    def _drop(self, nonce: bytes) -> None:
        entry = self._entries.pop(nonce)
        of_peer = self._nonces_of[entry.peer]
        del of_peer[nonce]
        if not of_peer:
            del self._nonces_of[entry.peer]


def require_usable(age: float, lifetime: float, *, issued_for: str, used_for: str) -> None:
    """Check a nonce that was just used up.

    Raises:
        Refused: ``release.nonce_expired``, ``release.nonce_other_resource``.
    """
    if age >= lifetime:
        raise Refused("release.nonce_expired", "the challenge has expired")
    if issued_for != used_for:
        raise Refused("release.nonce_other_resource", "the challenge is for another resource")


def unknown() -> Refused:
    """There is no such nonce."""
    return Refused("release.nonce_unknown", "this broker holds no such challenge")


def used_before() -> Refused:
    """Somebody was first."""
    return Refused("release.nonce_used", "the challenge was used before")


def table_full() -> Unavailable:
    """No room, and it is the asker who fills it."""
    return Unavailable(
        "release.too_many_challenges",
        "the table of challenges is full, mostly with this peer's",
        hint="try again in a minute",
    )
