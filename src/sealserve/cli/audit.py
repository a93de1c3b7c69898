"""``sealserve audit``: what the broker decided, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sealserve.cli.admin_options import (
    AdminOption,
    At,
    BrokerIdentityOption,
    BrokerOption,
    administration,
    on_broker,
)
from sealserve.cli.console import JsonFlag, emit

app = typer.Typer(
    help="Read and check the broker's log of releases and denials.", no_args_is_help=True
)

_LastOption = Annotated[int, typer.Option(help="How many lines, from the end.", min=1, max=100_000)]


@app.callback()
def group() -> None:
    """Read and check the broker's log of releases and denials."""


@app.command()
@on_broker
def show(
    at: At,
    last: _LastOption = 20,
) -> None:
    """Show the last decisions with their reasons: what was expected, what was found.

    Example: sealserve audit show --broker DIR --last 5
    """
    import json

    from sealserve.broker.audit_chain import describe
    from sealserve.broker.audit_pages import newest

    with at.asked() as perform:
        entries = [json.loads(line) for line in newest(perform, last)]
    told = "\n".join(describe(entry) for entry in entries)
    at.show({"lines": entries}, told or "no lines yet")


@app.command()
@on_broker
def tail(
    at: At,
    last: _LastOption = 10,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")
    ] = False,
) -> None:
    """Print the log's end, and with --follow what comes after it.

    Each line is checked to follow the one before it. With --json each is one object.

    Example: sealserve audit tail --broker DIR --follow
    """
    import json
    import time

    from sealserve.broker.audit_chain import describe
    from sealserve.broker.audit_pages import newest, since

    with at.asked() as perform:
        for lines in since(perform, newest(perform, last)):
            for line in lines:
                typer.echo(line if at.as_json else describe(json.loads(line)))
            if not follow:
                return
            if not lines:
                time.sleep(1)


@app.command()
def verify(
    broker: BrokerOption = None,
    admin: AdminOption = None,
    export: Annotated[
        Path | None, typer.Option("--export", help="Or an export, which is checked offline.")
    ] = None,
    identity: Annotated[
        Path | None,
        typer.Option(
            "--identity",
            help="With --export: the broker's public broker.json. With --admin: your key.",
        ),
    ] = None,
    broker_identity: BrokerIdentityOption = None,
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

    An export, and a log that comes from --admin, is checked here, with the broker's
    public document alone. That an older export, or an older state of the database,
    stands in the place of the present one shows only with --expect-head or
    --earlier: keep the head that is printed.

    Example: sealserve audit verify --export audit.jsonl --identity broker.json
    """
    from sealserve.broker.audit_chain import ChainHead
    from sealserve.errors import InputError

    expected = ChainHead.parse(expect_head, where="--expect-head") if expect_head else None
    if sum(place is not None for place in (broker, admin, export)) != 1:
        raise InputError(
            "audit.which_log",
            "name a broker's directory, a broker's port or an export, one of them",
            where="--broker, --admin, --export",
        )
    if (identity is None) != (broker is not None) or (earlier is not None and export is None):
        raise InputError(
            "audit.options_mismatch",
            "--export and --admin need --identity; --earlier is for --export",
            where="--export, --identity, --earlier",
        )
    if export is not None and identity is not None:
        result, head = _of_export(export, identity, earlier, expected)
    elif admin is not None and identity is not None:
        result, head = _of_port(admin, identity, broker_identity, expected)
    else:
        result, head = _of_directory(broker, expected)
    emit(
        result,
        as_json=json,
        text=f"the chain is whole: {head.count} lines, {result['checkpoints']} checkpoint(s),"
        f" last signed {result['signed'] or 'never'}\nhead {head}",
    )


@app.command("export")
@on_broker
def export_log(
    at: At,
    file: Annotated[Path, typer.Argument(help="Where to write, one JSON object a line.")],
) -> None:
    """Check the chain, sign where it ends, and write its lines and checkpoints to a file.

    Example: sealserve audit export audit-2026.jsonl --broker DIR
    """
    from sealserve.broker.audit_export import verify_file, write
    from sealserve.broker.audit_pages import export_parts

    if at.broker is not None and at.admin is None and at.identity is None:
        from sealserve.broker.directory import open_broker

        with open_broker(at.broker) as opened:
            head = opened.audit.export(file, opened.audit_signer())
    else:
        with at.asked() as perform:
            write(file, export_parts(perform))
        head = verify_file(file, at.public()).head
    result = {"file": str(file), "lines": head.count, "head": head.sha256}
    at.show(result, f"wrote {head.count} lines to {file}\nhead {head}")


def _of_export(file: Path, identity: Path, earlier: Path | None, expected: Any) -> tuple[Any, Any]:
    from sealserve.broker.audit_export import verify_file
    from sealserve.broker.identity import BrokerIdentity

    known = BrokerIdentity.load(identity)
    found = verify_file(file, known, expect=expected)
    if earlier is not None:
        before = verify_file(earlier, known)
        found = verify_file(file, known, expect=before.head)
    return found.to_dict(), found.head


def _of_port(
    admin: str, identity: Path, broker_identity: Path | None, expected: Any
) -> tuple[Any, Any]:
    from sealserve.broker.audit_export import check, require_head
    from sealserve.broker.audit_pages import export_parts

    at = expected.count if expected else None
    with administration(None, admin, identity, broker_identity) as perform:
        found = check(export_parts(perform), _known(identity, broker_identity), at=at)
    if expected is not None:
        require_head(found.head, found.earlier, expected)
    return found.to_dict(), found.head


def _of_directory(broker: Path | None, expected: Any) -> tuple[Any, Any]:
    from sealserve.broker.directory import open_broker

    assert broker is not None  # noqa: S101 (one of the three was named)
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
    return result, head


def _known(identity: Path | None, broker_identity: Path | None) -> Any:
    from sealserve.broker.admin_client import identity_beside
    from sealserve.broker.identity import BrokerIdentity

    assert identity is not None  # noqa: S101 (administration has asked for it)
    return BrokerIdentity.load(broker_identity or identity_beside(identity))
