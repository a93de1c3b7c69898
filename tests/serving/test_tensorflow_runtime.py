"""TensorFlow in its worker: what OpenVINO must refuse is served; a dead worker comes back."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sealserve.errors import InputError, SealserveError, Unavailable
from sealserve.logs import make_log
from sealserve.serving.catalog import Catalog, ModelSpec, State
from sealserve.serving.config import ModelConfig, RuntimeConfig
from sealserve.serving.dataplane import Dataplane
from sealserve.serving.deadline import Deadline, under
from sealserve.serving.runtimes.choice import ChoosingRuntime
from sealserve.serving.runtimes.tensorflow import _failure
from sealserve.serving.status import HTTP_STATUS, Status, status_of
from tests.serving.conftest import check_answer, question_of, questions
from tests.soak import SOAK, times

# One of each kind; a worker takes seconds and half a gigabyte, so the rest is for `make soak`.
SERVED = ("mixed", "trap_words", "trap_bytes", "trap_dice")


class Served:
    """A dataplane with TensorFlow at hand, and its log."""

    def __init__(self, interpreter: Path, models: Path, *names: str) -> None:
        self.log = io.StringIO()
        log = make_log(self.log)
        runtime = ChoosingRuntime(RuntimeConfig(tensorflow=str(interpreter)), log)
        configs = tuple(ModelConfig(name, models / name) for name in names)
        # Loaded while serving, in a thread that ends and gives way meanwhile.
        self.catalog = Catalog((), runtime, log)
        self.catalog.load()
        with contextlib.suppress(Unavailable):  # some are to fail
            self.catalog.reload(configs)
        self.plane = Dataplane(self.catalog)

    def events(self, name: str) -> list[dict[str, object]]:
        lines = map(json.loads, self.log.getvalue().splitlines())
        return [line for line in lines if line["event"] == name]

    def workers(self) -> list[int]:
        return [int(str(line["pid"])) for line in self.events("worker_started")]


@pytest.fixture(scope="module")
def served(oracle: Path, models: Path) -> Iterator[Served]:
    asked = {each.model for each in questions(models / "only_tensorflow")} if SOAK else set()
    served = Served(oracle, models, *sorted(asked.union(SERVED)))
    yield served
    served.catalog.close()


def test_what_openvino_refuses_is_served_with_tensorflows_numbers(
    served: Served, models: Path
) -> None:
    loaded = {name for name, _ in served.catalog.available()}
    asked = [each for each in questions(models / "only_tensorflow") if each.model in loaded]
    assert len(asked) >= times(10, 3)
    for each in asked:
        check_answer(served.plane, each)


def test_a_worker_outlives_the_thread_that_loaded_its_model(served: Served) -> None:
    """The kernel takes that thread for the worker's parent, and gave it its low priority."""
    assert served.events("worker_died") == []
    workers = served.workers()
    assert len(workers) >= len(SERVED)
    for pid in workers:
        threads = [int(each.name) for each in Path(f"/proc/{pid}/task").iterdir()]
        wanted = os.getpriority(os.PRIO_PROCESS, os.getpid())
        assert {os.getpriority(os.PRIO_PROCESS, thread) for thread in threads} == {wanted}


def test_each_signature_says_who_serves_it_and_why(served: Served) -> None:
    said = {
        (Path(str(line["path"])).parent.name, line["signature"]): line
        for line in served.events("signature")
    }
    assert said["mixed", "serving_default"]["runtime"] == "openvino"
    assert said["mixed", "words"]["runtime"] == "tensorflow"
    assert "DT_STRING" in str(said["mixed", "words"]["reason"])
    assert "RandomUniform" in str(said["trap_dice", "serving_default"]["reason"])


def test_state_is_kept_as_tensorflow_serving_keeps_it(oracle: Path, models: Path) -> None:
    served = Served(oracle, models, "trap_counter")
    answers = [
        served.plane.predict(ModelSpec("trap_counter"), "", lambda _: {"x": np.float32(2)})
        for _ in range(3)
    ]
    assert [float(each.outputs["y"]) for each in answers] == [2, 4, 6]
    (pid,) = served.workers()
    served.catalog.close()
    assert not Path(f"/proc/{pid}").exists()  # its memory is back, all of it


