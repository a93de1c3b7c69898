"""The arguments by which `attest` and `policy` are given evidence, and how it is read."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sealserve.errors import InputError

if TYPE_CHECKING:
    from sealserve.attestation.verifier import VerifiedTd
    from sealserve.tdx.eventlog import RuntimeEvent

__all__ = [
    "AnchorOption",
    "AtOption",
    "BothOption",
    "CollateralOption",
    "EventsOption",
    "QuoteArgument",
    "facts_text",
    "read_events",
    "verify_quote",
]

QuoteArgument = Annotated[
    Path,
    typer.Argument(help="The quote, in binary or hexadecimal.", exists=True, dir_okay=False),
]
CollateralOption = Annotated[
    Path, typer.Option(help="Intel's collateral for the platform (JSON).", dir_okay=False)
]
AnchorOption = Annotated[
    Path | None,
    typer.Option(
        "--anchor",
        "--simulation-anchor",
        help="SIMULATION ONLY: believe this root certificate (DER) instead of Intel's.",
        dir_okay=False,
    ),
]
AtOption = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="Verify for this time (2026-11-01T00:00:00Z), not now."),
]
EventsOption = Annotated[
    Path | None,
    typer.Option(help="The guest's runtime event log (JSON).", dir_okay=False),
]


BothOption = Annotated[
    bool,
    typer.Option(
        "--require-both", help="Ask the reference verifier too: both must accept and agree."
    ),
]


def verify_quote(
    quote: Path,
    collateral: Path,
    anchor: Path | None,
    at: str | None,
    *,
    require_both: bool = False,
) -> tuple[VerifiedTd, datetime]:
    """Verify a quote file, and say for which time."""
    from sealserve.attestation.collateral import Collateral
    from sealserve.attestation.verifier import Anchor, Verifier
    from sealserve.tdx.quote import load_quote

    now = _time(at) if at else datetime.now(UTC)
    verifier = Verifier(Anchor.load(anchor), require_both=require_both)
    return verifier.verify(load_quote(quote), Collateral.load(collateral), now), now


def read_events(path: Path | None) -> tuple[RuntimeEvent, ...] | None:
    """Read an event log file, if one is given."""
    from sealserve.files import read_limited
    from sealserve.tdx.eventlog import MAX_LOG_BYTES, decode_log

    return decode_log(read_limited(path, MAX_LOG_BYTES)) if path else None


def facts_text(td: VerifiedTd) -> str:
    """What verification established, for people."""
    flags = {True: "on", False: "off", None: "not stated"}
    rows = {
        "anchor": td.anchor,
        "TCB status": f"{td.tcb_status}, level of {td.tcb_date:%Y-%m-%d}",
        "advisories": ", ".join(td.advisory_ids) or "none",
        "TCB evaluation": str(td.tcb_evaluation),
        "collateral ends": f"{td.collateral_ends:%Y-%m-%dT%H:%M:%SZ}",
        "FMSPC": td.fmspc.hex(),
        "platform id (PIID)": td.piid.hex() if td.piid else "none",
        "platform flags": f"dynamic {flags[td.dynamic_platform]}, "
        f"cached keys {flags[td.cached_keys]}, SMT {flags[td.smt]}",
        **td.report.to_dict(),
    }
    return "\n".join(f"{name:26} {value}" for name, value in rows.items())


def _time(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            raise ValueError("no time zone")
    except ValueError:
        raise InputError(
            "attest.time_malformed",
            f"{text!r} is not a time with a time zone",
            where="--at",
            hint="write it as 2026-11-01T00:00:00Z",
        ) from None
    return moment
