"""Keras 3 files: exported by TensorFlow's own Python, with TensorFlow's numbers; no code is run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from sealserve.errors import SealserveError
from sealserve.model import keras_worker
from sealserve.model.importer import import_model
from sealserve.model.keras_export import export_keras, is_keras
from tests.model.conftest import TensorFlow, run_openvino
from tests.soak import SOAK

# What a Keras file becomes when it is made by the oracle, with Keras' own answer.
_MAKE = """
import json, runpy, sys, numpy as np, tensorflow as tf
home, worker = sys.argv[1:]
layers = tf.keras.layers
model = tf.keras.Sequential([
    layers.Input((8, 8, 3), name="image"), layers.Conv2D(4, 3, activation="relu"),
    layers.BatchNormalization(), layers.GlobalAveragePooling2D(),
    layers.Dense(2, activation="softmax", name="classes"),
])
rng = np.random.default_rng(1)
for layer in model.layers:
    old = layer.get_weights()
    layer.set_weights([rng.uniform(0.1, 1, each.shape).astype("f4") for each in old])
given = rng.normal(size=(3, 8, 8, 3)).astype("f4")
np.savez(f"{home}/answer.npz", given=given, known=model(given).numpy())
model.save(f"{home}/net.keras")
model.save(f"{home}/net.h5")
code = tf.keras.Sequential([layers.Input((3,)), layers.Lambda(lambda x: x * 2)])
code.save(f"{home}/code.keras")
code.save(f"{home}/code.h5")
export = runpy.run_path(worker)["export"]
answers = {name: export(f"{home}/{name}", f"{home}/out") for name in ("code.keras", "code.h5")}
open(f"{home}/answers.json", "w").write(json.dumps(answers))
"""


@pytest.fixture(scope="session")
def keras_files(tensorflow: TensorFlow, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("keras")
    tensorflow.run_script(_MAKE, home, Path(keras_worker.__file__))
    return home


# TensorFlow takes seconds to start, for each; the rest is for `make soak`.
@pytest.mark.parametrize("name", ["net.keras", "net.h5"] if SOAK else ["net.keras"])
def test_a_keras_file_becomes_a_version_with_its_answers(
    keras_files: Path, tensorflow: TensorFlow, tmp_path: Path, name: str
) -> None:
    imported = import_model(
        keras_files / name, tmp_path / "models", name="net", tensorflow=tensorflow.python
    )
    assert [path.name for path in (tmp_path / "models" / "net").iterdir()] == ["1"]
    serving = {each.name: each for each in imported.signatures}["serving_default"]
    assert serving.inputs[0].key == "image"
    assert "Keras 3" in imported.notes[0]
    with np.load(keras_files / "answer.npz") as known:
        answer = run_openvino(imported.path, {"image": known["given"]})
        np.testing.assert_allclose(
            answer[serving.outputs[0].key], known["known"], rtol=1e-4, atol=1e-6
        )


def test_a_file_with_code_in_it_is_not_loaded(keras_files: Path) -> None:
    """A Lambda layer is Python code; safe mode refuses it, in both kinds of file."""
    answers = json.loads((keras_files / "answers.json").read_text())
    assert answers.keys() == {"code.keras", "code.h5"}
    for answer in answers.values():
        assert "arbitrary code execution" in answer["unloadable"]
    assert not (keras_files / "out").exists()


@pytest.mark.skipif(not SOAK, reason="TensorFlow takes seconds to start: `make soak`")
@pytest.mark.parametrize("name", ["code.keras", "code.h5"])
def test_a_file_with_code_in_it_is_refused(
    keras_files: Path, tensorflow: TensorFlow, tmp_path: Path, name: str
) -> None:
    with pytest.raises(SealserveError) as caught:
        import_model(
            keras_files / name, tmp_path / "models", name="net", tensorflow=tensorflow.python
        )
    assert caught.value.code == "keras.unloadable"
    assert "Lambda" in caught.value.message
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("interpreter", "words"),
    [
        (None, "no TensorFlow is installed here"),
        (Path(sys.executable), "No module named 'tensorflow'"),
        (Path("/nowhere/python"), "/nowhere/python cannot be run"),
    ],
)
def test_without_tensorflow_the_extra_is_named(
    tmp_path: Path, interpreter: Path | None, words: str
) -> None:
    source = tmp_path / "net.keras"
    source.write_bytes(b"PK\x03\x04 and more")
    assert is_keras(source)
    with pytest.raises(SealserveError) as caught:
        import_model(source, tmp_path / "models", name="net", tensorflow=interpreter)
    assert caught.value.code == "keras.no_tensorflow"
    assert words in caught.value.message
    assert "sealserve[tensorflow]" in str(caught.value.hint)
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("exit 3", "ended with status 3"),
        ("echo nonsense", "ended with status 0"),
        ("echo '{}'", "ended with status 0"),
        ("""echo '{"failed": "no shape"}'""", "no shape"),
        ("""echo '["failed"]'""", "ended with status 0"),
    ],
)
def test_a_process_that_fails_is_told(tmp_path: Path, script: str, words: str) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    with pytest.raises(SealserveError) as caught:
        export_keras(tmp_path / "net.keras", tmp_path / "out", program)
    assert caught.value.code == "keras.failed"
    assert words in caught.value.message


def test_kinds_are_told_by_how_a_file_begins(tmp_path: Path) -> None:
    for content, wanted in ((b"\x89HDF\r\n\x1a\n", True), (b"PK\x05\x06", False), (b"", False)):
        (tmp_path / "file").write_bytes(content)
        assert is_keras(tmp_path / "file") is wanted
    assert not is_keras(tmp_path / "absent")
