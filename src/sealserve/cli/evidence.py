"""The arguments by which `attest` and `policy` are given evidence, and how it is read."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sealserve.errors import InputError

if TYPE_CHECKING:
    from sealserve.attestation.azure import VerifiedAzureTd
    from sealserve.attestation.verifier import VerifiedTd
    from sealserve.tdx.eventlog import RuntimeEvent
    from sealserve.tdx.evidence import AzureEvidence

__all__ = [
    "AnchorOption",
    "AtOption",
    "BothOption",
    "CollateralOption",
    "EventsOption",
    "QuoteArgument",
    "facts_text",
    "read_events",
    "verify_azure_file",
    "verify_quote",
]

QuoteArgument = Annotated[
    Path,
    typer.Argument(
        help="The quote: binary, hexadecimal, or as 'quote' in a JSON object.",
        exists=True,
        dir_okay=False,
    ),
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
    quote: bytes,
    collateral: Path,
    anchor: Path | None,
    at: str | None,
    *,
    require_both: bool = False,
) -> tuple[VerifiedTd, datetime]:
    """Verify a quote by files, and say for which time."""
    from sealserve.attestation.collateral import Collateral
    from sealserve.attestation.verifier import Anchor, Verifier

    now = _time(at)
    verifier = Verifier(Anchor.load(anchor), require_both=require_both)
    return verifier.verify(quote, Collateral.load(collateral), now), now


def verify_azure_file(
    evidence: AzureEvidence,
    collateral: Path,
    anchor: Path | None,
    at: str | None,
    report_data: bytes | None,
    policy: Path | None,
) -> tuple[VerifiedAzureTd, str]:
    """Verify an Azure guest's evidence by files, and say it for people.

    Raises:
        Refused: ``policy.azure`` if it is to be held to a policy, and as
            :func:`~sealserve.attestation.azure.verify_azure`.
    """
    from sealserve.attestation.anchor import Anchor
    from sealserve.attestation.azure import verify_azure
    from sealserve.attestation.collateral import Collateral
    from sealserve.errors import Refused

    found = verify_azure(
        evidence, Anchor.load(anchor), Collateral.load(collateral), _time(at), report_data
    )
    if policy is not None:
        raise Refused(
            "policy.azure",
            "a policy judges by RTMRs, and those of an Azure guest are zero",
            hint="what such a guest booted is known from PCR quotes of its vTPM, which are not "
            "appraised yet",
        )
    runtime = found.runtime
    rows = {
        "vTPM key": f"RSA, {runtime.ak_modulus.bit_length()} bits",
        "user data": runtime.user_data.hex(),
        "secure boot": "on" if runtime.secure_boot else "off",
        "console of the host": "on" if runtime.console_enabled else "off",
        "machine": runtime.vm_id,
    }
    lines = [facts_text(found.td), *(f"{name:26} {value}" for name, value in rows.items())]
    lines.append(
        "VERIFIED, NOT APPRAISED: a genuine TD speaks for this runtime data. Whether MRTD is that "
        "of Azure's paravisor, and what booted above it, is not known from this"
    )
    return found, "\n".join(lines)


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


def _time(text: str | None) -> datetime:
    if text is None:
        return datetime.now(UTC)
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
