"""Work beside requests, which gives way to them: what it started is raised again afterwards.

Rules this module keeps:

* Linux gives each thread a priority, and a new thread that of its maker: a runtime's threads,
  made while its model loads, would serve at the low one for good. They are raised afterwards,
  again and again until none is low: one that still is may be making another.
* Where the system would not allow that (it takes CAP_SYS_NICE), nothing is lowered.
"""

from __future__ import annotations

import contextlib
import os
import resource
import threading
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

__all__ = ["gentle", "give_way", "is_beside_requests", "is_gentle", "raise_again"]

_LOWER: Final = 10
# A thread has its maker's priority some time before it can be seen: look once more.
_LOOKS: Final = 2
_PAUSE_SECONDS: Final = 0.01
_CAP_SYS_NICE: Final = 23
_STATUS: Final = Path("/proc/self/status")
_THREAD: Final = threading.local()


@contextlib.contextmanager
def gentle() -> Iterator[None]:
    """Lower the calling thread, and raise it and every thread that came meanwhile."""
    _THREAD.beside_requests = True
    try:
        with _lowered():
            yield
    finally:
        _THREAD.beside_requests = False


def is_beside_requests() -> bool:
    """Whether the calling thread is in `gentle`, be it lowered or not."""
    return getattr(_THREAD, "beside_requests", False)


@contextlib.contextmanager
def _lowered() -> Iterator[None]:
    normal = _normal()
    if not _may_be_raised_to(normal):
        yield
        return
    me, process = threading.get_native_id(), os.getpid()
    before = set(_threads(process)) - {me}
    _set(me, normal + _LOWER)
    try:
        yield
    finally:
        _raise(process, normal, but=before)


def is_gentle() -> bool:
    """Whether the calling thread is one that gives way."""
    return os.getpriority(os.PRIO_PROCESS, 0) > _normal()


def give_way(process: int) -> None:
    """Lower a process that has just been started."""
    _set(process, _normal() + _LOWER)


def raise_again(process: int) -> None:
    """Raise every thread of a process that was lowered."""
    _raise(process, _normal())


def _normal() -> int:
    return os.getpriority(os.PRIO_PROCESS, os.getpid())  # that is, of the main thread


def _raise(process: int, normal: int, but: Collection[int] = ()) -> None:
    looks = 0
    while looks < _LOOKS:
        low = [
            thread
            for thread in _threads(process)
            if thread not in but and _priority(thread, normal) > normal
        ]
        for thread in reversed(low):  # the youngest, which is the likeliest to make one, first
            _set(thread, normal)
        looks = 0 if low else looks + 1
        if not low:
            time.sleep(_PAUSE_SECONDS)


def _priority(thread: int, otherwise: int) -> int:
    try:
        return os.getpriority(os.PRIO_PROCESS, thread)
    except ProcessLookupError:  # it has ended
        return otherwise


def _set(thread: int, priority: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended
        os.setpriority(os.PRIO_PROCESS, thread, priority)


def _threads(process: int) -> Iterator[int]:
    with contextlib.suppress(OSError):  # it has ended
        for entry in Path(f"/proc/{process}/task").iterdir():
            yield int(entry.name)


def _may_be_raised_to(priority: int) -> bool:
    limit = resource.getrlimit(resource.RLIMIT_NICE)[0]
    if limit == resource.RLIM_INFINITY or priority >= 20 - limit:
        return True
    lines = _STATUS.read_text().splitlines()
    effective = next((line for line in lines if line.startswith("CapEff:")), "CapEff: 0")
    return bool(int(effective.split()[1], 16) >> _CAP_SYS_NICE & 1)
