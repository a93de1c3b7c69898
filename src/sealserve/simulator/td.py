"""A software TD: registers in memory, quotes signed by a simulated platform.

Its measurements are derived from a label, so that the same label always gives
the same "firmware" and another label another one.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from sealserve.errors import InputError
from sealserve.simulator.platform import SimulatedPlatform
from sealserve.tdx.eventlog import extend
from sealserve.tdx.quote import TdReport

__all__ = ["DEFAULT_FIRMWARE", "SoftwareTd", "report_of"]

DEFAULT_FIRMWARE = "sealserve-guest-1"

_SEPT_VE_DISABLE = bytes.fromhex("0000001000000000")
_XFAM = bytes.fromhex("e702060000000000")  # x87, SSE, AVX, AVX-512, PKRU, AMX
_TEE_TCB_SVN = bytes([6, 1, 3]) + bytes(13)


def report_of(firmware: str = DEFAULT_FIRMWARE, report_data: bytes = bytes(64)) -> TdReport:
    """The registers of a TD with this firmware at boot, RTMR3 untouched."""

    def measure(register: str) -> bytes:
        return hashlib.sha384(f"SIMULATION {register} of {firmware}".encode()).digest()

    return TdReport(
        tee_tcb_svn=_TEE_TCB_SVN,
        mrseam=hashlib.sha384(b"SIMULATION TDX module").digest(),
        mrsignerseam=bytes(48),
        seam_attributes=bytes(8),
        td_attributes=_SEPT_VE_DISABLE,
        xfam=_XFAM,
        mrtd=measure("MRTD"),
        mrconfigid=bytes(48),
        mrowner=bytes(48),
        mrownerconfig=bytes(48),
        rtmr0=measure("RTMR0"),
        rtmr1=measure("RTMR1"),
        rtmr2=measure("RTMR2"),
        rtmr3=bytes(48),
        report_data=report_data,
    )


class SoftwareTd:
    """One running TD. Its RTMRs live as long as the object.

    Args:
        platform: the machine it runs on.
        firmware: label that its measurements are derived from.
    """

    def __init__(self, platform: SimulatedPlatform, firmware: str = DEFAULT_FIRMWARE) -> None:
        self._platform = platform
        self._report = report_of(firmware)

    @property
    def report(self) -> TdReport:
        """The registers as they are now."""
        return self._report

    def quote(self, report_data: bytes) -> bytes:
        """A version 4 quote for 64 bytes of report data."""
        if len(report_data) != 64:
            raise InputError("tdx.report_data_length", "report data has 64 bytes")
        return self._platform.quote(replace(self._report, report_data=report_data))

    def extend(self, index: int, digest: bytes) -> None:
        """Extend RTMR2 or RTMR3, the registers a guest may extend, by 48 bytes."""
        name = f"rtmr{index}"
        value = extend(getattr(self._report, name), digest)
        self._report = replace(self._report, **{name: value})
