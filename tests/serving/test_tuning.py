"""Threads, streams, precision and files: what the flags ask for is what OpenVINO is given."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from sealserve.logs import make_log
from sealserve.serving import flags
from sealserve.serving.config import RuntimeConfig
from sealserve.serving.runtimes import tuning
from sealserve.serving.runtimes.base import Model
from sealserve.serving.runtimes.choice import ChoosingRuntime
from sealserve.serving.runtimes.openvino import CORE
from sealserve.serving.runtimes.tuning import Tuner
from sealserve.wire.tensors import Array
from tests.serving.conftest import question_of
from tests.soak import times

BASE = "--model_base_path=/models/m"


def graph(width: int, *, convolution: bool = False) -> ov.Model:
    shape = [-1, 3, 8, 8] if convolution else [-1, width]
    x = op.parameter(shape, ov.Type.f32, name="x")
    if convolution:
        kernel = op.constant(np.ones((width, 3, 3, 3), "f4"))
        y = op.convolution(x, kernel, [1, 1], [0, 0], [0, 0], [1, 1])
    else:
        y = op.matmul(x, op.constant(np.ones((width, width), "f4")), False, False)
    return ov.Model([y], [x], "g")


LARGE, SMALL, CONVOLVED = graph(1024), graph(8), graph(2, convolution=True)


@pytest.mark.parametrize(
    ("config", "model", "streams", "threads", "reason"),
    [
        (RuntimeConfig(), LARGE, 1, 4, "one inference at a time on all 4 cores"),
        (RuntimeConfig(), CONVOLVED, 1, 4, "one inference at a time"),
        (RuntimeConfig(), SMALL, 4, 4, "small (256 bytes of weights"),
        (RuntimeConfig(threads=2), SMALL, 2, 2, "threads set by flags; small"),
        (RuntimeConfig(threads=3), LARGE, 1, 3, "threads set by flags; one inference"),
        (RuntimeConfig(streams=2), LARGE, 2, 4, "set by flags, on 4 cores"),
        (RuntimeConfig(streams=2), SMALL, 2, 4, "set by flags, on 4 cores"),
        (RuntimeConfig(throughput=True, streams=1), LARGE, 1, 4, "set by flags"),
        (RuntimeConfig(throughput=True), LARGE, 1, 4, "one batch at a time on all 4 cores"),
        (RuntimeConfig(throughput=True), SMALL, 4, 4, "small"),
        (RuntimeConfig(throughput=True), CONVOLVED, None, 4, "a batch of convolutions"),
    ],
)
def test_streams_and_threads_follow_the_cores_the_model_and_the_flags(
    config: RuntimeConfig, model: ov.Model, streams: int | None, threads: int, reason: str
) -> None:
    tuner = Tuner(config, 4)
    plan = tuner.plan(model)
    assert plan.ways[0]["INFERENCE_NUM_THREADS"] == threads
    assert plan.ways[0].get("NUM_STREAMS") == streams
    assert plan.reason.startswith(reason)
    ways = [CORE.compile_model(model, "CPU", dict(way)) for way in plan.ways]
    tuned = tuner.tuning(ways, plan.reason)
    # OpenVINO may give fewer than it is asked for, where there are not so many cores.
    assert 1 <= tuned.streams <= (streams or 4)
    assert 1 <= tuned.threads <= threads
    assert tuned.precision == "f32"


@pytest.mark.parametrize(
    ("config", "cores", "model", "ways"),
    [
        (RuntimeConfig(), 4, LARGE, 2),
        (RuntimeConfig(), 4, CONVOLVED, 2),
        (RuntimeConfig(threads=3), 4, LARGE, 2),
        (RuntimeConfig(threads=1), 4, LARGE, 1),
        (RuntimeConfig(), 1, LARGE, 1),
        (RuntimeConfig(), 4, SMALL, 1),
        (RuntimeConfig(streams=1), 4, LARGE, 1),
        (RuntimeConfig(throughput=True), 4, LARGE, 1),
    ],
)
def test_requests_side_by_side_have_a_way_of_their_own_where_that_can_help(
    config: RuntimeConfig, cores: int, model: ov.Model, ways: int
) -> None:
    assert len(Tuner(config, cores).plan(model).ways) == ways


def test_large_weights_are_not_held_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_TWICE_BYTES", 2**22)
    assert len(Tuner(RuntimeConfig(), 4).plan(graph(1024)).ways) == 2
    plan = Tuner(RuntimeConfig(), 4).plan(graph(1025))
    assert len(plan.ways) == 1
    assert "bytes of weights are not held twice" in plan.reason


def test_the_session_flags_reach_the_runtime() -> None:
    given = flags.parse([BASE, "--tensorflow_intra_op_parallelism=3"]).runtime
    assert (given.threads, given.streams) == (3, 0)
    given = flags.parse([BASE, "--tensorflow_inter_op_parallelism=2"]).runtime
    assert (given.threads, given.streams) == (0, 2)
    given = flags.parse([BASE, "--tensorflow_session_parallelism=4"]).runtime
    assert (given.threads, given.streams) == (4, 4)


def load(path: Path, *argv: str) -> tuple[Model, list[dict[str, str]]]:
    log = io.StringIO()
    config = flags.parse([BASE, "--tensorflow_runtime=off", *argv]).runtime
    model = ChoosingRuntime(config, make_log(log)).load(path)
    return model, [json.loads(line) for line in log.getvalue().splitlines()]


def test_bfloat16_is_computed_only_when_asked_for(models: Path) -> None:
    asked = question_of(models, "small")
    wanted = asked.outputs["logits"]
    errors = {}
    for mixed in ("", "bfloat16"):
        model, log = load(models / "small" / "1", f"--mixed_precision={mixed}")
        precision = model.tuning["serving_default"].precision
        answer = model.run("serving_default", asked.inputs, ["logits"])["logits"]
        errors[precision] = float(np.abs(answer - wanted).max() / np.abs(wanted).max())
        (told,) = (line for line in log if line["event"] == "signature")
        assert f"at {precision}: " in told["tuning"]
        model.close()
    assert errors["f32"] < 1e-5
    if "BF16" in CORE.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert 1e-5 < errors["bf16"] < 0.05
    else:
        assert "the processor has no bfloat16" in told["tuning"]


def test_answers_alone_and_side_by_side_are_the_same(models: Path) -> None:
    model, _ = load(models / "small" / "1")
    assert model.tuning["serving_default"].beside in (0, len(os.sched_getaffinity(0)))
    asked = question_of(models, "small")
    questions = [
        {key: array * (1 + number / 7) for key, array in asked.inputs.items()}
        for number in range(40)
    ]

    def answer(inputs: dict[str, Array]) -> Array:
        return model.run("serving_default", inputs, ["logits"])["logits"]

    alone = [answer(inputs) for inputs in questions]
    with ThreadPoolExecutor(8) as pool:
        beside = list(pool.map(answer, questions))
    assert not np.allclose(alone[0], alone[-1], rtol=1e-5)
    np.testing.assert_allclose(beside, alone, rtol=1e-5, atol=1e-5)
    model.close()


def test_the_first_requests_may_come_together(models: Path) -> None:
    """A server of two streams once stood still for ever: OpenVINO's binding, on first use."""
    script = Path(__file__).with_name("first_requests.py")
    for _ in range(times(30, 2)):
        done = subprocess.run(
            [sys.executable, script, models / "affine" / "1"],
            capture_output=True,
            text=True,
            check=False,
            timeout=40,
        )
        assert done.stdout == "answered\n", done.stderr[-2000:]


def test_a_lite_file_goes_first_only_when_preferred(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "affine" / "1", tmp_path / "1")
    shutil.copy(models / "lite" / "1" / "model.tflite", tmp_path / "1")
    saved, _ = load(tmp_path / "1")
    assert set(saved.signatures) == {"serving_default", "pairs"}
    lite, _ = load(tmp_path / "1", "--prefer_tflite_model")
    (signature,) = lite.signatures
    asked = question_of(models, "lite")
    answer = lite.run(signature, asked.inputs, list(asked.outputs))
    for key, array in asked.outputs.items():
        np.testing.assert_allclose(answer[key], array, rtol=1e-5)
    (tmp_path / "1" / "model.tflite").unlink()
    fallen_back, _ = load(tmp_path / "1", "--prefer_tflite_model")
    assert set(fallen_back.signatures) == {"serving_default", "pairs"}
    for model in (saved, lite, fallen_back):
        model.close()
