"""What a target is, and what may come of an input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sealserve.errors import InputError, Refused, Unavailable

__all__ = ["REFUSALS", "Target", "feed", "promised"]

REFUSALS = (InputError, Refused, Unavailable)


@dataclass(frozen=True)
class Target:
    """One reader of bytes from outside.

    Attributes:
        run: feeds it; raises ``AssertionError`` where what it accepts breaks a promise.
        seeds: inputs to begin with; the first is accepted.
        max_bytes: inputs beyond this add nothing but time.
    """

    run: Callable[[bytes], None]
    seeds: Callable[[], Sequence[bytes]]
    max_bytes: int = 4096


def feed(target: Target, data: bytes) -> bool:
    """Feed one input; whether it was accepted. Whatever else is raised is a finding."""
    try:
        target.run(data)
    except REFUSALS:
        return False
    return True


def promised(holds: bool) -> None:
    """Hold what was accepted to a promise."""
    # No `assert`: it must hold under python -O as well.
    if not holds:
        raise AssertionError("what was accepted breaks a promise")
