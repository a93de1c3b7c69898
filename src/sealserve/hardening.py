"""What a process that holds secrets does about itself. Linux only; see prctl(2)."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from typing import Final

from sealserve.errors import InternalError

__all__ = ["end_with_parent", "forbid_core_dumps", "lock_memory", "mark_io_flusher"]

# <linux/prctl.h>
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_IO_FLUSHER: Final = 57

# <sys/mman.h>
_MCL_CURRENT: Final = 1
_MCL_FUTURE: Final = 2


def forbid_core_dumps() -> None:
    """Leave no core file, and let no other process of this user attach or read our memory.

    Raises:
        InternalError: ``process.prctl_failed``.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_DUMPABLE, 0)


def end_with_parent(parent: int) -> None:
    """Be killed when the thread that started this process ends, or now if it has ended.

    Args:
        parent: the process that started this one.

    Raises:
        InternalError: ``process.prctl_failed``.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit(1)


def lock_memory() -> bool:
    """Keep all of this process in memory, as far as its limits allow; whether they did."""
    return bool(_libc().mlockall(_MCL_CURRENT | _MCL_FUTURE) == 0)


def mark_io_flusher() -> bool:
    """Tell the kernel that this process cleans its pages; whether it may (CAP_SYS_RESOURCE).

    Then the kernel does not wait, when this process asks for memory, for what only
    this process can write.
    """
    return bool(_libc().prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0) == 0)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    if _libc().prctl(option, value, 0, 0, 0) != 0:
        raise InternalError("process.prctl_failed", f"prctl({option}) is not allowed")
