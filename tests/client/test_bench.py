"""The benchmark's inputs, its lines and its behaviour when a task fails."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest

from sealserve.client.bench import BenchResult, Query, random_inputs, run_bench
from sealserve.client.connection import Connection, TensorSpec
from sealserve.errors import InputError, Unavailable

_FLOAT = np.dtype("<f4")


class _Recorded:
    """Stands in for a connection and keeps what was asked of it."""

    report = None

    def __init__(self, log: list[dict[str, Any]], fail: Callable[[], None] = lambda: None) -> None:
        self._log = log
        self._fail = fail

    def input_specs(self, model: str) -> dict[str, TensorSpec]:
        self._fail()
        return {"input": TensorSpec(_FLOAT, (None, 4, 4, 3))}

    def predict(self, model: str, inputs: dict[str, Any]) -> dict[str, Any]:
        self._log.append({"model": model, "shape": inputs["input"].shape})
        return {}

    def __enter__(self) -> _Recorded:
        return self

    def __exit__(self, *_: object) -> None:
        return None


def _connect(log: list[dict[str, Any]], **more: Any) -> Callable[[], Connection]:
    return lambda: cast("Connection", _Recorded(log, **more))


def test_each_task_sends_its_loops_in_the_asked_batch() -> None:
    log: list[dict[str, Any]] = []
    queries: list[Query] = []
    result = run_bench(_connect(log), "m", batch=2, tasks=3, loops=4, on_query=queries.append)
    assert log == [{"model": "m", "shape": (2, 4, 4, 3)}] * 12
    assert sorted((q.task, q.loop_idx) for q in queries) == [
        (task, loop) for task in range(3) for loop in range(4)
    ]
    assert (result.requests, result.tasks, result.batch) == (12, 3, 2)


def test_lines_have_the_form_of_the_original_system() -> None:
    query = Query("secure", 0, 1, 0, 0.0874)
    assert str(query) == (
        "query: secure channel, task 0, batch 1, loop_idx 0, latency(ms) 87.4, tps: 11.4"
    )
    summary = str(BenchResult(1, 1, 50, 4.5, 0.0874, 0.08, 0.09, 11.4))
    assert re.fullmatch(
        r"summary: cnum 1, batch 1, e2e time\(s\) 4\.50, average latency\(ms\) 87\.4, tps: 11\.4",
        summary,
    )


def test_a_task_that_cannot_start_stops_all_with_its_own_reason() -> None:
    first = threading.Event()

    def fail() -> None:
        if not first.is_set():
            first.set()
            raise Unavailable("server.unreachable", "cannot connect")

    with pytest.raises(Unavailable) as caught:
        run_bench(_connect([], fail=fail), "m", tasks=4, loops=1)
    assert caught.value.code == "server.unreachable"


@pytest.mark.parametrize("name", ["batch", "tasks", "loops"])
def test_nothing_can_be_measured_zero_times(name: str) -> None:
    with pytest.raises(InputError) as caught:
        run_bench(_connect([]), "m", **{name: 0})
    assert caught.value.code == "bench.out_of_range"


def test_made_up_inputs_have_the_declared_dtype_and_one_batch_dimension() -> None:
    specs = {
        "a": TensorSpec(np.dtype("u1"), (None, None, 3)),
        "b": TensorSpec(_FLOAT, None),
        "c": TensorSpec(_FLOAT, (5,)),
    }
    arrays = random_inputs(specs, 7, np.random.default_rng(0))
    assert {name: array.shape for name, array in arrays.items()} == {
        "a": (7, 1, 3),
        "b": (7,),
        "c": (5,),
    }
    assert arrays["a"].dtype == np.uint8
    assert arrays["b"].dtype == np.float32


def test_strings_cannot_be_made_up() -> None:
    with pytest.raises(InputError) as caught:
        random_inputs({"s": TensorSpec(np.dtype("O"), (None,))}, 1, np.random.default_rng(0))
    assert caught.value.code == "bench.input_unsupported"
