"""Event logs in the form of dstack, whose published quotes come with theirs.

Rules this module keeps:

* They prove as little as any log: only digests count, and only if they replay
  to the registers of a verified quote.
* dstack's own run-time events state what they measured, so their digest is
  computed here and the one in the file is not believed.

Form: a JSON object whose ``event_log`` is a list of ``imr`` (0 to 3),
``event_type``, ``digest``, ``event`` and ``event_payload``, or that list as a
text. Source: dstack, ``cc-eventlog``; measured on its published logs.
"""

from __future__ import annotations

import hashlib
import json
import struct
from typing import Any

from sealserve.errors import InputError
from sealserve.tdx.ccel import MAX_AREA_BYTES, MAX_BOOT_EVENTS, BootEvent

__all__ = ["parse_log"]

_RUNTIME_EVENT = 0x08000001
_DIGEST_BYTES = 48
_REGISTERS = range(4)
_U32 = range(1 << 32)


def parse_log(raw: bytes) -> tuple[BootEvent, ...]:
    """Read a report that holds an event log.

    Args:
        raw: at most :data:`~sealserve.tdx.ccel.MAX_AREA_BYTES`.

    Raises:
        InputError: ``eventlog.too_large`` or ``eventlog.malformed``.
    """
    if len(raw) > MAX_AREA_BYTES:
        raise InputError(
            "eventlog.too_large",
            f"an event log of {len(raw)} bytes is larger than the limit of {MAX_AREA_BYTES}",
        )
    try:
        log = json.loads(raw)["event_log"]
        entries = json.loads(log) if isinstance(log, str) else log
        if not isinstance(entries, list):
            raise TypeError("no list")
        if len(entries) > MAX_BOOT_EVENTS:
            raise InputError(
                "eventlog.too_large", f"the event log has more than {MAX_BOOT_EVENTS} events"
            )
        return tuple(map(_event, entries))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            "eventlog.malformed",
            f"this is no report with an event log: {type(error).__name__}",
            hint="a boot event log is binary (CCEL), a guest's runtime event log a JSON list",
        ) from None


def _event(entry: dict[str, Any]) -> BootEvent:
    register, kind = entry["imr"], entry["event_type"]
    if type(register) is not int or register not in _REGISTERS:
        raise ValueError("no register")
    if type(kind) is not int or kind not in _U32:
        raise ValueError("no event type")
    payload = bytes.fromhex(entry["event_payload"])
    if kind == _RUNTIME_EVENT:
        name: str = entry["event"]
        measured = b":".join((struct.pack("<I", kind), name.encode(), payload))
        return BootEvent(register, hashlib.sha384(measured).digest(), kind, payload)
    digest = bytes.fromhex(entry["digest"])
    if len(digest) != _DIGEST_BYTES:
        raise ValueError("no digest")
    return BootEvent(register, digest, kind, payload)
