"""What clients send to the model server, by each of its ways in."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from fuzz.serving_codecs import FEATURES, LIMIT, example_seeds, message_of
from fuzz.target import Target, promised
from sealserve.errors import SealserveError
from sealserve.serving.access import Peer
from sealserve.serving.calls import Call
from sealserve.serving.config import ServerConfig
from sealserve.serving.dataplane import Dataplane
from sealserve.serving.grpc_services import PredictionService
from sealserve.serving.health import Health
from sealserve.serving.rest_api import RestApi
from sealserve.serving.runtimes.base import Model, Signature, TensorSpec
from sealserve.serving.runtimes.examples import parse_examples
from sealserve.serving.table import Table
from sealserve.serving.v2_binary import Packed
from sealserve.serving.v2_grpc import InferenceService
from sealserve.serving.v2_rest import RestV2
from sealserve.wire.serving import api_pb2, v2_pb2
from sealserve.wire.tensorflow import graph_pb2
from sealserve.wire.tensorflow import tensor_pb2 as pb
from sealserve.wire.tensors import Array, numpy_dtype, to_proto

__all__ = ["PREDICTIONS", "TARGETS"]

_TYPES = {
    "f": pb.DT_FLOAT,
    "d": pb.DT_DOUBLE,
    "h": pb.DT_HALF,
    "i": pb.DT_INT8,
    "q": pb.DT_INT64,
    "u": pb.DT_UINT64,
    "b": pb.DT_BOOL,
    "s": pb.DT_STRING,
    "z_bytes": pb.DT_STRING,
}


class _Echo(Model):
    """Gives back what it gets: one signature of each type, one of all, one of examples."""

    def __init__(self) -> None:
        self.refused: Mapping[str, SealserveError] = {}
        self.signatures: dict[str, Signature] = {}
        self.definitions: dict[str, graph_pb2.SignatureDef] = {}
        every = {key: TensorSpec(dtype, None) for key, dtype in _TYPES.items()}
        for key, spec in every.items():
            self._add(key, {key: spec}, {key: spec}, "predict")
        self._add("all", every, every, "predict")
        self._add("serving_default", {"f": every["f"]}, {"f": every["f"]}, "predict")
        examples = {"inputs": TensorSpec(pb.DT_STRING, (-1,))}
        self._add("classify", examples, {"scores": TensorSpec(pb.DT_FLOAT, (-1, 1))}, "classify")
        self._add("regress", examples, {"outputs": TensorSpec(pb.DT_FLOAT, (-1,))}, "regress")

    def _add(
        self,
        name: str,
        inputs: Mapping[str, TensorSpec],
        outputs: Mapping[str, TensorSpec],
        method: str,
    ) -> None:
        wire = graph_pb2.SignatureDef(method_name=f"tensorflow/serving/{method}")
        for entries, specs in ((wire.inputs, inputs), (wire.outputs, outputs)):
            for key, spec in specs.items():
                entries[key].dtype = spec.dtype  # type: ignore[assignment]
                entries[key].tensor_shape.unknown_rank = True
        self.signatures[name] = Signature(name, inputs, outputs, wire.method_name)
        self.definitions[name] = wire

    def run(
        self, signature: str, inputs: Mapping[str, Array], outputs: Sequence[str]
    ) -> dict[str, Array]:
        wanted = self.signatures[signature].inputs
        promised(set(inputs) == set(wanted))
        for key, array in inputs.items():
            promised(array.dtype == numpy_dtype(wanted[key].dtype))
        if signature == "classify":
            return {"scores": _x_of(inputs["inputs"]).reshape(-1, 1)}
        if signature == "regress":
            return {"outputs": _x_of(inputs["inputs"])}
        return {key: inputs[key] for key in outputs}

    def close(self) -> None:
        pass


def _x_of(serialized: Array) -> Array:
    return parse_examples(serialized, FEATURES)["x"]


_CONFIG = ServerConfig((), max_request_bytes=LIMIT)
_PLANE = Dataplane(Table.of("m", 3, _Echo()))
PREDICTIONS = PredictionService(_PLANE, _CONFIG)
_REST, _V2_REST = RestApi(_PLANE), RestV2(_PLANE)
_V2_GRPC = InferenceService(_PLANE, Health(Table.of("m", 3, _Echo())))  # type: ignore[arg-type]


def _call() -> Call:
    return Call("", "FUZZ", Peer())


# --- requests by gRPC ----------------------------------------------------------


def _predict_request(data: bytes) -> None:
    request = message_of(api_pb2.PredictRequest, data)
    response = PREDICTIONS.predict(request, _call())
    promised(response.model_spec.version.value == 3)
    for key, proto in response.outputs.items():
        sizes = [dim.size for dim in request.inputs[key].tensor_shape.dim]
        promised([dim.size for dim in proto.tensor_shape.dim] == sizes)


def _predict_seeds() -> list[bytes]:
    seeds = []
    for key, dtype in {"f": pb.DT_FLOAT, **_TYPES}.items():
        request = api_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = "m", key
        value: Any = np.ones(2, numpy_dtype(dtype))
        if dtype == pb.DT_STRING:
            value = np.array([b"a", b"bc"], object)
        request.inputs[key].CopyFrom(to_proto(value))
        seeds.append(request.SerializeToString())
    return seeds


def _multi_inference(data: bytes) -> None:
    request = message_of(api_pb2.MultiInferenceRequest, data)
    promised(len(PREDICTIONS.multi(request, _call()).results) == len(request.tasks))


def _multi_seeds() -> list[bytes]:
    request = api_pb2.MultiInferenceRequest()
    for method in ("classify", "regress"):
        task = request.tasks.add(method_name=f"tensorflow/serving/{method}")
        task.model_spec.name, task.model_spec.signature_name = "m", method
    request.input.example_list.examples.append(example_seeds()[0])
    return [request.SerializeToString()]


def _v2_infer(data: bytes) -> None:
    request = message_of(v2_pb2.ModelInferRequest, data)
    response = _V2_GRPC._infer(request, _call())
    promised(len(response.outputs) == len(response.raw_output_contents))


def _v2_infer_seeds() -> list[bytes]:
    seeds = []
    for raw in (True, False):
        request = v2_pb2.ModelInferRequest(model_name="m", id="7")
        tensor = request.inputs.add(name="f", datatype="FP32", shape=[2])
        if raw:
            request.raw_input_contents.append(bytes(8))
        else:
            tensor.contents.fp32_contents.extend([1.0, 2.0])
        seeds.append(request.SerializeToString())
    text = v2_pb2.ModelInferRequest(model_name="m", raw_input_contents=[b"\1\0\0\0a\0\0\0\0"])
    text.parameters["signature_name"].string_param = "s"
    text.inputs.add(name="s", datatype="BYTES", shape=[2])
    return [*seeds, text.SerializeToString()]


# --- requests by REST ----------------------------------------------------------


def _rest(path: str) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        _, work = _REST.find("POST", path)
        answer = json.loads(work(data, _call()))
        promised(set(answer) in ({"predictions"}, {"outputs"}, {"results"}))

    return run


def _rest_path(data: bytes) -> None:
    method, _, path = data.decode("latin-1").partition(" ")
    if (found := _V2_REST.find(method, path)) is None:
        found = _REST.find(method, path)
    _, work = found
    answer = work(b'{"instances": [1]}', _call())
    promised(isinstance(answer, bytes) and isinstance(json.loads(answer), dict))


def _v2_rest(data: bytes) -> None:
    """Up to a new line the length that the header states; the body behind it."""
    stated, _, body = data.partition(b"\n")
    length = stated.decode("latin-1") or None
    found = _V2_REST.find("POST", "/v2/models/m/infer", length)
    promised(found is not None)
    answer = found[1](body, _call()) if found else b""
    head = answer.body[: answer.json_size] if isinstance(answer, Packed) else answer
    outputs = json.loads(head)["outputs"]
    sizes = [each["parameters"]["binary_data_size"] for each in outputs if "data" not in each]
    behind = len(answer.body) - answer.json_size if isinstance(answer, Packed) else 0
    promised(sum(sizes) == behind)
    for each in outputs:
        promised("data" not in each or len(each["data"]) == prod(each["shape"]))


def _v2_rest_seeds() -> list[bytes]:
    tensor = {"name": "f", "datatype": "FP32", "shape": [2]}
    plain = json.dumps({"inputs": [{**tensor, "data": [1.0, 2.0]}]}).encode()
    raw = json.dumps(
        {
            "inputs": [{**tensor, "parameters": {"binary_data_size": 8}}],
            "outputs": [{"name": "f", "parameters": {"binary_data": True}}],
        }
    ).encode()
    text = json.dumps(
        {
            "inputs": [{"name": "s", "datatype": "BYTES", "shape": [1, 1], "data": [["a"]]}],
            "parameters": {"signature_name": "s", "binary_data_output": True},
        }
    ).encode()
    return [b"\n" + plain, b"%d\n" % len(raw) + raw + bytes(8), b"\n" + text]


def _rest_seeds() -> list[bytes]:
    every = {"f": 1, "d": 1.5, "h": 2, "i": -1, "q": 3, "u": 4, "b": True, "s": "a", "z_bytes": "b"}
    bodies: list[Any] = [
        {"instances": [1.0, 2]},
        {"signature_name": "all", "instances": [every, every]},
        {"signature_name": "all", "inputs": {key: [value] for key, value in every.items()}},
        {"signature_name": "s", "instances": [{"b64": "YQ=="}, "x"]},
        {"signature_name": "z_bytes", "inputs": [["a"], [{"b64": ""}]]},
    ]
    return [*(json.dumps(each).encode() for each in bodies), b'{"inputs": [NaN, -Infinity]}']


def _rest_example_seeds() -> list[bytes]:
    bodies: list[Any] = [
        {"signature_name": "regress", "examples": [{"x": 1.0, "n": [1, 2]}, {"x": [2.0]}]},
        {"signature_name": "regress", "context": {"x": 1.0}, "examples": [{"t": {"b64": "YQ=="}}]},
    ]
    return [json.dumps(each).encode() for each in bodies]


def _path_seeds() -> list[bytes]:
    return [
        b"GET /v1/models/m",
        b"GET /v1/models/m/versions/3/metadata",
        b"POST /v1/models/m:predict",
        b"POST /v1/models/%6D/versions/3:predict",
        b"GET /v1/models/m/labels/stable",
        b"GET /v2/models/m/versions/3/ready",
        b"GET /v2/models/m",
        b"GET /v2",
    ]


TARGETS: dict[str, Target] = {
    "predict-request": Target(_predict_request, _predict_seeds, 1024),
    "multi-inference": Target(_multi_inference, _multi_seeds, 1024),
    "v2-infer": Target(_v2_infer, _v2_infer_seeds, 1024),
    "v2-rest": Target(_v2_rest, _v2_rest_seeds, 1024),
    "rest-predict": Target(_rest("/v1/models/m:predict"), _rest_seeds),
    "rest-regress": Target(_rest("/v1/models/m:regress"), _rest_example_seeds),
    "rest-path": Target(_rest_path, _path_seeds, 512),
}
