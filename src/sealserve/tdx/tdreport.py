"""The TDREPORT: what the TDX module says about a TD to others on the same machine.

It is authenticated by a key of the processor, so a quoting enclave beside it
can check it and nobody else can. It is looked at here only to notice an answer
to another request early.

Source: Intel TDX Module ABI, "TDREPORT_STRUCT".
"""

from __future__ import annotations

from sealserve.errors import InputError

__all__ = ["TDREPORT_BYTES", "report_data_of"]

TDREPORT_BYTES = 1024

_TYPE_TDX = 0x81
_REPORT_DATA = slice(128, 192)


def report_data_of(tdreport: bytes) -> bytes:
    """The 64 bytes of report data in a TDREPORT.

    Raises:
        InputError: ``tdx.report_malformed``.
    """
    if len(tdreport) != TDREPORT_BYTES:
        raise InputError(
            "tdx.report_malformed", f"a TDREPORT has {TDREPORT_BYTES} bytes, not {len(tdreport)}"
        )
    if tdreport[0] != _TYPE_TDX:
        raise InputError(
            "tdx.report_malformed", f"report type {tdreport[0]:#x} is not TDX ({_TYPE_TDX:#x})"
        )
    return tdreport[_REPORT_DATA]
