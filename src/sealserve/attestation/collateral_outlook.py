"""What will lock a platform out, told before it does.

Rules this module keeps: it only warns; nothing here is a reason to trust. It
reads the PCK certificate of a quote without checking it, so it is asked about
quotes that a verifier has accepted.

Source: Intel PCS API version 4, "Get TDX TCB Info": a level names the least
security version of each component, whose category says who updates it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import dcap_qvl

from sealserve.attestation.appraisal import appraise
from sealserve.attestation.collateral import Collateral
from sealserve.attestation.policy import Policy
from sealserve.attestation.verifier import Verifier
from sealserve.errors import SealserveError
from sealserve.tdx.eventlog import RuntimeEvent
from sealserve.tdx.quote import TdReport, parse_quote

__all__ = ["Shortfall", "forecast", "newer_level", "shortfalls"]


@dataclass(frozen=True, slots=True)
class Shortfall:
    """A component that is behind the newest TCB level.

    Attributes:
        component: Intel's name of it.
        category: who updates it (``"BIOS"``, ``"OS/VMM"``); empty if Intel does not say.
        has, wants: its security version, and the newest level's.
    """

    component: str
    category: str
    has: int
    wants: int

    def __str__(self) -> str:
        whose = f" ({self.category})" if self.category else ""
        return f"{self.component}{whose} has {self.has}, needs {self.wants}"


def shortfalls(quote: bytes, collateral: Collateral) -> tuple[datetime, tuple[Shortfall, ...]]:
    """Hold a platform against the newest TCB level of its model.

    Args:
        quote: a verified quote of the platform.
        collateral: of its model.

    Returns:
        The date of the newest level, and what is behind it.

    Raises:
        InputError, Refused: as :func:`~sealserve.tdx.quote.parse_quote`.
        ValueError, KeyError, TypeError, IndexError: for documents of another
            shape, which no verifier accepts.
    """
    parsed = parse_quote(quote)
    pck = dcap_qvl.parse_quote(parsed.raw).pck_extension()
    tcb_info = json.loads(collateral.parts["tcb_info"])
    newest = max(tcb_info["tcbLevels"], key=lambda level: str(level["tcbDate"]))
    tcb = newest["tcb"]
    found = [*_behind(bytes(pck.cpu_svn), tcb["sgxtcbcomponents"], "SGX TCB component")]
    if pck.pce_svn < tcb["pcesvn"]:
        found.append(Shortfall("PCE", "", pck.pce_svn, tcb["pcesvn"]))
    found += _module_behind(parsed.report, tcb["tdxtcbcomponents"], tcb_info)
    return datetime.fromisoformat(newest["tcbDate"]), tuple(found)


def newer_level(quote: bytes, collateral: Collateral) -> str | None:
    """The warning that a newer TCB level exists than the platform has reached.

    Args:
        quote: a verified quote of the platform.
        collateral: what it was verified by.
    """
    try:
        date, behind = shortfalls(quote, collateral)
    except (ValueError, KeyError, TypeError, IndexError):
        return None  # a warning less; whether the quote is trusted is decided elsewhere
    if not behind:
        return None
    return (
        f"a newer TCB level ({date:%Y-%m-%d}) exists than this platform has reached; it is out "
        f"of date, or will be: {'; '.join(map(str, behind))}"
    )


def forecast(
    policy: Policy,
    quote: bytes,
    early: Collateral,
    verifier: Verifier,
    now: datetime,
    events: Sequence[RuntimeEvent] | None = None,
) -> str | None:
    """The warning that Intel's next TCB information will lock this platform out.

    Args:
        policy: what is demanded.
        quote: the quote, as it is accepted today.
        early: collateral fetched with ``update="early"``.
        verifier: the one that accepts it today.
        now: the time to verify for, with a time zone.
        events: the runtime event log, if there is one.

    Returns:
        The warning; ``None`` if nothing will change.
    """
    number = f"Intel's next TCB information (evaluation {early.evaluation_number})"
    try:
        td = verifier.verify(quote, early, now)
    except SealserveError as error:
        return f"LOCK-OUT AHEAD: with {number} this quote is refused: {error}"
    denied = appraise(policy, td, events, now=now).failures
    if denied:
        codes = ", ".join(finding.code for finding in denied)
        reason = newer_level(quote, early)
        told = f" ({reason})" if reason else ""
        return f"LOCK-OUT AHEAD: with {number} the policy denies this guest: {codes}{told}"
    return newer_level(quote, early)


def _behind(has: Sequence[int], wants: Sequence[dict[str, Any]], name: str) -> list[Shortfall]:
    return [
        Shortfall(
            wanted.get("type") or f"{name} {index}", wanted.get("category", ""), svn, wanted["svn"]
        )
        for index, (svn, wanted) in enumerate(zip(has, wants, strict=True), start=1)
        if svn < wanted["svn"]
    ]


def _module_behind(
    report: TdReport, wants: Sequence[dict[str, Any]], tcb_info: dict[str, Any]
) -> list[Shortfall]:
    """The TDX components: of what runs now, if the quote states it."""
    svn = report.tee_tcb_svn2 or report.tee_tcb_svn
    number = svn[1]
    if number == 0:
        return _behind(svn, wants, "TDX TCB component")
    # A numbered module has levels of its own; the first two components are its version.
    found = _behind(svn[2:], wants[2:], "TDX TCB component")
    name = f"TDX_{number:02x}".upper()
    for module in tcb_info["tdxModuleIdentities"]:
        if module["id"].upper() == name:
            newest = max(level["tcb"]["isvsvn"] for level in module["tcbLevels"])
            found += _behind(svn[:1], [{"svn": newest, "type": f"TDX module {name}"}], "")
    return found
