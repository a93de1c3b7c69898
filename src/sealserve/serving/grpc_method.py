"""One gRPC method: decode, ask the gate, answer, note how it ended.

Rules this module keeps:

* Messages are decoded here, not by gRPC: bytes that are no message get the
  answer INVALID_ARGUMENT, and no handler ever ends in an exception.
* The gate is asked before anything of the message is looked at.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.message import DecodeError, Message

from sealserve.errors import InputError, SealserveError
from sealserve.logs import Log
from sealserve.serving.access import Gate, Peer, Role, key_in
from sealserve.serving.calls import REQUEST_ID, Call, Calls
from sealserve.serving.deadline import Deadline, under
from sealserve.serving.status import Status, status_of

__all__ = ["Methods", "sentence"]

_MAX_DETAILS = 2000
_CODES = {code.value[0]: code for code in grpc.StatusCode}

Answer = Callable[[Any, Call], Message]


@dataclass(frozen=True)
class Methods:
    """Makes methods that share a gate and a notebook."""

    gate: Gate
    calls: Calls
    log: Log

    def make(
        self,
        api: str,
        request_type: type[Message],
        answer: Answer,
        role: Role | None = Role.PREDICT,
    ) -> grpc.RpcMethodHandler[bytes, bytes]:
        """A method.

        Args:
            api: its name.
            request_type: the message it takes.
            answer: gives the response, or raises a `SealserveError`.
            role: who may call it; None for everybody.
        """

        def handle(raw: bytes, context: grpc.ServicerContext) -> bytes:
            call = _call(api, context)
            failure: SealserveError | None = None
            try:
                if role is not None:
                    self.gate.check(role, call.peer)
                with under(_deadline(context)):
                    response = answer(_decoded(raw, request_type), call).SerializeToString()
            except SealserveError as error:
                failure, status, message = error, status_of(error), sentence(error)
            except Exception as error:  # a bug is answered too, without its values
                self.log.error("unexpected", error=type(error).__name__, front="grpc", id=call.id)
                status, message = Status.INTERNAL, f"unexpected {type(error).__name__}"
            else:
                if self.calls.is_spoken_of(call):
                    context.set_trailing_metadata(((REQUEST_ID, call.id),))
                self.calls.ended(call, Status.OK)
                return response
            context.set_code(_CODES[status])
            context.set_details(message)
            context.set_trailing_metadata(((REQUEST_ID, call.id),))
            self.calls.ended(call, status, failure)
            return b""

        return grpc.unary_unary_rpc_method_handler(handle)


def sentence(error: SealserveError) -> str:
    """What a client is told."""
    text = f"{error.where}: {error.message}" if error.where else error.message
    # It travels in a header, which clients limit to 8 KiB; names in it may be of any length.
    return text[:_MAX_DETAILS]


def _decoded(raw: bytes, request_type: type[Message]) -> Message:
    try:
        return request_type.FromString(raw)
    except DecodeError:
        raise InputError(
            "request.malformed", f"the request is no {request_type.DESCRIPTOR.name}"
        ) from None


def _deadline(context: grpc.ServicerContext) -> Deadline:
    remaining: float | None = context.time_remaining()  # the stubs do not know of None
    return Deadline(
        until=None if remaining is None else time.monotonic() + remaining,
        cancelled=lambda: not context.is_active(),
        when_cancelled=context.add_callback,
    )


def _call(api: str, context: grpc.ServicerContext) -> Call:
    metadata = list(context.invocation_metadata() or ())
    given = next((str(value) for name, value in metadata if name == REQUEST_ID), "")
    # The stubs have another type for it than gRPC gives.
    pems: Any = context.auth_context().get("x509_pem_cert", ())
    der = x509.load_pem_x509_certificate(pems[0]).public_bytes(Encoding.DER) if pems else None
    return Call(api, "GRPC", Peer(der, key_in(metadata)), given)
