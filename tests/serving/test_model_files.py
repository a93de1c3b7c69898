"""Models that are one file: TensorFlow Lite, ONNX, OpenVINO IR."""

from __future__ import annotations

import contextlib
import io
import struct
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealserve.errors import InputError
from sealserve.logs import make_log
from sealserve.serving.config import RuntimeConfig
from sealserve.serving.runtimes.base import Model
from sealserve.serving.runtimes.choice import ChoosingRuntime
from sealserve.serving.runtimes.tflite import read_signatures

WEIGHTS = np.array([[1, 2], [3, 4], [5, 6], [7, 8]], "f4")
GIVEN = np.array([[1, -1, 0.5, 2], [-9, 0, 0, 0]], "f4")
WANTED = np.maximum(GIVEN @ WEIGHTS, 0)


def load(version: Path) -> Model:
    return ChoosingRuntime(RuntimeConfig(tensorflow="off"), make_log(io.StringIO())).load(version)


def _field(number: int, value: bytes | int) -> bytes:
    """One protobuf field; ONNX's own library is not needed for a model of two nodes."""
    if isinstance(value, int):
        return bytes([number << 3]) + _varint(value)
    return bytes([number << 3 | 2]) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def _onnx() -> bytes:
    """ModelProto: y = Relu(x @ WEIGHTS), written from the field numbers of onnx.proto."""

    def value(name: bytes, *sizes: int | bytes) -> bytes:
        dims = b"".join(
            _field(1, _field(2 if isinstance(size, bytes) else 1, size)) for size in sizes
        )
        tensor = _field(1, 1) + _field(2, dims)
        return _field(1, name) + _field(2, _field(1, tensor))

    weights = _field(1, 4) + _field(1, 2) + _field(2, 1) + _field(8, b"w")
    weights += _field(9, WEIGHTS.tobytes())
    product = _field(1, b"x") + _field(1, b"w") + _field(2, b"h") + _field(4, b"MatMul")
    relu = _field(1, b"h") + _field(2, b"y") + _field(4, b"Relu")
    graph = _field(1, product) + _field(1, relu) + _field(2, b"g") + _field(5, weights)
    graph += _field(11, value(b"x", b"n", 4)) + _field(12, value(b"y", b"n", 2))
    return _field(1, 8) + _field(7, graph) + _field(8, _field(2, 17))


def test_onnx(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(_onnx())
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
    (tmp_path / "model.onnx").write_bytes(_onnx())
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


@pytest.mark.parametrize("name", ["model.onnx", "model.tflite", "model.xml"])
@pytest.mark.parametrize("content", [b"", b"nonsense", bytes(4096)])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        load(tmp_path)
    assert caught.value.code == "servable.file_malformed"


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
