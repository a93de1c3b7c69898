"""The facts of the administration protocol that service and client share.

Rules this module keeps: a method is named after its request (``SecretPut`` takes a
``SecretPutRequest``), so that names and messages cannot part; every request has an
operation, and the other way round (a test holds the .proto to it).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from google.protobuf.message import Message

from sealserve.errors import (
    InputError,
    InternalError,
    Refused,
    SealserveError,
    Unavailable,
)
from sealserve.wire.broker.admin import v1_pb2

__all__ = [
    "ERROR_KEY",
    "MAX_ANSWER_BYTES",
    "MAX_REQUEST_BYTES",
    "METHODS",
    "SERVICE",
    "decode_error",
    "encode_error",
    "method_of",
]

SERVICE: Final = "sealserve.broker.admin.v1.Administration"
MAX_REQUEST_BYTES: Final = 2 << 20
"""A policy has at most 1 MiB."""
MAX_ANSWER_BYTES: Final = 8 << 20
ERROR_KEY: Final = "sealserve-error-bin"
"""The trailing metadata that holds an error: administrators hear all of it."""

_SUFFIX: Final = "Request"
_MAX_ERROR_BYTES: Final = 4 * 1024
_CLASSES: Final[Mapping[str, type[SealserveError]]] = {
    kind.__name__: kind for kind in (InputError, Refused, Unavailable, InternalError)
}

METHODS: Final[Mapping[str, type[Message]]] = {
    name.removesuffix(_SUFFIX): getattr(v1_pb2, name)
    for name in sorted(v1_pb2.DESCRIPTOR.message_types_by_name)
    if name.endswith(_SUFFIX)
}
"""Each method's name with its request."""


def method_of(request: Message) -> str:
    """The path of the method that takes a request."""
    return f"/{SERVICE}/{request.DESCRIPTOR.name.removesuffix(_SUFFIX)}"


def encode_error(error: SealserveError) -> bytes:
    """An error for `ERROR_KEY`."""
    kind = next(name for name, kind in _CLASSES.items() if isinstance(error, kind))
    told = {name: text[:512] for name, text in error.to_dict().items()}
    return json.dumps({"class": kind, **told}).encode()


def decode_error(raw: bytes, *, address: str) -> SealserveError | None:
    """The error that a broker told; ``None`` if it is none.

    Args:
        raw: what stood under `ERROR_KEY`.
        address: the broker's, where the error names no place of its own.
    """
    if len(raw) > _MAX_ERROR_BYTES:
        return None
    try:
        told = json.loads(raw)
        kind = _CLASSES[told["class"]]
        return kind(
            told["code"],
            str(told["message"]),
            where=str(told.get("where", address)),
            hint=None if "hint" not in told else str(told["hint"]),
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
