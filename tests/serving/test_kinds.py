"""One model of each kind that OpenVINO was ever seen to serve, refuse or get wrong.

Each is TensorFlow's answer to 1e-4, or refused with the reason, or (`make soak`) served by
TensorFlow. `KINDS` says where each kind's model is and what OpenVINO does with it.
"""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from sealserve.errors import SealserveError
from sealserve.logs import make_log
from sealserve.serving.catalog import ModelSpec
from sealserve.serving.config import RuntimeConfig
from sealserve.serving.dataplane import Dataplane
from sealserve.serving.runtimes.base import Model
from sealserve.serving.runtimes.choice import ChoosingRuntime
from sealserve.serving.table import Table
from tests.serving.conftest import check_answer, questions
from tests.soak import SOAK

SERVED = None

# Model below `models` -> why OpenVINO refuses it; those of ``more/kinds`` are made for this test.
KINDS = {
    "more/kinds/keras_cnn": SERVED,
    "affine": SERVED,  # two signatures over the same variables
    "more/kinds/strings": "DT_STRING",
    "more/kinds/hashtable": "DT_STRING",
    "more/kinds/hashtable_int": "ReduceMax on i64",
    "more/kinds/label_out": "DT_STRING",
    "more/kinds/example": "DT_STRING",
    "examples": SERVED,  # tf.Example in TensorFlow 1: cut behind its parser
    "more/kinds/jpeg": "DT_STRING",
    "loop": SERVED,  # control flow, version 2
    "trap_counter": "AssignAddVariableOp",
    "more/kinds/cflow_v1": SERVED,
    "v1": SERVED,  # reference variables
    "more/kinds/topk": SERVED,
    "more/kinds/nms": SERVED,
    "more/kinds/lstm": SERVED,
    "more/kinds/dtypes": "f64",
    "more/kinds/fft": SERVED,
    "trap_dice": "RandomUniform",
    "with_default": SERVED,  # a placeholder with a default: folded unless cut
    "more/kinds/keras_module": "OpenVINO cannot convert this signature",
    "lite": SERVED,
    "more/kinds/lite_example": "FlexParseExampleV2",
    "trap_anyrank": SERVED,
    "more/trap_rank": "rank is not stated",
    "more/kinds/trap_checked": "refuses some inputs",
}


def load(version: Path, tensorflow: str = "off") -> Model:
    config = RuntimeConfig(tensorflow=tensorflow)
    return ChoosingRuntime(config, make_log(io.StringIO())).load(version)


@pytest.mark.parametrize("name", [name for name, reason in KINDS.items() if reason is SERVED])
def test_openvino_answers_as_tensorflow_does(models: Path, name: str) -> None:
    directory = models / name
    asked = [each for each in questions(directory.parent) if each.model == directory.name]
    assert asked
    plane = Dataplane(Table.of(directory.name, 1, load(directory / "1")))
    for each in asked:
        check_answer(plane, each)


@pytest.mark.parametrize("name", [name for name, reason in KINDS.items() if reason is not SERVED])
def test_openvino_refuses_with_the_reason(models: Path, name: str) -> None:
    with pytest.raises(SealserveError) as caught:
        load(models / name / "1")
    assert str(KINDS[name]) in caught.value.message


@pytest.mark.parametrize(
    ("signature", "kind"),
    [("asserts", "Assert"), ("finite", "CheckNumerics"), ("shaped", "EnsureShape")],
)
def test_trap_checked_an_operation_that_refuses_inputs_is_not_dropped(
    models: Path, signature: str, kind: str
) -> None:
    """OpenVINO would answer what TensorFlow refuses: 200, NaN, four numbers for three."""
    with pytest.raises(SealserveError, match=rf"{signature}: .* \({kind}\)"):
        load(models / "more/kinds/trap_checked/1")


def test_every_kind_that_was_made_is_tested(models: Path) -> None:
    kinds = models / "more" / "kinds"
    made = {path.name for path in kinds.iterdir() if path.is_dir()}
    assert made == {Path(name).name for name in KINDS if name.startswith("more/kinds/")}


@pytest.mark.skipif(not SOAK, reason="TensorFlow workers of their own: `make soak`")
def test_tensorflow_serves_what_openvino_refuses(models: Path, oracle: Path) -> None:
    kinds = models / "more" / "kinds"
    asked = [each for each in questions(kinds) if KINDS[f"more/kinds/{each.model}"] is not SERVED]
    assert len(asked) == 8
    for each in asked:
        model = load(kinds / each.model / "1", str(oracle))
        plane = Dataplane(Table.of(each.model, 1, model))
        try:
            if each.outputs:
                check_answer(plane, each)
                continue
            # TensorFlow's own session does not find this export's variables either.
            assert each.model == "keras_module"
            with pytest.raises(SealserveError, match="Could not find variable"):
                plane.predict(ModelSpec(each.model), "", lambda _, each=each: each.inputs)
        finally:
            model.close()
