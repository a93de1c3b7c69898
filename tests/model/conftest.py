"""Models made once for all tests of this package, and TensorFlow beside them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from sealserve.model.catalogue import built

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class TensorFlow:
    """TensorFlow in its own environment: given files and inputs, it answers with arrays."""

    python: Path
    directory: Path

    def run_script(self, script: str, *arguments: Path) -> None:
        file = self.directory / "script.py"
        file.write_text(script)
        done = subprocess.run([self.python, file, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]

    def outputs(self, tasks: Mapping[str, tuple[Path, Arrays, list[str]]]) -> dict[str, Arrays]:
        """Run models: a frozen graph by tensor names, a SavedModel by both of its loaders.

        Args:
            tasks: for each a file or directory, the values to feed and the tensors
                to fetch (frozen graphs only).
        """
        listed = []
        for index, (path, feeds, fetches) in enumerate(tasks.values()):
            np.savez(
                self.directory / f"in{index}.npz",
                **{f"a{i}": v for i, v in enumerate(feeds.values())},
            )
            listed.append({"path": str(path), "keys": list(feeds), "fetches": fetches})
        (self.directory / "tasks.json").write_text(json.dumps(listed))
        self.run_script(_RUN, self.directory)
        answers: dict[str, Arrays] = {}
        for index, name in enumerate(tasks):
            with np.load(self.directory / f"out{index}.npz") as file:
                answers[name] = {key.replace("|", "/"): file[key] for key in file.files}
        return answers


_RUN = r"""
import json, os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
import numpy as np, tensorflow as tf
v1 = tf.compat.v1
home = sys.argv[1]
for index, task in enumerate(json.load(open(f"{home}/tasks.json"))):
    with np.load(f"{home}/in{index}.npz") as file:
        feeds = {key: file[f"a{i}"] for i, key in enumerate(task["keys"])}
    answer = {}
    with tf.Graph().as_default(), v1.Session() as session:
        if os.path.isfile(task["path"]):
            definition = v1.GraphDef.FromString(open(task["path"], "rb").read())
            tf.import_graph_def(definition, name="")
            values = session.run(task["fetches"], {f"{key}:0": v for key, v in feeds.items()})
            answer = dict(zip(task["fetches"], values))
        else:
            meta = v1.saved_model.loader.load(session, ["serve"], task["path"])
            signature = meta.signature_def["serving_default"]
            fed = {signature.inputs[key].name: value for key, value in feeds.items()}
            names = {key: info.name for key, info in signature.outputs.items()}
            answer = {f"v1/{key}": value for key, value in session.run(names, fed).items()}
    if not os.path.isfile(task["path"]):
        call = tf.saved_model.load(task["path"]).signatures["serving_default"]
        values = call(**{key: tf.constant(value) for key, value in feeds.items()})
        answer |= {f"v2/{key}": value.numpy() for key, value in values.items()}
        for key, info in signature.outputs.items():
            assert info.dtype == tf.as_dtype(answer[f"v2/{key}"].dtype).as_datatype_enum, key
            stated = tf.TensorShape(info.tensor_shape)
            assert stated.is_compatible_with(answer[f"v2/{key}"].shape), key
    np.savez(f"{home}/out{index}.npz", **{key.replace("/", "|"): v for key, v in answer.items()})
"""


@pytest.fixture(scope="session")
def tensorflow(oracle: Path, tmp_path_factory: pytest.TempPathFactory) -> TensorFlow:
    return TensorFlow(oracle, tmp_path_factory.mktemp("tensorflow"))


@pytest.fixture(scope="session")
def frozen_lite0(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """EfficientNet-Lite0 with its real weights as a frozen graph."""
    return _written("efficientnet-lite0", tmp_path_factory.mktemp("lite0"))


@pytest.fixture(scope="session")
def frozen_resnet50(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ResNet50 v1.5 with seeded weights as a frozen graph."""
    return _written("resnet50-v15-seeded", tmp_path_factory.mktemp("resnet50"))


def _written(name: str, directory: Path) -> Path:
    path = directory / f"{name}.pb"
    path.write_bytes(built(name).build().SerializeToString(deterministic=True))
    return path


def run_openvino(saved_model: Path, feeds: Arrays) -> dict[str, npt.NDArray[Any]]:
    """A SavedModel in OpenVINO, at float32, by the keys of its signature."""
    import openvino

    core = openvino.Core()
    model = core.compile_model(
        core.read_model(saved_model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    results = model(dict(feeds))
    return {name: value for port, value in results.items() for name in port.names}


@pytest.fixture(scope="session")
def coffee() -> npt.NDArray[np.float32]:
    """scikit-image's picture of a cup of coffee, as the models want it."""
    import skimage

    from sealserve.client.images import load_image

    return load_image(Path(skimage.__file__).parent / "data" / "coffee.png")
