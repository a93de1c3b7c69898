"""Metrics and traces as one observer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from sealserve.broker.observer import Observer, Outcome, Step

__all__ = ["Together"]


class Together:
    """Several observers, each told the same; the first one's steps enclose the others'."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    @contextmanager
    def step(self, name: Step) -> Iterator[None]:
        """The step, in each of them."""
        with ExitStack() as stack:
            for observer in self._observers:
                stack.enter_context(observer.step(name))
            yield

    def decided(self, outcome: Outcome) -> None:
        """The outcome, to each of them."""
        for observer in self._observers:
            observer.decided(outcome)
