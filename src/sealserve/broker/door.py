"""How long a call may take to arrive, and how many one address may have open.

Rules this module keeps:

* A call that was begun and not sent holds a thread of gRPC's. It is ended after
  some seconds, and one address has only a part of all threads.
* Few calls are worked on at a time; the others wait, in the order they come.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import grpc

from sealserve.broker.limits import peer_limited

__all__ = ["CALLS", "Door", "DoorShut"]

CALLS: Final = 256
"""How many calls there may be at once, arriving, waiting and worked on: gRPC's threads."""

_PER_PEER: Final = 64
_WORKERS: Final = 8
_ARRIVAL_SECONDS: Final = 10.0
_TICK_SECONDS: Final = 0.5


class DoorShut(Exception):
    """One address has too many calls open.

    Attributes:
        error: what the peer is told.
        retry_seconds: when to try again.
    """

    def __init__(self) -> None:
        self.error = peer_limited()
        self.retry_seconds = 1.0


class Door:
    """What every call on a port passes.

    Args:
        per_peer: how many calls one peer may have open.
        workers: how many calls are worked on at a time.
    """

    def __init__(self, *, per_peer: int = _PER_PEER, workers: int = _WORKERS) -> None:
        self._per_peer = per_peer
        self._lock = threading.Lock()
        self._open: Counter[str] = Counter()
        self._arriving: dict[int, tuple[float, grpc.ServicerContext]] = {}
        self._workers = threading.BoundedSemaphore(workers)
        self._closed = threading.Event()
        self._reaper = threading.Thread(target=self._reap, name="door", daemon=True)

    def start(self) -> None:
        """End calls that do not arrive, from now on."""
        self._reaper.start()

    def stop(self) -> None:
        """There are no more calls."""
        self._closed.set()

    @contextmanager
    def entered(self, peer: str) -> Iterator[None]:
        """One call of a peer, from its first to its last moment.

        Raises:
            DoorShut: the peer has too many.
        """
        with self._lock:
            if self._open[peer] >= self._per_peer:
                raise DoorShut
            self._open[peer] += 1
        try:
            yield
        finally:
            with self._lock:
                self._open[peer] -= 1
                if not self._open[peer]:
                    del self._open[peer]

    def receive(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes | None:
        """A call's one message; None if it did not come, and the call is over."""
        key = id(context)
        with self._lock:
            self._arriving[key] = (time.monotonic() + _ARRIVAL_SECONDS, context)
        try:
            return next(messages, None)
        except Exception:
            return None  # gRPC's way to say that the caller went away
        finally:
            with self._lock:
                del self._arriving[key]

    @contextmanager
    def working(self) -> Iterator[None]:
        """Wait for one's turn to be worked on."""
        with self._workers:
            yield

    def _reap(self) -> None:
        while not self._closed.wait(_TICK_SECONDS):
            now = time.monotonic()
            with self._lock:
                late = [context for until, context in self._arriving.values() if until <= now]
            for context in late:
                context.cancel()  # type: ignore[no-untyped-call]
