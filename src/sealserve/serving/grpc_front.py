"""gRPC: TensorFlow Serving's PredictionService and ModelService over the dataplane.

Rules this module keeps:

* Messages are decoded here, not by gRPC: bytes that are no message get the
  answer INVALID_ARGUMENT, and no handler ever ends in an exception.
* Outputs travel in typed fields (``float_val``, ...), as TensorFlow Serving
  sends them, unless ``--enable_serialization_as_tensor_content`` says otherwise.
* TLS 1.2 or newer; gRPC-Python offers no switch for 1.3 alone. Which identity a
  client gets is gRPC's own choice by server name, the first being the default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message

from sealserve.errors import InputError, SealserveError, Unavailable
from sealserve.logs import Log
from sealserve.serving.catalog import ModelSpec
from sealserve.serving.config import ServerConfig
from sealserve.serving.dataplane import Dataplane
from sealserve.serving.runtimes.base import Signature
from sealserve.serving.status import Status, status_of
from sealserve.serving.tls import Identities, TlsSource
from sealserve.wire.serving import api_pb2
from sealserve.wire.tensors import Array, dtype_name, to_array, to_proto

__all__ = ["GrpcFront", "metadata_response", "status_response"]

_MAX_DETAILS = 2000
_SIGNATURE_FIELD = "signature_def"
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class GrpcFront:
    """The gRPC server.

    Attributes:
        port: the TCP port it listens on.
    """

    def __init__(
        self, dataplane: Dataplane, config: ServerConfig, tls: TlsSource | None, log: Log
    ) -> None:
        """Bind the port; nothing is served before `start`.

        Raises:
            Unavailable: ``serve.port_unavailable``.
        """
        self._dataplane = dataplane
        self._config = config
        self._log = log
        self._pool = ThreadPoolExecutor(config.grpc_threads, thread_name_prefix="grpc")
        self._server = grpc.server(
            self._pool,
            handlers=[self._prediction_service(), self._model_service()],
            options=[
                ("grpc.max_receive_message_length", config.max_request_bytes),
                ("grpc.max_send_message_length", -1),
                # Two servers on one port would each get some of the requests.
                ("grpc.so_reuseport", 0),
                *config.grpc_options,
            ],
        )
        host = f"[{config.bind_address}]" if ":" in config.bind_address else config.bind_address
        self.port = self._bind(f"{host}:{config.grpc_port}", tls)
        if config.grpc_socket is not None:
            self._bind(f"unix:{config.grpc_socket}", tls)

    def start(self) -> None:
        """Begin to serve."""
        self._server.start()

    def stop(self, grace: float) -> None:
        """Take no more requests, let those under way finish for ``grace`` seconds."""
        self._server.stop(grace).wait()
        self._pool.shutdown()

    def _bind(self, address: str, tls: TlsSource | None) -> int:
        try:
            if tls is None:
                return self._server.add_insecure_port(address)
            return self._server.add_secure_port(address, _credentials(tls))
        except RuntimeError:
            raise Unavailable(
                "serve.port_unavailable",
                "cannot listen for gRPC",
                where=address,
                hint="another program has the port, or the address is not of this machine",
            ) from None

    def _prediction_service(self) -> grpc.GenericRpcHandler[bytes, bytes]:
        return grpc.method_handlers_generic_handler(
            "tensorflow.serving.PredictionService",
            {
                "Predict": self._method(api_pb2.PredictRequest, self._predict),
                "GetModelMetadata": self._method(api_pb2.GetModelMetadataRequest, self._metadata),
            },
        )

    def _model_service(self) -> grpc.GenericRpcHandler[bytes, bytes]:
        return grpc.method_handlers_generic_handler(
            "tensorflow.serving.ModelService",
            {"GetModelStatus": self._method(api_pb2.GetModelStatusRequest, self._status)},
        )

    def _method(
        self, request_type: type[Message], answer: Callable[[Any], Message]
    ) -> grpc.RpcMethodHandler[bytes, bytes]:
        def handle(raw: bytes, context: grpc.ServicerContext) -> bytes:
            try:
                try:
                    request = request_type.FromString(raw)
                except DecodeError:
                    raise InputError(
                        "request.malformed", f"the request is no {request_type.DESCRIPTOR.name}"
                    ) from None
                return answer(request).SerializeToString()
            except SealserveError as error:
                status, message = status_of(error), _sentence(error)
            except Exception as error:  # a bug is answered too, without its values
                self._log.error("unexpected", error=type(error).__name__, front="grpc")
                status, message = Status.INTERNAL, f"unexpected {type(error).__name__}"
            context.set_code(_CODES[status])
            context.set_details(message)
            return b""

        return grpc.unary_unary_rpc_method_handler(handle)

    def _predict(self, request: api_pb2.PredictRequest) -> api_pb2.PredictResponse:
        def decode(signature: Signature) -> Mapping[str, Array]:
            return {
                key: self._decode(key, proto, signature) for key, proto in request.inputs.items()
            }

        spec = _spec(request)
        prediction = self._dataplane.predict(
            spec, request.model_spec.signature_name, decode, tuple(request.output_filter)
        )
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

    def _metadata(
        self, request: api_pb2.GetModelMetadataRequest
    ) -> api_pb2.GetModelMetadataResponse:
        spec = _spec(request)
        if not request.metadata_field:
            raise InputError(
                "request.metadata_field",
                "GetModelMetadataRequest must specify at least one metadata_field",
            )
        for name in request.metadata_field:
            if name != _SIGNATURE_FIELD:
                raise InputError(
                    "request.metadata_field", f"Metadata field {name} is not supported"
                )
        return metadata_response(self._dataplane, spec)

    def _status(self, request: api_pb2.GetModelStatusRequest) -> api_pb2.GetModelStatusResponse:
        return status_response(self._dataplane, _spec(request))


def metadata_response(dataplane: Dataplane, spec: ModelSpec) -> api_pb2.GetModelMetadataResponse:
    """A model's signatures as GetModelMetadata answers them."""
    version, definitions = dataplane.definitions(spec)
    response = api_pb2.GetModelMetadataResponse()
    response.model_spec.name = spec.name
    response.model_spec.version.value = version
    packed = response.metadata[_SIGNATURE_FIELD]
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


