"""How often a test repeats itself: a few times in `make test`, in full under `make soak`."""

from __future__ import annotations

import os

__all__ = ["SOAK", "times"]

SOAK = os.environ.get("SEALSERVE_SOAK") == "1"


def times(full: int, usual: int) -> int:
    """The full number under `make soak`, else the usual one."""
    return full if SOAK else usual
