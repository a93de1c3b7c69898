"""``sealserve audit``: what the broker decided, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sealserve.cli.console import JsonFlag, emit

app = typer.Typer(
    help="Read and check the broker's log of releases and denials.", no_args_is_help=True
)

_Broker = Annotated[Path, typer.Option("--broker", help="The broker's directory.", metavar="DIR")]


@app.callback()
def group() -> None:
    """Read and check the broker's log of releases and denials."""


@app.command()
def show(
    broker: _Broker,
    last: Annotated[int, typer.Option(help="How many lines, from the end.", min=1)] = 20,
    json: JsonFlag = False,
) -> None:
    """Show the last decisions with their reasons: what was expected, what was found.

    Example: sealserve audit show --broker DIR --last 5
    """
    import json as json_module

    from sealserve.broker.audit import describe
    from sealserve.broker.directory import open_broker

    with open_broker(broker) as opened:
        entries = [json_module.loads(line) for line in opened.audit.lines(last=last)]
    emit(
        {"lines": entries},
        as_json=json,
        text="\n".join(describe(entry) for entry in entries) or "no lines yet",
    )


@app.command()
def verify(
    broker: Annotated[
        Path | None, typer.Option("--broker", help="The broker's directory.", metavar="DIR")
    ] = None,
    export: Annotated[
        Path | None, typer.Option("--export", help="Check this export instead, offline.")
    ] = None,
    identity: Annotated[
        Path | None,
        typer.Option("--identity", help="With --export: the broker's public broker.json."),
    ] = None,
    expect_head: Annotated[
        str | None,
        typer.Option(
            metavar="COUNT:SHA256",
            help="A head that you have seen before: the log must still hold it.",
        ),
    ] = None,
    earlier: Annotated[
        Path | None,
        typer.Option(help="With --export: an earlier export, which this one must continue."),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Check that no line was changed, removed, reordered or cut off.

    An export is checked with the broker's public document alone. That an older
    export, or an older state of the database, stands in the place of the present
    one shows only with --expect-head or --earlier: keep the head that is printed.

    Example: sealserve audit verify --export audit.jsonl --identity broker.json
    """
    from sealserve.broker.audit_chain import ChainHead
    from sealserve.errors import InputError

    expected = ChainHead.parse(expect_head, where="--expect-head") if expect_head else None
    if (broker is None) == (export is None):
        raise InputError(
            "audit.which_log",
            "name a broker's directory or an export, one of them",
            where="--broker, --export",
        )
    if export is not None and identity is not None:
        from sealserve.broker.audit_export import verify_file
        from sealserve.broker.identity import BrokerIdentity

        known = BrokerIdentity.load(identity)
        found = verify_file(export, known, expect=expected)
        if earlier is not None:
            before = verify_file(earlier, known)
            found = verify_file(export, known, expect=before.head)
        result, head = found.to_dict(), found.head
    elif broker is not None and earlier is None and identity is None:
        from sealserve.broker.directory import open_broker

        with open_broker(broker) as opened:
            head = opened.audit.verify(expected)
            marks = opened.audit.checkpoints()
        result = {
            "whole": True,
            "lines": head.count,
            "head": head.sha256,
            "checkpoints": len(marks),
            "signed": marks[-1].time if marks else None,
        }
    else:
        raise InputError(
            "audit.options_mismatch",
            "--export needs --identity; --earlier and --identity are for --export",
            where="--export, --identity, --earlier",
        )
    emit(
        result,
        as_json=json,
        text=f"the chain is whole: {head.count} lines, {result['checkpoints']} checkpoint(s),"
        f" last signed {result['signed'] or 'never'}\nhead {head}",
    )


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="Where to write, one JSON object a line.")],
    broker: _Broker,
    json: JsonFlag = False,
) -> None:
    """Check the chain, sign where it ends, and write its lines and checkpoints to a file.

    Example: sealserve audit export audit-2026.jsonl --broker DIR
    """
    from sealserve.broker.directory import open_broker

    with open_broker(broker) as opened:
        head = opened.audit.export(file, opened.audit_signer())
    emit(
        {"file": str(file), "lines": head.count, "head": head.sha256},
        as_json=json,
        text=f"wrote {head.count} lines to {file}\nhead {head}",
    )
