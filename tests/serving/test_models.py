"""Every test model is computed as TensorFlow computes it, or refused with the reason."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sealserve.errors import InputError
from sealserve.logs import make_log
from sealserve.model.graphdef import GraphBuilder, shape_proto
from sealserve.serving.catalog import Catalog, ModelSpec, State
from sealserve.serving.config import All, Latest, ModelConfig, RuntimeConfig, Specific
from sealserve.serving.dataplane import Dataplane
from sealserve.serving.runtimes.choice import ChoosingRuntime
from sealserve.serving.status import Status
from sealserve.wire.tensorflow import graph_pb2, tensor_pb2
from tests.serving.conftest import Running, check_answer, questions

REASONS = {
    "trap_counter": "AssignAddVariableOp",
    "trap_dice": "RandomUniform",
    "trap_words": "DT_STRING",
    "trap_constant": "has no output 'y'",
    "trap_bytes": "Add on u8",
    "trap_long": "Multiply on i64",
    "trap_offset": "beyond 32 bits",
    "trap_double": "f64",
    "trap_whole": "on i32",
    "trap_cast": "Convert on i64",
}


def dataplane(*models: ModelConfig) -> Dataplane:
    log = make_log(io.StringIO())
    catalog = Catalog(models, ChoosingRuntime(RuntimeConfig(), log), log)
    catalog.load()
    return Dataplane(catalog)


def test_the_numbers_are_those_of_tensorflow(models: Path) -> None:
    asked = questions(models)
    assert len(asked) >= 9
    for each in asked:
        plane = dataplane(ModelConfig(each.model, models / each.model, Specific((1,))))
        check_answer(plane, each)


@pytest.mark.parametrize("name", sorted(REASONS))
def test_a_trap_is_refused_at_load_with_the_reason(running: Running, name: str) -> None:
    status, answer = running.rest("GET", f"/v1/models/{name}")
    assert status == 200
    (version,) = answer["model_version_status"]
    assert (version["version"], version["state"]) == ("1", "END")
    assert version["status"]["error_code"] in ("UNIMPLEMENTED", "INVALID_ARGUMENT")
    assert REASONS[name] in version["status"]["error_message"]
    status, answer = running.rest("POST", f"/v1/models/{name}:predict", {"instances": [1]})
    assert (status, answer) == (
        404,
        {"error": f"Servable not found for request: Latest({name})"},
    )


def test_every_trap_that_was_made_is_tested(models: Path) -> None:
    made = {
        path.name for path in models.iterdir() if path.name.startswith("trap_") and path.is_dir()
    }
    assert made == {*REASONS, "trap_anyrank"}  # which is served, and asked with the others


def test_a_placeholder_with_default_takes_the_input_that_is_sent(running: Running) -> None:
    _, answer = running.rest(
        "POST", "/v1/models/with_default:predict", {"inputs": [10.0, 20.0, 30.0]}
    )
    assert answer == {"outputs": [7.0, 12.0, 17.0]}


def test_one_signature_that_cannot_be_served_leaves_the_other(running: Running) -> None:
    _, answer = running.rest("POST", "/v1/models/mixed:predict", {"instances": [4]})
    assert answer == {"predictions": [8.0]}
    status, answer = running.rest(
        "POST", "/v1/models/mixed:predict", {"signature_name": "words", "instances": ["A"]}
    )
    assert status == 400
    assert 'signature key "words" is not served' in answer["error"]
    assert "DT_STRING" in answer["error"]


def test_a_64_bit_integer_that_32_bits_cannot_hold_is_refused(running: Running) -> None:
    status, answer = running.rest(
        "POST", "/v1/models/embedding:predict", {"instances": [[2**40, 1, 2]]}
    )
    assert status == 400
    assert "beyond" in answer["error"]


def test_a_broken_model_leaves_the_others_serving(models: Path, tmp_path: Path) -> None:
    def broken(name: str, content: bytes | None) -> ModelConfig:
        directory = tmp_path / name / "1"
        directory.mkdir(parents=True)
        if content is not None:
            (directory / "saved_model.pb").write_bytes(content)
        return ModelConfig(name, tmp_path / name)

    whole = (models / "small" / "1" / "saved_model.pb").read_bytes()
    plane = dataplane(
        broken("empty", None),
        broken("noise", b"\xff" * 100),
        broken("nothing", b""),
        broken("cut", whole[: len(whole) // 2]),
        broken("no_variables", whole),
        ModelConfig("nowhere", tmp_path / "nowhere"),
        ModelConfig("affine", models / "affine"),
    )
    for name in ("empty", "noise", "nothing", "cut", "no_variables"):
        (status,) = plane.status(ModelSpec(name))
        assert status.state is State.END
        assert status.code is not Status.OK
        assert status.code is not Status.INTERNAL, status.message
    with pytest.raises(InputError, match="Could not find any versions of model nowhere"):
        plane.status(ModelSpec("nowhere"))
    assert plane.status(ModelSpec("affine"))[0].state is State.AVAILABLE


def test_a_model_without_the_wanted_tags_is_refused(models: Path) -> None:
    log = make_log(io.StringIO())
    config = (ModelConfig("affine", models / "affine"),)
    catalog = Catalog(config, ChoosingRuntime(RuntimeConfig(tags=("gpu",)), log), log)
    catalog.load()
    (status,) = catalog.statuses(ModelSpec("affine"))
    assert status.state is State.END
    assert "Could not find meta graph def matching supplied tags: { gpu }" in status.message


@pytest.mark.parametrize(
    ("policy", "versions"),
    [
        (Latest(), [2]),
        (Latest(2), [2, 1]),
        (All(), [2, 1]),
        (Specific((1,)), [1]),
        (Specific((1, 7)), [1]),
    ],
)
def test_version_policies(
    models: Path, policy: Latest | All | Specific, versions: list[int]
) -> None:
    plane = dataplane(ModelConfig("m", models / "affine", policy))
    assert [status.version for status in plane.status(ModelSpec("m"))] == versions
    assert all(status.state is State.AVAILABLE for status in plane.status(ModelSpec("m")))


def test_version_directories_are_numbers(models: Path, tmp_path: Path) -> None:
    for name in ("00000123", "tmp", "-5", "99999999999999999999"):
        (tmp_path / name).symlink_to(models / "affine" / "1")
    (tmp_path / "124").write_text("a file")
    plane = dataplane(ModelConfig("m", tmp_path, All()))
    assert [status.version for status in plane.status(ModelSpec("m"))] == [123]


def test_unloading_waits_for_the_requests_that_use_a_model(models: Path) -> None:
    log = make_log(io.StringIO())
    config = (ModelConfig("affine", models / "affine"),)
    catalog = Catalog(config, ChoosingRuntime(RuntimeConfig(), log), log)
    catalog.load()
    closing = threading.Thread(target=catalog.close)
    with catalog.acquire(ModelSpec("affine")) as handle:
        closing.start()
        while catalog.available():
            pass
        assert catalog.statuses(ModelSpec("affine"))[0].state is State.UNLOADING
        outputs = handle.model.run("serving_default", {"x": np.array([1], "f4")}, ["y"])
        assert outputs["y"].tolist() == [5.0]
        assert closing.is_alive()
    closing.join(20)
    assert catalog.statuses(ModelSpec("affine"))[0].state is State.END
    with pytest.raises(InputError, match=r"Servable not found for request: Latest\(affine\)"):
        catalog.acquire(ModelSpec("affine")).__enter__()


def _saved_model(directory: Path, builder: GraphBuilder, fetched: str) -> Path:
    """A SavedModel written by hand, as a foreign exporter might: nothing is tidied."""
    saved = graph_pb2.SavedModel(saved_model_schema_version=1)
    meta = saved.meta_graphs.add()
    meta.meta_info_def.tags.append("serve")
    meta.graph_def.CopyFrom(builder.graph)
    definition = meta.signature_def["serving_default"]
    definition.method_name = "tensorflow/serving/predict"
    shapes = {"x": shape_proto([None, 4, 4, 1]), "y": shape_proto(None)}
    for entry, key, name in ((definition.inputs, "x", "x"), (definition.outputs, "y", fetched)):
        entry[key].name, entry[key].dtype = f"{name}:0", tensor_pb2.DT_FLOAT
        entry[key].tensor_shape.CopyFrom(shapes[key])
    directory.mkdir(parents=True)
    (directory / "saved_model.pb").write_bytes(saved.SerializeToString())
    return directory.parent


def _computed(base: Path, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    plane = dataplane(ModelConfig("m", base, Specific((1,))))
    return plane.predict(ModelSpec("m"), "", lambda *_: {"x": x}).outputs["y"]


def test_a_scalar_constant_stored_as_bytes_is_not_read_as_zero(tmp_path: Path) -> None:
    """OpenVINO 2026.4 takes it for 0 without a word."""
    builder = GraphBuilder()
    builder.multiply(
        "y", builder.placeholder("x", [None, 4, 4, 1]), builder.const("c", np.float32(3))
    )
    (constant,) = (node for node in builder.graph.node if node.name == "c")
    value = constant.attr["value"].tensor
    value.ClearField("float_val")
    value.tensor_content = np.float32(3.0).tobytes()
    x = np.ones((1, 4, 4, 1), np.float32)
    np.testing.assert_array_equal(_computed(_saved_model(tmp_path / "1", builder, "y"), x), 3 * x)


def test_the_unread_indices_of_a_max_pool_refuse_no_model(tmp_path: Path) -> None:
    """OpenVINO's MaxPool has a second output of 64-bit integers, which nobody reads here."""
    builder = GraphBuilder()
    builder.max_pool("y", builder.placeholder("x", [None, 4, 4, 1]), size=2, stride=2)
    x = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    pooled = _computed(_saved_model(tmp_path / "1", builder, "y"), x)
    np.testing.assert_array_equal(pooled.ravel(), [5, 7, 13, 15])


A_RUNTIME_ENDS_IN_ANOTHER_THREAD = """
import gc, io, pathlib, signal, sys, threading
from sealserve.logs import make_log
from sealserve.serving.config import RuntimeConfig
from sealserve.serving.runtimes.openvino import OpenVinoRuntime
runtimes = [OpenVinoRuntime(RuntimeConfig(), make_log(io.StringIO()))]
runtimes[0].load(pathlib.Path(sys.argv[1])).close()
def end():
    runtimes.clear()
    gc.collect()
thread = threading.Thread(target=end)
thread.start()
thread.join()
signal.signal(signal.SIGALRM, lambda *_: print("came"))
signal.raise_signal(signal.SIGALRM)
"""


def test_a_signal_after_a_runtime_has_ended_does_not_end_the_process(models: Path) -> None:
    """OpenVINO had unmapped the stack for the signals of the thread that first compiled."""
    done = subprocess.run(
        [sys.executable, "-c", A_RUNTIME_ENDS_IN_ANOTHER_THREAD, models / "affine" / "1"],
        capture_output=True,
        timeout=100,
    )
    assert (done.returncode, done.stdout) == (0, b"came\n"), done.stderr[-2000:]