def _spec(
    request: api_pb2.PredictRequest
    | api_pb2.GetModelMetadataRequest
    | api_pb2.GetModelStatusRequest,
) -> ModelSpec:
    if not request.HasField("model_spec"):
        raise InputError("request.model_spec_missing", "Missing ModelSpec")
    wire = request.model_spec
    choice = wire.WhichOneof("version_choice")
    return ModelSpec(
        wire.name,
        version=wire.version.value if choice == "version" else None,
        label=wire.version_label if choice == "version_label" else None,
    )


def _sentence(error: SealserveError) -> str:
    sentence = f"{error.where}: {error.message}" if error.where else error.message
    # It travels in a header, which clients limit to 8 KiB; names in it may be of any length.
    return sentence[:_MAX_DETAILS]


def _credentials(tls: TlsSource) -> grpc.ServerCredentials:
    shown = tls.current()

    def configuration(identities: Identities) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration(
            [(each.key_pem, each.chain_pem) for each in identities.all],
            root_certificates=identities.client_ca,
        )

    def renew() -> grpc.ServerCertificateConfiguration | None:
        """Asked by gRPC on each new connection; None means: as before."""
        nonlocal shown
        identities = tls.current()
        if identities is shown:
            return None
        shown = identities
        return configuration(identities)

    return grpc.dynamic_ssl_server_credentials(
        configuration(shown),
        renew,  # type: ignore[arg-type]  # the stubs do not know of None
        require_client_authentication=shown.client_verify,
    )
