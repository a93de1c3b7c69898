"""Reading what an attacker may have written: one shape passes, all else is `Unlike` it."""

from __future__ import annotations

import base64
import json
from typing import Any, NoReturn

__all__ = ["Unlike", "base64_of", "bounded", "equal", "exactly", "parse_json"]


class Unlike(Exception):
    """Something is not of the shape it must have; its text says what."""


def parse_json(text: bytes) -> Any:
    """JSON without doubled keys, fractions, or anything behind its end."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        mapping = dict(pairs)
        if len(mapping) != len(pairs):
            raise Unlike("a JSON key stands twice")
        return mapping

    def no_number(_text: str) -> NoReturn:
        raise Unlike("a JSON number is not an integer")

    try:
        return json.loads(
            text.decode(),
            object_pairs_hook=unique,
            parse_float=no_number,
            parse_constant=no_number,
        )
    except (ValueError, RecursionError):
        raise Unlike("metadata is not JSON") from None


def exactly(value: Any, what: str, *names: str) -> dict[str, Any]:
    """An object with exactly these fields."""
    if not isinstance(value, dict) or set(value) != set(names):
        raise Unlike(f"fields of {what}")
    return value


def equal(value: Any, wanted: Any, what: str) -> None:
    """Exactly this value."""
    # In Python 1 == True: comparing the encoded text tells them apart.
    if json.dumps(value, sort_keys=True) != json.dumps(wanted, sort_keys=True):
        raise Unlike(what)


def bounded(value: Any, bounds: range, what: str) -> int:
    """An integer within bounds."""
    if type(value) is not int or value not in bounds:
        raise Unlike(f"{what} outside {bounds.start} to {bounds.stop - 1}")
    return value


def base64_of(value: Any, size: int, what: str) -> bytes:
    """So many bytes, written as base64."""
    try:
        decoded = base64.b64decode(value, validate=True) if isinstance(value, str) else b""
    except ValueError:
        decoded = b""
    if len(decoded) != size:
        raise Unlike(f"{what} is not {size} bytes")
    return decoded
