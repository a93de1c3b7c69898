"""``sealserve policy``: write, check and explain policies."""

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

app = typer.Typer(
    help="Write, check and explain policies: which guests are trusted.", no_args_is_help=True
)


@app.callback()
def group() -> None:
    """Write, check and explain policies: which guests are trusted."""


@app.command()
def init(
    from_quote: Annotated[
        Path,
        typer.Option(
            help="Take the measurements from this quote of a guest you know to be good.",
            exists=True,
            dir_okay=False,
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The policy file to write.")],
    label: Annotated[str, typer.Option(help="Name of this release of the guest image.")] = "first",
    event: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=HEX]", help="Require this runtime event in RTMR3; may be repeated."
        ),
    ] = None,
    server_platform: Annotated[
        bool,
        typer.Option(
            "--server-platform",
            help="Opt into what server platforms usually have: dynamic platform, cached keys, SMT.",
        ),
    ] = False,
    simulation: Annotated[
        bool, typer.Option("--simulation", help="SIMULATION ONLY: accept simulated guests.")
    ] = False,
    as_json: console.JsonFlag = False,
) -> None:
    """Write a policy that accepts the guest in a quote, and nothing else.

    The quote is only read, not verified: its measurements are yours to know.

    Example: sealserve policy init --from-quote quote.bin --label 2026.11 -o policy.yaml
    """
    from sealserve.attestation import policy_file
    from sealserve.tdx.quote import load_quote, parse_quote

    policy = policy_file.from_report(
        parse_quote(load_quote(from_quote)).report,
        label=label,
        events=tuple(event or ()),
        server_platform=server_platform,
        simulation=simulation,
    )
    policy_file.write(policy, output)
    console.emit(
        {"policy": str(output), "label": label, "simulation": policy.simulation},
        as_json=as_json,
        text=f"{output}: accepts release {label!r}; read it before you rely on it"
        + (" (SIMULATION allowed)" if simulation else ""),
    )


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="The policy file.", dir_okay=False)],
    as_json: console.JsonFlag = False,
) -> None:
    """Check a policy file, and say what it accepts.

    Example: sealserve policy check policy.yaml
    """
    from dataclasses import asdict

    from sealserve.attestation import policy_file

    policy = policy_file.load(file)
    labels = ", ".join(release.label for release in policy.releases)
    text = f"{file}: well-formed; releases: {labels or 'NONE, so it accepts nothing'}"
    if policy.simulation == "allowed":
        text += "\nSIMULATION is allowed: this policy protects nothing"
    console.emit(asdict(policy), as_json=as_json, text=text)


@app.command()
def explain(
    quote: QuoteArgument,
    policy: Annotated[Path, typer.Option(help="The policy file (YAML).", dir_okay=False)],
    collateral: CollateralOption,
    anchor: AnchorOption = None,
    events: EventsOption = None,
    at: AtOption = None,
    as_json: console.JsonFlag = False,
) -> None:
    """Show every rule of a policy against a quote: kept or broken, expected and actual.

    Exit status 0 means trusted, 3 denied.

    Example: sealserve policy explain quote.bin --policy policy.yaml --collateral intel.json
    """
    from sealserve.attestation import policy_file
    from sealserve.attestation.appraisal import appraise
    from sealserve.cli.evidence import read_events, verify_quote

    rules = policy_file.load(policy)
    td, now = verify_quote(quote, collateral, anchor, at)
    verdict = appraise(rules, td, read_events(events), now=now)
    lines = []
    for finding in verdict.findings:
        outcome = "kept  " if finding.passed else "BROKEN"
        lines.append(f"{outcome} {finding.rule}" + ("" if finding.passed else f" [{finding.code}]"))
        lines += [f"         expected {finding.expected}", f"         actual   {finding.actual}"]
    lines += [f"warning: {warning}" for warning in verdict.warnings]
    lines.append(
        f"TRUSTED: release {verdict.release}"
        if verdict.trusted
        else f"DENIED: {len(verdict.failures)} of {len(verdict.findings)} rules are broken"
    )
    console.emit(verdict.to_dict(), as_json=as_json, text="\n".join(lines))
    raise typer.Exit(0 if verdict.trusted else 3)
