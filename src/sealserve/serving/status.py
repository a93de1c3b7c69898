"""Canonical status codes: what an error is called in gRPC and in HTTP.

Rules this module keeps:

* The dataplane raises `SealserveError`; only here is it decided what a peer
  sees: the class gives the usual code, and the few error codes for which
  TensorFlow Serving answers otherwise are listed once.
* The HTTP statuses are those of TensorFlow Serving (``http_server.cc``,
  ``ToHTTPStatusCode``), with its 499 and 504 for cancelled and late calls.
* Like the original, a run that fails in TensorFlow passes TensorFlow's own status on. Nothing
  else here or there is ``ALREADY_EXISTS`` or ``ABORTED`` (409).
"""

from __future__ import annotations

from enum import IntEnum

from sealserve.errors import InputError, Refused, SealserveError, Unavailable

__all__ = ["HTTP_STATUS", "RunFailed", "Status", "status_of"]


class Status(IntEnum):
    """google.rpc.Code: the numbers of gRPC and of StatusProto.error_code."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


HTTP_STATUS: dict[Status, int] = {
    Status.OK: 200,
    Status.CANCELLED: 499,
    Status.UNKNOWN: 500,
    Status.INVALID_ARGUMENT: 400,
    Status.DEADLINE_EXCEEDED: 504,
    Status.NOT_FOUND: 404,
    Status.ALREADY_EXISTS: 409,
    Status.PERMISSION_DENIED: 403,
    Status.RESOURCE_EXHAUSTED: 429,
    Status.FAILED_PRECONDITION: 400,
    Status.ABORTED: 409,
    Status.OUT_OF_RANGE: 400,
    Status.UNIMPLEMENTED: 501,
    Status.INTERNAL: 500,
    Status.UNAVAILABLE: 503,
    Status.DATA_LOSS: 500,
    Status.UNAUTHENTICATED: 401,
}

# Error codes whose status does not follow from their class.
_EXCEPTIONS: dict[str, Status] = {
    "request.servable_not_found": Status.NOT_FOUND,
    "request.versions_not_found": Status.NOT_FOUND,
    "request.path_not_served": Status.NOT_FOUND,
    "request.signature_not_found": Status.FAILED_PRECONDITION,
    "request.signature_unservable": Status.FAILED_PRECONDITION,
    "request.method_unsupported": Status.UNIMPLEMENTED,
    "servable.label_unavailable": Status.FAILED_PRECONDITION,
    "servable.not_available": Status.UNKNOWN,
    "access.unknown_caller": Status.UNAUTHENTICATED,
    "request.too_large": Status.RESOURCE_EXHAUSTED,
    "request.too_late": Status.DEADLINE_EXCEEDED,
    "request.cancelled": Status.CANCELLED,
    "tensor.too_large": Status.RESOURCE_EXHAUSTED,
    "tensor.dtype_unsupported": Status.UNIMPLEMENTED,
    "servable.runtime_cannot": Status.UNIMPLEMENTED,
    "servable.stateful": Status.UNIMPLEMENTED,
    "servable.inexact": Status.UNIMPLEMENTED,
    "request.value_range": Status.OUT_OF_RANGE,
}


class RunFailed(Unavailable):
    """A run that failed with a status of its own.

    Args:
        status: which.
        message: why.
    """

    def __init__(self, status: Status, message: str) -> None:
        super().__init__("servable.run_failed", message)
        self.status = status


def status_of(error: SealserveError) -> Status:
    """The canonical status of an error."""
    if isinstance(error, RunFailed):
        return error.status
    if error.code in _EXCEPTIONS:
        return _EXCEPTIONS[error.code]
    if isinstance(error, InputError):
        return Status.INVALID_ARGUMENT
    if isinstance(error, Refused):
        return Status.PERMISSION_DENIED
    if isinstance(error, Unavailable):
        return Status.UNAVAILABLE
    return Status.INTERNAL
