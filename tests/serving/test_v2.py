"""The Open Inference Protocol: gRPC and REST say the same as TensorFlow Serving's own API."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sealserve.errors import InputError
from sealserve.serving import v2
from sealserve.wire.serving import api_pb2, v2_pb2
from sealserve.wire.tensors import to_proto
from tests.serving.conftest import Running


def call(running: Running, method: str, request: Any, answer: Any) -> Any:
    with running.channel() as channel:
        stub = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
        return answer.FromString(stub(request.SerializeToString(), timeout=20))


def infer_request(values: list[float], *, raw: bool, model: str = "affine") -> Any:
    request = v2_pb2.ModelInferRequest(model_name=model, id="42")
    tensor = request.inputs.add(name="x", datatype="FP32", shape=[len(values)])
    if raw:
        request.raw_input_contents.append(np.array(values, "<f4").tobytes())
    else:
        tensor.contents.fp32_contents.extend(values)
    return request


@pytest.mark.parametrize("raw", [False, True])
def test_inference_over_grpc(running: Running, raw: bool) -> None:
    answer = call(running, "ModelInfer", infer_request([1, 2], raw=raw), v2_pb2.ModelInferResponse)
    assert (answer.model_name, answer.model_version, answer.id) == ("affine", "2", "42")
    (output,) = answer.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("y", "FP32", [2])
    assert np.frombuffer(answer.raw_output_contents[0], "<f4").tolist() == [5.0, 9.0]


def test_inference_over_rest(running: Running) -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1.0, 2.0]}
    status, answer = running.rest(
        "POST", "/v2/models/affine/versions/1/infer", {"id": "a", "inputs": [tensor]}
    )
    assert (status, answer) == (
        200,
        {
            "model_name": "affine",
            "model_version": "1",
            "id": "a",
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [2], "data": [5.0, 8.0]}],
        },
    )
    tensor = {"name": "u", "datatype": "FP32", "shape": [1, 2], "data": [[1, 2]]}
    body = {
        "inputs": [tensor],
        "outputs": [{"name": "same"}],
        "parameters": {"signature_name": "pairs"},
    }
    status, answer = running.rest("POST", "/v2/models/affine/versions/1/infer", body)
    assert status == 200, answer
    assert answer["outputs"] == [
        {"name": "same", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}
    ]


def test_readiness_and_metadata(running: Running) -> None:
    assert running.rest("GET", "/v2/health/live") == (200, {"live": True})
    assert running.rest("GET", "/v2/health/ready") == (200, {"ready": True})
    assert running.rest("GET", "/v2")[1]["name"] == "sealserve"
    assert running.rest("GET", "/v2/models/affine/ready") == (
        200,
        {"name": "affine", "ready": True},
    )
    assert running.rest("GET", "/v2/models/trap_counter/ready")[0] == 404
    assert running.rest("GET", "/v2/models/affine") == (
        200,
        {
            "name": "affine",
            "versions": ["2", "1"],
            "platform": "sealserve",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1]}],
        },
    )
    metadata = call(
        running,
        "ModelMetadata",
        v2_pb2.ModelMetadataRequest(name="affine"),
        v2_pb2.ModelMetadataResponse,
    )
    assert [(each.name, each.datatype) for each in metadata.inputs] == [("x", "FP32")]
    for method, request, answer, field in (
        ("ServerLive", v2_pb2.ServerLiveRequest(), v2_pb2.ServerLiveResponse, "live"),
        ("ServerReady", v2_pb2.ServerReadyRequest(), v2_pb2.ServerReadyResponse, "ready"),
        (
            "ModelReady",
            v2_pb2.ModelReadyRequest(name="affine", version="1"),
            v2_pb2.ModelReadyResponse,
            "ready",
        ),
    ):
        assert getattr(call(running, method, request, answer), field) is True
    unknown = v2_pb2.ModelReadyRequest(name="no")
    assert not call(running, "ModelReady", unknown, v2_pb2.ModelReadyResponse).ready


TENSOR = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1.5, 2.5]}


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({}, 400, "'inputs' must be a list"),
        ({"inputs": [{"name": "x"}]}, 400, "an input has a name, a datatype, a shape and data"),
        ({"shape": [3]}, 400, "2 values for 3 elements"),
        ({"shape": [-1]}, 400, "each dimension must be 0 or more"),
        ({"shape": [2**40, 2**40]}, 400, "too many elements"),
        ({"datatype": "FP8"}, 400, "is not served"),
        ({"datatype": "INT32"}, 400, "not of expected type"),
        ({"datatype": "FP64"}, 400, "expects DT_FLOAT but float64"),
        ({"name": "y"}, 400, "Sent extra: {y}"),
        ({"data": ["a", "b"]}, 400, "not of expected type"),
        ({"inputs": [TENSOR, TENSOR]}, 400, "input 'x': it is given twice"),
    ],
)
def test_bad_requests(running: Running, body: dict[str, Any], status: int, words: str) -> None:
    whole = body if not body or "inputs" in body else {"inputs": [TENSOR | body]}
    found, answer = running.rest("POST", "/v2/models/affine/infer", whole)
    assert found == status
    assert words in answer["error"]


def test_bad_grpc_requests(running: Running) -> None:
    def refused(change: Any) -> str:
        request = infer_request([1, 2], raw=True)
        change(request)
        with pytest.raises(grpc.RpcError) as caught:
            call(running, "ModelInfer", request, v2_pb2.ModelInferResponse)
        return str(caught.value.code().name)

    assert refused(lambda r: setattr(r, "model_name", "no")) == "NOT_FOUND"
    assert refused(lambda r: setattr(r, "model_version", "x")) == "INVALID_ARGUMENT"
    assert refused(lambda r: r.raw_input_contents.append(b"")) == "INVALID_ARGUMENT"
    assert refused(lambda r: setattr(r.inputs[0], "datatype", "BYTES")) == "INVALID_ARGUMENT"
    assert refused(lambda r: r.inputs[0].shape.append(2**50)) == "INVALID_ARGUMENT"
    assert refused(lambda r: r.outputs.add(name="no")) == "INVALID_ARGUMENT"

    def twice(request: Any) -> None:
        request.inputs.append(request.inputs[0])
        request.raw_input_contents.append(request.raw_input_contents[0])

    assert refused(twice) == "INVALID_ARGUMENT"

    def classified(request: Any) -> None:
        request.outputs.add(name="y").parameters["classification"].int64_param = 3

    assert refused(classified) == "INVALID_ARGUMENT"


@pytest.mark.parametrize("name", ["classification", "shared_memory_region"])
def test_what_would_not_be_done_is_refused(running: Running, name: str) -> None:
    """Passed over, the client would take numbers for labels, or read memory nobody wrote."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}
    body = {"inputs": [tensor], "outputs": [{"name": "y", "parameters": {name: 1}}]}
    status, answer = running.rest("POST", "/v2/models/affine/infer", body)
    assert status == 400
    assert f"{name} is an extension that is not served" in answer["error"]


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=6))
def test_both_protocols_and_both_fronts_agree(running: Running, values: list[float]) -> None:
    answer = call(running, "ModelInfer", infer_request(values, raw=True), v2_pb2.ModelInferResponse)
    wanted = np.frombuffer(answer.raw_output_contents[0], "<f4")
    tensor = {"name": "x", "datatype": "FP32", "shape": [len(values)], "data": values}
    _, rest = running.rest("POST", "/v2/models/affine/infer", {"inputs": [tensor]})
    np.testing.assert_array_equal(np.array(rest["outputs"][0]["data"], "f4"), wanted)
    _, rows = running.rest("POST", "/v1/models/affine:predict", {"instances": values})
    np.testing.assert_array_equal(np.array(rows["predictions"], "f4"), wanted)
    request = api_pb2.PredictRequest()
    request.model_spec.name = "affine"
    request.inputs["x"].CopyFrom(to_proto(np.array(values, "f4")))
    raw = running.call("PredictionService/Predict", request.SerializeToString())
    outputs = api_pb2.PredictResponse.FromString(raw).outputs
    np.testing.assert_array_equal(np.array(outputs["y"].float_val, "f4"), wanted)


@given(
    st.lists(st.binary(max_size=6), max_size=5),
    st.binary(max_size=40),
)
def test_raw_strings_survive_and_any_bytes_are_strings_or_refused(
    items: list[bytes], noise: bytes
) -> None:
    array = np.empty(len(items), object)
    array[:] = items
    assert v2.from_raw("x", "BYTES", [len(items)], v2.to_raw(array)).tolist() == items
    try:
        again = v2.from_raw("x", "BYTES", [2], noise)
    except InputError:
        return
    assert v2.to_raw(again) == noise
