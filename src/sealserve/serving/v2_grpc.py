"""inference.GRPCInferenceService: the Open Inference Protocol over gRPC."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np

from sealserve import __version__
from sealserve.serving import v2
from sealserve.serving.calls import Call
from sealserve.serving.dataplane import Dataplane
from sealserve.serving.grpc_method import Methods
from sealserve.serving.health import Health
from sealserve.serving.v2_binary import EXTENSION
from sealserve.wire.serving import v2_pb2 as wire
from sealserve.wire.tensors import Array

__all__ = ["InferenceService"]

_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


class InferenceService:
    """Liveness, readiness, metadata and inference."""

    def __init__(self, dataplane: Dataplane, health: Health) -> None:
        self._dataplane = dataplane
        self._health = health

    def handler(self, methods: Methods) -> grpc.GenericRpcHandler[bytes, bytes]:
        """What gRPC is to serve."""
        make = methods.make
        return grpc.method_handlers_generic_handler(
            "inference.GRPCInferenceService",
            {
                "ServerLive": make("ServerLive", wire.ServerLiveRequest, self._live, None),
                "ServerReady": make("ServerReady", wire.ServerReadyRequest, self._ready, None),
                "ModelReady": make("ModelReady", wire.ModelReadyRequest, self._model_ready),
                "ServerMetadata": make("ServerMetadata", wire.ServerMetadataRequest, self._server),
                "ModelMetadata": make("ModelMetadata", wire.ModelMetadataRequest, self._model),
                "ModelInfer": make("ModelInfer", wire.ModelInferRequest, self._infer),
            },
        )

    def _live(self, _: Any, __: Call) -> wire.ServerLiveResponse:
        return wire.ServerLiveResponse(live=True)

    def _ready(self, _: Any, __: Call) -> wire.ServerReadyResponse:
        return wire.ServerReadyResponse(ready=self._health.ready)

    def _model_ready(self, request: wire.ModelReadyRequest, call: Call) -> wire.ModelReadyResponse:
        call.model = request.name
        ready = v2.is_ready(self._dataplane, request.name, request.version)
        return wire.ModelReadyResponse(ready=ready)

    def _server(self, _: Any, __: Call) -> wire.ServerMetadataResponse:
        return wire.ServerMetadataResponse(
            name=v2.PLATFORM, version=__version__, extensions=[EXTENSION]
        )

    def _model(self, request: wire.ModelMetadataRequest, call: Call) -> wire.ModelMetadataResponse:
        call.model = request.name
        spec = v2.spec_of(request.name, request.version)
        call.version, definition = v2.described(self._dataplane, spec)
        response = wire.ModelMetadataResponse(
            name=request.name,
            versions=v2.versions_of(self._dataplane, request.name),
            platform=v2.PLATFORM,
        )
        for entries, infos in (
            (response.inputs, definition.inputs),
            (response.outputs, definition.outputs),
        ):
            for key in sorted(infos):
                shape = infos[key].tensor_shape
                sizes = [-1] if shape.unknown_rank else [dim.size for dim in shape.dim]
                entries.add(name=key, datatype=v2.datatype_of(int(infos[key].dtype)), shape=sizes)
        return response

    def _infer(self, request: wire.ModelInferRequest, call: Call) -> wire.ModelInferResponse:
        spec = v2.spec_of(request.model_name, request.model_version)
        raw = list(request.raw_input_contents)
        if raw and len(raw) != len(request.inputs):
            raise v2.tensor_error("", f"{len(raw)} raw contents for {len(request.inputs)} inputs")
        inputs = v2.by_name(
            (
                each.name,
                v2.from_raw(each.name, each.datatype, list(each.shape), raw[position])
                if raw
                else _from_contents(each),
            )
            for position, each in enumerate(request.inputs)
        )
        signature = request.parameters["signature_name"].string_param
        for each in request.outputs:
            v2.check_parameters(each.name, each.parameters)
        wanted = [each.name for each in request.outputs]
        prediction = v2.infer(self._dataplane, spec, signature, inputs, wanted, call)
        response = wire.ModelInferResponse(
            model_name=request.model_name, model_version=str(prediction.version), id=request.id
        )
        for key, array in prediction.outputs.items():
            response.outputs.add(name=key, datatype=v2.datatype_of(array), shape=list(array.shape))
            response.raw_output_contents.append(v2.to_raw(array))
        return response


def _from_contents(tensor: wire.ModelInferRequest.InferInputTensor) -> Array:
    dtype, count = v2.of_shape(tensor.name, tensor.datatype, list(tensor.shape))
    field = _CONTENTS.get(tensor.datatype)
    if field is None:
        raise v2.tensor_error(tensor.name, f"{tensor.datatype} travels as raw contents only")
    values = getattr(tensor.contents, field)
    if len(values) != count:
        raise v2.tensor_error(tensor.name, f"{len(values)} values for {count} elements")
    if dtype.kind == "O":
        array = np.empty(count, object)
        array[:] = list(values)
        return array.reshape(list(tensor.shape))
    wide = np.array(values, "i8" if dtype.kind in "iu" and dtype.itemsize < 8 else dtype)
    array = wide.astype(dtype)
    if dtype.kind in "iu" and dtype.itemsize < 8 and not np.array_equal(array, wide):
        raise v2.tensor_error(tensor.name, f"a value does not fit {tensor.datatype}")
    return array.reshape(list(tensor.shape))
