"""gRPC over TLS, called by TensorFlow's own stubs and by bytes that mean nothing."""

from __future__ import annotations

import json
import subprocess
import threading
from pathlib import Path

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sealserve.serving.config import ModelConfig
from sealserve.wire.serving import api_pb2
from sealserve.wire.tensorflow import tensor_pb2 as pb
from sealserve.wire.tensors import to_array, to_proto
from tests.serving.conftest import Running, arrays_of
from tests.serving.fakes import FakeServer, make_versions

TYPED_FIELDS = {"float_val", "int_val", "int64_val", "half_val", "bool_val"}


def test_tensorflows_own_client_gets_tensorflows_own_numbers(
    running: Running, models: Path, oracle: Path, tmp_path: Path
) -> None:
    certificate = tmp_path / "server.crt"
    certificate.write_bytes(running.owner.certificate)
    script = Path(__file__).with_name("call_server.py")
    called = subprocess.run(
        [oracle, script, str(running.grpc_port), certificate, models, tmp_path],
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert called.returncode == 0, called.stderr[-2000:]
    report = json.loads((tmp_path / "report.json").read_text())

    files = sorted(models.glob("*.npz"))
    assert len(files) >= 9
    for file in files:
        wanted, answer = arrays_of(file), arrays_of(tmp_path / file.name)
        outputs = [key for key in wanted if key.startswith("out_")]
        assert {key[4:] for key in outputs} == set(answer)
        for key in outputs:
            assert answer[key[4:]].dtype == wanted[key].dtype
            np.testing.assert_allclose(answer[key[4:]], wanted[key], rtol=1e-4, atol=1e-5)
        name, signature = file.stem.split(".")
        assert report["specs"][file.stem] == [name, 1, signature]
        assert set(report["fields"][file.stem]) <= TYPED_FIELDS

    # y = x / 2 + 2 + (0.5 - 1), and twice that: what the model's defaults make of it.
    assert report["classes"] == [[2.5, 5.0], [0.75, 1.5]]
    assert report["values"] == [2.5, 0.75]
    metadata = report["metadata"]
    assert metadata["version"] == 1
    assert set(metadata["signatures"]) == {"serving_default", "pairs", "__saved_model_init_op"}
    default = metadata["signatures"]["serving_default"]
    assert default["method"] == "tensorflow/serving/predict"
    assert default["inputs"] == {"x": ["serving_default_x:0", pb.DT_FLOAT]}
    assert [entry[:3] for entry in report["states"]["affine"]] == [[2, 30, 0], [1, 30, 0]]
    (counter,) = report["states"]["trap_counter"]
    assert counter[:3] == [1, 50, grpc.StatusCode.UNIMPLEMENTED.value[0]]
    assert "AssignAddVariableOp" in counter[3]


def predict_request(**inputs: pb.TensorProto) -> api_pb2.PredictRequest:
    request = api_pb2.PredictRequest()
    request.model_spec.name = "affine"
    request.model_spec.version.value = 1
    for key, proto in inputs.items():
        request.inputs[key].CopyFrom(proto)
    return request


X = to_proto(np.array([1, 2], "f4"))


def error_of(running: Running, method: str, request: bytes) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        running.call(method, request)
    return caught.value.code().name, caught.value.details()


def predict_error(running: Running, request: api_pb2.PredictRequest) -> tuple[str, str]:
    return error_of(running, "PredictionService/Predict", request.SerializeToString())


def test_output_filter_and_tensor_content(running: Running) -> None:
    u = pb.TensorProto(dtype=pb.DT_FLOAT, tensor_content=np.array([1, 2], "<f4").tobytes())
    for size in (1, 2):
        u.tensor_shape.dim.add(size=size)
    request = predict_request(u=u)
    request.model_spec.signature_name = "pairs"
    request.output_filter.append("total")
    raw = running.call("PredictionService/Predict", request.SerializeToString())
    response = api_pb2.PredictResponse.FromString(raw)
    assert set(response.outputs) == {"total"}
    assert list(response.outputs["total"].float_val) == [6.0]


def test_a_version_may_be_named_by_its_label(running: Running) -> None:
    request = predict_request(x=X)
    request.model_spec.version_label = "stable"
    raw = running.call("PredictionService/Predict", request.SerializeToString())
    assert api_pb2.PredictResponse.FromString(raw).model_spec.version.value == 1
    request.model_spec.version_label = "canary"
    assert predict_error(running, request) == (
        "INVALID_ARGUMENT",
        "Unrecognized servable version label: canary",
    )


def test_errors_have_tensorflow_servings_words(running: Running) -> None:
    request = predict_request(x=X)
    request.model_spec.name = "nope"
    assert predict_error(running, request) == (
        "NOT_FOUND",
        "Servable not found for request: Specific(nope, 1)",
    )
    request.model_spec.ClearField("version")
    assert predict_error(running, request) == (
        "NOT_FOUND",
        "Servable not found for request: Latest(nope)",
    )
    request = predict_request(x=X)
    request.model_spec.signature_name = "nope"
    assert predict_error(running, request) == (
        "FAILED_PRECONDITION",
        'Serving signature key "nope" not found.',
    )
    assert predict_error(running, api_pb2.PredictRequest()) == (
        "INVALID_ARGUMENT",
        "Missing ModelSpec",
    )
    assert predict_error(running, predict_request(y=X)) == (
        "INVALID_ARGUMENT",
        (
            "input size does not match signature: 1!=1 len({y}) != len({x}). Sent extra: {y}. "
            "Missing but required: {x}."
        ),
    )
    request = predict_request(x=X)
    request.output_filter.append("nope")
    assert predict_error(running, request) == (
        "INVALID_ARGUMENT",
        "output tensor alias not found in signature: nope Outputs expected to be in the set {y}.",
    )
    request.output_filter[:] = ["y", "y"]
    assert predict_error(running, request)[1] == "duplicate output tensor alias: y"


@pytest.mark.parametrize(
    ("tensor", "code", "words"),
    [
        (to_proto(np.array([1], "i4")), "INVALID_ARGUMENT", "expects DT_FLOAT but DT_INT32"),
        (to_proto(np.array(["a"])), "INVALID_ARGUMENT", "DT_STRING"),
        (pb.TensorProto(dtype=pb.DT_RESOURCE), "INVALID_ARGUMENT", "DT_RESOURCE"),
        (pb.TensorProto(), "INVALID_ARGUMENT", "DT_INVALID"),
    ],
)
def test_wrong_tensors(running: Running, tensor: pb.TensorProto, code: str, words: str) -> None:
    found, details = predict_error(running, predict_request(x=tensor))
    assert found == code
    assert words in details


def test_a_tensor_that_claims_more_than_it_may_is_refused_before_memory_is_taken(
    running: Running,
) -> None:
    huge = pb.TensorProto(dtype=pb.DT_FLOAT, float_val=[1.0])
    huge.tensor_shape.dim.add(size=2**40)
    assert predict_error(running, predict_request(x=huge))[0] == "RESOURCE_EXHAUSTED"


def test_a_message_beyond_the_limit_is_refused(running: Running) -> None:
    large = to_proto(np.zeros(2_000_000, "f4"), typed_fields=False)
    assert predict_error(running, predict_request(x=large))[0] == "RESOURCE_EXHAUSTED"


def test_a_name_of_any_length_is_answered(running: Running) -> None:
    code, details = predict_error(running, predict_request(**{"y" * 100_000: X}))
    assert code == "INVALID_ARGUMENT"
    assert details.startswith("input size does not match signature")


def test_an_empty_batch_is_an_empty_answer(running: Running) -> None:
    request = predict_request(x=to_proto(np.zeros(0, "f4")))
    raw = running.call("PredictionService/Predict", request.SerializeToString())
    outputs = api_pb2.PredictResponse.FromString(raw).outputs
    assert to_array(outputs["y"], 100).shape == (0,)


def test_metadata_and_status_errors(running: Running) -> None:
    request = api_pb2.GetModelMetadataRequest()
    request.model_spec.name = "affine"
    method = "PredictionService/GetModelMetadata"
    assert error_of(running, method, request.SerializeToString())[0] == "INVALID_ARGUMENT"
    request.metadata_field.append("graph")
    assert error_of(running, method, request.SerializeToString()) == (
        "INVALID_ARGUMENT",
        "Metadata field graph is not supported",
    )
    status = api_pb2.GetModelStatusRequest()
    status.model_spec.name = "nope"
    assert error_of(running, "ModelService/GetModelStatus", status.SerializeToString()) == (
        "NOT_FOUND",
        "Could not find any versions of model nope",
    )
    status.model_spec.name = "affine"
    status.model_spec.version.value = 9
    assert error_of(running, "ModelService/GetModelStatus", status.SerializeToString()) == (
        "NOT_FOUND",
        "Could not find version 9 of model affine",
    )
    assert error_of(running, "PredictionService/Nothing", b"")[0] == "UNIMPLEMENTED"


_VALID = predict_request(x=X).SerializeToString()
TYPED = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED"}
TYPED |= {"UNIMPLEMENTED", "OUT_OF_RANGE"}


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_bytes_that_are_no_request_get_typed_errors(running: Running, data: st.DataObject) -> None:
    if data.draw(st.booleans()):
        raw = data.draw(st.binary(max_size=200))
    else:
        damaged = bytearray(_VALID)
        for _ in range(data.draw(st.integers(1, 4))):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        raw = bytes(damaged)
    for method in ("PredictionService/Predict", "PredictionService/GetModelMetadata"):
        assert outcome(running, method, raw) in TYPED


def outcome(running: Running, method: str, raw: bytes) -> str:
    try:
        running.call(method, raw)
    except grpc.RpcError as error:
        code: str = error.code().name
        return code
    return "OK"


def refusal_of(port: int) -> grpc.StatusCode:
    """How a new client is refused once the server has stopped taking requests."""
    while True:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
            try:
                call(_VALID, timeout=0.5)
            except grpc.RpcError as error:
                # Accepted just before the stop, it waits for the slow model like the first.
                if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                    return error.code()


def test_a_request_under_way_is_finished_and_a_new_one_refused(tmp_path: Path) -> None:
    world = FakeServer(ModelConfig("affine", make_versions(tmp_path / "m", 1)))
    front, model = world.grpc, world.runtime.models["m/1"]
    model.may_end.clear()
    with grpc.insecure_channel(f"127.0.0.1:{front.port}") as channel:
        call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        pending = call.future(_VALID, timeout=60)
        assert model.begun.wait(20)
        stopping = threading.Thread(target=front.stop, args=(60,))
        stopping.start()
        # gRPC says CANCELLED to a call that reached it in the moment of stopping.
        assert refusal_of(front.port).name in ("UNAVAILABLE", "CANCELLED")
        model.may_end.set()
        response = api_pb2.PredictResponse.FromString(pending.result(20))
        assert list(response.outputs["y"].float_val) == [2.0, 3.0]
        stopping.join(20)
    world.catalog.close()