def test_dice_of_a_wanted_shape_are_rolled(served: Served) -> None:
    shape = np.array([3, 2], "i4")
    answer = served.plane.predict(ModelSpec("trap_dice"), "", lambda _: {"shape": shape})
    assert answer.outputs["y"].shape == (3, 2)


def test_inputs_that_do_not_fit_together_are_the_callers_fault(served: Served) -> None:
    shape = np.array([-3, 2], "i4")
    with pytest.raises(InputError) as caught:
        served.plane.predict(ModelSpec("trap_dice"), "", lambda _: {"shape": shape})
    assert caught.value.code == "request.inference_failed"
    assert "-3" in caught.value.message
    test_dice_of_a_wanted_shape_are_rolled(served)  # the worker goes on


def test_what_a_run_fails_with_is_passed_on_as_the_original_does(served: Served) -> None:
    shape = np.array([2**30, 2**14], "i4")  # 64 TiB
    with pytest.raises(SealserveError) as caught:
        served.plane.predict(ModelSpec("trap_dice"), "", lambda _: {"shape": shape})
    assert status_of(caught.value) is Status.RESOURCE_EXHAUSTED
    assert "OOM" in caught.value.message
    test_dice_of_a_wanted_shape_are_rolled(served)


@pytest.mark.parametrize(
    ("told", "code", "http"),
    [
        ({"status": 3}, "request.inference_failed", 400),
        ({"status": 5}, "servable.run_failed", 404),
        ({"status": 6}, "servable.run_failed", 409),
        ({"status": 10}, "servable.run_failed", 409),
        ({}, "servable.worker_failed", 503),
    ],
)
def test_each_failure_of_a_worker_has_its_status(
    told: dict[str, int], code: str, http: int
) -> None:
    error = _failure({"error": "why", **told})
    assert (error.code, HTTP_STATUS[status_of(error)]) == (code, http)


@pytest.mark.parametrize("place", [".", "only_tensorflow"])
def test_nothing_is_computed_for_who_has_gone(served: Served, models: Path, place: str) -> None:
    """Neither by OpenVINO nor by a worker; and what they take turns with stays, however often."""
    asked = question_of(models / place, "mixed")
    for _ in range(20):
        with pytest.raises(Unavailable) as caught, under(Deadline(cancelled=lambda: True)):
            served.plane.predict(ModelSpec("mixed"), asked.signature, lambda _: asked.inputs)
        assert caught.value.code == "request.cancelled"
    check_answer(served.plane, asked)


def test_a_dead_worker_is_started_again(
    oracle: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sealserve.serving.runtimes.tensorflow._RESTART_PAUSE", 0.0)
    served = Served(oracle, models, "trap_bytes")

    def step() -> list[int]:
        given = {"x": np.array([255], "u1")}
        answer = served.plane.predict(ModelSpec("trap_bytes"), "", lambda _: given)
        return [int(each) for each in answer.outputs["y"]]

    assert step() == [0]
    os.kill(served.workers()[0], signal.SIGKILL)
    with contextlib.suppress(Unavailable):  # a request that met the dead one is told so
        step()
    assert step() == [0]
    assert len(served.workers()) == 2
    served.catalog.close()


def test_a_python_without_tensorflow_is_told_once_a_model(models: Path) -> None:
    served = Served(Path(sys.executable), models, "trap_words", "mixed")
    (status,) = served.plane.status(ModelSpec("trap_words"))
    assert status.state is State.END
    assert "DT_STRING" in status.message
    assert "No module named 'tensorflow'" in status.message
    assert served.plane.status(ModelSpec("mixed"))[0].state is State.AVAILABLE
    served.catalog.close()


def test_an_interpreter_that_is_not_there(models: Path, tmp_path: Path) -> None:
    served = Served(tmp_path / "absent", models, "trap_words")
    (status,) = served.plane.status(ModelSpec("trap_words"))
    assert "cannot start the TensorFlow worker" in status.message
    with pytest.raises(SealserveError):
        served.plane.predict(ModelSpec("trap_words"), "", lambda _: {})
