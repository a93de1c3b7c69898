"""Loading gives way to serving, and leaves no thread behind that would do so for good."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sealserve.serving import gentle
from tests.children import Child


def priority_of(thread: int) -> int:
    return os.getpriority(os.PRIO_PROCESS, thread)


def everywhere() -> set[int]:
    """The priorities of this process's threads."""
    return {priority_of(int(each.name)) for each in Path("/proc/self/task").iterdir()}


def in_a_thread(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_threads_made_meanwhile_are_raised_again() -> None:
    normal = priority_of(os.getpid())
    end = threading.Event()
    seen: list[int] = []

    def load() -> None:
        with gentle.gentle():
            lasting = threading.Thread(target=end.wait, daemon=True)
            lasting.start()
            seen.append(priority_of(lasting.native_id or 0))
            seen.append(normal + gentle._LOWER if gentle.is_gentle() else normal)
        seen.append(priority_of(lasting.native_id or 0))
        assert not gentle.is_gentle()

    in_a_thread(load)
    assert seen[0] == seen[1]
    assert seen[2] == normal
    assert everywhere() == {normal}
    end.set()


def test_nothing_is_lowered_that_could_not_be_raised(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    status = tmp_path / "status"
    status.write_text("Name: x\nCapEff:\t00000000a80425fb\n")  # a container's, as Docker gives them
    monkeypatch.setattr(gentle, "_STATUS", status)
    monkeypatch.setattr("resource.getrlimit", lambda _: (0, 0))
    seen: list[bool] = []

    def load() -> None:
        with gentle.gentle():
            seen.append(gentle.is_gentle())

    in_a_thread(load)
    assert seen == [False]
    status.write_text("CapEff:\t000001ffffffffff\n")
    assert gentle._may_be_raised_to(priority_of(os.getpid()))


def test_a_thread_that_appears_when_none_seemed_low_is_raised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel copies its maker's priority before the thread is listed."""
    looks: list[list[int]] = [[1], [], [2], [], []]
    raised: list[int] = []
    monkeypatch.setattr(gentle, "_threads", lambda _: iter(looks.pop(0)))
    monkeypatch.setattr(gentle, "_priority", lambda _, normal: normal + 10)
    monkeypatch.setattr(gentle, "_set", lambda thread, _: raised.append(thread))
    gentle.raise_again(os.getpid())
    assert raised == [1, 2]
    assert looks == []


MAKES_THREADS = """
import threading, time
def make(left):
    time.sleep(0.001)
    if left:
        threading.Thread(target=make, args=(left - 1,)).start()
    time.sleep(60)
print("ready", flush=True)
make(200)
"""


def test_threads_that_are_being_made_are_raised_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker says that it is ready, and makes the threads that serve while it is raised."""
    normal = priority_of(os.getpid())
    if not gentle._may_be_raised_to(normal):
        pytest.skip("this process may not raise priorities")
    set_at_once = gentle._set

    def set_slowly(thread: int, priority: int) -> None:
        time.sleep(0.001)
        set_at_once(thread, priority)

    with Child([sys.executable, "-c", MAKES_THREADS], stdout=subprocess.PIPE) as process:
        try:
            tasks = Path(f"/proc/{process.pid}/task")
            gentle.give_way(process.pid)
            assert process.stdout is not None
            assert process.stdout.readline()
            while len(list(tasks.iterdir())) < 20:
                time.sleep(0.001)
            monkeypatch.setattr(gentle, "_set", set_slowly)
            gentle.raise_again(process.pid)
            while len(list(tasks.iterdir())) < 201:
                time.sleep(0.01)
            assert {priority_of(int(each.name)) for each in tasks.iterdir()} == {normal}
        finally:
            process.kill()
