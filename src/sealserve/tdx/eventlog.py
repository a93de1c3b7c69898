"""The runtime event log: what was extended into RTMR3 after boot, in order.

Rules this module keeps:

* An event's digest covers name and payload, and the name's length stands in
  front of it, so no two different events have the same digest.
* A log has exactly one encoding. :func:`decode_log` refuses every other one, so
  that the bytes can be hashed, compared and carried in a certificate.
* The log is a claim; only :func:`replay` against the RTMR3 of a verified quote
  makes it a fact.

The events of a guest are listed in docs/architecture.md.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sealserve.errors import InputError

__all__ = [
    "MAX_EVENTS",
    "MAX_LOG_BYTES",
    "MAX_PAYLOAD_BYTES",
    "RuntimeEvent",
    "decode_log",
    "encode_log",
    "extend",
    "replay",
]

MAX_EVENTS = 256
MAX_PAYLOAD_BYTES = 1024
MAX_LOG_BYTES = 64 * 1024

_NAME = re.compile(r"[a-z][a-z0-9_.-]{0,63}")
_RTMR_AT_BOOT = bytes(48)


@dataclass(frozen=True, slots=True)
class RuntimeEvent:
    """One extension of RTMR3.

    Attributes:
        name: what happened; lower-case letters, digits, ``_``, ``.``, ``-``,
            beginning with a letter, at most 64 characters.
        payload: what it happened to, at most :data:`MAX_PAYLOAD_BYTES`. Public.
    """

    name: str
    payload: bytes = b""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InputError("eventlog.malformed", f"not a runtime event name: {self.name[:80]!r}")
        if len(self.payload) > MAX_PAYLOAD_BYTES:
            raise InputError(
                "eventlog.too_large",
                f"the payload of event {self.name!r} is {len(self.payload)} bytes, "
                f"more than {MAX_PAYLOAD_BYTES}",
            )

    @property
    def digest(self) -> bytes:
        """SHA-384 of ``u32 big-endian length of name || name || payload`` (48 bytes)."""
        name = self.name.encode()
        return hashlib.sha384(struct.pack(">I", len(name)) + name + self.payload).digest()

    def to_dict(self) -> dict[str, str]:
        """Name and hexadecimal payload."""
        return {"name": self.name, "payload": self.payload.hex()}


def extend(register: bytes, digest: bytes) -> bytes:
    """What an RTMR holds after one extension: SHA-384 of ``register || digest``."""
    return hashlib.sha384(register + digest).digest()


def replay(events: Iterable[RuntimeEvent], start: bytes = _RTMR_AT_BOOT) -> bytes:
    """The value (48 bytes) of RTMR3 after these events, from zero at boot or ``start``."""
    register = start
    for event in events:
        register = extend(register, event.digest)
    return register


def encode_log(events: Iterable[RuntimeEvent]) -> bytes:
    """The canonical JSON of a log: sorted keys, no white space, ASCII.

    Raises:
        InputError: ``eventlog.too_large`` beyond :data:`MAX_EVENTS` events or
            :data:`MAX_LOG_BYTES` bytes.
    """
    log = [event.to_dict() for event in events]
    raw = json.dumps(log, sort_keys=True, separators=(",", ":")).encode("ascii")
    _check_size(len(log), len(raw))
    return raw


def decode_log(raw: bytes) -> tuple[RuntimeEvent, ...]:
    """Read a log written by :func:`encode_log`, and nothing else.

    Raises:
        InputError: ``eventlog.too_large`` or ``eventlog.malformed``.
    """
    _check_size(0, len(raw))
    try:
        entries = json.loads(raw.decode("ascii"))
        events = tuple(_decode_event(entry) for entry in _expect_list(entries))
    except (ValueError, RecursionError) as error:
        raise InputError(
            "eventlog.malformed", f"the runtime event log cannot be read: {type(error).__name__}"
        ) from None
    if encode_log(events) != raw:
        raise InputError("eventlog.malformed", "the runtime event log is not in canonical form")
    return events


def _expect_list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("not a list")
    return value


def _decode_event(entry: Any) -> RuntimeEvent:
    if not isinstance(entry, dict) or set(entry) != {"name", "payload"}:
        raise ValueError("not an event")
    name, payload = entry["name"], entry["payload"]
    if not isinstance(name, str) or not isinstance(payload, str):
        raise ValueError("not an event")
    return RuntimeEvent(name, bytes.fromhex(payload))


def _check_size(events: int, size: int) -> None:
    if events > MAX_EVENTS or size > MAX_LOG_BYTES:
        raise InputError(
            "eventlog.too_large",
            f"a runtime event log of {events} events, {size} bytes exceeds the limits "
            f"({MAX_EVENTS} events, {MAX_LOG_BYTES} bytes)",
        )
