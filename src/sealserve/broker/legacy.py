"""The file of the original's get_secret server: a JSON object of names and passwords.

Rules this module keeps: the whole file is checked before any of it is used, and
no error shows a password.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from sealserve.broker.protocol import MAX_SECRET_BYTES, resource_name
from sealserve.errors import InputError
from sealserve.files import read_limited

__all__ = ["parse_secrets", "read_secrets"]

_MAX_BYTES: Final = 1 << 20
_MAX_ENTRIES: Final = 1000


def read_secrets(path: Path, prefix: str = "") -> dict[str, bytes]:
    """Read ``secret.json``.

    Args:
        path: at most 1 MiB.
        prefix: put before each name.

    Returns:
        Passwords in UTF-8, by the names of resources.

    Raises:
        InputError: ``secret.import_malformed``, ``resource.name_invalid``,
            ``file.too_large``.
        Unavailable: ``file.unreadable``.
    """
    return parse_secrets(read_limited(path, _MAX_BYTES), str(path), prefix)


def parse_secrets(raw: bytes, where: str, prefix: str = "") -> dict[str, bytes]:
    """As `read_secrets`, of the file's content; ``where`` is its name, for errors."""
    try:
        document = json.loads(raw, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or not 1 <= len(document) <= _MAX_ENTRIES:
        raise _malformed(where, f"is no JSON object of 1 to {_MAX_ENTRIES} names, each once")
    return {resource_name(prefix + name): _bytes(where, name, document[name]) for name in document}


def _bytes(where: str, name: str, value: object) -> bytes:
    try:
        secret = value.encode() if isinstance(value, str) else b""
    except UnicodeEncodeError:
        secret = b""
    if not 1 <= len(secret) <= MAX_SECRET_BYTES:
        raise _malformed(where, f"{name!r} is no text of 1 to {MAX_SECRET_BYTES} bytes")
    return secret


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _malformed(where: str, reason: str) -> InputError:
    return InputError(
        "secret.import_malformed",
        reason,
        where=where,
        hint='the original\'s file looks like {"name": "password", ...}',
    )
