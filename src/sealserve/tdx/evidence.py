"""What a guest can show, and the one interface behind which every source of it stands.

Rules this module keeps:

* There are two types of evidence, and nobody may take one for the other: in a
  :class:`TdxEvidence` the quote speaks for the report data itself, in an
  :class:`AzureEvidence` for a document that speaks for it.
* Passing trouble is asked again a bounded number of times; what will not go
  away by asking again is an error at once.
"""

from __future__ import annotations

import base64
import binascii
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from sealserve.errors import InputError, Unavailable
from sealserve.files import read_limited
from sealserve.tdx.quote import (
    MAX_QUOTE_BYTES,
    MAX_QUOTE_FILE_BYTES,
    MIN_QUOTE_BYTES,
    parse_quote,
    quote_of_file,
)

__all__ = [
    "MAX_EVIDENCE_BYTES",
    "MAX_HCL_REPORT_BYTES",
    "REPORT_DATA_BYTES",
    "AzureEvidence",
    "Evidence",
    "EvidenceProvider",
    "PassingTrouble",
    "QuoteProvider",
    "TdxEvidence",
    "ask_again",
    "check_answer",
    "check_report_data",
    "decode_azure",
    "load_evidence",
]

REPORT_DATA_BYTES = 64
MAX_HCL_REPORT_BYTES = 16 * 1024
MAX_EVIDENCE_BYTES = 2 * (MAX_QUOTE_BYTES + MAX_HCL_REPORT_BYTES)

_ATTEMPTS = 8
_FIRST_PAUSE = 0.05  # seconds, doubled after each attempt: 6.4 s in all
# A kernel or a host may take 30 s to say that there will be no answer.
_BUDGET = 60.0  # seconds after which no further attempt is begun
_AZURE_TYPE = "azure-tdx-vtpm"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TdxEvidence:
    """A quote whose report data is what was asked for."""

    quote: bytes


@dataclass(frozen=True, slots=True)
class AzureEvidence:
    """What an Azure guest has: the quote covers the report's runtime data, that the report data.

    Attributes:
        quote: made for ``SHA-256(runtime data)``, zero padded.
        hcl_report: the paravisor's report with the runtime data.
    """

    quote: bytes
    hcl_report: bytes

    def encode(self) -> bytes:
        """The canonical JSON of the evidence."""
        document = {
            "hcl_report": base64.b64encode(self.hcl_report).decode("ascii"),
            "quote": base64.b64encode(self.quote).decode("ascii"),
            "type": _AZURE_TYPE,
        }
        return json.dumps(document, sort_keys=True, separators=(",", ":")).encode("ascii")


Evidence = TdxEvidence | AzureEvidence


class EvidenceProvider(Protocol):
    """One way to evidence about this guest."""

    @property
    def name(self) -> str:
        """As ``--provider`` has it."""
        ...

    @property
    def simulated(self) -> bool:
        """Whether the evidence is a SIMULATION's.

        Raises:
            Refused, Unavailable: if this way is closed.
        """
        ...

    def collect(self, report_data: bytes) -> Evidence:
        """Evidence that speaks for 64 bytes.

        Raises:
            InputError: ``tdx.report_data_length``.
            Refused, Unavailable: if there is none to be had.
        """
        ...


class QuoteProvider(EvidenceProvider, Protocol):
    """A provider whose quotes speak for the report data themselves."""

    def collect(self, report_data: bytes) -> TdxEvidence:
        """As :meth:`EvidenceProvider.collect`."""
        ...


class PassingTrouble(Exception):
    """Trouble that asking again may cure; the text says what it was."""


def check_report_data(report_data: bytes) -> None:
    """Refuse report data of a wrong length before anything is asked.

    Raises:
        InputError: ``tdx.report_data_length``.
    """
    if len(report_data) != REPORT_DATA_BYTES:
        raise InputError(
            "tdx.report_data_length",
            f"report data has {REPORT_DATA_BYTES} bytes, this {len(report_data)}",
        )


