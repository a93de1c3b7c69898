"""A connection to a model server, with numpy in and numpy out.

Works against any server that speaks TensorFlow Serving's gRPC API.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import grpc
import numpy as np
from google.protobuf.message import DecodeError, Message

from sealserve.address import Address
from sealserve.attestation.ratls import TrustReport
from sealserve.client.channel import Trust, attested_channel, classic_channel
from sealserve.errors import InputError, Refused, SealserveError, Unavailable
from sealserve.wire import tensors
from sealserve.wire.serving import api_pb2

__all__ = ["Connection", "TensorSpec", "connect_attested", "connect_classic"]

_Answer = TypeVar("_Answer", bound=Message)

_MAX_TENSOR_BYTES = 1 << 30


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a signature; ``None`` in the shape is a free dimension."""

    dtype: np.dtype[Any]
    shape: tuple[int | None, ...] | None


class Connection:
    """Calls to one server over one channel; usable from several threads.

    Attributes:
        report: what was verified about the server, or None for a classic channel.
    """

    def __init__(self, channel: grpc.Channel, report: TrustReport | None, where: str) -> None:
        self.report = report
        self._channel = channel
        self._where = where
        self._predict = self._method(
            "tensorflow.serving.PredictionService/Predict", api_pb2.PredictResponse
        )
        self._metadata = self._method(
            "tensorflow.serving.PredictionService/GetModelMetadata",
            api_pb2.GetModelMetadataResponse,
        )
        self._status = self._method(
            "tensorflow.serving.ModelService/GetModelStatus", api_pb2.GetModelStatusResponse
        )

    def predict(
        self,
        model: str,
        inputs: Mapping[str, np.ndarray[Any, Any]],
        *,
        signature: str = "",
        version: int | None = None,
        outputs: tuple[str, ...] = (),
        timeout: float = 60.0,
    ) -> dict[str, np.ndarray[Any, Any]]:
        """Run one signature of a model.

        Args:
            model: the servable's name.
            inputs: one array for each input of the signature.
            signature: empty for ``serving_default``.
            version: None for the newest.
            outputs: the outputs wanted; empty for all.
            timeout: seconds.

        Returns:
            The outputs by name.

        Raises:
            InputError: ``server.invalid_argument`` and its like, with the server's text.
            Unavailable: ``server.unavailable`` and its like.
        """
        request = api_pb2.PredictRequest(
            model_spec=_model_spec(model, signature, version), output_filter=outputs
        )
        for name, array in inputs.items():
            request.inputs[name].CopyFrom(tensors.to_proto(array, typed_fields=False))
        answer = self._predict(request, timeout)
        return {
            name: tensors.to_array(tensor, max_bytes=_MAX_TENSOR_BYTES)
            for name, tensor in answer.outputs.items()
        }

    def input_specs(
        self, model: str, *, signature: str = "serving_default", timeout: float = 60.0
    ) -> dict[str, TensorSpec]:
        """The inputs that a model's signature declares.

        Raises:
            InputError: ``client.signature_unknown``.
        """
        answer = self._metadata(
            api_pb2.GetModelMetadataRequest(
                model_spec=_model_spec(model, "", None), metadata_field=["signature_def"]
            ),
            timeout,
        )
        signatures = api_pb2.SignatureDefMap()
        packed = answer.metadata["signature_def"]
        try:
            signatures.ParseFromString(packed.value)
        except DecodeError:
            raise Unavailable(
                "server.answer_malformed", "the model's metadata is malformed", where=self._where
            ) from None
        if signature not in signatures.signature_def:
            raise InputError(
                "client.signature_unknown",
                f"model {model!r} has no signature {signature!r}",
                where=self._where,
                hint=f"it has: {', '.join(sorted(signatures.signature_def)) or 'none'}",
            )
        return {
            name: TensorSpec(tensors.numpy_dtype(info.dtype), _shape(info.tensor_shape))
            for name, info in signatures.signature_def[signature].inputs.items()
        }

    def status(self, model: str, *, timeout: float = 60.0) -> dict[int, str]:
        """The state of each version of a model: version -> ``"AVAILABLE"`` and its like."""
        answer = self._status(
            api_pb2.GetModelStatusRequest(model_spec=_model_spec(model, "", None)), timeout
        )
        state_name = api_pb2.ModelVersionStatus.State.Name
        return {entry.version: state_name(entry.state) for entry in answer.model_version_status}

    def close(self) -> None:
        """Close the channel; calls still under way are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _method(self, path: str, answer_type: type[_Answer]) -> Callable[[Message, float], _Answer]:
        call = self._channel.unary_unary(
            f"/{path}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer_type.FromString,
        )

        def invoke(request: Message, timeout: float) -> _Answer:
            try:
                answer = call(request, timeout=timeout)
            except grpc.RpcError as error:
                raise _typed(error, self._where) from None
            assert isinstance(answer, answer_type)  # noqa: S101 - by the deserializer above
            return answer

        return invoke


def connect_attested(address: str, trust: Trust, *, timeout: float = 10.0) -> Connection:
    """Verify a server's evidence and connect to exactly that server.

    Args:
        address: ``HOST:PORT`` of the server's gRPC port.
        trust: whom to believe, and which TDs to accept.
        timeout: seconds for fetching the certificate.

    Raises:
        Refused: the server is not trusted; nothing was sent to it.
        Unavailable: ``server.unreachable`` or ``server.no_tls``.
        InputError: ``address.malformed``.
    """
    parsed = Address.parse(address, where="server address")
    channel, report = attested_channel(parsed, trust, timeout=timeout)
    return Connection(channel, report, str(parsed))


def connect_classic(
    address: str, certificate_pem: bytes, *, connect_to: str | None = None
) -> Connection:
    """Connect as TensorFlow Serving's own clients do: trust a certificate, check no evidence.

    Args:
        address: ``HOST:PORT``; the host must stand in the certificate.
        certificate_pem: the server's certificate or its authority.
        connect_to: ``HOST:PORT`` to dial instead, for a name that is not in DNS.

    Raises:
        InputError: ``address.malformed`` or ``client.certificate_malformed``.
    """
    named = Address.parse(address, where="server address")
    dialled = Address.parse(connect_to, where="connect-to address") if connect_to else None
    return Connection(
        classic_channel(named, certificate_pem, connect_to=dialled), None, str(dialled or named)
    )


def _model_spec(model: str, signature: str, version: int | None) -> api_pb2.ModelSpec:
    spec = api_pb2.ModelSpec(name=model, signature_name=signature)
    if version is not None:
        spec.version.value = version
    return spec


def _shape(shape: Any) -> tuple[int | None, ...] | None:
    if shape.unknown_rank:
        return None
    return tuple(dim.size if dim.size >= 0 else None for dim in shape.dim)


# How gRPC words it that a certificate is another one, or of another name.
_UNTRUSTED = ("CERTIFICATE_VERIFY_FAILED", "Hostname Verification Check failed")

# Who has to act on each gRPC status: the caller, or whoever runs the server.
_CALLERS_FAULT = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.ALREADY_EXISTS,
}
_REFUSALS = {grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED}


def _typed(error: grpc.RpcError, where: str) -> SealserveError:
    """Our error for gRPC's: same status as the code, the server's text as the message."""
    # Every error of a unary call is also a grpc.Call, which carries these two.
    status: grpc.StatusCode = error.code()
    details: str = error.details() or status.name
    if any(sign in details for sign in _UNTRUSTED):
        return Refused(
            "server.certificate_untrusted",
            "the server does not present the certificate that is trusted for this name",
            where=where,
            hint="it was restarted, or another server answers there: verify it again",
        )
    kind: type[SealserveError] = Unavailable
    if status in _CALLERS_FAULT:
        kind = InputError
    elif status in _REFUSALS:
        kind = Refused
    return kind(f"server.{status.name.lower()}", details, where=where)
