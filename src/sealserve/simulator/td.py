"""A software TD: registers in memory, quotes signed by a simulated platform.

Its measurements are derived from a label, so that the same label always gives
the same "firmware" and another label another one. RTMR0 to RTMR2 are what its
boot event log comes to.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from sealserve.errors import InputError
from sealserve.simulator.boot_log import BootLog, boot_log
from sealserve.simulator.platform import SimulatedPlatform
from sealserve.tdx.eventlog import extend
from sealserve.tdx.quote import TdReport

__all__ = ["DEFAULT_FIRMWARE", "SoftwareTd", "report_of"]

DEFAULT_FIRMWARE = "sealserve-guest-1"

_SEPT_VE_DISABLE = bytes.fromhex("0000001000000000")
_XFAM = bytes.fromhex("e702060000000000")  # x87, SSE, AVX, AVX-512, PKRU, AMX
_TEE_TCB_SVN = bytes([6, 1, 3]) + bytes(13)


def report_of(firmware: str = DEFAULT_FIRMWARE, report_data: bytes = bytes(64)) -> TdReport:
    """The registers of a TD with this firmware after boot, RTMR3 untouched."""
    rtmr0, rtmr1, rtmr2 = boot_log(firmware).registers
    return TdReport(
        tee_tcb_svn=_TEE_TCB_SVN,
        mrseam=hashlib.sha384(b"SIMULATION TDX module").digest(),
        mrsignerseam=bytes(48),
        seam_attributes=bytes(8),
        td_attributes=_SEPT_VE_DISABLE,
        xfam=_XFAM,
        mrtd=hashlib.sha384(f"SIMULATION MRTD of {firmware}".encode()).digest(),
        mrconfigid=bytes(48),
        mrowner=bytes(48),
        mrownerconfig=bytes(48),
        rtmr0=rtmr0,
        rtmr1=rtmr1,
        rtmr2=rtmr2,
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
        self._boot_log = boot_log(firmware)

    @property
    def boot_log(self) -> BootLog:
        """How RTMR0 to RTMR2 became what they were after boot."""
        return self._boot_log

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
