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
def verify(broker: _Broker, json: JsonFlag = False) -> None:
    """Check that no line was changed, removed, reordered or cut off.

    Example: sealserve audit verify --broker DIR
    """
    from sealserve.broker.directory import open_broker

    with open_broker(broker) as opened:
        head = opened.audit.verify()
    emit(
        {"whole": True, "lines": head.count, "head": head.sha256},
        as_json=json,
        text=f"the chain is whole: {head.count} lines, head {head.sha256}",
    )


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="Where to write, one JSON object a line.")],
    broker: _Broker,
    json: JsonFlag = False,
) -> None:
    """Check the chain, then write all its lines to a file.

    Example: sealserve audit export audit-2026.jsonl --broker DIR
    """
    from sealserve.broker.directory import open_broker

    with open_broker(broker) as opened:
        opened.audit.verify()
        count = opened.audit.export(file)
    emit({"file": str(file), "lines": count}, as_json=json, text=f"wrote {count} lines to {file}")
