"""The broker's guest port: gRPC over TLS in front of `broker.release`.

Rules this module keeps:

* A handler parses, calls, and maps errors to statuses; it decides nothing. An
  answer's details are codes alone; a bug's text never leaves the process.
* Everything is bounded: message size, threads, calls in flight, handshake time,
  idle time, and how long a call takes to arrive (`broker.door`). A call whose caller
  has gone is not worked on.
* The TLS key comes from the store and goes to gRPC in memory.
"""

from __future__ import annotations

import ipaddress
import math
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from structlog.typing import FilteringBoundLogger

from sealserve.address import Address
from sealserve.broker.door import CALLS, Door, DoorShut
from sealserve.broker.introspection import HEALTH_METHOD, Health, add_reflection
from sealserve.broker.judge import Decision, unavailable
from sealserve.broker.port import Port
from sealserve.broker.protocol import (
    CHALLENGE_METHOD,
    MAX_MESSAGE_BYTES,
    NONCE_LIFETIME_SECONDS,
    PUSHBACK_KEY,
    RELEASE_METHOD,
    RENEW_METHOD,
)
from sealserve.broker.release import KeyRelease, ReleaseRequest
from sealserve.broker.renewal import LeaseRenewal, RenewalRequest
from sealserve.errors import InputError, Refused, SealserveError, Unavailable
from sealserve.wire.broker import v1_pb2

__all__ = ["BrokerServer"]

_OPTIONS: Final[list[tuple[str, int]]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", 8 * 1024),
    ("grpc.max_concurrent_streams", 16),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_connection_idle_ms", 60_000),
    # Two brokers on one port would share its connections at random.
    ("grpc.so_reuseport", 0),
]

_M = TypeVar("_M", bound=Message)


class BrokerServer(Port):
    """A listening broker.

    Args:
        releases: what the calls `Challenge` and `Release` lead to; its broker's TLS
            identity is shown.
        renewals: what `Renew` leads to.
        listen: where to listen; port 0 takes any free port.
        log: the broker's own log.

    Raises:
        Unavailable: ``broker.listen_failed``.
    """

    def __init__(
        self,
        releases: KeyRelease,
        renewals: LeaseRenewal,
        listen: Address,
        log: FilteringBoundLogger,
    ) -> None:
        broker = releases.judge.broker
        super().__init__("broker", Door(), calls=CALLS, options=_OPTIONS)
        servicer = _Servicer(releases, renewals, Health(broker.store), self.door, log)
        self.server.add_generic_rpc_handlers(_handlers(servicer))
        add_reflection(self.server)
        certificate = broker.identity.certificate.encode()
        credentials = grpc.ssl_server_credentials([(broker.tls_private_key(), certificate)])
        if not self.listen(listen, credentials):
            raise Unavailable(
                "broker.listen_failed",
                "the broker cannot listen there",
                where=str(listen),
                hint="another process may hold the port, or the address is not this machine's",
            )


@dataclass(frozen=True, slots=True)
class _No:
    """An answer that is not a message: a status, and codes for its details."""

    status: grpc.StatusCode
    details: str
    retry_seconds: float = 0.0


_Method = Callable[[bytes, str], bytes | _No]
_Call = Callable[[Iterator[bytes], grpc.ServicerContext], bytes]


