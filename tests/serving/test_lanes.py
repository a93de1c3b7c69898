"""Turns: who computes alone, who side by side, in which order, and that nobody is forgotten."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from sealserve.serving.runtimes.lanes import Lanes


class Askers:
    """Threads that each take a lane and keep it until they are told to give it back."""

    def __init__(self, alone: list[str], beside: list[str]) -> None:
        self._lanes = Lanes(alone, beside)
        self._ends: dict[str, threading.Event] = {}
        self._holders: dict[str, threading.Thread] = {}
        self._threads: list[threading.Thread] = []
        self.order: list[int] = []

    @property
    def running(self) -> set[str]:
        return {lane for lane, end in self._ends.items() if not end.is_set()}

    def ask(self, count: int, *, runs: set[str]) -> None:
        """One after another; afterwards these lanes are in use."""
        for _ in range(count):
            number = len(self._threads)
            self._threads.append(threading.Thread(target=self._take, args=(number,)))
            self._threads[-1].start()
            _until(self._knows(number + 1))
        _until(lambda: self.running == runs)

    def end(self, *lanes: str, runs: set[str]) -> None:
        """Give these back; afterwards those lanes are in use."""
        for lane in lanes:
            holder = self._holders[lane]
            self._ends[lane].set()
            holder.join()
        _until(lambda: self.running == runs)

    def close(self) -> None:
        """Give everything back until nobody is left."""
        while any(thread.is_alive() for thread in self._threads):
            for lane in self.running:
                self._ends[lane].set()
            time.sleep(0.001)
        assert sorted(self.order) == list(range(len(self._threads)))

    def _knows(self, askers: int) -> Callable[[], bool]:
        return lambda: len(self.order) + len(self._lanes._waiting) == askers

    def _take(self, number: int) -> None:
        with self._lanes.one() as lane:
            end = threading.Event()
            self._holders[lane], self._ends[lane] = threading.current_thread(), end
            self.order.append(number)
            assert end.wait(30)


def _until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_few_are_answered_one_after_another() -> None:
    askers = Askers(["alone"], ["a", "b", "c"])
    askers.ask(3, runs={"alone"})
    for _ in range(2):
        askers.end("alone", runs={"alone"})
    askers.end("alone", runs=set())
    askers.ask(1, runs={"alone"})
    askers.close()
    assert askers.order == [0, 1, 2, 3]


def test_as_many_as_fill_the_cores_run_side_by_side() -> None:
    askers = Askers(["alone"], ["a", "b"])
    askers.ask(3, runs={"alone"})
    askers.end("alone", runs={"a", "b"})
    askers.ask(1, runs={"a", "b"})
    askers.end("a", runs={"a", "b"})
    askers.end("a", runs={"b"})
    askers.end("b", runs=set())
    askers.ask(1, runs={"alone"})
    askers.close()
    assert askers.order[0] == 0
    assert askers.order[3:] == [3, 4]


def test_those_side_by_side_end_before_one_runs_alone() -> None:
    askers = Askers(["alone"], ["a", "b", "c"])
    askers.ask(4, runs={"alone"})
    askers.end("alone", runs={"a", "b", "c"})
    askers.end("a", "b", runs={"c"})
    askers.ask(1, runs={"c"})
    askers.end("c", runs={"alone"})
    askers.close()


def test_with_one_way_there_are_as_many_as_there_are_lanes() -> None:
    askers = Askers(["a", "b"], [])
    askers.ask(5, runs={"a", "b"})
    askers.end("a", runs={"a", "b"})
    askers.close()


def test_an_error_gives_the_lane_back() -> None:
    lanes = Lanes(["alone"], ["a", "b"])
    for _ in range(3):
        with pytest.raises(ValueError, match="broken"), lanes.one():
            raise ValueError("broken")
    with lanes.one() as lane:
        assert lane == "alone"


def test_many_threads_never_mix_the_ways_and_are_all_served() -> None:
    lanes = Lanes(["alone"], ["a", "b"])
    using: set[str] = set()
    lock = threading.Lock()
    mixed: list[set[str]] = []

    def work(seed: int) -> int:
        chance = random.Random(seed)
        for _ in range(300):
            with lanes.one() as lane:
                with lock:
                    fresh = lane not in using
                    using.add(lane)
                    if not fresh or ("alone" in using and len(using) > 1):
                        mixed.append(set(using))
                if chance.random() < 0.05:
                    time.sleep(0.0002)
                with lock:
                    using.discard(lane)
        return 300

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(8))) == 2400
    assert not mixed