def check_answer(quote: bytes, report_data: bytes, *, where: str) -> None:
    """Hold an answer of a quoting service against the request.

    No interface below says whether an answer is whole or whose it is; the
    quote itself does.

    Raises:
        PassingTrouble: cut short, or an answer to another request.
        Unavailable: ``tdx.quote_failed`` for an answer that is too large.
        Refused: ``quote.*`` for what is not a TDX quote.
    """
    if len(quote) > MAX_QUOTE_BYTES:
        raise Unavailable(
            "tdx.quote_failed",
            f"the quoting service answered with more than {MAX_QUOTE_BYTES} bytes",
            where=where,
        )
    if len(quote) < MIN_QUOTE_BYTES:
        raise PassingTrouble(f"an answer of {len(quote)} bytes, too short for a quote")
    try:
        stated = parse_quote(quote).report.report_data
    except InputError as error:
        raise PassingTrouble(f"a damaged quote: {error.message}") from None
    if stated != report_data:
        raise PassingTrouble("a quote for other report data")


def ask_again(
    ask: Callable[[], T],
    *,
    sleep: Callable[[float], None],
    where: str,
    clock: Callable[[], float] = time.monotonic,
) -> T:
    """Ask until there is an answer, a lasting error, or no attempt left.

    Args:
        ask: one attempt; raises :class:`PassingTrouble` to be asked again.
        sleep: how to wait between attempts, in seconds.
        where: whom it asks, for the error.
        clock: seconds, from any beginning.

    Raises:
        Unavailable: ``tdx.quote_failed`` after the last attempt.
    """
    end = clock() + _BUDGET
    pause, attempts = _FIRST_PAUSE, 1
    while True:
        try:
            return ask()
        except PassingTrouble as passing:
            trouble = str(passing)
        if attempts == _ATTEMPTS or clock() + pause > end:
            break
        sleep(pause)
        pause *= 2
        attempts += 1
    raise Unavailable(
        "tdx.quote_failed",
        f"no quote after {attempts} attempts; the last one ended with: {trouble}",
        where=where,
        hint="check the quoting service of the host: on own machines the quote generation "
        "service (QGS) and its vsock port",
    )


def decode_azure(raw: bytes) -> AzureEvidence:
    """Read evidence written by :meth:`AzureEvidence.encode`, and nothing else.

    Raises:
        InputError: ``evidence.too_large`` or ``evidence.malformed``.
    """
    if len(raw) > MAX_EVIDENCE_BYTES:
        raise InputError(
            "evidence.too_large",
            f"evidence of {len(raw)} bytes is larger than the limit of {MAX_EVIDENCE_BYTES}",
        )
    try:
        document = json.loads(raw.decode("ascii"))
        evidence = AzureEvidence(_binary(document, "quote"), _binary(document, "hcl_report"))
    except (ValueError, RecursionError, KeyError, TypeError, binascii.Error) as error:
        raise InputError(
            "evidence.malformed", f"this is not Azure evidence: {type(error).__name__}"
        ) from None
    if evidence.encode() != raw:
        raise InputError("evidence.malformed", "Azure evidence that is not in canonical form")
    return evidence


def load_evidence(path: Path | str) -> Evidence:
    """Read evidence of either type from a file.

    Azure's is what ``attest quote`` prints, with ``--json`` or without it; of
    everything else :func:`~sealserve.tdx.quote.load_quote` says what a quote may be.

    Raises:
        Unavailable: ``file.unreadable``.
        InputError: ``file.too_large``, ``quote.malformed`` or ``evidence.malformed``.
    """
    content = read_limited(path, MAX_QUOTE_FILE_BYTES)
    text = content.strip()
    if not text.startswith(b"{") or b'"hcl_report"' not in text:
        return TdxEvidence(quote_of_file(content, str(path)))
    if f'"{_AZURE_TYPE}"'.encode() in text:
        return decode_azure(text)
    try:
        document = json.loads(text)
        return AzureEvidence(
            bytes.fromhex(document["quote"]), bytes.fromhex(document["hcl_report"])
        )
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise InputError(
            "evidence.malformed", f"this is not Azure evidence: {type(error).__name__}"
        ) from None


def _binary(document: Any, name: str) -> bytes:
    return base64.b64decode(document[name], validate=True)
