"""Who may be batched: models whose rows are independent, and no others; shown, not believed."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sealserve.errors import InputError
from sealserve.logs import make_log
from sealserve.serving.batching.rows import judge
from sealserve.serving.config import RuntimeConfig
from sealserve.serving.runtimes.base import Model, Signature, TensorSpec
from sealserve.serving.runtimes.choice import ChoosingRuntime
from sealserve.wire.tensorflow import tensor_pb2 as pb
from sealserve.wire.tensors import Array

FLOATS = TensorSpec(pb.DT_FLOAT, (-1, 4))


class Function(Model):
    """One signature that is a function of numpy arrays."""

    def __init__(
        self, function: Callable[..., Any], inputs: dict[str, TensorSpec] | None = None
    ) -> None:
        self.definitions, self.refused = {}, {}
        stated = Signature("s", inputs or {"x": FLOATS}, {"y": TensorSpec(pb.DT_FLOAT, None)}, "")
        self.signatures = {"s": stated}
        self.function = function
        self.runs = 0

    def run(
        self, signature: str, inputs: Mapping[str, Array], outputs: Sequence[str]
    ) -> dict[str, Array]:
        self.runs += 1
        with np.errstate(all="ignore"):
            return {"y": np.asarray(self.function(**inputs), "f4")}

    def close(self) -> None: ...


def refuse(x: Array) -> Array:
    raise InputError("request.inference_failed", "never")


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x - x.mean(0), "made-up rows all have the same answer alone"),
        (lambda x: 2 * x - x.mean(0), "changes beside another row"),
        (lambda x: x * x[:1], "changes beside another row"),
        (lambda x: x + x[-1:], "changes beside another row"),
        (lambda x: np.sort(x, 0), "changes beside another row"),
        (lambda x: x * len(x), "changes beside another row"),
        (lambda x: -x if x.sum() > 0 else x, "changes beside another row"),
        (lambda x: x + 1e-3 * x.mean(0), "changes beside another row"),
        # Only a neighbour of NaN or of another size shows these.
        (lambda x: x + (np.isnan(x).any()), "changes beside a row of NaN"),
        (lambda x: x + (np.nanmax(x) > 1e5), "changes beside a row of huge numbers"),
        (lambda x: np.round(x / np.abs(x).max() * 127), "changes beside"),
        (lambda x: x.sum(0, keepdims=True), "not one row for each row"),
        (lambda x: np.concatenate([x, x]), "not one row for each row"),
        (lambda x: x.sum(), "not one row for each row"),
        (lambda x: x * np.nan, "is no number"),
        (refuse, "cannot be computed"),
    ],
)
def test_rows_that_are_mixed_are_found(function: Callable[..., Any], reason: str) -> None:
    verdict = judge(Function(function), "s")
    assert not verdict.batched
    assert reason in verdict.reason


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * 0.5 + 2,
        lambda x: np.log(x),  # no number for the rows below zero: others are tried
        lambda x: np.maximum(x, 0).sum(1),
        lambda x: x / np.abs(x).max(1, keepdims=True),
        lambda x: x * (1 + 1e-6 * len(x)),  # as kernels for other sizes round otherwise
    ],
)
def test_rows_that_are_not_mixed_may_be_batched(function: Callable[..., Any]) -> None:
    model = Function(function)
    verdict = judge(model, "s")
    assert verdict.batched, verdict.reason
    assert model.runs <= 10


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ({"x": TensorSpec(pb.DT_FLOAT, (1, 4))}, 'first dimension of input "x" does not vary'),
        ({"x": TensorSpec(pb.DT_FLOAT, ())}, 'first dimension of input "x" does not vary'),
        ({"x": TensorSpec(pb.DT_FLOAT, None)}, 'the rank of input "x" is not stated'),
        ({"x": FLOATS, "n": TensorSpec(pb.DT_INT32, ())}, 'first dimension of input "n"'),
        ({"x": TensorSpec(pb.DT_FLOAT, (-1, 2**23))}, "too large to be made up"),
    ],
)
def test_signatures_that_cannot_be_batched_are_not_run(
    inputs: dict[str, TensorSpec], reason: str
) -> None:
    model = Function(lambda **_: 1 / 0, inputs)
    verdict = judge(model, "s")
    assert (verdict.batched, model.runs) == (False, 0)
    assert reason in verdict.reason


def test_state_is_not_touched() -> None:
    model = Function(lambda **_: 1 / 0)
    model.stateful = {"s"}
    assert judge(model, "s").reason == "it keeps state"
    assert model.runs == 0


def test_open_dimensions_are_tried_until_one_fits() -> None:
    def only_32(x: Array) -> Array:
        if x.shape[1] != 32:
            raise InputError("request.inference_failed", "32 it must be")
        return x

    assert judge(Function(only_32, {"x": TensorSpec(pb.DT_FLOAT, (-1, -1))}), "s").batched


@pytest.fixture(scope="module")
def verdicts(models: Path, oracle: Path) -> dict[str, tuple[bool, str]]:
    """Of every signature of every model that the tests have, by both runtimes."""
    runtime = ChoosingRuntime(RuntimeConfig(tensorflow=str(oracle)), make_log(io.StringIO()))
    found = {}
    for name in ("affine", "examples", "loop", "mixed", "mixing", "small", "trap_counter"):
        model, _ = runtime.choose(models / name / "1")
        for key in model.signatures:
            verdict = judge(model, key)
            found[f"{name}.{key}"] = (verdict.batched, verdict.reason)
        model.close()
    return found


def test_models_of_tensorflow(verdicts: dict[str, tuple[bool, str]]) -> None:
    batched = {name for name, (good, _) in verdicts.items() if good}
    assert batched == {
        "affine.serving_default",
        "affine.pairs",
        "examples.classify",
        "examples.regress",
        "examples.serving_default",
        "mixed.serving_default",
        "mixed.words",  # strings, by the TensorFlow worker
        "small.serving_default",
    }
    assert {name: reason for name, (good, reason) in verdicts.items() if not good} == {
        "loop.serving_default": 'a row of output "y" changes beside another row: rows are mixed',
        "mixing.mean": "made-up rows all have the same answer alone",
        "mixing.first": "made-up rows all have the same answer alone",
        "mixing.scale": 'a row of output "y" changes beside a row of huge numbers: rows are mixed',
        "trap_counter.serving_default": "it keeps state",
    }
