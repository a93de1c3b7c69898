"""``sealserve attest``: make, read and verify quotes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sealserve.cli import console
from sealserve.cli.evidence import (
    AnchorOption,
    AtOption,
    CollateralOption,
    EventsOption,
    QuoteArgument,
)
from sealserve.cli.td_options import SYSFS, SimulationOption, SysfsOption

app = typer.Typer(help="Make, read and verify TDX quotes.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Make, read and verify TDX quotes."""


@app.command()
def show(quote: QuoteArgument, as_json: console.JsonFlag = False) -> None:
    """Print what a quote says. Nothing is verified.

    Example: sealserve attest show quote.bin
    """
    from sealserve.tdx.quote import load_quote, parse_quote

    parsed = parse_quote(load_quote(quote))
    lines = [
        "NOT VERIFIED: this is only what the quote says",
        f"{'version':26} {parsed.version}, body type {parsed.body_type}",
        f"{'signed part, SHA-256':26} {parsed.signed_digest.hex()}",
        *(f"{name:26} {value}" for name, value in parsed.report.to_dict().items()),
    ]
    console.emit(parsed.to_dict(), as_json=as_json, text="\n".join(lines))


@app.command()
def verify(
    quote: QuoteArgument,
    collateral: CollateralOption,
    anchor: AnchorOption = None,
    policy: Annotated[
        Path | None,
        typer.Option(help="Also hold the guest to this policy (YAML).", dir_okay=False),
    ] = None,
    events: EventsOption = None,
    at: AtOption = None,
    as_json: console.JsonFlag = False,
) -> None:
    """Verify that a quote is genuine and, with --policy, that its guest is trusted.

    Exit status 0 means trusted, and needs a policy. 1 means genuine but not
    appraised, since no policy was given. 3 means refused, with the reason.

    Example: sealserve attest verify quote.bin --collateral intel.json --policy policy.yaml
    """
    from sealserve.attestation import policy_file
    from sealserve.attestation.appraisal import appraise
    from sealserve.cli.evidence import facts_text, read_events, verify_quote

    td, now = verify_quote(quote, collateral, anchor, at)
    if policy is None:
        console.emit(
            {"verified": True, "trusted": None, "td": td.to_dict()},
            as_json=as_json,
            text=facts_text(td)
            + "\nVERIFIED, NOT APPRAISED: the quote is genuine, but no --policy says that its "
            "guest may be trusted",
        )
        raise typer.Exit(1)
    verdict = appraise(policy_file.load(policy), td, read_events(events), now=now)
    verdict.raise_if_denied()
    warnings = [f"warning: {warning}" for warning in verdict.warnings]
    console.emit(
        {"verified": True, "trusted": True, "td": td.to_dict(), "verdict": verdict.to_dict()},
        as_json=as_json,
        text="\n".join(
            [facts_text(td), f"TRUSTED: release {verdict.release}, every rule kept", *warnings]
        ),
    )


@app.command(name="quote")
def make_quote(
    report_data: Annotated[
        str, typer.Option(metavar="HEX", help="What the quote shall speak for: 64 bytes in hex.")
    ],
    sysfs: SysfsOption = SYSFS,
    simulation: SimulationOption = False,
    as_json: console.JsonFlag = False,
) -> None:
    """Make a quote of this TD and print it in hexadecimal.

    Example: sealserve attest quote --report-data $(openssl rand -hex 64) > quote.hex
    """
    from sealserve.errors import InputError
    from sealserve.tdx.guest import TdxGuest

    try:
        data = bytes.fromhex(report_data)
    except ValueError:
        raise InputError("attest.hex_malformed", "not hexadecimal", where="--report-data") from None
    guest = TdxGuest(sysfs, allow_simulation=simulation)
    raw = guest.quote(data)
    if guest.simulated:
        console.ERR.print("SIMULATION: this quote is not made by hardware", markup=False)
    console.emit(
        {"quote": raw.hex(), "simulation": guest.simulated}, as_json=as_json, text=raw.hex()
    )
