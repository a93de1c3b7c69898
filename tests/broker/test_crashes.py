"""kill -9 at any step of a release or renewal: no key and no longer lease without its line.

Each time the chain is whole, the store sound, and a broker started on it goes on.
"""

from __future__ import annotations

import random
import signal
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from sealserve.errors import SealserveError
from tests.broker.test_process import KEY, Process
from tests.broker.test_process import process as process  # the fixture
from tests.soak import times


def _start(process: Process, act: str, step: int, report: Path) -> None:
    watched = [sys.executable, "-m", "tests.broker.crashing", act, str(step), str(report), "--"]
    process.start(watched)


def _steps(total: int) -> Iterator[int]:
    """Every step under `make soak`; a few drawn ones, the last among them, otherwise."""
    assert total > 40  # it saw the driver and the broker's own calls
    yield from sorted(random.Random(4).sample(range(1, total), times(total - 1, 2)))
    yield total


def _found(process: Process) -> tuple[list[dict[str, Any]], dict[str, bool]]:
    """The audit lines, and by lease whether it was renewed; chain and store are checked."""
    assert process.running is not None
    assert process.running.wait(20) == -signal.SIGKILL
    entries = process.audit()
    with closing(sqlite3.connect(process.root / "broker.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows = connection.execute("SELECT id, renewed > issued FROM leases")
        return entries, {lease: bool(renewed) for lease, renewed in rows}


def test_kill_9_at_every_step_of_a_release(process: Process, tmp_path: Path) -> None:
    report = tmp_path / "steps"
    _start(process, "release", 0, report)
    assert process.ask() == KEY
    process.stop()
    arrived = 1
    for step in _steps(total := int(report.read_text())):
        _start(process, "release", step, report)
        try:
            process.ask()
        except SealserveError:
            pass
        else:  # the answer was on its way before the step came
            arrived += 1
        entries, leases = _found(process)
        written = sum(entry.get("verdict") == "released" for entry in entries)
        assert written >= arrived, f"step {step} of {total}: a key went out without its line"
        assert leases.keys() == {line["lease"] for line in entries if line["event"] == "release"}
    process.start()
    assert process.ask() == KEY
    print(f"killed at {total} steps of a release")


def test_kill_9_at_every_step_of_a_renewal(process: Process, tmp_path: Path) -> None:
    report = tmp_path / "steps"
    _start(process, "renewal", 0, report)
    lease = process.release().lease_id
    assert process.renew(lease) > 0
    process.stop()
    arrived = {lease}
    for step in _steps(total := int(report.read_text())):
        _start(process, "renewal", step, report)
        lease = process.release().lease_id
        try:
            process.renew(lease)
        except SealserveError:
            pass
        else:
            arrived.add(lease)
        entries, leases = _found(process)
        lines = Counter(line["lease"] for line in entries if line["event"] == "renewal")
        assert lines.keys() >= arrived, f"step {step} of {total}: renewed without its line"
        assert set(lines.values()) == {1}
        assert lines.keys() == {each for each, renewed in leases.items() if renewed}
    process.start()
    assert process.renew(lease) > 0  # which the last kill left as it was, or renewed
    print(f"killed at {total} steps of a renewal")
