"""``sealserve policy``: write, check and explain policies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sealserve.cli import console
from sealserve.cli.admin_options import At, on_broker
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
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The policy file to write.")
    ] = None,
    add_to: Annotated[
        Path | None,
        typer.Option(
            help="Add the release to this policy file instead; its other lines stay as they are.",
            dir_okay=False,
        ),
    ] = None,
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
    With --add-to its release is accepted besides those that are there, so that
    old and new guests run side by side; the other options do not apply.

    Example: sealserve policy init --from-quote quote.bin --label 2026.11 -o policy.yaml
    """
    from sealserve.attestation import policy_file
    from sealserve.attestation.policy_append import append_release
    from sealserve.errors import InputError
    from sealserve.tdx.quote import load_quote, parse_quote

    if (output is None) == (add_to is None) or (
        add_to is not None and (event or server_platform or simulation)
    ):
        raise InputError(
            "policy.which_file",
            "write a new policy with --output, or a release alone with --add-to",
            where="--output, --add-to",
        )
    policy = policy_file.from_report(
        parse_quote(load_quote(from_quote)).report,
        label=label,
        events=tuple(event or ()),
        server_platform=server_platform,
        simulation=simulation,
    )
    if add_to is not None:
        policy = append_release(add_to, policy.releases[0])
    elif output is not None:
        policy_file.write(policy, output)
    file = add_to or output
    labels = [release.label for release in policy.releases]
    console.emit(
        {"policy": str(file), "label": label, "labels": labels, "simulation": policy.simulation},
        as_json=as_json,
        text=f"{file}: accepts {', '.join(map(repr, labels))}; read it before you rely on it"
        + (" (SIMULATION allowed)" if policy.simulation == "allowed" else "")
        + (
            ""
            if policy.platform_flags.smt
            else "\nIt refuses what servers have on: see its platform_flags, and --server-platform"
        ),
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


@app.command(name="schema")
def print_schema() -> None:
    """Print the JSON schema of policy files, for editors and other checkers.

    Example: sealserve policy schema > policy.schema.json
    """
    from sealserve.attestation.policy_schema import schema

    # It is JSON whether asked for or not: there is no other form of it.
    console.emit(schema(), as_json=True, text="")


@app.command(name="diff")
def print_diff(
    old: Annotated[Path, typer.Argument(help="The policy as it was.", dir_okay=False)],
    new: Annotated[Path, typer.Argument(help="The policy as it shall be.", dir_okay=False)],
    as_json: console.JsonFlag = False,
) -> None:
    """Say what a change of policy lets in and what it keeps out, rule by rule.

    Exit status 0 means that both accept the same, 1 that they differ.

    Example: sealserve policy diff policy.yaml policy-next.yaml
    """
    from sealserve.attestation import policy_file
    from sealserve.attestation.policy_diff import diff

    changes = diff(policy_file.load(old), policy_file.load(new))
    loosened = [change for change in changes if change.kind == "loosened"]
    lines = [_change_told(change.to_dict()) for change in changes]
    if not changes:
        lines.append("the same")
    elif loosened:
        lines.append(f"LOOSENED in {len(loosened)} place(s): more evidence is accepted than before")
    else:
        lines.append("not loosened anywhere")
    console.emit(
        {
            "same": not changes,
            "loosened": bool(loosened),
            "changes": [change.to_dict() for change in changes],
        },
        as_json=as_json,
        text="\n".join(lines),
    )
    raise typer.Exit(1 if changes else 0)


@app.command(name="set")
@on_broker
def set_policy(
    at: At,
    resource: Annotated[str, typer.Argument(help="The resource: models/demo.")],
    file: Annotated[Path, typer.Argument(help="The policy file (YAML).", dir_okay=False)],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it would change.")
    ] = False,
) -> None:
    """Put a policy over a resource of a broker, and say what it loosens.

    A policy that is loosened anywhere may need a second person (exit status 1).

    Example: sealserve policy set models/demo policy.yaml --broker DIR
    """
    from sealserve.attestation.policy_file import MAX_POLICY_BYTES
    from sealserve.files import read_limited
    from sealserve.wire.broker.admin import v1_pb2

    kind = v1_pb2.PolicyDiffRequest if dry_run else v1_pb2.PolicySetRequest
    request = kind(resource=resource, policy=read_limited(file, MAX_POLICY_BYTES))
    result = at.perform(request)

    def text() -> str:
        known = result["changes"]
        if known is None:
            lines = ["!! the policy there cannot be read: nobody can say what it let in"]
        else:
            lines = [_change_told(change) for change in known] or ["the same rules"]
        return "\n".join([*lines, f"{resource}: {'nothing changed' if dry_run else 'set'}"])

    at.finish(result, text)


@app.command()
def explain(
    quote: QuoteArgument,
    policy: Annotated[Path, typer.Option(help="The policy file (YAML).", dir_okay=False)],
    collateral: CollateralOption,
    anchor: AnchorOption = None,
    events: EventsOption = None,
    at: AtOption = None,
    for_release: Annotated[
        bool,
        typer.Option(
            "--for-release",
            help="Judge as a broker does before it releases a key: an RTMR3 that the policy "
            "does not name must be untouched.",
        ),
    ] = False,
    early_collateral: Annotated[
        Path | None,
        typer.Option(
            help="What `collateral fetch --update early` got: warn of what it will change.",
            dir_okay=False,
        ),
    ] = None,
    as_json: console.JsonFlag = False,
) -> None:
    """Show every rule of a policy against a quote: kept or broken, expected and actual.

    Warns of what will break later: collateral that ends, a newer TCB level
    that the platform has not reached and who updates it (BIOS or OS/VMM).
    Exit status 0 means trusted, 3 denied.

    Example: sealserve policy explain quote.bin --policy policy.yaml --collateral intel.json
    """
    from sealserve.attestation import policy_file
    from sealserve.attestation.appraisal import appraise
    from sealserve.attestation.collateral import Collateral
    from sealserve.attestation.collateral_outlook import forecast, newer_level
    from sealserve.attestation.verifier import Anchor, Verifier
    from sealserve.cli.evidence import read_events, verify_quote
    from sealserve.errors import InputError
    from sealserve.tdx.quote import load_quote

    if for_release and events is not None:
        raise InputError(
            "policy.events_before_release",
            "before a release there is no event log: a guest measures after it",
            where="--for-release, --events",
        )
    rules = policy_file.load(policy)
    if for_release:
        rules = rules.at_release()
    raw = load_quote(quote)
    td, now = verify_quote(raw, collateral, anchor, at)
    log = read_events(events)
    if early_collateral is None:
        ahead = newer_level(raw, Collateral.load(collateral))
    else:
        early = Collateral.load(early_collateral)
        ahead = forecast(rules, raw, early, Verifier(Anchor.load(anchor)), now, log)
    verdict = appraise(rules, td, log, now=now, outlook=[ahead] if ahead else [])
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
    from sealserve.guest.measure import client_policy, events_ahead
    from sealserve.tdx.eventlog import replay

    events = events_ahead(broker_identity, record, owner_pub)
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


def _change_told(change: dict[str, str]) -> str:
    mark = "!! " if change["kind"] == "loosened" else "   "
    return f"{mark}{change['kind']:10} {change['rule']}: {change['before']} -> {change['after']}"
