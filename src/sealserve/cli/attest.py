"""``sealserve attest``: make, read and verify quotes, replay event logs."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from sealserve.cli import console
from sealserve.cli.evidence import (
    AnchorOption,
    AtOption,
    BothOption,
    CollateralOption,
    EventsOption,
    QuoteArgument,
)
from sealserve.cli.measure import measure
from sealserve.cli.td_options import SYSFS, SimulationOption, SysfsOption

app = typer.Typer(help="Make, read and verify TDX quotes.", no_args_is_help=True)
app.command()(measure)


@app.callback()
def group() -> None:
    """Make, read and verify TDX quotes."""


@app.command()
def show(quote: QuoteArgument, as_json: console.JsonFlag = False) -> None:
    """Print what a quote says. Nothing is verified.

    Example: sealserve attest show quote.bin
    """
    from sealserve.attestation.collateral_fetch import platform_of_quote
    from sealserve.errors import InputError
    from sealserve.tdx.quote import load_quote, parse_quote

    parsed = parse_quote(load_quote(quote))
    platform: dict[str, str | None] = {"fmspc": None, "ca": None}
    with contextlib.suppress(InputError):  # a quote may leave its PCK certificate to others
        platform["fmspc"], platform["ca"] = platform_of_quote(parsed.raw)
    lines = [
        "NOT VERIFIED: this is only what the quote says",
        f"{'version':26} {parsed.version}, body type {parsed.body_type}",
        f"{'platform model (FMSPC)':26} {platform['fmspc'] or 'not stated'}",
        f"{'signed part, SHA-256':26} {parsed.signed_digest.hex()}",
        *(f"{name:26} {value}" for name, value in parsed.report.to_dict().items()),
    ]
    console.emit({**parsed.to_dict(), **platform}, as_json=as_json, text="\n".join(lines))


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
    report_data: Annotated[
        str | None,
        typer.Option(
            metavar="HEX", help="Refuse evidence that does not speak for these 64 bytes (hex)."
        ),
    ] = None,
    require_both: BothOption = False,
    as_json: console.JsonFlag = False,
) -> None:
    """Verify that a quote is genuine and, with --policy, that its guest is trusted.

    Exit status 0 means trusted, and needs a policy. 1 means genuine but not
    appraised, since no policy was given. 3 means refused, with the reason.

    Evidence of an Azure guest is verified down to the runtime data that its quote
    speaks for; there is no policy for it, so its exit status is never 0.

    Example: sealserve attest verify quote.bin --collateral intel.json --policy policy.yaml
    """
    from sealserve.attestation import policy_file
    from sealserve.attestation.appraisal import appraise
    from sealserve.attestation.binding import require_report_data
    from sealserve.cli.evidence import facts_text, read_events, verify_azure_file, verify_quote
    from sealserve.tdx.evidence import AzureEvidence, load_evidence

    asked = None if report_data is None else _report_data(report_data)
    evidence = load_evidence(quote)
    if isinstance(evidence, AzureEvidence) and not require_both:
        azure, text = verify_azure_file(evidence, collateral, anchor, at, asked, policy)
        console.emit(
            {"verified": True, "trusted": None, **azure.to_dict()}, as_json=as_json, text=text
        )
        raise typer.Exit(1)
    td, now = verify_quote(evidence.quote, collateral, anchor, at, require_both=require_both)
    if asked is not None:
        require_report_data(td.report.report_data, asked)
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
    provider: Annotated[
        str,
        typer.Option(
            help="The way to evidence: 'configfs', 'qgs' or 'azure'; 'auto' takes the first of "
            "them that is here."
        ),
    ] = "auto",
    sysfs: SysfsOption = SYSFS,
    simulation: SimulationOption = False,
    as_json: console.JsonFlag = False,
) -> None:
    """Make a quote of this TD and print it in hexadecimal.

    An Azure guest's evidence is a quote and the report it speaks for: one line
    of JSON. Which way was taken, and why, goes to stderr.

    Example: sealserve attest quote --report-data $(openssl rand -hex 64) > quote.hex
    """
    from sealserve.tdx.detect import choice_of, find
    from sealserve.tdx.evidence import AzureEvidence

    data = _report_data(report_data)
    found = find(choice_of(provider), sysfs, allow_simulation=simulation)
    if not as_json:
        console.ERR.print(f"provider {found.provider.name}: {found.reason}", markup=False)
    evidence = found.provider.collect(data)
    if found.provider.simulated:
        console.ERR.print("SIMULATION: this quote is not made by hardware", markup=False)
    result = {
        "provider": found.provider.name,
        "reason": found.reason,
        "simulation": found.provider.simulated,
        "quote": evidence.quote.hex(),
    }
    if isinstance(evidence, AzureEvidence):
        result["hcl_report"] = evidence.hcl_report.hex()
        console.emit(result, as_json=as_json, text=evidence.encode().decode("ascii"))
    else:
        console.emit(result, as_json=as_json, text=evidence.quote.hex())


@app.command()
def replay(
    log: Annotated[
        Path,
        typer.Argument(
            help="A boot event log (CCEL), a guest's runtime event log (JSON), or a report of "
            "dstack with its log (JSON).",
            dir_okay=False,
        ),
    ],
    quote: Annotated[
        Path | None,
        typer.Option(help="Say which registers of this quote the log explains.", dir_okay=False),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(help="The ACPI table CCEL of the boot event log.", dir_okay=False),
    ] = None,
    events: EventsOption = None,
    as_json: console.JsonFlag = False,
) -> None:
    """Print the registers that an event log comes to. The quote is not verified.

    With --quote, exit status 0 means that every register is explained, 3 that
    one is not. Only digests count: the texts in a log are mere labels.

    Example: sealserve attest replay /sys/firmware/acpi/tables/data/CCEL --quote quote.hex
    """
    from sealserve.files import read_limited
    from sealserve.tdx.quote import load_quote, parse_quote
    from sealserve.tdx.replay import MAX_FILE_BYTES, compare, replay_logs

    replayed = replay_logs(
        read_limited(log, MAX_FILE_BYTES),
        table=read_limited(table, MAX_FILE_BYTES) if table else None,
        runtime=read_limited(events, MAX_FILE_BYTES) if events else None,
    )
    if quote is None:
        lines = [f"{name} {value.hex()}" for name, value in replayed.registers.items()]
        console.emit(replayed.to_dict(), as_json=as_json, text="\n".join(lines))
        return
    matches = compare(replayed.registers, parse_quote(load_quote(quote)).report)
    lines = ["NOT VERIFIED: this is only what the quote says"]
    for match in matches:
        word = "matches" if match.matches else f"DIFFERS: the quote says {match.quoted.hex()}"
        lines.append(f"{match.name} {match.replayed.hex()} {word}")
    explained = all(match.matches for match in matches)
    console.emit(
        {
            **replayed.to_dict(),
            "matches": [match.to_dict() for match in matches],
            "explained": explained,
            "verified": False,
        },
        as_json=as_json,
        text="\n".join(lines),
    )
    raise typer.Exit(0 if explained else 3)


def _report_data(text: str) -> bytes:
    from sealserve.errors import InputError
    from sealserve.tdx.evidence import check_report_data

    try:
        data = bytes.fromhex(text)
    except ValueError:
        raise InputError("attest.hex_malformed", "not hexadecimal", where="--report-data") from None
    check_report_data(data)
    return data
