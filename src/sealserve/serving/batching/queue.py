"""The queue before a model: which requests are run together, when, and by whom.

It knows neither arrays nor models: a task has a size in rows and a key, tasks of one key
may be joined, and something else computes a batch.

Rules this module keeps:

* No threads of its own: a batch is run by the thread of one of its own requests. A lone
  request is run by its own thread at once, as if there were no queue.
* A batch is closed when it is full, when the next task of its key does not fit, when its
  time is up, or when no more will come - and no sooner than the model can take it, so
  that what waits keeps gathering.
* Batches are packed in the order in which tasks come; queues take turns.
* What nobody waits for any more is not computed, and does not hold a place.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sealserve.errors import InputError, Unavailable
from sealserve.serving.batching.parameters import BatchingParameters
from sealserve.serving.deadline import ENDLESS, Deadline, current, under

__all__ = ["BatchQueue", "Compute", "Piece", "Turns"]

_LATE: Final = "Run() timeout exceeded while waiting in batching queue"  # the original's words


@dataclass(eq=False)
class Piece:
    """Rows ``begin`` to ``end`` of a task: all of them, unless it has been split."""

    task: _Task
    begin: int
    end: int
    answer: Any = None

    @property
    def size(self) -> int:
        """In rows."""
        return self.end - self.begin

    @property
    def whole(self) -> bool:
        """Whether it is all of its task."""
        return self.size == self.task.size

    @property
    def work(self) -> Any:
        """What was submitted."""
        return self.task.work


Compute = Callable[[Sequence[Piece]], Sequence[Any]]
"""Runs a batch; gives an answer or an exception for each piece."""


@dataclass(eq=False)
class _Batch:
    key: Hashable
    due: float
    pieces: list[Piece] = field(default_factory=list)
    size: int = 0
    closed: bool = False


@dataclass(eq=False)
class _Task:
    """One request while it waits.

    Attributes:
        open: its batches that have not begun.
        missing: pieces without an answer.
        leads: the batch that its thread is to run next.
        busy: its thread runs a batch, or is about to.
    """

    key: Hashable
    size: int
    work: Any
    deadline: Deadline
    arrived: float
    pieces: list[Piece] = field(default_factory=list)
    open: list[_Batch] = field(default_factory=list)
    missing: int = 0
    error: Exception | None = None
    leads: _Batch | None = None
    busy: bool = False
    woken: threading.Event = field(default_factory=threading.Event)


class Turns:
    """Which batch is run next, over all the queues of a server."""

    def __init__(self, threads: int) -> None:
        """Begin.

        Args:
            threads: batches that may run at a time.
        """
        self.lock = threading.Lock()
        self.hurried = False
        self._free = threads
        self._queues: deque[BatchQueue] = deque()

    def hurry(self) -> None:
        """Let nothing wait for more rows any longer: the server is going down."""
        with self.lock:
            self.hurried = True
            self.start(time.monotonic())

    def add(self, queue: BatchQueue) -> None:
        """Let a queue take part."""
        with self.lock:
            self._queues.append(queue)

    def remove(self, queue: BatchQueue) -> None:
        """It takes part no more."""
        with self.lock:
            self._queues.remove(queue)

    def start(self, now: float) -> None:
        """Name a leader for each batch that may begin now; with the lock held."""
        begun = True
        while begun and self._free:
            begun = False
            for _ in range(len(self._queues)):
                if self._free and self._queues[0].start_one(now):
                    self._free -= 1
                    begun = True
                self._queues.rotate(-1)

    def ended(self) -> None:
        """A batch has been run; with the lock held."""
        self._free += 1
        self.start(time.monotonic())


class BatchQueue:
    """The queue of one signature of one version."""

    def __init__(
        self,
        parameters: BatchingParameters,
        turns: Turns,
        compute: Compute,
        *,
        lanes: int = 1,
        queued: Callable[[float], None] = lambda _: None,
    ) -> None:
        """Stand before a model.

        Args:
            parameters: sizes, times and limits.
            turns: shared with the server's other queues.
            compute: runs a batch.
            lanes: batches that the model can run side by side.
            queued: told how many seconds each piece has waited.
        """
        self._parameters = parameters
        self._turns = turns
        self._compute = compute
        self._lanes = lanes
        self._queued = queued
        self._hurried = False
        self._running = 0
        self._batches: list[_Batch] = []
        turns.add(self)

    def run(self, key: Hashable, size: int, work: Any) -> list[Piece]:
        """Compute a task, together with others of its key; returns when it is done.

        Args:
            key: tasks of one key may be joined.
            size: in rows, at least 1.
            work: what `Compute` is to know of it.

        Returns:
            Its pieces with their answers, in the order of their rows.

        Raises:
            InputError: ``request.batch_too_large``.
            Unavailable: ``request.queue_full``, ``request.too_late``, ``request.cancelled``.
            Exception: what computing it has raised.
        """
        deadline = current()
        task = _Task(key, size, work, deadline, time.monotonic())
        deadline.when_cancelled(task.woken.set)
        with self._turns.lock:
            self._enqueue(task)
            self._turns.start(task.arrived)
        self._await(task)
        if task.error is not None:
            raise task.error
        return task.pieces

    def hurry(self) -> None:
        """Let nothing wait for more rows: no more will come."""
        with self._turns.lock:
            self._hurried = True
            self._turns.start(time.monotonic())

    def close(self) -> None:
        """Nothing waits, and nothing will come."""
        self._turns.remove(self)

    @property
    def waiting(self) -> int:
        """Batches that have not begun."""
        return len(self._batches)

    def start_one(self, now: float) -> bool:
        """Name a leader for the first batch that may begin, if any; with the lock held."""
        if self._running >= self._lanes:
            return False
        hurried = self._hurried or self._turns.hurried
        for batch in self._batches:
            if not (batch.closed or hurried or now >= batch.due):
                continue
            leader = next((each.task for each in batch.pieces if not each.task.busy), None)
            if leader is None:
                continue  # its only threads run other parts of the same requests
            self._batches.remove(batch)
            for piece in batch.pieces:
                piece.task.open.remove(batch)
            self._running += 1
            leader.leads, leader.busy = batch, True
            leader.woken.set()
            return True
        return False

    def _await(self, task: _Task) -> None:
        while True:
            with self._turns.lock:
                task.woken.clear()
                batch, task.leads = task.leads, None
                if batch is None:
                    if task.error is None and task.missing and task.deadline.ended:
                        task.error = task.deadline.refusal(_LATE)
                    if task.error is not None or not task.missing:
                        self._withdraw(task)
                        return
                    now = time.monotonic()
                    self._turns.start(now)  # perhaps the time of one of its batches is up
                    pause = self._pause(task, now)
            if batch is not None:
                self._lead(batch, task)
            else:
                task.woken.wait(pause)

    @staticmethod
    def _pause(task: _Task, now: float) -> float | None:
        """How long to sleep unless woken; the first task of a batch minds its time."""
        times = [each.due for each in task.open if each.pieces[0].task is task and each.due > now]
        if task.deadline.until is not None:
            times.append(task.deadline.until)
        return max(0.0, min(times) - now) if times else None

    def _lead(self, batch: _Batch, leader: _Task) -> None:
        """Run a batch in this thread, for all who wait for it."""
        now = time.monotonic()
        alive = [each for each in batch.pieces if not each.task.deadline.ended]
        answers: Sequence[Any] = ()
        try:
            for piece in alive:
                self._queued(now - piece.task.arrived)
            if alive:
                with under(ENDLESS):  # the others' work does not end with the leader
                    answers = self._compute(alive)
        except Exception as error:  # whatever it is, nobody waits for ever
            answers = [error] * len(alive)
        given = {id(piece): answer for piece, answer in zip(alive, answers, strict=True)}
        with self._turns.lock:
            for piece in batch.pieces:
                late = piece.task.deadline.refusal(_LATE) if id(piece) not in given else None
                _finish(piece, given.get(id(piece), late))
            leader.busy = False
            self._running -= 1
            self._turns.ended()

    def _enqueue(self, task: _Task) -> None:
        parameters = self._parameters
        if task.size > parameters.max_batch_size:
            raise InputError(
                "request.batch_too_large",
                f"Task size {task.size} is larger than maximum input batch size "
                f"{parameters.max_batch_size}",
            )
        limit = parameters.batch_limit
        last = next((each for each in reversed(self._batches) if each.key == task.key), None)
        room = limit - last.size if last is not None and not last.closed else 0
        self._check_room(task, room)
        begin = 0
        splitting = parameters.enable_large_batch_splitting
        if last is not None and room < task.size and not splitting:
            last.closed = True
        while begin < task.size:
            if last is None or last.closed:
                last = _Batch(task.key, task.arrived + parameters.batch_timeout_micros / 1e6)
                self._batches.append(last)
            piece = Piece(task, begin, min(task.size, begin + limit - last.size))
            last.pieces.append(piece)
            last.size += piece.size
            last.closed = last.size == limit
            task.pieces.append(piece)
            task.open.append(last)
            begin = piece.end
        task.missing = len(task.pieces)

    def _check_room(self, task: _Task, room: int) -> None:
        parameters, waiting = self._parameters, len(self._batches)
        if parameters.enable_large_batch_splitting:
            limit = parameters.batch_limit
            capacity = (parameters.max_enqueued_batches - waiting) * limit + room
            if task.size > capacity:
                raise _full(
                    f"task size is {task.size} but scheduling capacity is only {capacity} "
                    f"(num_enqueued_batches={waiting}, "
                    f"max_enqueued_batches={parameters.max_enqueued_batches}, "
                    f"open_batch_size={limit - room if room else 0}, "
                    f"max_execution_batch_size={limit})"
                )
        elif task.size > room and waiting >= parameters.max_enqueued_batches:
            raise _full(
                f"currently {waiting} batches enqueued and max_enqueued_batches is "
                f"{parameters.max_enqueued_batches}"
            )

    def _withdraw(self, task: _Task) -> None:
        """Take out what has not begun, if anything; with the lock held."""
        if not task.open:
            return
        for batch in task.open:
            batch.pieces = [each for each in batch.pieces if each.task is not task]
            batch.size = sum(each.size for each in batch.pieces)
            if batch.pieces:
                batch.pieces[0].task.woken.set()  # to mind the batch's time from now on
            else:
                self._batches.remove(batch)
        task.open = []


def _finish(piece: Piece, answer: Any) -> None:
    task = piece.task
    if isinstance(answer, Exception):
        task.error = task.error or answer
    piece.answer = answer
    task.missing -= 1
    if task.error is not None or not task.missing:
        task.woken.set()


def _full(why: str) -> Unavailable:
    return Unavailable(
        "request.queue_full",
        f"The batch scheduling queue to which this task was submitted is full; {why}",
        hint="ask again later, or raise max_enqueued_batches",
    )
