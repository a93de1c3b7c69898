"""Who watches decisions being made: metrics and traces, behind one small interface.

Rules this module keeps: an observer is told names, codes and times; never a
value that a request brought or a secret. It changes nothing and does not raise.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final, Literal, Protocol

__all__ = ["NOBODY", "Observer", "Outcome", "Step"]

Step = Literal["challenge", "release", "renewal", "verify", "appraise", "seal", "audit"]
"""``challenge``, ``release`` and ``renewal`` are whole calls; the others are parts of them."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a release or renewal ended.

    Attributes:
        verdict: as in the audit line.
        code: what the peer is told; ``"released"`` if it got the secret.
        cause: the code of what really happened, where the peer is told less.
        reasons: codes of the failed rules.
    """

    verdict: str
    code: str
    cause: str
    reasons: tuple[str, ...] = ()


class Observer(Protocol):
    """What is told of each call."""

    def step(self, name: Step) -> AbstractContextManager[None]:
        """Entered and left around a step; an exception passes through."""
        ...

    def decided(self, outcome: Outcome) -> None:
        """A release or renewal ended; inside its step if it was worked on."""
        ...


class _Nobody:
    def step(self, name: Step) -> AbstractContextManager[None]:
        del name
        return nullcontext()

    def decided(self, outcome: Outcome) -> None:
        del outcome


NOBODY: Final[Observer] = _Nobody()
"""Watches nothing."""
