"""How long whoever asked will wait: the deadline of a call, and whether it was given up.

It concerns the caller, not what is computed, so it does not stand among the arguments of
every function between a front and a queue: a front sets it for the thread that works on
the call, and what has to wait there looks at it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from sealserve.errors import Unavailable

__all__ = ["ENDLESS", "Deadline", "current", "under"]


@dataclass(frozen=True)
class Deadline:
    """One caller's.

    Attributes:
        until: on the monotonic clock; None without a deadline.
        cancelled: whether the caller has gone.
        when_cancelled: takes what is to be called, from any thread, once it goes.
    """

    until: float | None = None
    cancelled: Callable[[], bool] = lambda: False
    when_cancelled: Callable[[Callable[[], None]], object] = lambda _: None

    @property
    def too_late(self) -> bool:
        """Whether the deadline has passed."""
        return self.until is not None and time.monotonic() >= self.until

    @property
    def ended(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self.too_late or self.cancelled()

    def check(self) -> None:
        """Go on only if somebody still waits for the answer.

        Raises:
            Unavailable: see `refusal`.
        """
        if self.ended:
            raise self.refusal("the deadline passed before its turn came")

    def refusal(self, late: str) -> Unavailable:
        """The error of a call that has ended: ``request.cancelled`` or ``request.too_late``.

        Args:
            late: the words for a deadline that has passed.
        """
        if self.cancelled():
            return Unavailable("request.cancelled", "the client has gone or has cancelled the call")
        return Unavailable("request.too_late", late)


ENDLESS = Deadline()
_CURRENT: ContextVar[Deadline] = ContextVar("deadline", default=ENDLESS)


def current() -> Deadline:
    """Of the call that this thread works on."""
    return _CURRENT.get()


@contextmanager
def under(deadline: Deadline) -> Iterator[None]:
    """Work on a call whose caller waits so long."""
    before = _CURRENT.set(deadline)
    try:
        yield
    finally:
        _CURRENT.reset(before)
