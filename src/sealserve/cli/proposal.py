"""``sealserve proposal``: acts that wait for a second person."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sealserve.cli.admin_options import (
    AdminOption,
    BrokerIdentityOption,
    BrokerOption,
    IdentityOption,
    administration,
)
from sealserve.cli.console import JsonFlag, emit

app = typer.Typer(help="Acts on a broker that wait for a second person.", no_args_is_help=True)

_Id = Annotated[str, typer.Argument(help="Its name, from `proposal list`.", metavar="ID")]


@app.callback()
def group() -> None:
    """Acts on a broker that wait for a second person."""


@app.command("list")
def list_proposals(
    broker: BrokerOption = None,
    admin: AdminOption = None,
    identity: IdentityOption = None,
    broker_identity: BrokerIdentityOption = None,
    json: JsonFlag = False,
) -> None:
    """List what waits, who proposed it and what it would do; then what is over.

    Example: sealserve proposal list --broker DIR
    """
    from sealserve.wire.broker.admin import v1_pb2

    with administration(broker, admin, identity, broker_identity) as perform:
        result = perform(v1_pb2.ProposalListRequest())
    rows = [_told(each) for each in result["proposals"]]
    emit(result, as_json=json, text="\n".join(rows) or "no proposals")


@app.command()
def approve(
    proposal: _Id,
    broker: BrokerOption = None,
    admin: AdminOption = None,
    identity: IdentityOption = None,
    broker_identity: BrokerIdentityOption = None,
    json: JsonFlag = False,
) -> None:
    """Agree to what another administrator proposed; it is done at once.

    Example: sealserve proposal approve 0011223344556677 --admin broker.example.com:7001
    --identity bob.pem
    """
    from sealserve.wire.broker.admin import v1_pb2

    with administration(broker, admin, identity, broker_identity) as perform:
        result = perform(v1_pb2.ProposalApproveRequest(id=proposal))
    emit(result, as_json=json, text=f"{proposal}: done")


@app.command()
def withdraw(
    proposal: _Id,
    broker: BrokerOption = None,
    admin: AdminOption = None,
    identity: IdentityOption = None,
    broker_identity: BrokerIdentityOption = None,
    json: JsonFlag = False,
) -> None:
    """Take back what you proposed, or turn down what another did.

    Example: sealserve proposal withdraw 0011223344556677 --broker DIR
    """
    from sealserve.wire.broker.admin import v1_pb2

    with administration(broker, admin, identity, broker_identity) as perform:
        result = perform(v1_pb2.ProposalWithdrawRequest(id=proposal))
    emit(result, as_json=json, text=f"{proposal}: withdrawn")


def _told(each: dict[str, Any]) -> str:
    by = f"by {each['proposer']}" + (
        f", approved by {each['approver']}" if each["approver"] else ""
    )
    head = f"{each['id']}  {each['state']}  {each['action']}  {by}  until {each['expires']}"
    return "\n".join([head, *(f"    {line}" for line in each["summary"])])
