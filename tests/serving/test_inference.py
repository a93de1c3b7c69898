"""Classify, Regress and MultiInference: the forms, and each refusal in the original's words."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealserve.errors import InputError
from sealserve.serving.inference import CLASSIFY, REGRESS, to_classes, to_values
from sealserve.serving.runtimes.examples import DenseFeature, parse_examples
from sealserve.wire.serving import api_pb2
from sealserve.wire.tensorflow import example_pb2, graph_pb2
from sealserve.wire.tensorflow import tensor_pb2 as pb
from tests.serving.conftest import Running

URL = "/v1/models/examples/versions/1"


def example(**values: list[float]) -> bytes:
    wire = example_pb2.Example()
    for key, value in values.items():
        wire.features.feature[key].float_list.value.extend(value)
    return wire.SerializeToString()


def test_rest_classify_and_regress(running: Running) -> None:
    body = {"signature_name": "classify", "examples": [{"x": 2.0}, {"x": [-1.5]}]}
    assert running.rest("POST", f"{URL}:classify", body) == (
        200,
        {"results": [[["", 2.5], ["", 5.0]], [["", 0.75], ["", 1.5]]]},
    )
    body = {"signature_name": "regress", "context": {"more": [1.0, 1.0]}, "examples": [{"x": 2.0}]}
    assert running.rest("POST", f"{URL}:Regress", body) == (200, {"results": [5.0]})


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"examples": []}, "'examples' value is an empty array"),
        ({"examples": 1}, "Expecting 'examples' value to be an list/array"),
        ({}, "key 'examples' is expected and was not found"),
        ({"examples": [1]}, "Example must be JSON object but got JSON Number"),
        ({"examples": [{"x": None}]}, "Feature: x has element with unexpected JSON type: Null"),
        ({"examples": [{"x": [[1.0]]}]}, "unexpected JSON type: Array"),
        ({"examples": [{"x": {"y": 1}}]}, "unexpected JSON type: Object"),
        ({"examples": [{"x": [1.0, "a"]}]}, "Unexpected element type in feature: x"),
        ({"examples": [{"x": 2**63}]}, "Only int64_t is supported"),
        ({"examples": [{"x": {"b64": "?"}}]}, "Unable to base64 decode"),
        ({"examples": [{"x": 1}]}, "Data types don't match. Data type: int64 but expected type:"),
        ({"examples": [{"x": [1.0, 2.0]}]}, "Number of float values != expected"),
        ({"examples": [{"y": 1.0}]}, "Feature: x (data type: float) is required"),
        ({"examples": [{"x": 1.0}], "signature_name": "no"}, "No signature was found with the"),
        ({"examples": [{"x": 1.0}], "signature_name": "regress"}, "to contain at least one of"),
        ({"examples": [{"x": 1.0}], "signature_name": "serving_default"}, "No classification inp"),
    ],
)
def test_bad_classify_bodies(running: Running, body: dict[str, Any], words: str) -> None:
    status, answer = running.rest("POST", f"{URL}:classify", {"signature_name": "classify"} | body)
    assert status == 400
    assert words in answer["error"]


def multi(running: Running, change: Any) -> tuple[str, str]:
    request = api_pb2.MultiInferenceRequest()
    request.input.example_list.examples.append(example(x=[1.0]))
    for name in ("classify", "regress"):
        task = request.tasks.add(method_name=f"tensorflow/serving/{name}")
        task.model_spec.name, task.model_spec.signature_name = "examples", name
    change(request)
    with pytest.raises(grpc.RpcError) as caught:
        running.call("PredictionService/MultiInference", request.SerializeToString())
    return caught.value.code().name, caught.value.details()


def test_bad_multi_inferences(running: Running) -> None:
    def other(wire: Any) -> None:
        wire.tasks[1].model_spec.name = "affine"

    def nameless(wire: Any) -> None:
        wire.tasks[1].model_spec.name = ""

    def twice(wire: Any) -> None:
        wire.tasks[1].model_spec.signature_name = "classify"

    def unknown(wire: Any) -> None:
        wire.tasks[1].model_spec.signature_name = "no"

    def unsupported(wire: Any) -> None:
        wire.tasks[1].method_name = "tensorflow/serving/predict"

    def empty(wire: Any) -> None:
        wire.input.Clear()

    bad = "INVALID_ARGUMENT"
    assert multi(running, other) == (
        bad,
        "All ModelSpecs in a MultiInferenceRequest must access the same model name.",
    )
    assert multi(running, nameless) == (bad, "Found ModelSpec with an empty model name.")
    assert multi(running, twice) == (bad, "Duplicate evaluation of signature: classify")
    assert multi(running, unknown) == (
        bad,
        "Requested signature not found in model graph: no",
    )
    assert multi(running, unsupported) == (
        "UNIMPLEMENTED",
        "Unsupported signature method_name: tensorflow/serving/predict",
    )
    assert multi(running, empty) == (bad, "Input is empty.")


def test_method_names_are_checked_when_asked_for() -> None:
    wire = graph_pb2.SignatureDef(method_name="tensorflow/serving/predict")
    wire.inputs["inputs"].name = "a:0"
    wire.outputs["outputs"].name = "b:0"
    REGRESS.check(wire, method_name_too=False)
    with pytest.raises(InputError, match="Expected regression signature method_name to be"):
        REGRESS.check(wire, method_name_too=True)
    wire.outputs["more"].name = "c:0"
    with pytest.raises(InputError, match=r"Expected one output Tensor\."):
        REGRESS.check(wire, method_name_too=False)
    wire.outputs["scores"].name = "c:0"
    with pytest.raises(InputError, match="Expected one or two output Tensors, found 3"):
        CLASSIFY.check(wire, method_name_too=False)


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ({"scores": np.zeros(2, "f4")}, "Expected Tensor shape: [batch_size num_classes]"),
        ({"scores": np.zeros((2, 1), "f8")}, "Expected scores Tensor of DT_FLOAT. Got: DT_DOUBLE"),
        ({"scores": np.zeros((3, 1), "f4")}, "Expected scores output batch size of 2. Got: 3"),
        ({"classes": np.zeros((2, 1), "f4")}, "Expected classes Tensor of DT_STRING"),
        (
            {"classes": np.full((2, 3), b"a", object), "scores": np.zeros((2, 1), "f4")},
            "Tensors class and score should match in dim_size(1). Got 3 vs. 1",
        ),
    ],
)
def test_outputs_that_are_no_classes(outputs: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        to_classes(outputs, 2)
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((2, 2), "f4"), "to be either [batch_size] or [batch_size, 1] but got [2,2]"),
        (np.zeros(3, "f4"), "Input batch size did not match output batch size: 2 vs. 3"),
        (np.zeros(2, "i4"), "Expected output Tensor of DT_FLOAT.  Got: DT_INT32"),
    ],
)
def test_outputs_that_are_no_values(array: Any, words: str) -> None:
    with pytest.raises(InputError) as caught:
        to_values({"outputs": array}, 2)
    assert words in caught.value.message


def test_labels_and_scores_go_together() -> None:
    outputs = {"classes": np.array([[b"cat", b"\xff"]], object), "scores": np.ones((1, 2), "f4")}
    assert to_classes(outputs, 1) == [[("cat", 1.0), ("\ufffd", 1.0)]]
    assert to_classes({"classes": outputs["classes"]}, 1) == [[("cat", 0.0), ("\ufffd", 0.0)]]


FEATURES = (
    DenseFeature("f", "f", pb.DT_FLOAT, (2,), np.zeros(2, "f4")),
    DenseFeature("i", "i", pb.DT_INT64, (), None),
    DenseFeature("s", "s", pb.DT_STRING, (1,), np.array([b"-"], object)),
)


@given(
    st.lists(
        st.tuples(
            st.none() | st.tuples(st.floats(width=32), st.floats(width=32)),
            st.integers(-(2**63), 2**63 - 1),
            st.none() | st.binary(max_size=5),
        ),
        max_size=5,
    )
)
def test_examples_give_the_values_that_were_put_in(rows: list[Any]) -> None:
    serialized = np.empty(len(rows), object)
    for position, (floats, integer, text) in enumerate(rows):
        wire = example_pb2.Example()
        if floats is not None:
            wire.features.feature["f"].float_list.value.extend(floats)
        wire.features.feature["i"].int64_list.value.append(integer)
        if text is not None:
            wire.features.feature["s"].bytes_list.value.append(text)
        serialized[position] = wire.SerializeToString()
    found = parse_examples(serialized, FEATURES)
    assert {key: array.shape for key, array in found.items()} == {
        "f": (len(rows), 2),
        "i": (len(rows),),
        "s": (len(rows), 1),
    }
    for position, (floats, integer, text) in enumerate(rows):
        np.testing.assert_array_equal(
            found["f"][position], np.array([0, 0] if floats is None else floats, "f4")
        )
        assert found["i"][position] == integer
        assert found["s"][position].tolist() == [b"-" if text is None else text]


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=3))
def test_bytes_that_are_no_examples_are_refused(items: list[bytes]) -> None:
    serialized = np.empty(len(items), object)
    serialized[:] = items
    with pytest.raises(InputError):  # random bytes never hold the required feature
        parse_examples(serialized, FEATURES)


def test_defaults_cannot_be_made_to_fill_the_memory() -> None:
    large = DenseFeature("f", "f", pb.DT_FLOAT, (2**20,), np.zeros(2**20, "f4"))
    serialized = np.full(10**6, b"", object)
    with pytest.raises(InputError) as caught:
        parse_examples(serialized, (large,))
    assert caught.value.code == "tensor.too_large"
