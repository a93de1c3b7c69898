"""The original system's benchmark: tasks that send one request after another.

Its lines and its summary keep the original's form, so that figures taken with
either can be laid side by side.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sealserve.client.connection import Connection, TensorSpec
from sealserve.errors import InputError

__all__ = ["BenchResult", "Query", "random_inputs", "run_bench"]

_SEED = 2026


@dataclass(frozen=True)
class Query:
    """One request of one task.

    Attributes:
        latency: seconds from sending to having the outputs as arrays.
    """

    channel: str
    task: int
    batch: int
    loop_idx: int
    latency: float

    def __str__(self) -> str:
        return (
            f"query: {self.channel} channel, task {self.task}, batch {self.batch}, "
            f"loop_idx {self.loop_idx}, latency(ms) {self.latency * 1e3:.1f}, "
            f"tps: {self.batch / self.latency:.1f}"
        )


@dataclass(frozen=True)
class BenchResult:
    """The summary of a run.

    Attributes:
        elapsed: seconds from the first request to the last answer.
        average_latency: seconds, over all requests.
        p50, p99: seconds.
        throughput: examples per second.
    """

    tasks: int
    batch: int
    requests: int
    elapsed: float
    average_latency: float
    p50: float
    p99: float
    throughput: float

    def __str__(self) -> str:
        return (
            f"summary: cnum {self.tasks}, batch {self.batch}, e2e time(s) {self.elapsed:.2f}, "
            f"average latency(ms) {self.average_latency * 1e3:.1f}, tps: {self.throughput:.1f}"
        )

    def to_dict(self) -> dict[str, Any]:
        """The summary for ``--json``; times in seconds."""
        return asdict(self)


def random_inputs(
    specs: Mapping[str, TensorSpec], batch: int, generator: np.random.Generator
) -> dict[str, np.ndarray[Any, Any]]:
    """Arrays of the right dtype and shape: the first free dimension is the batch, others are 1.

    Raises:
        InputError: ``bench.input_unsupported`` for inputs that are not numbers.
    """
    arrays = {}
    for name, spec in specs.items():
        if spec.dtype.kind not in "fiub":
            raise InputError(
                "bench.input_unsupported",
                f"input {name!r} holds {spec.dtype}, which a benchmark cannot make up",
                hint="bench models whose inputs are numbers",
            )
        free = iter([batch])
        shape = [next(free, 1) if size is None else size for size in spec.shape or (None,)]
        arrays[name] = (generator.random(shape) * 255).astype(spec.dtype)
    return arrays


def run_bench(
    connect: Callable[[], Connection],
    model: str,
    *,
    batch: int = 1,
    tasks: int = 1,
    loops: int = 50,
    on_query: Callable[[Query], None] = lambda _query: None,
) -> BenchResult:
    """Send ``loops`` requests from each of ``tasks`` connections at once.

    Args:
        connect: opens one connection; called once a task.
        model: the servable's name.
        batch: examples in a request.
        tasks: connections that send at the same time.
        loops: requests that each task sends, one after another.
        on_query: called after each answer, from the task's thread, one at a time.

    Raises:
        InputError: ``bench.input_unsupported``, ``bench.out_of_range`` or the server's error.
    """
    for name, value in (("batch", batch), ("cnum", tasks), ("loop", loops)):
        if value < 1:
            raise InputError("bench.out_of_range", f"{name} is {value}, but must be at least 1")
    report_one = threading.Lock()
    start = threading.Barrier(tasks + 1)

    def task(index: int) -> list[float]:
        latencies = []
        try:
            with connect() as connection:
                channel = "attested" if connection.report else "secure"
                generator = np.random.default_rng([_SEED, index])
                inputs = random_inputs(connection.input_specs(model), batch, generator)
                start.wait()
                for loop_idx in range(loops):
                    begin = time.perf_counter()
                    connection.predict(model, inputs)
                    latencies.append(time.perf_counter() - begin)
                    with report_one:
                        on_query(Query(channel, index, batch, loop_idx, latencies[-1]))
        except BaseException:
            start.abort()  # or the other tasks would wait for this one for ever
            raise
        return latencies

    with ThreadPoolExecutor(tasks) as pool:
        running = [pool.submit(task, index) for index in range(tasks)]
        try:
            start.wait()
        except threading.BrokenBarrierError:
            _raise_first_cause([future.exception() for future in running])
        begin = time.perf_counter()
        latencies = [latency for future in running for latency in future.result()]
        elapsed = time.perf_counter() - begin
    p50, p99 = np.quantile(latencies, [0.5, 0.99])
    return BenchResult(
        tasks=tasks,
        batch=batch,
        requests=len(latencies),
        elapsed=elapsed,
        average_latency=float(np.mean(latencies)),
        p50=float(p50),
        p99=float(p99),
        throughput=batch * len(latencies) / elapsed,
    )


def _raise_first_cause(errors: list[BaseException | None]) -> None:
    """Raise what broke the start, not the broken barrier that the other tasks saw."""
    for error in errors:
        if error is not None and not isinstance(error, threading.BrokenBarrierError):
            raise error
