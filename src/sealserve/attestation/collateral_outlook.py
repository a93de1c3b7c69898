"""What will lock a platform out, told before it does.

Rules this module keeps: it only warns; nothing here is a reason to trust. It
reads the PCK certificate of a quote without checking it, so it is asked about
quotes that a verifier has accepted. The quoting enclave's own level is left out.

Source: Intel PCS API version 4, "Get TDX TCB Info": a level names the least
security version of each component, whose category says who updates it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Self

import dcap_qvl

from sealserve.attestation.appraisal import appraise
from sealserve.attestation.collateral import Collateral
from sealserve.attestation.policy import Policy
from sealserve.attestation.reference.documents import Level, read_tcb_info
from sealserve.attestation.reference.tcb import reached_level, relaunch_status
from sealserve.attestation.verifier import Verifier
from sealserve.errors import InputError, Refused, SealserveError
from sealserve.tdx.eventlog import RuntimeEvent
from sealserve.tdx.quote import parse_quote

__all__ = ["PlatformTcb", "Shortfall", "forecast", "newer_level", "shortfalls", "status_under"]

_SVN_BYTES = 16


@dataclass(frozen=True, slots=True)
class PlatformTcb:
    """The security versions of a platform: all that decides which TCB level it reaches.

    Attributes:
        fmspc: platform model, 6 bytes.
        components: of the 16 SGX TCB components.
        pce_svn: of the provisioning certification enclave.
        launched: TEE_TCB_SVN that the TD was launched with, 16 bytes.
        current: the one it runs on now; the same if the quote does not state it.
    """

    fmspc: bytes
    components: bytes
    pce_svn: int
    launched: bytes
    current: bytes

    @classmethod
    def of_quote(cls, quote: bytes) -> Self:
        """What a verified quote says.

        Raises:
            InputError, Refused: as :func:`~sealserve.tdx.quote.parse_quote`.
            ValueError: its PCK certificate does not say it.
        """
        parsed = parse_quote(quote)
        pck = dcap_qvl.parse_quote(parsed.raw).pck_extension()
        launched = parsed.report.tee_tcb_svn
        current = parsed.report.tee_tcb_svn2 or launched
        return cls(bytes(pck.fmspc), bytes(pck.cpu_svn), pck.pce_svn, launched, current)

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "fmspc": self.fmspc.hex(),
            "cpu_svn": self.components.hex(),
            "pce_svn": self.pce_svn,
            "tee_tcb_svn": self.launched.hex(),
            "tee_tcb_svn_now": self.current.hex(),
        }

    @classmethod
    def from_dict(cls, stated: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_dict` wrote.

        Raises:
            InputError: ``collateral.platform_malformed``.
        """
        try:
            fmspc, components, launched, current = (
                bytes.fromhex(stated[name])
                for name in ("fmspc", "cpu_svn", "tee_tcb_svn", "tee_tcb_svn_now")
            )
            found = cls(fmspc, components, int(stated["pce_svn"]), launched, current)
            if {len(components), len(launched), len(current)} != {_SVN_BYTES} or len(fmspc) != 6:
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise InputError(
                "collateral.platform_malformed", "these are not the security versions of a platform"
            ) from None
        return found


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


def shortfalls(
    platform: PlatformTcb, collateral: Collateral
) -> tuple[datetime, tuple[Shortfall, ...]]:
    """Hold a platform against the newest TCB level of its model.

    Args:
        platform: of a verified quote.
        collateral: of its model.

    Returns:
        The date of the newest level, and what is behind it.

    Raises:
        ValueError, KeyError, TypeError, IndexError: for documents of another
            shape, which no verifier accepts.
    """
    tcb_info = json.loads(collateral.parts["tcb_info"])
    newest = max(tcb_info["tcbLevels"], key=lambda level: str(level["tcbDate"]))
    tcb = newest["tcb"]
    found = [*_behind(platform.components, tcb["sgxtcbcomponents"], "SGX TCB component")]
    if platform.pce_svn < tcb["pcesvn"]:
        found.append(Shortfall("PCE", "", platform.pce_svn, tcb["pcesvn"]))
    found += _module_behind(platform.current, tcb["tdxtcbcomponents"], tcb_info)
    return datetime.fromisoformat(newest["tcbDate"]), tuple(found)


def status_under(platform: PlatformTcb, collateral: Collateral) -> Level:
    """The TCB level that a platform reaches by this collateral.

    Args:
        platform: of a verified quote.
        collateral: of its model; perhaps one that is not yet in force.

    Returns:
        Its status, date and advisories, TDX module included, and the relaunch rule applied.

    Raises:
        InputError: ``collateral.malformed``.
        Refused: ``tcb.no_matching_level``, ``tcb.module_mismatch``, ``tcb.platform_mismatch``,
            ``collateral.unsupported``.
    """
    tcb_info = read_tcb_info(collateral.parts["tcb_info"])
    if tcb_info.fmspc != platform.fmspc:
        raise Refused("tcb.platform_mismatch", "the TCB info is about another platform model")
    launched, current = (
        reached_level(tcb_info, platform.components, platform.pce_svn, svn)
        for svn in (platform.launched, platform.current)
    )
    if "Revoked" in (launched.status, current.status):
        return replace(launched, status="Revoked")
    return replace(launched, status=relaunch_status(launched.status, current.status))


def newer_level(quote: bytes, collateral: Collateral) -> str | None:
    """The warning that a newer TCB level exists than the platform has reached.

    Args:
        quote: a verified quote of the platform.
        collateral: what it was verified by.
    """
    try:
        date, behind = shortfalls(PlatformTcb.of_quote(quote), collateral)
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
    svn: bytes, wants: Sequence[dict[str, Any]], tcb_info: dict[str, Any]
) -> list[Shortfall]:
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
