"""Evidence of an Azure TDX guest: the vTPM's report, made a quote by the instance's host.

Such a guest has no ``tdx_guest`` driver. Its paravisor owns the TDREPORT; what
the guest may choose is 64 bytes that go into the runtime data, whose hash is
the report data. Its RTMRs are zero: what booted is in the vTPM's PCRs.

Rules this module keeps:

* Others may use the same vTPM at the same time, so what comes back is held
  against what was asked for at every step, and asked for again.
* The paravisor takes seconds to follow new user data, and shows the old report
  meanwhile: it is given that time before it is asked anew.
* The metadata service is the host's: its answer has a size limit and a deadline.

Source: Microsoft, "Guest attestation for confidential VMs"; the paths and
indices are those of its published samples.
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from sealserve.address import Address
from sealserve.errors import InputError, Unavailable
from sealserve.tdx.evidence import (
    MAX_HCL_REPORT_BYTES,
    REPORT_DATA_BYTES,
    AzureEvidence,
    PassingTrouble,
    ask_again,
    check_answer,
    check_report_data,
)
from sealserve.tdx.hcl import HclReport, parse_hcl_report, parse_runtime_data
from sealserve.tdx.quote import MAX_QUOTE_BYTES
from sealserve.tdx.tdreport import report_data_of
from sealserve.tdx.tpm import NvIndex, Transmit, device_transmit

__all__ = ["METADATA_SERVICE", "AzureProvider", "ask_metadata_service", "has_report"]

METADATA_SERVICE = Address("169.254.169.254", 80)

_REPORT_INDEX = 0x01400001
_USER_DATA_INDEX = 0x01400002
_PATH = "/acc/tdquote"
_DEADLINE = 20.0  # seconds for one request, connecting included
_LOOKS = 8  # at a report that does not follow yet
_LOOK_PAUSE = 1.0  # seconds; three are usual until it does
_MAX_ANSWER = 2 * MAX_QUOTE_BYTES
_OK = 200
_PASSING_STATUS = frozenset({408, 410, 429, 500, 502, 503, 504})
_BASE64URL = re.compile(rb"[A-Za-z0-9_-]*=*")


class AzureProvider:
    """The vTPM and the metadata service of an Azure guest.

    Args:
        transmit: the way to the vTPM.
        quote: TDREPORT -> quote; the metadata service by default.
        sleep: how to wait between attempts, in seconds.
    """

    name = "azure"
    simulated = False

    def __init__(
        self,
        *,
        transmit: Transmit | None = None,
        quote: Callable[[bytes], bytes] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        transmit = transmit or device_transmit()
        self._report = NvIndex(transmit, _REPORT_INDEX)
        self._user_data = NvIndex(transmit, _USER_DATA_INDEX)
        self._quote = quote or ask_metadata_service
        self._sleep = sleep

    def collect(self, report_data: bytes) -> AzureEvidence:
        """Evidence that speaks for 64 bytes.

        Raises:
            InputError: ``tdx.report_data_length``, ``tdx.tpm_malformed``,
                ``tdx.report_malformed``, ``azure.*``.
            Unavailable: ``tdx.tpm``, ``tdx.tpm_refused``, ``azure.no_report``,
                ``azure.user_data_index``, ``azure.metadata_refused`` or
                ``tdx.quote_failed``.
            Refused: ``quote.*`` for an answer that is no TDX quote.
        """
        check_report_data(report_data)
        return ask_again(lambda: self._ask(report_data), sleep=self._sleep, where="Azure")

    def _ask(self, report_data: bytes) -> AzureEvidence:
        self._write_user_data(report_data)
        raw, report = self._fresh_report(report_data)
        quote = self._quote(report.tdreport)
        check_answer(quote, report.report_data, where="Azure")
        return AzureEvidence(quote, raw)

    def _write_user_data(self, report_data: bytes) -> None:
        size = self._user_data.size()
        if size is None:
            self._user_data.define(REPORT_DATA_BYTES)
        elif size != REPORT_DATA_BYTES:
            raise Unavailable(
                "azure.user_data_index",
                f"NV index {_USER_DATA_INDEX:#x} of the TPM has {size} bytes, not "
                f"{REPORT_DATA_BYTES}",
                hint="remove it (tpm2_nvundefine) if nothing else needs it",
            )
        self._user_data.write(report_data)

    def _fresh_report(self, report_data: bytes) -> tuple[bytes, HclReport]:
        """The report that follows what was written, as bytes and parsed."""
        for _ in range(_LOOKS):
            raw = self._read_report()
            report = parse_hcl_report(raw)
            if parse_runtime_data(report.runtime_json).user_data == report_data:
                break
            self._sleep(_LOOK_PAUSE)
        else:
            raise PassingTrouble("a report for other user data: stale, or somebody else's")
        # It is read in parts, so it may have changed in between.
        if report_data_of(report.tdreport) != report.report_data:
            raise PassingTrouble("a report whose TDREPORT is not for its runtime data")
        return raw, report

    def _read_report(self) -> bytes:
        size = self._report.size()
        if size is None:
            raise Unavailable(
                "azure.no_report",
                f"the TPM has no NV index {_REPORT_INDEX:#x}",
                hint="only Azure's confidential guests have it",
            )
        if size > MAX_HCL_REPORT_BYTES:
            raise InputError(
                "azure.report_too_large",
                f"a report of {size} bytes is larger than the limit of {MAX_HCL_REPORT_BYTES}",
            )
        return self._report.read(size)


def has_report(transmit: Transmit) -> bool:
    """Whether a vTPM is a paravisor's, of a confidential guest: it has a report to read.

    Raises:
        InputError: ``tdx.tpm_malformed``.
        Unavailable: ``tdx.tpm`` or ``tdx.tpm_refused``.
        PassingTrouble: the TPM is busy.
    """
    return NvIndex(transmit, _REPORT_INDEX).size() is not None


def ask_metadata_service(
    tdreport: bytes, address: Address = METADATA_SERVICE, deadline: float = _DEADLINE
) -> bytes:
    """Have a quote made of a TDREPORT.

    Raises:
        PassingTrouble: the service is busy, slow or cannot be reached.
        Unavailable: ``azure.metadata_refused``.
        InputError: ``azure.metadata_malformed``.
    """
    body = json.dumps({"report": base64.urlsafe_b64encode(tdreport).decode().rstrip("=")})
    # http.client knows no proxies, which must never see this request.
    connection = http.client.HTTPConnection(address.host, address.port, timeout=deadline)
    try:
        connection.connect()
        alarm = threading.Timer(deadline, _shut, [connection.sock])
        alarm.daemon = True
        alarm.start()
        try:
            connection.request("POST", _PATH, body, {"Content-Type": "application/json"})
            with connection.getresponse() as answer:
                content = answer.read(_MAX_ANSWER + 1)
        finally:
            alarm.cancel()
    except (OSError, http.client.HTTPException) as error:
        raise PassingTrouble(f"the metadata service: {type(error).__name__}") from None
    finally:
        connection.close()
    if answer.status in _PASSING_STATUS:
        raise PassingTrouble(f"the metadata service answered {answer.status}")
    if answer.status != _OK:
        raise Unavailable(
            "azure.metadata_refused",
            f"the metadata service answered {answer.status}",
            where=f"http://{address}{_PATH}",
            hint="only Azure's confidential guests are answered",
        )
    return _quote_in(content)


def _quote_in(content: bytes) -> bytes:
    if len(content) > _MAX_ANSWER:
        raise _malformed(f"more than {_MAX_ANSWER} bytes")
    try:
        text = json.loads(content.decode("ascii"))["quote"].encode("ascii")
        if not _BASE64URL.fullmatch(text):
            raise ValueError("not base64url")
        return base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        # A cut-off answer looks like this too, and is worth another attempt.
        raise PassingTrouble(
            f"an answer of the metadata service without a quote: {type(error).__name__}"
        ) from None


def _shut(connection: socket.socket) -> None:
    """Ends whatever waits on the connection: timeouts of single reads can be stretched."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _malformed(message: str) -> InputError:
    return InputError("azure.metadata_malformed", f"the metadata service sent {message}")
