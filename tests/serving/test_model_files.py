"""Models that are one file: TensorFlow Lite, ONNX, OpenVINO IR."""

from __future__ import annotations

import contextlib
import io
import shutil
import struct
from pathlib import Path
from random import Random

import numpy as np
import openvino as ov
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealserve.errors import InputError, SealserveError
from sealserve.logs import make_log
from sealserve.serving.config import RuntimeConfig
from sealserve.serving.runtimes.base import Model
from sealserve.serving.runtimes.choice import ChoosingRuntime
from sealserve.serving.runtimes.tflite import _Table, is_elementwise, read_signatures
from sealserve.wire.tensorflow import graph_pb2
from sealserve.wire.tensorflow import tensor_pb2 as pb
from tests.onnx_files import GIVEN, WANTED, WEIGHTS, onnx_bytes
from tests.serving.conftest import arrays_of
from tests.soak import times


def load(version: Path) -> Model:
    return ChoosingRuntime(RuntimeConfig(tensorflow="off"), make_log(io.StringIO())).load(version)


def test_onnx(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(onnx_bytes())
    model = load(tmp_path)
    signature = model.signatures["serving_default"]
    assert signature.inputs["x"].shape == (-1, 4)
    assert signature.outputs["y"].shape == (-1, 2)
    outputs = model.run("serving_default", {"x": GIVEN}, ["y"])
    np.testing.assert_allclose(outputs["y"], WANTED, rtol=1e-6)
    definition = model.definitions["serving_default"]
    assert definition.inputs["x"].name == "x:0"
    assert definition.method_name == "tensorflow/serving/predict"


def test_openvino_ir(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(onnx_bytes())
    ov.save_model(
        ov.Core().read_model(tmp_path / "model.onnx"),
        tmp_path / "model.xml",
        compress_to_fp16=False,
    )
    (tmp_path / "model.onnx").unlink()
    outputs = load(tmp_path).run("serving_default", {"x": GIVEN}, ["y"])
    np.testing.assert_allclose(outputs["y"], WANTED, rtol=1e-6)


def test_tensorflow_lite_goes_by_the_keys_of_its_own_signature(models: Path) -> None:
    model = load(models / "lite" / "1")
    signature = model.signatures["serving_default"]
    assert list(signature.inputs) == ["x"]
    assert list(signature.outputs) == ["y"]


def test_onnx_with_its_weights_beside_it(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(onnx_bytes("weights/w.bin"))
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "w.bin").write_bytes(WEIGHTS.tobytes())
    outputs = load(tmp_path).run("serving_default", {"x": GIVEN}, ["y"])
    np.testing.assert_allclose(outputs["y"], WANTED, rtol=1e-6)


@pytest.mark.parametrize(
    "location",
    ["../secret.bin", "../../../../../../etc/passwd", "/etc/passwd", "link.bin", "absent.bin",
     "short.bin", "weights/../../secret.bin", ""],
)  # fmt: skip
def test_onnx_weights_come_from_nowhere_else(tmp_path: Path, location: str) -> None:
    """Not from outside the version's directory, by name or by link; not from half a file."""
    (tmp_path / "secret.bin").write_bytes(WEIGHTS.tobytes())
    version = tmp_path / "1"
    version.mkdir()
    (version / "link.bin").symlink_to(tmp_path / "secret.bin")
    (version / "short.bin").write_bytes(WEIGHTS.tobytes()[:-1])
    (version / "model.onnx").write_bytes(onnx_bytes(location))
    with pytest.raises(SealserveError) as caught:
        load(version)
    assert caught.value.code in ("servable.file_malformed", "servable.runtime_cannot")


def test_an_operator_that_openvino_has_not_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(onnx_bytes(activation=b"Mine", domain=b"my.domain"))
    with pytest.raises(SealserveError) as caught:
        load(tmp_path)
    assert "Mine" in caught.value.message


@pytest.mark.parametrize("weights", [None, b"", b"short"])
def test_openvino_ir_without_its_weights_is_refused(tmp_path: Path, weights: bytes | None) -> None:
    (tmp_path / "model.onnx").write_bytes(onnx_bytes())
    graph = ov.Core().read_model(tmp_path / "model.onnx")
    ov.save_model(graph, tmp_path / "model.xml", compress_to_fp16=False)
    (tmp_path / "model.onnx").unlink()
    (tmp_path / "model.bin").unlink()
    if weights is not None:
        (tmp_path / "model.bin").write_bytes(weights)
    with pytest.raises(SealserveError) as caught:
        load(tmp_path)
    assert caught.value.code == "servable.file_malformed"


def test_openvino_ir_names_no_entity_of_another_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("leaked")
    (tmp_path / "model.xml").write_text(
        f'<?xml version="1.0"?><!DOCTYPE net [<!ENTITY e SYSTEM "{tmp_path}/secret">]>'
        '<net name="&e;" version="11"><layers/><edges/></net>'
    )
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(SealserveError) as caught:
        load(tmp_path)
    assert caught.value.message == "the model has no output"
    assert ov.Core().read_model(tmp_path / "model.xml").get_friendly_name() == "&e;"


def test_a_file_takes_the_ranks_that_it_states(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(onnx_bytes())
    assert not load(tmp_path).signatures["serving_default"].elementwise


def test_an_elementwise_tensorflow_lite_file_takes_other_ranks(models: Path) -> None:
    """TensorFlow Serving's own suite sends [1] to an input of [1, 1]; TensorFlow Lite answers."""
    model = load(models / "lite" / "1")
    (signature,) = model.signatures.values()
    assert signature.elementwise
    asked = arrays_of(models / "lite" / "ranks.npz")
    for rank in (1, 3, 4):
        found = model.run(signature.name, {"x": asked[f"in_{rank}"]}, ["y"])["y"]
        np.testing.assert_allclose(found, asked[f"out_{rank}"], rtol=1e-6)
        assert found.shape == asked[f"in_{rank}"].shape


@pytest.mark.parametrize("operation", ["Squeeze", "Reshape"])
def test_tensorflow_lite_that_states_more_is_not_elementwise(models: Path, operation: str) -> None:
    assert not is_elementwise((models / "more/kinds/lite_example/1/model.tflite").read_bytes())
    content = bytearray((models / "lite" / "1" / "model.tflite").read_bytes())
    assert is_elementwise(bytes(content))
    # Each operator code that the file states becomes that of another operation.
    table = _Table(memoryview(content), struct.unpack_from("<I", content, 0)[0])
    for each in table.tables(1):
        content[each._field(0)] = {"Squeeze": 43, "Reshape": 22}[operation]
    assert not is_elementwise(bytes(content))


@pytest.mark.parametrize("name", ["model.onnx", "model.tflite", "model.xml"])
@pytest.mark.parametrize("content", [b"", b"nonsense", bytes(4096)])
def test_a_file_that_is_no_model_is_refused(
    tmp_path: Path, name: str, content: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    """OpenVINO's reader of TensorFlow's graphs had a look at it too, and printed it."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        load(tmp_path)
    assert caught.value.code == "servable.file_malformed"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["model.onnx", "model.tflite", "model.xml"])
def test_a_file_is_read_as_what_its_name_says(tmp_path: Path, name: str) -> None:
    """A frozen graph was served, without any of the proofs that are made of TensorFlow's."""
    graph = graph_pb2.GraphDef()
    x = graph.node.add(name="x", op="Placeholder")
    x.attr["dtype"].type = pb.DT_FLOAT
    x.attr["shape"].shape.dim.add(size=2)
    graph.node.add(name="y", op="Relu", input=["x"]).attr["T"].type = pb.DT_FLOAT
    (tmp_path / name).write_bytes(graph.SerializeToString())
    with pytest.raises(InputError) as caught:
        load(tmp_path)
    assert caught.value.code == "servable.file_malformed"


@pytest.mark.parametrize("kind", ["onnx", "xml", "bin", "tflite"])
def test_a_changed_file_is_refused_or_served_and_nothing_else(
    models: Path, tmp_path: Path, kind: str
) -> None:
    """OpenVINO's readers on broken files: a typed error, and the process goes on."""
    (tmp_path / "model.onnx").write_bytes(onnx_bytes())
    if kind in ("xml", "bin"):
        graph = ov.Core().read_model(tmp_path / "model.onnx")
        ov.save_model(graph, tmp_path / "model.xml", compress_to_fp16=False)
    if kind != "onnx":
        (tmp_path / "model.onnx").unlink()
    if kind == "tflite":
        shutil.copy(models / "lite" / "1" / "model.tflite", tmp_path)
    file = tmp_path / f"model.{kind}"
    whole, random = file.read_bytes(), Random(7)
    for _ in range(times(300, 25)):
        content = bytearray(whole)
        for _ in range(random.randint(1, 4)):
            content[random.randrange(len(content))] = random.randrange(256)
        file.write_bytes(content[: random.choice((None, random.randrange(len(content))))])
        with contextlib.suppress(SealserveError):
            load(tmp_path).close()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_changed_tensorflow_lite_file_gives_typed_errors_only(
    models: Path, data: st.DataObject
) -> None:
    content = bytearray((models / "lite" / "1" / "model.tflite").read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        position = data.draw(st.integers(0, len(content) - 4))
        struct.pack_into("<I", content, position, data.draw(st.integers(0, 2**32 - 1)))
    content = content[: data.draw(st.integers(0, len(content)))]
    with contextlib.suppress(InputError):
        read_signatures(bytes(content))
    with contextlib.suppress(InputError):
        is_elementwise(bytes(content))
