"""What a process that holds secrets does about itself. Linux only; see prctl(2)."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from typing import Final

from sealserve.errors import InternalError, Unavailable

__all__ = ["end_with_parent", "forbid_core_dumps"]

# <linux/prctl.h>
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4


def forbid_core_dumps() -> None:
    """Leave no core file, and let no other process of this user attach or read our memory.

    Raises:
        InternalError: ``process.prctl_failed``.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_DUMPABLE, 0)


def end_with_parent(parent: int) -> None:
    """Get SIGTERM when the thread that started this process ends.

    Args:
        parent: process id of who started us, as it knew it: if it is gone
            already, nobody would ever send that signal.

    Raises:
        Unavailable: ``process.parent_gone``.
    """
    # A parent may block signals; a blocked mask is inherited, and this one must get through.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise Unavailable("process.parent_gone", "the process that started this one is gone")


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise InternalError("process.prctl_failed", f"prctl({option}) is not allowed")
