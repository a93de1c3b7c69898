"""A broker that kills itself at one step of a release, or of a renewal.

    python -m tests.broker.crashing release|renewal STEP REPORT -- broker serve ...

A step is a call into the broker's own code, or into the database's driver and
back, on the thread that handles one `Release` or `Renew`, from its first line to its
last. With STEP 0 nothing is killed and the number of steps is written to the file REPORT.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from sealserve import broker
from sealserve.broker.release import KeyRelease
from sealserve.broker.renewal import LeaseRenewal
from sealserve.cli import main

_BROKER = os.fspath(Path(broker.__file__).parent)
_DRIVER = "sqlite3."
_ACTS = {"release": KeyRelease.release.__code__, "renewal": LeaseRenewal.renew.__code__}


class _Steps(threading.local):
    """Counts the steps of the act on this thread."""

    inside = False
    count = 0


def _watch(act: CodeType, limit: int, report: Path) -> Any:
    steps = _Steps()

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        if frame.f_code is act:
            if event == "call":
                steps.inside, steps.count = True, 0
            elif event == "return":
                steps.inside = False
                report.write_text(str(steps.count))
        if not steps.inside or not _is_step(frame, event, argument):
            return
        steps.count += 1
        if steps.count == limit:
            os.kill(os.getpid(), signal.SIGKILL)

    return profile


def _is_step(frame: FrameType, event: str, argument: Any) -> bool:
    if event == "call":
        return frame.f_code.co_filename.startswith(_BROKER)
    if event in ("c_call", "c_return"):
        owner = type(getattr(argument, "__self__", None))
        return f"{owner.__module__}.".startswith(_DRIVER)
    return False


if __name__ == "__main__":
    threading.setprofile(_watch(_ACTS[sys.argv[1]], int(sys.argv[2]), Path(sys.argv[3])))
    sys.argv[1:] = sys.argv[5:]
    main()
