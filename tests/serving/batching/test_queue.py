"""The queue alone: who is run with whom, limits, splitting, and those who give up.

Nothing here depends on time: a lane that is held by one task lets others gather behind it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from sealserve.errors import InputError, SealserveError, Unavailable
from sealserve.serving.batching.parameters import BatchingParameters
from sealserve.serving.batching.queue import BatchQueue, Piece, Turns
from sealserve.serving.deadline import Deadline, current, under

HOUR = 3_600_000_000


class Bench:
    """A queue whose computing waits for the test, and threads that ask."""

    def __init__(self, lanes: int = 1, threads: int = 4, **parameters: Any) -> None:
        self.turns = Turns(threads)
        self.pool = ThreadPoolExecutor(16)
        self.batches: list[list[Any]] = []
        self.may_end = threading.Event()
        self.may_end.set()
        self.begun = threading.Semaphore(0)
        self.one = threading.Semaphore(0)
        self.fails: Callable[[list[Any]], bool] = lambda _: False
        self.queue = BatchQueue(
            BatchingParameters(num_batch_threads=threads, **parameters),
            self.turns,
            self.compute,
            lanes=lanes,
        )

    def compute(self, pieces: Sequence[Piece]) -> list[Any]:
        batch = [(piece.work, piece.begin, piece.end) for piece in pieces]
        self.batches.append(batch)
        self.begun.release()
        while not self.may_end.wait(0.001) and not self.one.acquire(blocking=False):
            pass
        current().check()  # as runtimes do before they compute
        if self.fails(batch):
            raise InputError("request.bad", f"cannot compute {batch}")
        return [f"{work}[{begin}:{end}]" for work, begin, end in batch]

    def ask(
        self, work: str, size: int = 1, key: str = "k", deadline: Deadline | None = None
    ) -> Future[list[Any]]:
        """Submit in another thread; returns once the task is queued, begun or refused."""

        def run() -> list[Any]:
            with under(deadline or Deadline()):
                return [piece.answer for piece in self.queue.run(key, size, work)]

        before, begun = self.size(), len(self.batches)
        future = self.pool.submit(run)
        until(lambda: self.size() != before or len(self.batches) != begun or future.done())
        return future

    def size(self) -> int:
        with self.turns.lock:
            return sum(batch.size for batch in self.queue._batches)

    def hold(self) -> Future[list[Any]]:
        """Occupy the lane until `may_end` is set."""
        self.may_end.clear()
        held = self.ask("held", key="held")
        assert self.begun.acquire(timeout=60)
        return held

    def works(self) -> list[list[str]]:
        """What was run together, without the task that held the lane."""
        return [[work for work, _, _ in batch] for batch in self.batches if batch[0][0] != "held"]


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.fixture
def make() -> Iterator[Callable[..., Bench]]:
    benches: list[Bench] = []

    def make(**parameters: Any) -> Bench:
        benches.append(Bench(**parameters))
        return benches[-1]

    yield make
    for bench in benches:
        bench.may_end.set()
        bench.turns.hurry()
        bench.pool.shutdown()
        assert bench.queue.waiting == 0
        assert bench.turns._free == 4
        bench.queue.close()


def code_of(future: Future[Any]) -> str:
    with pytest.raises(SealserveError) as caught:
        future.result(60)
    return caught.value.code


def test_a_lone_task_runs_at_once_in_its_own_thread(make: Callable[..., Bench]) -> None:
    bench = make()
    assert [piece.answer for piece in bench.queue.run("k", 3, "a")] == ["a[0:3]"]
    assert bench.batches == [[("a", 0, 3)]]


def test_what_waits_for_the_lane_is_run_together_in_order(make: Callable[..., Bench]) -> None:
    bench = make(max_batch_size=4)
    held = bench.hold()
    asked = [bench.ask(name, size) for name, size in (("a", 1), ("b", 2), ("c", 2), ("d", 1))]
    bench.may_end.set()
    assert [future.result(60) for future in asked] == [
        ["a[0:1]"], ["b[0:2]"], ["c[0:2]"], ["d[0:1]"],
    ]  # fmt: skip
    # c does not fit behind a and b, which closes their batch.
    assert bench.works() == [["a", "b"], ["c", "d"]]
    assert held.result(60) == ["held[0:1]"]


def test_only_tasks_of_one_key_are_joined(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.hold()
    asked = [bench.ask(name, key=name[0]) for name in ("x1", "y1", "x2", "y2")]
    bench.may_end.set()
    assert [future.result(60) for future in asked]
    assert sorted(bench.works()) == [["x1", "x2"], ["y1", "y2"]]


def test_lanes_and_threads_limit_what_runs_side_by_side(make: Callable[..., Bench]) -> None:
    bench = make(lanes=2)
    bench.may_end.clear()
    first, second = bench.ask("a"), bench.ask("b")
    third, fourth = bench.ask("c"), bench.ask("d")
    assert bench.works() == [["a"], ["b"]]
    bench.may_end.set()
    assert all(future.result(60) for future in (first, second, third, fourth))
    assert bench.works()[2:] == [["c", "d"]]
    turns = Turns(1)
    one, other = (BatchQueue(BatchingParameters(), turns, bench.compute) for _ in range(2))
    bench.may_end.clear()
    running = bench.pool.submit(one.run, "k", 1, "e")
    until(lambda: len(bench.batches) == 4)
    waiting = bench.pool.submit(other.run, "k", 1, "f")
    until(lambda: other.waiting == 1)
    bench.may_end.set()
    assert [each.result(60)[0].answer for each in (running, waiting)] == ["e[0:1]", "f[0:1]"]


def test_a_batch_that_is_not_full_waits_for_its_time(make: Callable[..., Bench]) -> None:
    bench = make(max_batch_size=3, batch_timeout_micros=HOUR)
    asked = [bench.ask("a"), bench.ask("b")]
    assert bench.works() == []
    asked.append(bench.ask("c"))  # now it is full
    assert all(future.result(60) for future in asked)
    assert bench.works() == [["a", "b", "c"]]
    short = make(max_batch_size=3, batch_timeout_micros=1000)
    assert short.ask("a").result(60) == ["a[0:1]"]


def test_nothing_waits_for_more_rows_once_hurried(make: Callable[..., Bench]) -> None:
    for hurry in ("turns", "queue"):
        bench = make(batch_timeout_micros=HOUR)
        asked = [bench.ask("a"), bench.ask("b")]
        getattr(bench, hurry).hurry()
        assert [future.result(60) for future in asked] == [["a[0:1]"], ["b[0:1]"]]
        assert bench.works() == [["a", "b"]]


def test_a_task_beyond_the_largest_batch_is_refused(make: Callable[..., Bench]) -> None:
    for parameters in ({}, {"enable_large_batch_splitting": True, "max_execution_batch_size": 2}):
        bench = make(max_batch_size=4, **parameters)
        with pytest.raises(InputError) as caught:
            bench.queue.run("k", 5, "a")
        assert caught.value.code == "request.batch_too_large"
        assert caught.value.message == "Task size 5 is larger than maximum input batch size 4"


def test_a_full_queue_turns_away(make: Callable[..., Bench]) -> None:
    bench = make(max_batch_size=2, max_enqueued_batches=2)
    bench.hold()
    asked = [bench.ask("a", 2), bench.ask("b", 1)]
    late = bench.ask("c", 2)
    with pytest.raises(Unavailable) as caught:
        late.result(60)
    assert caught.value.code == "request.queue_full"
    assert caught.value.message == (
        "The batch scheduling queue to which this task was submitted is full; currently 2 "
        "batches enqueued and max_enqueued_batches is 2"
    )
    asked.append(bench.ask("d", 1))  # there is room for one row still
    assert code_of(bench.ask("e", 1)) == "request.queue_full"
    bench.may_end.set()
    assert all(future.result(60) for future in asked)
    assert bench.works() == [["a"], ["b", "d"]]
    assert bench.queue.run("k", 2, "f")


def test_large_tasks_are_split_over_batches(make: Callable[..., Bench]) -> None:
    bench = make(
        max_batch_size=10,
        enable_large_batch_splitting=True,
        max_execution_batch_size=4,
        max_enqueued_batches=4,
    )
    bench.hold()
    asked = [bench.ask("a", 3), bench.ask("b", 6), bench.ask("c", 2)]
    full = bench.ask("d", 6)
    with pytest.raises(Unavailable) as caught:
        full.result(60)
    assert "full; task size is 6 but scheduling capacity is only 5" in caught.value.message
    bench.may_end.set()
    assert asked[0].result(60) == ["a[0:3]"]
    assert asked[1].result(60) == ["b[0:1]", "b[1:5]", "b[5:6]"]
    assert asked[2].result(60) == ["c[0:2]"]
    assert bench.batches[1:] == [
        [("a", 0, 3), ("b", 0, 1)],
        [("b", 1, 5)],
        [("b", 5, 6), ("c", 0, 2)],
    ]


def test_a_part_that_fails_fails_its_task_and_no_other(make: Callable[..., Bench]) -> None:
    bench = make(max_batch_size=9, enable_large_batch_splitting=True, max_execution_batch_size=2)
    bench.fails = lambda batch: ("b", 1, 3) in batch
    bench.hold()
    asked = [bench.ask("a", 1), bench.ask("b", 6), bench.ask("c", 1)]
    bench.may_end.set()
    assert asked[0].result(60) == ["a[0:1]"]
    assert code_of(asked[1]) == "request.bad"
    assert asked[2].result(60) == ["c[0:1]"]


class Caller:
    """Someone who may give up."""

    def __init__(self) -> None:
        self.gone = False
        self.listeners: list[Callable[[], None]] = []
        self.deadline = Deadline(None, lambda: self.gone, self.listeners.append)

    def give_up(self) -> None:
        self.gone = True
        for listener in self.listeners:
            listener()


def test_who_gives_up_is_not_computed_and_holds_no_place(make: Callable[..., Bench]) -> None:
    bench = make(max_batch_size=2, max_enqueued_batches=2)
    bench.hold()
    callers = [Caller() for _ in range(3)]
    gone = [
        bench.ask(f"gone{number}", 1, deadline=caller.deadline)
        for number, caller in enumerate(callers)
    ]
    stays = bench.ask("stays")
    assert code_of(bench.ask("refused")) == "request.queue_full"
    for caller, future in zip(callers, gone, strict=True):
        caller.give_up()
        assert code_of(future) == "request.cancelled"
    after = bench.ask("after", 2)
    bench.may_end.set()
    assert stays.result(60)
    assert after.result(60)
    assert bench.works() == [["stays"], ["after"]]


def test_a_deadline_ends_the_waiting(make: Callable[..., Bench]) -> None:
    bench = make()
    held = bench.hold()
    late = bench.ask("late", deadline=Deadline(until=time.monotonic() + 0.05))
    with pytest.raises(Unavailable) as caught:
        late.result(60)
    assert caught.value.code == "request.too_late"
    assert caught.value.message == "Run() timeout exceeded while waiting in batching queue"
    bench.may_end.set()
    assert held.result(60)
    assert bench.works() == []


def test_who_is_late_when_the_batch_begins_is_dropped_and_still_leads(
    make: Callable[..., Bench],
) -> None:
    bench = make()
    bench.hold()
    caller = Caller()
    silent = Deadline(None, lambda: caller.gone)  # nobody tells its thread
    late, other = bench.ask("late", deadline=silent), bench.ask("other")
    caller.gone = True
    bench.may_end.set()
    assert code_of(late) == "request.cancelled"
    assert other.result(60) == ["other[0:1]"]
    assert bench.works() == [["other"]]


def test_an_answer_under_way_is_given_though_others_give_up(make: Callable[..., Bench]) -> None:
    """Its runtime looked at the leader's deadline, and the batch had failed for all."""
    bench = make()
    held = bench.hold()
    caller = Caller()
    leader, other = bench.ask("leader", deadline=caller.deadline), bench.ask("other")
    bench.one.release()  # only what holds the lane
    assert held.result(60)
    assert bench.begun.acquire(timeout=60)
    caller.give_up()
    bench.may_end.set()
    assert other.result(60) == ["other[0:1]"]
    assert leader.result(60) == ["leader[0:1]"]


def test_whatever_happens_nobody_waits_for_ever(make: Callable[..., Bench]) -> None:
    """Hundreds of tasks of all sizes and kinds, some given up, some failing."""
    bench = make(
        lanes=2,
        max_batch_size=8,
        enable_large_batch_splitting=True,
        max_execution_batch_size=4,
        max_enqueued_batches=5,
        batch_timeout_micros=200,
    )
    bench.fails = lambda batch: any(work.endswith("7") for work, _, _ in batch)
    callers = [Caller() for _ in range(400)]

    def ask(number: int) -> str:
        with under(callers[number].deadline):
            try:
                pieces = bench.queue.run(number % 3, 1 + number % 8, f"w{number}")
            except SealserveError as error:
                return error.code
        assert "".join(piece.answer for piece in pieces).startswith(f"w{number}[0:")
        return "OK"

    futures = [bench.pool.submit(ask, number) for number in range(400)]
    for number in range(0, 400, 5):
        callers[number].give_up()
    outcomes = [future.result(60) for future in futures]
    allowed = {"OK", "request.bad", "request.queue_full", "request.cancelled"}
    assert set(outcomes) <= allowed
    assert outcomes.count("OK") > 0
