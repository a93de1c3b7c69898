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


@app.command()
def client(
    release_policy: Annotated[
        Path, typer.Argument(help="The policy that releases the volume's key.", dir_okay=False)
    ],
    broker_identity: Annotated[
        Path, typer.Option(help="The broker's public document (broker.json).", dir_okay=False)
    ],
    record: Annotated[Path, typer.Option(help="The volume's signed record.", dir_okay=False)],
    owner_pub: Annotated[
        Path, typer.Option(help="The owner's public key: who signed the record.", dir_okay=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The policy file to write.")],
    as_json: console.JsonFlag = False,
) -> None:
    """Write the policy for clients: this guest image, this broker, this volume, these models.

    It demands of RTMR3 the events of a guest that opened this volume with a key
    from this broker, and nothing after them.

    Example: sealserve policy client release.yaml --broker-identity broker.json
    --record models.record.json --owner-pub owner.pub -o client.yaml
    """
    from sealserve.attestation import policy_file
    from sealserve.broker.identity import BrokerIdentity
    from sealserve.files import read_limited
    from sealserve.guest.measure import client_policy, guest_events
    from sealserve.tdx.eventlog import replay
    from sealserve.volume.owner import load_owner_public
    from sealserve.volume.record import open_record
    from sealserve.wire.limits import MAX_RECORD_BYTES

    signed = read_limited(record, MAX_RECORD_BYTES)
    events = guest_events(
        BrokerIdentity.load(broker_identity).spki_sha256,
        signed,
        open_record(signed, load_owner_public(owner_pub)),
    )
    policy_file.write(client_policy(policy_file.load(release_policy), events), output)
    rtmr3 = replay(events).hex()
    console.emit(
        {
            "policy": str(output),
            "events": [event.to_dict() for event in events],
            "rtmr3": rtmr3,
        },
        as_json=as_json,
        text=f"{output}: demands {' > '.join(event.name for event in events)}\nRTMR3 {rtmr3}",
    )
