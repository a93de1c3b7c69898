"""Inputs of another rank than is stated: TensorFlow's answer, or none (docs/adr/0028).

The oracle is TensorFlow's C++ session, which feeds what it is given as TensorFlow
Serving does (more_models.py): arrays for each rank from 0 to 5, or none where it refuses.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from sealserve.errors import InputError, SealserveError
from sealserve.logs import make_log
from sealserve.serving.catalog import ModelSpec
from sealserve.serving.config import RuntimeConfig
from sealserve.serving.dataplane import Dataplane
from sealserve.serving.runtimes.base import Model
from sealserve.serving.runtimes.choice import ChoosingRuntime
from sealserve.serving.runtimes.saved_model import (
    ELEMENTWISE,
    not_elementwise,
    operations_behind,
    read_meta_graph,
    refusing,
)
from sealserve.serving.table import Table
from tests.serving.conftest import Question, check_answer, questions
from tests.soak import SOAK

RANKS = range(6)


def load(version: Path, tensorflow: str = "off") -> Model:
    config = RuntimeConfig(tensorflow=tensorflow)
    return ChoosingRuntime(config, make_log(io.StringIO())).load(version)


def plane(models: Path, name: str) -> Dataplane:
    return Dataplane(Table.of(name, 1, load(models / "more" / name / "1")))


def asked(models: Path, name: str) -> list[tuple[int, Question]]:
    return [
        (rank, each)
        for rank in RANKS
        for each in questions(models / "more" / f"rank{rank}")
        if each.model == name
    ]


def test_each_elementwise_operation_is_computed_at_each_rank_as_tensorflow_does(
    models: Path,
) -> None:
    served = plane(models, "elementwise")
    cases = asked(models, "elementwise")
    assert [rank for rank, _ in cases] == list(RANKS)
    for _, each in cases:
        assert len(each.outputs) > 50
        check_answer(served, each)


def test_what_is_bound_to_a_rank_takes_no_other(models: Path) -> None:
    """Converted for each rank, these would differ from TensorFlow on the ones counted below."""
    served = plane(models, "rank_bound")
    cases = asked(models, "rank_bound")
    refused_by_tensorflow = 0
    for rank, each in cases:
        if rank == 2:
            check_answer(served, each)
            continue
        refused_by_tensorflow += not each.outputs
        with pytest.raises(InputError) as caught:
            served.predict(
                ModelSpec("rank_bound"), each.signature, lambda _, each=each: each.inputs
            )
        assert caught.value.code == "request.shape_mismatch"
    assert refused_by_tensorflow >= 20


def test_trap_rank_is_refused_where_no_rank_is_stated(models: Path) -> None:
    with pytest.raises(InputError) as caught:
        load(models / "more" / "trap_rank" / "1")
    for kind in ("MatMul", "BiasAdd", "Softmax", "Sum", "StridedSlice", "Select", "Where"):
        assert f"an input's rank is not stated, and {kind}" in caught.value.message


@pytest.mark.skipif(not SOAK, reason="a TensorFlow worker of its own: `make soak`")
def test_trap_rank_is_served_by_tensorflow(models: Path, oracle: Path) -> None:
    model = load(models / "more" / "trap_rank" / "1", str(oracle))
    served = Dataplane(Table.of("trap_rank", 1, model))
    try:
        for _, each in asked(models, "trap_rank"):
            if each.outputs:
                check_answer(served, each)
            else:
                with pytest.raises(SealserveError):
                    served.predict(
                        ModelSpec("trap_rank"), each.signature, lambda _, each=each: each.inputs
                    )
    finally:
        model.close()


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3), (2, 1, 2), (1, 2, 1, 2, 1, 2, 1, 2)])
def test_trap_anyrank_is_right_at_each_rank(models: Path, shape: tuple[int, ...]) -> None:
    served = Dataplane(Table.of("m", 1, load(models / "trap_anyrank" / "1")))
    given = np.arange(np.prod(shape), dtype="f4").reshape(shape)
    answer = served.predict(ModelSpec("m"), "", lambda _: {"x": given})
    np.testing.assert_array_equal(answer.outputs["y"], given * 2, strict=True)


def test_a_rank_beyond_the_highest_is_refused(models: Path) -> None:
    served = Dataplane(Table.of("m", 1, load(models / "affine" / "1")))
    with pytest.raises(InputError, match="8 is the highest rank"):
        served.predict(ModelSpec("m"), "", lambda _: {"x": np.zeros((1,) * 9, "f4")})


def test_every_operation_called_elementwise_was_asked_of_tensorflow(models: Path) -> None:
    meta = read_meta_graph(models / "more" / "elementwise" / "1", ("serve",))
    used = operations_behind(meta.graph_def, meta.signature_def["serving_default"])
    assert not not_elementwise(used)
    assert used >= ELEMENTWISE


@pytest.mark.parametrize("kind", ["Assert", "CheckNumerics", "CheckNumericsV2", "EnsureShape"])
def test_operations_that_refuse_inputs_are_known(kind: str) -> None:
    assert refusing({"MatMul", kind}) == [kind]
    assert refusing({"MatMul", "AssignVariableOp"}) == []
