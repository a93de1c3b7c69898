"""Who computes next, and how: one inference alone on all cores, or several side by side.

Alone, the cores share each operation and wait for one another after it: the soonest
answer to a lone request, and the fewer answers a second. Side by side, each inference
keeps to cores of its own. So a graph is compiled for both where its size allows that,
and which of them computes follows from how many ask.

Rules this module keeps:

* Side by side only while as many ask as it takes to fill the cores; fewer are answered
  sooner one after another.
* Never both ways at once: their threads would take the cores from each other.
* Whoever came first begins first.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

__all__ = ["Lanes"]

Lane = TypeVar("Lane")


class Lanes(Generic[Lane]):
    """Gives out what computes.

    Args:
        alone: each may be used at any time beside the others of its kind.
        beside: likewise, but not together with those; empty where there is one way only.
    """

    def __init__(self, alone: Sequence[Lane], beside: Sequence[Lane] = ()) -> None:
        self._alone, self._beside = list(alone), list(beside)
        self._counts = len(alone), len(beside)
        self._lock = threading.Lock()
        self._waiting: deque[_Turn[Lane]] = deque()

    def every(self) -> Sequence[Lane]:
        """All lanes, while nobody else uses them yet."""
        return [*self._alone, *self._beside]

    @contextmanager
    def one(self) -> Iterator[Lane]:
        """Wait for a turn, and give the lane back afterwards."""
        turn: _Turn[Lane] = _Turn()
        with self._lock:
            self._waiting.append(turn)
            self._begin()
        turn.come.acquire()
        try:
            yield turn.lane
        finally:
            with self._lock:
                turn.pool.append(turn.lane)
                self._begin()

    def _begin(self) -> None:
        while self._waiting and (pool := self._open()):
            turn = self._waiting.popleft()
            turn.pool, turn.lane = pool, pool.pop()
            turn.come.release()

    def _open(self) -> list[Lane]:
        """The lanes for the next in line; an empty list: it has to wait."""
        alone = self._counts[0] - len(self._alone)
        beside = self._counts[1] - len(self._beside)
        if beside + len(self._waiting) >= self._counts[1] > 0:
            return [] if alone else self._beside
        return [] if beside else self._alone


class _Turn(Generic[Lane]):
    """One who waits: `come` can be taken once there is a lane."""

    pool: list[Lane]
    lane: Lane

    def __init__(self) -> None:
        self.come = threading.Lock()
        self.come.acquire()
