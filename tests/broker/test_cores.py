"""A broker that crashes with its keys in memory leaves them nowhere."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.broker.test_process import KEY, Process
from tests.broker.test_process import process as process  # the fixture
from tests.cores import (
    DUMPABLE_ONLY,
    HARDENED,
    UNHARDENED,
    crash,
    files_with,
    where_cores_fall,
)


def test_an_unhardened_broker_would_leave_its_key(process: Process, tmp_path: Path) -> None:
    """The control: here a core can be left, and what is looked for below is found in it."""
    process.start(where_cores_fall(tmp_path / "cores", UNHARDENED))
    assert process.ask() == KEY
    assert process.running is not None
    assert crash(process.running, signal.SIGABRT)
    kek = process.root / "kek"
    (core,) = (tmp_path / "cores").iterdir()
    assert set(files_with(kek.read_bytes(), tmp_path)) == {core, kek}


@pytest.mark.parametrize(
    ("program", "number"),
    [
        (HARDENED, signal.SIGSEGV),
        (DUMPABLE_ONLY, signal.SIGABRT),  # what holds where cores go to a program
    ],
    ids=["limit and flag", "the flag alone"],
)
def test_a_crash_leaves_no_core_and_no_key(
    process: Process, tmp_path: Path, program: tuple[str, ...], number: signal.Signals
) -> None:
    process.start(where_cores_fall(tmp_path / "cores", program))
    assert process.ask() == KEY
    assert process.running is not None
    assert not crash(process.running, number)
    assert list((tmp_path / "cores").iterdir()) == []
    kek = process.root / "kek"
    assert list(files_with(kek.read_bytes(), tmp_path)) == [kek]
    for planted in (b"PLANTED", KEY[11:27], b"PRIVATE KEY"):
        assert list(files_with(planted, tmp_path)) == []
    assert any(path.name.endswith("-wal") for path in process.root.iterdir())  # it had no time
