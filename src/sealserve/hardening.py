"""What a process that holds secrets does about itself. Linux only; see prctl(2)."""

from __future__ import annotations

import ctypes
import resource
from typing import Final

from sealserve.errors import InternalError

__all__ = ["forbid_core_dumps"]

# <linux/prctl.h>
_PR_SET_DUMPABLE: Final = 4


def forbid_core_dumps() -> None:
    """Leave no core file, and let no other process of this user attach or read our memory.

    Raises:
        InternalError: ``process.prctl_failed``.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_DUMPABLE, 0)


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise InternalError("process.prctl_failed", f"prctl({option}) is not allowed")
