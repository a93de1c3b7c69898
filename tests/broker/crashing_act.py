"""Approves a proposal and kills itself at a step of it; then again at others.

    python -m tests.broker.crashing_act ROOT PROPOSAL SCRATCH COUNT

ROOT is a broker's directory in which PROPOSAL waits for `local:second`. Each try
works on a copy below SCRATCH. A step is a call into the broker's own code, or into the
database's driver and back. COUNT of the steps are drawn, 0 for all of them. Prints one
JSON object: the number of steps, and for each try what was found afterwards.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from sealserve.broker.administration import Administration
from sealserve.broker.directory import open_broker
from sealserve.broker.principals import Caller
from sealserve.wire.broker.admin import v1_pb2
from tests.broker.crashing import _is_step

_SECOND = Caller("local:second", "admin")


def _approve(root: Path, proposal: str, limit: int) -> int:
    """The number of steps; does not return if ``limit`` is one of them."""
    count = 0

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        if _is_step(frame, event, argument):
            count += 1
            if count == limit:
                os.kill(os.getpid(), signal.SIGKILL)

    with open_broker(root) as broker:
        admin = Administration(broker)
        sys.setprofile(profile)
        try:
            admin.perform(_SECOND, v1_pb2.ProposalApproveRequest(id=proposal))
        finally:
            sys.setprofile(None)
    return count


def _found(root: Path) -> dict[str, Any]:
    with open_broker(root) as broker:
        broker.audit.verify()
        events = [json.loads(line)["event"] for line in broker.audit.lines()]
        admin = Administration(broker)
        (proposal,) = admin.perform(_SECOND, v1_pb2.ProposalListRequest())["proposals"]
        return {
            "states": [secret.state for secret in broker.store.secrets()],
            "proposal": proposal["state"],
            "lines": [event in events for event in ("proposal.approve", "secret.destroy")],
        }


def main() -> None:
    root, proposal, scratch, wanted = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4]
    counting = scratch / "counting"
    shutil.copytree(root, counting)
    total = _approve(counting, proposal, 0)
    steps = list(range(1, total + 1))
    if int(wanted):
        steps = sorted({*random.Random(7).sample(steps, int(wanted)), total})
    tries = []
    for step in steps:
        copy = scratch / str(step)
        shutil.copytree(root, copy)
        child = os.fork()
        if child == 0:
            _approve(copy, proposal, step)
            os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), f"step {step} of {total} was not reached"
        tries.append({"step": step, **_found(copy)})
        shutil.rmtree(copy)
    print(json.dumps({"total": total, "tries": tries}))


if __name__ == "__main__":
    main()
