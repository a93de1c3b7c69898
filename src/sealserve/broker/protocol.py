"""The facts of the wire that service and client share.

Rules this module keeps: each name, limit and lifetime stands here once (the sizes
that the report data binds stand in `attestation.binding`, a record's in `wire.limits`),
and `resource_name` is the one gate that a resource name passes, whoever sends it.
"""

from __future__ import annotations

import re
from typing import Final

from sealserve.attestation.binding import LEASE_ID_BYTES
from sealserve.errors import InputError

__all__ = [
    "CHALLENGE_METHOD",
    "MAX_MESSAGE_BYTES",
    "MAX_SECRET_BYTES",
    "NONCE_LIFETIME_SECONDS",
    "PUSHBACK_KEY",
    "RELEASE_METHOD",
    "RENEW_METHOD",
    "SERVICE",
    "lease_id_bytes",
    "resource_name",
]

SERVICE: Final = "sealserve.broker.v1.KeyBroker"
CHALLENGE_METHOD: Final = f"/{SERVICE}/Challenge"
RELEASE_METHOD: Final = f"/{SERVICE}/Release"
RENEW_METHOD: Final = f"/{SERVICE}/Renew"
PUSHBACK_KEY: Final = "grpc-retry-pushback-ms"
"""Trailing metadata of an answer that says how long to wait, in milliseconds."""

NONCE_LIFETIME_SECONDS: Final = 60
MAX_MESSAGE_BYTES: Final = 64 * 1024
MAX_SECRET_BYTES: Final = 4096

_RESOURCE = re.compile(r"[a-z0-9][a-z0-9._-]*(?:/[a-z0-9][a-z0-9._-]*)*")
_MAX_RESOURCE_CHARS = 128


def resource_name(text: str) -> str:
    """Check the name of a resource.

    Args:
        text: such as ``"models/demo"``; at most 128 characters of ``a-z 0-9 . _ -``,
            in parts joined by ``/``, each beginning with a letter or digit.

    Returns:
        The same text.

    Raises:
        InputError: ``resource.name_invalid``.
    """
    if len(text) > _MAX_RESOURCE_CHARS or not _RESOURCE.fullmatch(text):
        raise InputError(
            "resource.name_invalid",
            f"{text[:_MAX_RESOURCE_CHARS]!r} is not the name of a resource",
            hint="use parts of a-z, 0-9, '.', '_' and '-' joined by '/', such as models/demo",
        )
    return text


def lease_id_bytes(text: str) -> bytes:
    """The 16 bytes of a lease's name.

    Raises:
        InputError: ``lease.id_invalid``.
    """
    if len(text) == 2 * LEASE_ID_BYTES and not set(text) - set("0123456789abcdef"):
        return bytes.fromhex(text)
    raise InputError(
        "lease.id_invalid", "a lease's name is 32 hexadecimal digits in lower case", where=text[:64]
    )
