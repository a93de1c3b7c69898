"""Imported models give what TensorFlow's own loader gives for the same frozen graph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sealserve.errors import InputError
from sealserve.model.importer import ImportedModel, import_model
from tests.model.conftest import Arrays, TensorFlow, run_openvino
from tests.model.graphs import CASES

_FROZEN_BY_TENSORFLOW = r"""
import os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import tensorflow as tf
v1, home = tf.compat.v1, sys.argv[1]
v1.disable_control_flow_v2()

def dense():
    x = v1.placeholder(tf.float32, [None, 4], "x")
    w = v1.get_variable("w", initializer=tf.reshape(tf.range(8.0), [4, 2]) / 7, use_resource=False)
    return tf.identity(tf.nn.softmax(tf.matmul(x, w)), "y")

def loop():
    x = v1.placeholder(tf.float32, [None], "x")
    v = v1.get_variable("v", initializer=2.0, use_resource=False)
    y = v1.while_loop(lambda i, a: i < 3, lambda i, a: (i + 1, a * v), [0, x])[1]
    return tf.identity(v1.cond(tf.reduce_sum(y) > 0, lambda: y + 1, lambda: y - 1), "y")

for make in dense, loop:
    with tf.Graph().as_default() as graph, v1.Session() as session:
        make()
        session.run(v1.global_variables_initializer())
        full = graph.as_graph_def()
        open(f"{home}/{make.__name__}_unfrozen.pb", "wb").write(full.SerializeToString())
        frozen = v1.graph_util.convert_variables_to_constants(session, full, ["y"])
        open(f"{home}/{make.__name__}.pb", "wb").write(frozen.SerializeToString())

class Affine(tf.Module):
    def __init__(self):
        self.a = tf.Variable([1.0, 2.0, 3.0])

    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, name="x")])
    def __call__(self, x):
        return {"y": self.a * x + 0.5}

module = Affine()
tf.saved_model.save(module, f"{home}/affine", signatures=module.__call__)
with tf.Graph().as_default() as graph:
    concrete = module.__call__.get_concrete_function()
open(f"{home}/functions.pb", "wb").write(
    tf.function(lambda x: tf.cond(tf.reduce_sum(x) > 0, lambda: x, lambda: -x))
    .get_concrete_function(tf.TensorSpec([None], tf.float32))
    .graph.as_graph_def().SerializeToString()
)
"""


@dataclass(frozen=True)
class Answers:
    """One model's outputs by key, from every side."""

    imported: ImportedModel
    feeds: Arrays
    frozen: dict[str, Any]
    saved: dict[str, dict[str, Any]]

    def compare(self) -> None:
        assert set(self.saved) == {"v1", "v2"}
        for answers in self.saved.values():
            for key, value in self.frozen.items():
                assert answers[key].dtype == value.dtype
                np.testing.assert_allclose(answers[key], value, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="session")