class _Servicer:
    def __init__(
        self,
        releases: KeyRelease,
        renewals: LeaseRenewal,
        health: Health,
        door: Door,
        log: FilteringBoundLogger,
    ) -> None:
        self._judge = releases.judge
        self._health = health
        self._door = door
        self._releases = releases
        self._renewals = renewals
        self._log = log

    def challenge(self, raw: bytes, peer: str) -> bytes | _No:
        request = _parse(v1_pb2.ChallengeRequest, raw)
        nonce = self._releases.challenge(request.resource, peer)
        response = v1_pb2.ChallengeResponse(nonce=nonce, lifetime_seconds=NONCE_LIFETIME_SECONDS)
        return response.SerializeToString()

    def release(self, raw: bytes, peer: str) -> bytes | _No:
        request = _parse(v1_pb2.ReleaseRequest, raw)
        decision = self._releases.release(
            ReleaseRequest(
                peer=peer,
                resource=request.resource,
                nonce=request.nonce,
                boot_id=request.boot_id,
                hpke_public_key=request.hpke_public_key,
                quote=request.quote,
                secret_version=request.secret_version,
            )
        )
        if decision.answer is None:
            return _no(decision)
        return v1_pb2.ReleaseResponse(sealed=decision.answer).SerializeToString()

    def renew(self, raw: bytes, peer: str) -> bytes | _No:
        request = _parse(v1_pb2.RenewRequest, raw)
        decision = self._renewals.renew(
            RenewalRequest(
                peer=peer,
                lease_id=request.lease_id,
                resource=request.resource,
                nonce=request.nonce,
                boot_id=request.boot_id,
                quote=request.quote,
            )
        )
        return _no(decision) if decision.answer is None else decision.answer

    def health(self, raw: bytes, peer: str) -> bytes | _No:
        del peer
        state = self._health.check(raw)
        return _No(grpc.StatusCode.NOT_FOUND, "unknown service") if state is None else state

    def admitted(self, method: _Method) -> _Method:
        """The method behind the rate limits."""

        def limited(raw: bytes, peer: str) -> bytes | _No:
            turned_away = self._judge.admit(peer)
            return method(raw, peer) if turned_away is None else _no(turned_away)

        return limited

    def guarded(self, method: _Method) -> _Call:
        """The method as gRPC calls it, with every error turned into a status."""

        def call(messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            answer = self._answered(method, messages, context)
            if isinstance(answer, _No):
                if answer.retry_seconds:
                    wait = str(math.ceil(answer.retry_seconds * 1000))
                    context.set_trailing_metadata(((PUSHBACK_KEY, wait),))
                context.abort(answer.status, answer.details)
            return answer

        return call

    def _answered(
        self, method: _Method, messages: Iterator[bytes], context: grpc.ServicerContext
    ) -> bytes | _No:
        peer = _host_of(context.peer())
        try:
            with self._door.entered(peer):
                raw = self._door.receive(messages, context)
                with self._door.working():
                    if raw is None or not context.is_active():
                        return b""  # the caller went away, or never said what it wants
                    return method(raw, peer)
        except DoorShut as shut:
            return _no(Decision(None, shut.error, retry_seconds=shut.retry_seconds))
        except SealserveError as error:
            self._log.warning("call refused", peer=peer, **error.to_dict())
            if not isinstance(error, InputError) and not error.code.startswith("release."):
                error = unavailable()
            return _no(Decision(None, error))
        except Exception as error:
            self._log.error("unexpected error", peer=peer, type=type(error).__name__)
            return _No(grpc.StatusCode.INTERNAL, "internal.unexpected")


def _handlers(servicer: _Servicer) -> tuple[grpc.GenericRpcHandler[bytes, bytes], ...]:
    methods = {
        CHALLENGE_METHOD: servicer.admitted(servicer.challenge),
        RELEASE_METHOD: servicer.admitted(servicer.release),
        RENEW_METHOD: servicer.admitted(servicer.renew),
        # A balancer asks often, and must hear that the database is away.
        HEALTH_METHOD: servicer.health,
    }
    # As streams of one message, which look the same on the wire: the door sees a call
    # that has not arrived. Without serializers: a message that does not parse is our
    # error and not gRPC's traceback.
    return tuple(
        grpc.method_handlers_generic_handler(
            path.split("/")[1],
            {path.split("/")[2]: grpc.stream_unary_rpc_method_handler(servicer.guarded(method))},
        )
        for path, method in methods.items()
    )


def _parse(kind: type[_M], raw: bytes) -> _M:
    message = kind()
    try:
        message.ParseFromString(raw)
    except DecodeError:
        raise InputError(
            "release.request_malformed", f"not a {kind.DESCRIPTOR.name} message"
        ) from None
    return message


def _no(decision: Decision) -> _No:
    error = decision.error
    match error:
        case Refused():
            status = grpc.StatusCode.PERMISSION_DENIED
        case InputError():
            status = grpc.StatusCode.INVALID_ARGUMENT
        case Unavailable():
            limited = decision.retry_seconds > 0
            status = grpc.StatusCode.RESOURCE_EXHAUSTED if limited else grpc.StatusCode.UNAVAILABLE
        case _:
            status = grpc.StatusCode.INTERNAL
    code = error.code if error is not None else "internal.unexpected"
    return _No(status, " ".join((code, *decision.reasons)), decision.retry_seconds)


def _host_of(peer: str) -> str:
    """The host in gRPC's ``ipv4:192.0.2.1:5000`` or ``ipv6:%5B2001:db8::1%5D:5000``.

    IPv6 hosts count as their /64, since one machine has all of that.
    """
    family, _, rest = peer.partition(":")
    host = urllib.parse.unquote(rest).rpartition(":")[0].strip("[]").partition("%")[0]
    if family != "ipv6":
        return (host or peer)[:64]
    try:
        return str(ipaddress.IPv6Network((host, 64), strict=False))
    except ValueError:
        return peer[:64]
