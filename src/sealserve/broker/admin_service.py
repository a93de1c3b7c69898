"""The administration port: gRPC under mutual TLS in front of `broker.administration`.

Rules this module keeps:

* Only a registered certificate gets through a handshake, and who is behind a
  connection is looked up again at each call: a principal who is removed is out at
  once. There is no certificate authority.
* The guests' service is not here, and this one is not on the guests' port.
* A handler parses, calls, and maps errors to statuses; it decides nothing.
* Everything is bounded: messages, threads, handshakes, idle time, each principal's calls,
  and how long a call takes to arrive (`broker.door`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.message import DecodeError, Message
from sqlalchemy import select

from sealserve.address import Address
from sealserve.broker.admin_protocol import (
    ERROR_KEY,
    MAX_ANSWER_BYTES,
    MAX_REQUEST_BYTES,
    METHODS,
    SERVICE,
    encode_error,
)
from sealserve.broker.administration import Administration
from sealserve.broker.directory import Broker
from sealserve.broker.door import Door, DoorShut
from sealserve.broker.operation.chain_watch import ChainWatch
from sealserve.broker.port import Port
from sealserve.broker.principals import Caller, spki_sha256
from sealserve.broker.tables import PrincipalRow
from sealserve.certificates import UNREADABLE, client_certificate
from sealserve.errors import InputError, InternalError, Refused, SealserveError, Unavailable
from sealserve.logs import Log
from sealserve.wire.broker.admin import v1_pb2

__all__ = ["AdminServer"]

_CALLS: Final = 64
_PER_PRINCIPAL: Final = 16
_WORKERS: Final = 4
_OPTIONS: Final[list[tuple[str, int]]] = [
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.max_send_message_length", MAX_ANSWER_BYTES),
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.max_concurrent_streams", 32),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_connection_idle_ms", 300_000),
    ("grpc.max_connection_age_ms", 3_600_000),
    ("grpc.so_reuseport", 0),
]
_STATUS: Final[dict[type[SealserveError], grpc.StatusCode]] = {
    Refused: grpc.StatusCode.PERMISSION_DENIED,
    InputError: grpc.StatusCode.INVALID_ARGUMENT,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    InternalError: grpc.StatusCode.INTERNAL,
}


class AdminServer(Port):
    """A listening administration port.

    Args:
        broker: open; its TLS identity is shown.
        listen: where to listen; port 0 takes any free port.
        log: the broker's own log.
        chain: follows its audit chain, if something does already.

    Raises:
        Unavailable: ``admin.listen_failed``.
    """

    def __init__(
        self, broker: Broker, listen: Address, log: Log, chain: ChainWatch | None = None
    ) -> None:
        door = Door(per_peer=_PER_PRINCIPAL, workers=_WORKERS)
        super().__init__("admin", door, calls=_CALLS, options=_OPTIONS)
        servicer = _Servicer(Administration(broker, chain), door, log)
        self.server.add_generic_rpc_handlers((servicer.handlers(),))
        known = _Principals(broker, log)
        credentials = grpc.dynamic_ssl_server_credentials(
            known.configuration(), known.changed, require_client_authentication=True
        )
        if not self.listen(listen, credentials):
            raise Unavailable(
                "admin.listen_failed",
                "the broker cannot listen for administrators there",
                where=str(listen),
                hint="another process may hold the port, or the address is not this machine's",
            )


class _Principals:
    """Whose certificates a handshake accepts, read anew at each one."""

    def __init__(self, broker: Broker, log: Log) -> None:
        self._store = broker.store
        self._log = log
        self._pair = (broker.tls_private_key(), broker.identity.certificate.encode())
        self._nobody = _certificate_of_nobody()
        self._roots = self._read()

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """As it is now."""
        return grpc.ssl_server_certificate_configuration([self._pair], self._roots)

    def changed(self) -> Any:
        """What gRPC asks before each handshake: a new configuration, or ``None``."""
        roots = self._roots
        try:
            roots = self._read()
        except SealserveError as error:
            # Calls are looked up as well, so nobody who was removed gets any further.
            self._log.error("principals not read", **error.to_dict())
        if roots == self._roots:
            return None
        self._roots = roots
        return self.configuration()

    def _read(self) -> bytes:
        with self._store.reading() as session:
            certificates = session.scalars(
                select(PrincipalRow.certificate).order_by(PrincipalRow.name)
            ).all()
        return "\n".join(certificates).encode() or self._nobody


@dataclass(frozen=True, slots=True)
class _No:
    """An answer that is not a result.

    Made of the error, and does not hold it: an error leads to the frames it passed, and one
    of them holding it is a cycle. gRPC counts a call until it is collected, and refuses new
    ones beside too many.
    """

    status: grpc.StatusCode
    code: str
    error: bytes


def _no(error: SealserveError) -> _No:
    status = next(value for kind, value in _STATUS.items() if isinstance(error, kind))
    return _No(status, error.code, encode_error(error))


def _certificate_of_nobody() -> bytes:
    """What is trusted while there are no principals: gRPC must have something. Its key is gone."""
    key = ec.generate_private_key(ec.SECP256R1())
    return client_certificate(key, "nobody", timedelta(days=1)).public_bytes(Encoding.PEM)


_Handler = Callable[[Iterator[bytes], grpc.ServicerContext], bytes]


class _Servicer:
    def __init__(self, administration: Administration, door: Door, log: Log) -> None:
        self._administration = administration
        self._door = door
        self._log = log

    def handlers(self) -> grpc.GenericRpcHandler[bytes, bytes]:
        # As streams of one message, which look the same on the wire: the door sees a call
        # that has not arrived. Without serializers: a message that does not parse is our
        # error and not gRPC's traceback.
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                method: grpc.stream_unary_rpc_method_handler(self._handler(method, kind))
                for method, kind in METHODS.items()
            },
        )

    def _handler(self, method: str, kind: type[Message]) -> _Handler:
        def call(messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            answer = self._answered(method, kind, messages, context)
            if isinstance(answer, _No):
                context.set_trailing_metadata(((ERROR_KEY, answer.error),))
                context.abort(answer.status, answer.code)
            return answer

        return call

    def _answered(
        self,
        method: str,
        kind: type[Message],
        messages: Iterator[bytes],
        context: grpc.ServicerContext,
    ) -> bytes | _No:
        try:
            return self._admitted(method, kind, messages, context)
        except SealserveError as error:
            self._log.warning("administration refused", method=method, code=error.code)
            return _no(error)
        except Exception as error:
            self._log.error("unexpected error", method=method, type=type(error).__name__)
            return _no(InternalError("internal.unexpected", "the broker has a bug; see its log"))

    def _admitted(
        self,
        method: str,
        kind: type[Message],
        messages: Iterator[bytes],
        context: grpc.ServicerContext,
    ) -> bytes:
        certificate = _certificate_of(context)
        try:
            with self._door.entered(spki_sha256(certificate)):
                raw = self._door.receive(messages, context)
                with self._door.working():
                    if raw is None or not context.is_active():
                        return b""  # the caller went away, or never said what it wants
                    peer = _host_of(context.peer())
                    return self._answer(method, kind, raw, certificate, peer)
        except DoorShut:
            raise Unavailable(
                "admin.too_many_calls",
                f"more than {_PER_PRINCIPAL} calls of yours are open",
                hint="wait for their answers",
            ) from None

    def _answer(
        self, method: str, kind: type[Message], raw: bytes, certificate: x509.Certificate, peer: str
    ) -> bytes:
        caller = self._administration.caller(spki_sha256(certificate), peer)
        if certificate.not_valid_after_utc <= datetime.now(UTC):
            # A connection may live longer than its certificate.
            raise self._administration.refused(caller, method, _expired(certificate))
        request = self._parsed(method, kind, raw, caller)
        result = self._administration.perform(caller, request)
        answer = v1_pb2.Result(json=json.dumps(result)).SerializeToString()
        if len(answer) > MAX_ANSWER_BYTES:
            raise Unavailable(
                "admin.answer_too_large",
                f"the answer has {len(answer)} bytes, more than {MAX_ANSWER_BYTES}",
                hint="run the command on the broker's machine, with --broker",
            )
        return answer

    def _parsed(self, method: str, kind: type[Message], raw: bytes, caller: Caller) -> Message:
        request = kind()
        try:
            request.ParseFromString(raw)
        except DecodeError:
            raise self._administration.refused(
                caller,
                method,
                InputError("admin.request_malformed", f"not a {kind.DESCRIPTOR.name} message"),
            ) from None
        return request


def _certificate_of(context: grpc.ServicerContext) -> x509.Certificate:
    try:
        context_of_tls: Mapping[str, Any] = context.auth_context()
        (pem,) = context_of_tls["x509_pem_cert"]
        return x509.load_pem_x509_certificate(pem)
    except (KeyError, *UNREADABLE):
        raise Refused("admin.principal_unknown", "the connection shows no certificate") from None


def _expired(certificate: x509.Certificate) -> Refused:
    return Refused(
        "admin.certificate_expired",
        f"your certificate ended {certificate.not_valid_after_utc:%Y-%m-%d}",
        hint="make one by `broker admin-identity`, and have it added by `principal add --replace`",
    )


def _host_of(peer: str) -> str:
    """The host in gRPC's ``ipv4:192.0.2.1:5000``, for the audit line."""
    return peer.partition(":")[2].rpartition(":")[0][:64] or peer[:64]
