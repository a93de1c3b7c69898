"""What needs no hang: the rest is in test_writable.py and test_memory.py."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

from sealserve.volume.watchdog import _Connection


def test_only_a_stuck_process_is_seen_as_stuck(tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_PATH)
    with subprocess.Popen(["/bin/sleep", "60"]) as idle:
        connection = _Connection(idle.pid, 0, directory)
        assert not connection.is_stuck()
        idle.send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + 10
        while not connection.is_stuck():
            assert time.monotonic() < deadline
        idle.kill()
    os.close(directory)
