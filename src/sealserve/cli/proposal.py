"""``sealserve proposal``: acts that wait for a second person."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sealserve.cli.admin_options import At, on_broker

app = typer.Typer(help="Acts on a broker that wait for a second person.", no_args_is_help=True)

_Id = Annotated[str, typer.Argument(help="Its name, from `proposal list`.", metavar="ID")]


@app.callback()
def group() -> None:
    """Acts on a broker that wait for a second person."""


@app.command("list")
@on_broker
def list_proposals(
    at: At,
) -> None:
    """List what waits, who proposed it and what it would do; then what is over.

    Example: sealserve proposal list --broker DIR
    """
    from sealserve.wire.broker.admin import v1_pb2

    result = at.perform(v1_pb2.ProposalListRequest())
    rows = [_told(each) for each in result["proposals"]]
    at.show(result, "\n".join(rows) or "no proposals")


@app.command()
@on_broker
def approve(
    at: At,
    proposal: _Id,
) -> None:
    """Agree to what another administrator proposed; it is done at once.

    Example: sealserve proposal approve 0011223344556677 --admin broker.example.com:7001
    --identity bob.pem
    """
    from sealserve.wire.broker.admin import v1_pb2

    result = at.perform(v1_pb2.ProposalApproveRequest(id=proposal))
    at.show(result, f"{proposal}: done")


@app.command()
@on_broker
def withdraw(
    at: At,
    proposal: _Id,
) -> None:
    """Take back what you proposed, or turn down what another did.

    Example: sealserve proposal withdraw 0011223344556677 --broker DIR
    """
    from sealserve.wire.broker.admin import v1_pb2

    result = at.perform(v1_pb2.ProposalWithdrawRequest(id=proposal))
    at.show(result, f"{proposal}: withdrawn")


def _told(each: dict[str, Any]) -> str:
    by = f"by {each['proposer']}" + (
        f", approved by {each['approver']}" if each["approver"] else ""
    )
    head = f"{each['id']}  {each['state']}  {each['action']}  {by}  until {each['expires']}"
    return "\n".join([head, *(f"    {line}" for line in each["summary"])])