def by_tensorflow(tensorflow: TensorFlow, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Graphs frozen and a SavedModel saved by TensorFlow itself."""
    home = tmp_path_factory.mktemp("by_tensorflow")
    tensorflow.run_script(_FROZEN_BY_TENSORFLOW, home)
    return home


@pytest.fixture(scope="session")
def answers(
    tensorflow: TensorFlow,
    by_tensorflow: Path,
    frozen_lite0: Path,
    frozen_resnet50: Path,
    coffee: np.ndarray[Any, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Answers]:
    """All models through TensorFlow, in one process: its import takes seconds."""
    home = tmp_path_factory.mktemp("imported")
    noise = np.random.Generator(np.random.PCG64(3)).uniform(0, 255, (1, 224, 224, 3))
    pictures = np.concatenate([coffee[np.newaxis], noise.astype(np.float32)])
    models: dict[str, tuple[Path, Arrays, dict[str, str], dict[str, list[str]]]] = {
        "lite0": (
            frozen_lite0,
            {"input": pictures},
            {"logits": "logits:0", "probabilities": "probabilities:0"},
            {},
        ),
        "resnet50": (
            frozen_resnet50,
            {"input": pictures},
            {"predict": "predict:0"},
            {"inputs": ["input"], "outputs": ["predict"]},
        ),
        "dense": (
            by_tensorflow / "dense.pb",
            {"x": np.array([[1, 2, 3, 4]], np.float32)},
            {"y": "y:0"},
            {},
        ),
        "loop": (
            by_tensorflow / "loop.pb",
            {"x": np.array([-1, 2, 3], np.float32)},
            {"y": "y:0"},
            {"outputs": ["y"]},
        ),
    }
    for name, make in CASES.items():
        case = make()
        path = home / f"{name}.pb"
        path.write_bytes(case.graph.SerializeToString())
        models[name] = (path, case.feeds, case.outputs, case.import_options)

    imported: dict[str, ImportedModel] = {}
    tasks: dict[str, tuple[Path, Arrays, list[str]]] = {}
    for name, (path, feeds, outputs, options) in models.items():
        imported[name] = import_model(path, home, name=name, **options)  # type: ignore[arg-type]
        keys = {spec.key: spec.tensor for spec in imported[name].signatures[0].inputs}
        nodes = {keys[key].removesuffix(":0"): value for key, value in feeds.items()}
        tasks[f"{name}/frozen"] = (path, nodes, list(outputs.values()))
        tasks[f"{name}/saved"] = (imported[name].path, feeds, [])
    raw = tensorflow.outputs(tasks)
    collected = {}
    for name, (_, feeds, outputs, _options) in models.items():
        saved: dict[str, dict[str, Any]] = {}
        for key, value in raw[f"{name}/saved"].items():
            loader, _, output = key.partition("/")
            saved.setdefault(loader, {})[output] = value
        frozen = {key: raw[f"{name}/frozen"][tensor] for key, tensor in outputs.items()}
        collected[name] = Answers(imported[name], feeds, frozen, saved)
    return collected


@pytest.mark.parametrize("name", ["lite0", "resnet50", "dense", "loop", *CASES])
def test_the_import_gives_what_the_frozen_graph_gives(
    answers: dict[str, Answers], name: str
) -> None:
    answers[name].compare()


@pytest.mark.parametrize(
    "name", ["lite0", "resnet50", "dense", "loop", *sorted(set(CASES) - {"unknown_rank"})]
)
def test_openvino_gives_what_tensorflow_gives(answers: dict[str, Answers], name: str) -> None:
    model = answers[name]
    got = run_openvino(model.imported.path, model.feeds)
    for key, value in model.frozen.items():
        np.testing.assert_allclose(got[key], value, rtol=1e-4, atol=1e-4)


def test_scalars_as_bytes_are_rewritten_before_openvino_reads_them_as_zero(
    answers: dict[str, Answers],
) -> None:
    model = answers["scalar_bytes"]
    assert model.imported.rewritten == 1
    np.testing.assert_allclose(model.frozen["y"], 7 * model.feeds["x"])


def test_the_seeded_networks_softmax_tells_images_apart(answers: dict[str, Answers]) -> None:
    probabilities = answers["resnet50"].frozen["predict"]
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert 2 / 1001 < probabilities.max() < 0.9
    assert np.abs(probabilities[0] - probabilities[1]).max() > 1e-3


def test_a_saved_model_of_tensorflows_is_copied_and_still_runs(
    tensorflow: TensorFlow, by_tensorflow: Path, tmp_path: Path
) -> None:
    imported = import_model(by_tensorflow / "affine", tmp_path, name="affine", version=7)
    assert imported.path == tmp_path / "affine" / "7"
    (signature,) = [s for s in imported.signatures if s.name == "serving_default"]
    assert [spec.key for spec in signature.inputs] == ["x"]
    x = np.array([[1, 1, 1]], np.float32)
    raw = tensorflow.outputs({"affine": (imported.path, {"x": x}, [])})["affine"]
    np.testing.assert_allclose(raw["v2/y"], [[1.5, 2.5, 3.5]])


def test_what_is_not_frozen_is_refused(by_tensorflow: Path, tmp_path: Path) -> None:
    for name, code in (
        ("dense_unfrozen", "graph.not_frozen"),
        ("loop_unfrozen", "graph.not_frozen"),
        ("functions", "graph.has_functions"),
    ):
        options = {"outputs": ["y"]} if name != "functions" else {}
        with pytest.raises(InputError) as caught:
            import_model(by_tensorflow / f"{name}.pb", tmp_path, name="m", **options)  # type: ignore[arg-type]
        assert caught.value.code == code
    assert list(tmp_path.iterdir()) == []
