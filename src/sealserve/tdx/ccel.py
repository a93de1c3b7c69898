"""The boot event log that firmware and boot loader leave in ACPI: the table CCEL and its area.

Rules this module keeps:

* A log proves nothing by itself. Its digests become facts only when
  :func:`replay` gives the registers of a verified quote.
* Even then only digests and their order are facts. An event's type and text
  are covered by nothing: they are labels for people, they take no part in
  comparisons, and nothing may be decided by them. The one exception is text
  that *is* what was measured: :attr:`BootEvent.measured_text`.
* There is one right form. Sizes and counts are capped before they are used,
  algorithms must be declared, and what follows the last event must be padding.

Sources: Intel TDX Virtual Firmware Design Guide, "CC Event Log" and the ACPI
table CCEL; TCG PC Client Platform Firmware Profile, "TCG_PCR_EVENT2" and
"Specification ID Version Event". All integers are little-endian.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sealserve.errors import InputError
from sealserve.files import read_limited
from sealserve.tdx.eventlog import extend

__all__ = [
    "MAX_AREA_BYTES",
    "MAX_BOOT_EVENTS",
    "MAX_EVENT_BYTES",
    "BootEvent",
    "BootTable",
    "load_log",
    "parse_log",
    "parse_table",
    "replay",
]

MAX_AREA_BYTES = 4 * 1024 * 1024
MAX_BOOT_EVENTS = 4096
MAX_EVENT_BYTES = 256 * 1024

_MAX_ALGORITHMS = 8
_SHA384 = 0x000C
# TPM algorithm identifier -> digest size, as the TCG registry fixes it.
_DIGEST_BYTES = {0x0004: 20, 0x000B: 32, _SHA384: 48, 0x000D: 64, 0x0012: 32}

_EV_NO_ACTION = 0x00000003
_SPEC_ID = b"Spec ID Event03\0"
_FIRST_EVENT = struct.Struct("<II20sI")  # register, type, SHA-1 digest, size of what follows
_SPEC_HEAD = struct.Struct("<16sIBBBBI")  # name, class, minor, major, errata, uintn, algorithms
_EVENT_HEAD = struct.Struct("<III")  # register index, type, number of digests
_U8, _U16, _U32 = struct.Struct("<B"), struct.Struct("<H"), struct.Struct("<I")
_ALGORITHM = struct.Struct("<HH")  # identifier, digest size

_TABLE_BYTES = 56
_TABLE = struct.Struct("<4sI28xBBHQQ")  # signature, length, ..., type, subtype, -, size, address
_CC_TYPE_TDX = 2
_REGISTER_COUNT = 5  # index 0 is MRTD, 1 to 4 are RTMR0 to RTMR3
_RTMR_AT_BOOT = bytes(48)


@dataclass(frozen=True, slots=True)
class BootTable:
    """The ACPI table: where the firmware put its log.

    Attributes:
        area_bytes: size of the log area.
        address: its physical address.
    """

    area_bytes: int
    address: int


@dataclass(frozen=True, slots=True)
class BootEvent:
    """One entry of the log.

    Two events are equal when they do the same to the registers.

    Attributes:
        register: 0 to 3 for RTMR0 to RTMR3; ``None`` for an entry that extends
            nothing (EV_NO_ACTION).
        digest: the SHA-384 digest (48 bytes) that went into the register.
        unauthenticated_type: TCG event type. Covered by nothing.
        unauthenticated_text: what the writer said about it. Covered by nothing.
    """

    register: int | None
    digest: bytes
    unauthenticated_type: int = field(compare=False)
    unauthenticated_text: bytes = field(compare=False)

    @property
    def measured_text(self) -> bytes | None:
        """The text, if it is itself what was measured; ``None`` if it is a mere label."""
        if self.register is None:
            return None
        matches = hashlib.sha384(self.unauthenticated_text).digest() == self.digest
        return self.unauthenticated_text if matches else None

    def to_dict(self) -> dict[str, Any]:
        """The event as a JSON object; the text is left to those who want to see the log."""
        return {
            "register": None if self.register is None else f"rtmr{self.register}",
            "digest": self.digest.hex(),
            "unauthenticated_type": self.unauthenticated_type,
            "text_is_measured": self.measured_text is not None,
        }


def parse_table(raw: bytes) -> BootTable:
    """Read the ACPI table CCEL (56 bytes).

    Raises:
        InputError: ``eventlog.malformed``, or ``eventlog.too_large`` for an area
            beyond :data:`MAX_AREA_BYTES`.
    """
    if len(raw) != _TABLE_BYTES:
        raise _malformed(f"the ACPI table has {len(raw)} bytes, not {_TABLE_BYTES}")
    signature, length, cc_type, _, _, size, address = _TABLE.unpack(raw)
    if signature != b"CCEL" or length != _TABLE_BYTES:
        raise _malformed("this is not an ACPI table CCEL")
    if sum(raw) % 256:
        raise _malformed("the checksum of the ACPI table is wrong")
    if cc_type != _CC_TYPE_TDX:
        raise _malformed(f"the log is for confidential computing type {cc_type}, TDX is 2")
    _check_area(size)
    return BootTable(area_bytes=size, address=address)


def load_log(path: Path | str, table: BootTable | None = None) -> tuple[BootEvent, ...]:
    """Read a log from a file that holds the log area.

    Raises:
        Unavailable: ``file.unreadable``.
        InputError: ``file.too_large``, and as :func:`parse_log`.
    """
    return parse_log(read_limited(path, MAX_AREA_BYTES), table)


def parse_log(raw: bytes, table: BootTable | None = None) -> tuple[BootEvent, ...]:
    """Read the log area, whole or cut after its last event.

    Args:
        raw: the area, at most :data:`MAX_AREA_BYTES`.
        table: its ACPI table, if the area shall be no larger than that says.

    Returns:
        The events in order, without the leading "Spec ID" event.

    Raises:
        InputError: ``eventlog.too_large``, ``eventlog.truncated`` or
            ``eventlog.malformed``.
    """
    _check_area(len(raw))
    if table is not None and len(raw) > table.area_bytes:
        raise _malformed(
            f"the log has {len(raw)} bytes, and its ACPI table speaks of {table.area_bytes}"
        )
    reader = _Reader(raw)
    algorithms = _spec_id_event(reader)
    events: list[BootEvent] = []
    while not reader.at_padding():
        if len(events) == MAX_BOOT_EVENTS:
            raise InputError(
                "eventlog.too_large", f"the boot event log has more than {MAX_BOOT_EVENTS} events"
            )
        events.append(_event(reader, algorithms))
    return tuple(events)


def replay(events: Iterable[BootEvent]) -> tuple[bytes, bytes, bytes, bytes]:
    """The values (48 bytes each) of RTMR0 to RTMR3 after these events, from zero at boot."""
    registers = [_RTMR_AT_BOOT] * 4
    for event in events:
        if event.register is not None:
            registers[event.register] = extend(registers[event.register], event.digest)
    return registers[0], registers[1], registers[2], registers[3]


class _Reader:
    """Takes fields off the front; refuses to read beyond the end."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._at = 0

    @property
    def offset(self) -> int:
        return self._at

    def take(self, size: int, what: str) -> bytes:
        end = self._at + size
        if end > len(self._raw):
            raise InputError(
                "eventlog.truncated",
                f"the boot event log ends at byte {len(self._raw)}, inside {what} "
                f"(bytes {self._at} to {end})",
                hint="read the whole file again",
            )
        part = self._raw[self._at : end]
        self._at = end
        return part

    def number(self, form: struct.Struct, what: str) -> int:
        value: int = form.unpack(self.take(form.size, what))[0]
        return value

    def at_padding(self) -> bool:
        """Whether only padding is left: nothing, zeros, or bytes 0xff (firmware's choice).

        Raises:
            InputError: ``eventlog.malformed`` for an end marker with more behind it.
        """
        mark = self._raw[self._at : self._at + _U32.size]
        if not mark:
            return True
        if mark not in (b"\xff" * len(mark), bytes(len(mark))):
            return False
        # A register index of zero is possible (MRTD), so look at the whole head.
        head = self._raw[self._at : self._at + _EVENT_HEAD.size]
        if not head[0] and any(head):
            return False
        rest = len(self._raw) - self._at
        if self._raw.count(mark[:1], self._at) != rest:
            raise _malformed(f"something follows the end of the log at byte {self._at}")
        return True


