"""Logs on one side, the registers of a quote on the other: what explains what.

A log that gives the register of a *verified* quote tells what went into it. The
comparison knows digests only; see :mod:`~sealserve.tdx.ccel`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sealserve.errors import InputError
from sealserve.tdx import ccel, dstack, eventlog
from sealserve.tdx.ccel import BootEvent
from sealserve.tdx.eventlog import RuntimeEvent
from sealserve.tdx.quote import TdReport

__all__ = ["MAX_FILE_BYTES", "RegisterMatch", "Replayed", "compare", "named", "replay_logs"]

MAX_FILE_BYTES = ccel.MAX_AREA_BYTES

_NAMES = ("rtmr0", "rtmr1", "rtmr2", "rtmr3")


@dataclass(frozen=True, slots=True)
class RegisterMatch:
    """One register: what the logs give and what the quote states (48 bytes each)."""

    name: str
    replayed: bytes
    quoted: bytes

    @property
    def matches(self) -> bool:
        """Whether the logs explain the register."""
        return self.replayed == self.quoted

    def to_dict(self) -> dict[str, Any]:
        """The match as a JSON object."""
        return {
            "register": self.name,
            "replayed": self.replayed.hex(),
            "quoted": self.quoted.hex(),
            "matches": self.matches,
        }


@dataclass(frozen=True, slots=True)
class Replayed:
    """What logs come to.

    Attributes:
        registers: name -> value (48 bytes); all four with a boot log, else RTMR3.
        boot: the firmware's and boot loader's events.
        runtime: the guest's own.
    """

    registers: Mapping[str, bytes]
    boot: tuple[BootEvent, ...] = ()
    runtime: tuple[RuntimeEvent, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The result as a JSON object."""
        return {
            "registers": {name: value.hex() for name, value in self.registers.items()},
            "boot_events": [event.to_dict() for event in self.boot],
            "runtime_events": [event.to_dict() for event in self.runtime],
        }


def replay_logs(
    log: bytes, *, table: bytes | None = None, runtime: bytes | None = None
) -> Replayed:
    """Replay a boot log, a runtime log, or the one after the other.

    Args:
        log: a boot event log (CCEL), a guest's runtime event log (JSON list), or
            a report of dstack (JSON object), whose log has both in it.
        table: the ACPI table of a boot log.
        runtime: the runtime log of a guest whose boot log ``log`` is.

    Raises:
        InputError: ``eventlog.*``, or ``eventlog.two_runtime_logs``.
    """
    # A boot log begins with a register index of at most 4, and neither is a letter of JSON.
    if log.startswith((b"[", b"{")):
        if table is not None or runtime is not None:
            raise InputError(
                "eventlog.two_runtime_logs",
                "this log has a guest's runtime events: it has no ACPI table, and there is no "
                "other one beside it",
                hint="give the boot event log as LOG, and this one with --events",
            )
        if log.startswith(b"{"):
            foreign = dstack.parse_log(log)
            return Replayed(named(ccel.replay(foreign)), foreign)
        events = eventlog.decode_log(log)
        return Replayed({_NAMES[3]: eventlog.replay(events)}, runtime=events)
    boot = ccel.parse_log(log, None if table is None else ccel.parse_table(table))
    registers = named(ccel.replay(boot))
    after = () if runtime is None else eventlog.decode_log(runtime)
    registers[_NAMES[3]] = eventlog.replay(after, registers[_NAMES[3]])
    return Replayed(registers, boot, after)


def named(registers: Sequence[bytes]) -> dict[str, bytes]:
    """RTMR0 to RTMR3 by name."""
    return dict(zip(_NAMES, registers, strict=True))


def compare(registers: Mapping[str, bytes], report: TdReport) -> tuple[RegisterMatch, ...]:
    """Hold replayed registers against what a quote states."""
    return tuple(
        RegisterMatch(name, value, getattr(report, name)) for name, value in registers.items()
    )
