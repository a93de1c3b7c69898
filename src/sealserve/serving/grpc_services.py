"""TensorFlow Serving's PredictionService over the dataplane.

Outputs travel in typed fields (``float_val``, ...), as TensorFlow Serving
sends them, unless ``--enable_serialization_as_tensor_content`` says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc

from sealserve.errors import InputError
from sealserve.serving.calls import Call
from sealserve.serving.catalog import ModelSpec
from sealserve.serving.config import ServerConfig
from sealserve.serving.dataplane import Dataplane, Task
from sealserve.serving.grpc_method import Methods
from sealserve.serving.inference import CLASSIFY, REGRESS, Classes
from sealserve.serving.messages import (
    SIGNATURE_FIELD,
    examples_of,
    metadata_response,
    spec_of,
)
from sealserve.serving.runtimes.base import DEFAULT_SIGNATURE, Signature
from sealserve.wire.serving import api_pb2
from sealserve.wire.tensors import Array, dtype_name, to_array, to_proto

__all__ = ["PredictionService"]

_TASK_METHODS = {each.method_name: each for each in (CLASSIFY, REGRESS)}


class PredictionService:
    """Predict, Classify, Regress, MultiInference and GetModelMetadata."""

    def __init__(self, dataplane: Dataplane, config: ServerConfig) -> None:
        self._dataplane = dataplane
        self._config = config

    def handler(self, methods: Methods) -> grpc.GenericRpcHandler[bytes, bytes]:
        """What gRPC is to serve."""
        return grpc.method_handlers_generic_handler(
            "tensorflow.serving.PredictionService",
            {
                "Predict": methods.make("Predict", api_pb2.PredictRequest, self.predict),
                "Classify": methods.make("Classify", api_pb2.ClassificationRequest, self.classify),
                "Regress": methods.make("Regress", api_pb2.RegressionRequest, self.regress),
                "MultiInference": methods.make(
                    "MultiInference", api_pb2.MultiInferenceRequest, self.multi
                ),
                "GetModelMetadata": methods.make(
                    "GetModelMetadata", api_pb2.GetModelMetadataRequest, self.metadata
                ),
            },
        )

    def predict(self, request: api_pb2.PredictRequest, call: Call) -> api_pb2.PredictResponse:
        """Predict."""

        def decode(signature: Signature) -> Mapping[str, Array]:
            return {
                key: self._decode(key, proto, signature) for key, proto in request.inputs.items()
            }

        spec = _spec(request, call)
        prediction = self._dataplane.predict(
            spec, request.model_spec.signature_name, decode, tuple(request.output_filter)
        )
        call.version = prediction.version
        response = api_pb2.PredictResponse()
        for key, array in prediction.outputs.items():
            response.outputs[key].CopyFrom(
                to_proto(array, typed_fields=not self._config.tensor_content)
            )
        response.model_spec.name = spec.name
        response.model_spec.version.value = prediction.version
        response.model_spec.signature_name = prediction.signature.name
        return response

    def _decode(self, key: str, proto: Any, signature: Signature) -> Array:
        spec = signature.inputs.get(key)
        if spec is not None and proto.dtype != spec.dtype:
            raise InputError(
                "request.dtype_mismatch",
                f'input "{key}" expects {dtype_name(spec.dtype)} '
                f"but {dtype_name(proto.dtype)} is provided",
            )
        return to_array(proto, self._config.max_request_bytes, where=f'input "{key}"')

    def classify(
        self, request: api_pb2.ClassificationRequest, call: Call
    ) -> api_pb2.ClassificationResponse:
        """Classify."""
        response = api_pb2.ClassificationResponse()
        _fill(response.result, self._one(request, call, Task(CLASSIFY, _signature(request))))
        _answer_spec(response.model_spec, request.model_spec, call)
        return response

    def regress(self, request: api_pb2.RegressionRequest, call: Call) -> api_pb2.RegressionResponse:
        """Regress."""
        response = api_pb2.RegressionResponse()
        values = self._one(request, call, Task(REGRESS, _signature(request)))
        for value in values:
            response.result.regressions.add(value=value)
        _answer_spec(response.model_spec, request.model_spec, call)
        return response

    def _one(self, request: Any, call: Call, task: Task) -> Any:
        inferred = self._dataplane.infer(_spec(request, call), [task], examples_of(request.input))
        call.version = inferred.version
        return inferred.results[0]

    def multi(
        self, request: api_pb2.MultiInferenceRequest, call: Call
    ) -> api_pb2.MultiInferenceResponse:
        """MultiInference."""
        if not request.tasks:
            raise InputError("request.tasks_missing", "Inference request has no tasks.")
        tasks = [_task(each) for each in request.tasks]
        names = {each.model_spec.name for each in request.tasks}
        if "" in names:
            raise InputError(
                "request.model_name_missing", "Found ModelSpec with an empty model name."
            )
        if len(names) > 1:
            raise InputError(
                "request.models_differ",
                "All ModelSpecs in a MultiInferenceRequest must access the same model name.",
            )
        spec = _spec(request.tasks[0], call)
        inferred = self._dataplane.infer(spec, tasks, examples_of(request.input))
        call.version = inferred.version
        response = api_pb2.MultiInferenceResponse()
        for wire, task, result in zip(request.tasks, tasks, inferred.results, strict=True):
            entry = response.results.add()
            _answer_spec(entry.model_spec, wire.model_spec, call)
            if task.method is CLASSIFY:
                _fill(entry.classification_result, result)  # type: ignore[arg-type]
            else:
                entry.regression_result.SetInParent()
                for value in result:
                    entry.regression_result.regressions.add(value=value)
        return response

    def metadata(
        self, request: api_pb2.GetModelMetadataRequest, call: Call
    ) -> api_pb2.GetModelMetadataResponse:
        """GetModelMetadata."""
        spec = _spec(request, call)
        if not request.metadata_field:
            raise InputError(
                "request.metadata_field",
                "GetModelMetadataRequest must specify at least one metadata_field",
            )
        for name in request.metadata_field:
            if name != SIGNATURE_FIELD:
                raise InputError(
                    "request.metadata_field", f"Metadata field {name} is not supported"
                )
        return metadata_response(self._dataplane, spec)


def _spec(request: Any, call: Call) -> ModelSpec:
    spec = spec_of(request)
    call.model = spec.name
    return spec


def _signature(request: Any) -> str:
    return str(request.model_spec.signature_name)


def _task(wire: api_pb2.InferenceTask) -> Task:
    method = _TASK_METHODS.get(wire.method_name)
    if method is None:
        raise InputError(
            "request.method_unsupported",
            f"Unsupported signature method_name: {wire.method_name}",
        )
    return Task(method, _signature(wire), "Requested signature not found in model graph: ")


def _answer_spec(answer: api_pb2.ModelSpec, asked: api_pb2.ModelSpec, call: Call) -> None:
    answer.name = asked.name
    answer.version.value = call.version or 0
    answer.signature_name = asked.signature_name or DEFAULT_SIGNATURE


def _fill(result: api_pb2.ClassificationResult, rows: Classes) -> None:
    for row in rows:
        entry = result.classifications.add()
        for label, score in row:
            entry.classes.add(label=label, score=score)
