"""What needs no hang: the rest is in test_writable.py."""

from __future__ import annotations

import os
from pathlib import Path

from sealserve.volume.watchdog import _Connection


def test_a_connection_that_is_gone_does_not_wait(tmp_path: Path) -> None:
    """Unmounted before the watchdog's first look: it ended in a traceback."""
    directory = os.open(tmp_path, os.O_PATH)
    connection = _Connection(os.getpid(), 0, directory)
    connection._place = connection._abort = os.open(tmp_path, os.O_PATH)
    assert not connection.is_waiting()
    (tmp_path / "waiting").write_bytes(b"3\n")
    assert connection.is_waiting()
    os.close(connection._place)
    os.close(directory)