def _spec_id_event(reader: _Reader) -> dict[int, int]:
    """The first event; the digest size of each algorithm that the log declares."""
    head = reader.take(_FIRST_EVENT.size, "the first event")
    # Its register index is 0 or 1, by firmware; it extends nothing either way.
    register, kind, digest, size = _FIRST_EVENT.unpack(head)
    if kind != _EV_NO_ACTION or register >= _REGISTER_COUNT or any(digest):
        raise _malformed("the first event is not a specification id event")
    if size > MAX_EVENT_BYTES:
        raise _too_large_event(size, 0)
    spec = _Reader(reader.take(size, "the specification id event"))
    name, _, _, major, _, _, count = _SPEC_HEAD.unpack(
        spec.take(_SPEC_HEAD.size, "the specification id event")
    )
    if name != _SPEC_ID or major != 2:
        raise _malformed("the log does not begin with a 'Spec ID Event03' of version 2")
    if not 1 <= count <= _MAX_ALGORITHMS:
        raise _malformed(f"{count} digest algorithms are declared, 1 to {_MAX_ALGORITHMS} can be")
    algorithms: dict[int, int] = {}
    for _ in range(count):
        algorithm, digest_size = _ALGORITHM.unpack(spec.take(_ALGORITHM.size, "an algorithm"))
        if algorithm in algorithms or _DIGEST_BYTES.get(algorithm) != digest_size:
            raise _malformed(
                f"digest algorithm {algorithm:#06x} of {digest_size} bytes is unknown or repeated"
            )
        algorithms[algorithm] = digest_size
    if _SHA384 not in algorithms:
        raise _malformed("the log has no SHA-384 digests, which alone go into RTMRs")
    spec.take(spec.number(_U8, "the vendor information"), "the vendor information")
    if spec.offset != size:
        raise _malformed("the specification id event is longer than its content")
    return algorithms


