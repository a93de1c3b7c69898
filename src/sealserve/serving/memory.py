"""Memory that a model took, given back when it goes.

Rules this module keeps:

* Weights are kept apart from everything small, so that nothing small that lives on keeps
  them from going back: glibc would begin to put them together after the first model.
* Few pools of small pieces: each thread would otherwise begin one of its own, and those of
  the threads of models that have gone would keep what is between their pieces.
* What else was freed goes back when a model has gone.
* Garbage is looked for among what came after the start: going through all that a server
  is made of holds the interpreter's lock, and every request, for tens of milliseconds.
"""

from __future__ import annotations

import ctypes
import gc
from typing import Final

__all__ = ["keep_weights_apart", "return_memory", "settle_down"]

# glibc's mallopt.
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
_ARENA_MAX: Final = -8

_LARGE_BYTES: Final = 2**20
_ARENAS: Final = 2
# Requests of hundreds of kilobytes must not give memory back and fetch it each time.
_KEPT_BYTES: Final = 64 * 2**20


def keep_weights_apart() -> None:
    """Map each large piece by itself, and keep the small ones together; for the whole process."""
    choose = getattr(ctypes.CDLL(None), "mallopt", None)
    if choose is not None:
        choose(_MMAP_THRESHOLD, _LARGE_BYTES)
        choose(_TRIM_THRESHOLD, _KEPT_BYTES)
        choose(_ARENA_MAX, _ARENAS)


def settle_down() -> None:
    """Take what there is now for lasting; for the whole process, once it has started."""
    gc.collect()
    gc.freeze()


def return_memory() -> None:
    """Give freed memory back to the system; the C library would keep it for later."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
