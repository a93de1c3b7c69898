"""Messages that both fronts read or write."""

from __future__ import annotations

from typing import Any

from sealserve.errors import InputError
from sealserve.serving.catalog import ModelSpec
from sealserve.serving.dataplane import Dataplane
from sealserve.wire.serving import api_pb2

__all__ = ["SIGNATURE_FIELD", "examples_of", "metadata_response", "spec_of", "status_response"]

SIGNATURE_FIELD = "signature_def"


def metadata_response(dataplane: Dataplane, spec: ModelSpec) -> api_pb2.GetModelMetadataResponse:
    """A model's signatures as GetModelMetadata answers them."""
    version, definitions = dataplane.definitions(spec)
    response = api_pb2.GetModelMetadataResponse()
    response.model_spec.name = spec.name
    response.model_spec.version.value = version
    packed = response.metadata[SIGNATURE_FIELD]
    packed.type_url = "type.googleapis.com/tensorflow.serving.SignatureDefMap"
    packed.value = definitions.SerializeToString()
    return response


def status_response(dataplane: Dataplane, spec: ModelSpec) -> api_pb2.GetModelStatusResponse:
    """The states of a model's versions as GetModelStatus answers them."""
    response = api_pb2.GetModelStatusResponse()
    for version in dataplane.status(spec):
        entry = response.model_version_status.add(
            version=version.version,
            state=version.state.value,
        )
        entry.status.error_code = version.code
        entry.status.error_message = version.message
    return response


def spec_of(request: Any) -> ModelSpec:
    """Which model a request means.

    Raises:
        InputError: ``request.model_spec_missing``.
    """
    if not request.HasField("model_spec"):
        raise InputError("request.model_spec_missing", "Missing ModelSpec")
    wire = request.model_spec
    choice = wire.WhichOneof("version_choice")
    return ModelSpec(
        wire.name,
        version=wire.version.value if choice == "version" else None,
        label=wire.version_label if choice == "version_label" else None,
    )


def examples_of(wire: api_pb2.Input) -> list[bytes]:
    """The serialized examples, each with the context that they share."""
    if wire.WhichOneof("kind") == "example_list_with_context":
        # Messages one after the other are one message with the fields of both.
        context = wire.example_list_with_context.context
        return [context + each for each in wire.example_list_with_context.examples]
    return list(wire.example_list.examples)
