"""What needs no hang: the rest is in test_writable.py and test_memory.py."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from sealserve.errors import Unavailable
from sealserve.volume import child
from sealserve.volume.watchdog import _Connection
from tests.children import Child
from tests.volume.test_mount import NothingLeft
from tests.volume.test_writable import Writable, children, cmdline, empty, mounted, state

__all__ = ["empty", "state"]


def test_only_a_stuck_process_is_seen_as_stuck(tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_PATH)
    with Child(["/bin/sleep", "60"]) as idle:
        connection = _Connection(idle.pid, 0, directory)
        assert not connection.is_stuck()
        idle.send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + 10
        while not connection.is_stuck():
            assert time.monotonic() < deadline
        idle.kill()
    os.close(directory)


def test_nothing_is_mounted_before_the_watchdog_is_locked_in_memory(
    state: Writable, tmp_path: Path
) -> None:
    """It once hung in its own start, short of memory by the very writes it was to watch."""
    with mounted(state, tmp_path / "mnt"):
        (watching,) = [pid for pid in children() if b"volume.watchdog" in cmdline(pid)]
        status = Path(f"/proc/{watching}/status").read_text()
        assert int(status.partition("VmLck:")[2].split()[0]) > 0


def test_a_watchdog_that_cannot_start_is_no_mount(
    state: Writable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_left: NothingLeft
) -> None:
    monkeypatch.setattr(child, "PATIENCE", "no number")
    with pytest.raises(Unavailable) as caught:
        mounted(state, tmp_path / "mnt")
    assert caught.value.code == "volume.fuse_failed"
    nothing_left()
