"""A TD that was launched in a way that is never trusted.

Source: Intel TDX Module ABI Specification 348551-008, TD attributes (table 3.23).
"""

from __future__ import annotations

from typing import Final

from sealserve.errors import Refused
from sealserve.tdx.quote import TdReport

__all__ = ["check_td"]

_HINT: Final = "launch the guest without this"


def _bits(*ranges: tuple[int, int]) -> int:
    return sum(1 << bit for first, last in ranges for bit in range(first, last + 1))


_DEBUG: Final = _bits((0, 0))
_PROFILING: Final = _bits((4, 6))
_SERVICE_TD: Final = _bits((17, 17))
_SEPT_VE_DISABLE: Final = _bits((28, 28))
_MIGRATABLE: Final = _bits((29, 29))
_RESERVED: Final = _bits((1, 3), (7, 15), (23, 26), (32, 61))


def check_td(report: TdReport, *, paravisor: bool = False) -> None:
    """Refuse a TD that the host can look into, or that another TD controls.

    Args:
        report: of the TD.
        paravisor: do without SEPT_VE_DISABLE.

    Raises:
        Refused: ``td.service_td``, ``td.debug``, ``td.profiling``,
            ``td.reserved_bits``, ``td.migratable`` or ``td.sept_ve_disable``.
    """
    attributes = int.from_bytes(report.td_attributes, "little")
    if report.mrservicetd is not None and any(report.mrservicetd):
        raise Refused("td.service_td", "a service TD is bound to this TD", hint=_HINT)
    if attributes & _DEBUG:
        raise Refused("td.debug", "the host can read the memory of a debug TD", hint=_HINT)
    if attributes & _PROFILING:
        raise Refused("td.profiling", "the host may profile this TD", hint=_HINT)
    if attributes & _RESERVED:
        raise Refused(
            "td.reserved_bits",
            f"the TD attributes {report.td_attributes.hex()} have bits that mean nothing yet",
        )
    if attributes & _MIGRATABLE:
        raise Refused("td.migratable", "a migration TD may move this TD elsewhere", hint=_HINT)
    if attributes & _SERVICE_TD:
        raise Refused("td.service_td", "service TDs may be bound to this TD", hint=_HINT)
    if not attributes & _SEPT_VE_DISABLE and not paravisor:
        raise Refused(
            "td.sept_ve_disable",
            "the host can take pages away while this TD runs (SEPT_VE_DISABLE is not set)",
            hint="launch the guest with sept-ve-disable=on",
        )