def _event(reader: _Reader, algorithms: dict[int, int]) -> BootEvent:
    start = reader.offset
    index, kind, count = _EVENT_HEAD.unpack(reader.take(_EVENT_HEAD.size, "an event"))
    if index >= _REGISTER_COUNT:
        raise _malformed(f"the event at byte {start} is for register {index}, 0 to 4 exist")
    digests: dict[int, bytes] = {}
    # One digest of each declared algorithm, in any order: more cannot be there.
    if count != len(algorithms):
        raise _malformed(
            f"the event at byte {start} has {count} digests, {len(algorithms)} were declared"
        )
    for _ in range(count):
        algorithm = reader.number(_U16, "a digest")
        if algorithm not in algorithms or algorithm in digests:
            raise _malformed(
                f"digest algorithm {algorithm:#06x} at byte {start} is undeclared or repeated"
            )
        digests[algorithm] = reader.take(algorithms[algorithm], "a digest")
    size = reader.number(_U32, "an event's size")
    if size > MAX_EVENT_BYTES:
        raise _too_large_event(size, start)
    text = reader.take(size, "an event's text")
    if kind == _EV_NO_ACTION:
        return BootEvent(None, digests[_SHA384], kind, text)
    if index == 0:
        raise _malformed(f"the event at byte {start} extends MRTD, which nothing can after boot")
    return BootEvent(index - 1, digests[_SHA384], kind, text)


def _check_area(size: int) -> None:
    if size > MAX_AREA_BYTES:
        raise InputError(
            "eventlog.too_large",
            f"a boot event log of {size} bytes is larger than the limit of {MAX_AREA_BYTES}",
        )


def _too_large_event(size: int, start: int) -> InputError:
    return InputError(
        "eventlog.too_large",
        f"the event at byte {start} has {size} bytes of text, more than {MAX_EVENT_BYTES}",
    )


def _malformed(message: str) -> InputError:
    return InputError("eventlog.malformed", message)
