"""kill -9 at any step of a release: no key without its line, a whole chain, a sound store."""

from __future__ import annotations

import random
import signal
import sqlite3
import sys
from pathlib import Path

from sealserve.errors import SealserveError
from tests.broker.test_process import KEY, Process
from tests.broker.test_process import process as process  # the fixture
from tests.soak import times


def _start(process: Process, step: int, report: Path) -> None:
    process.start([sys.executable, "-m", "tests.broker.crashing", str(step), str(report), "--"])


def _steps_of_a_release(process: Process, report: Path) -> int:
    _start(process, 0, report)
    assert process.ask() == KEY
    process.stop()
    return int(report.read_text())


def test_kill_9_at_every_step_of_a_release(process: Process, tmp_path: Path) -> None:
    """Every step under `make soak`; a few drawn ones, the last among them, otherwise."""
    total = _steps_of_a_release(process, tmp_path / "steps")
    assert total > 40  # it saw the driver and the broker's own calls
    drawn = random.Random(4).sample(range(1, total), times(total - 1, 5))
    arrived = 1
    for step in [*sorted(drawn), total]:
        _start(process, step, tmp_path / "steps")
        try:
            process.ask()
        except SealserveError:
            pass
        else:  # the answer was on its way before the step came
            arrived += 1
        assert process.running is not None
        assert process.running.wait(20) == -signal.SIGKILL, f"step {step} of {total}"
        entries = process.audit()  # the chain is checked here
        written = sum(entry.get("verdict") == "released" for entry in entries)
        assert written >= arrived, f"step {step} of {total}: a key went out without its line"
        with sqlite3.connect(process.root / "broker.db") as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            leases = {row[0] for row in connection.execute("SELECT id FROM leases")}
        assert leases == {entry["lease"] for entry in entries if entry["event"] == "release"}
        connection.close()
    process.start()
    assert process.ask() == KEY
