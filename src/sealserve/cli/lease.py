"""``sealserve lease``: who holds which secret, and until when."""

from __future__ import annotations

from typing import Annotated

import typer

from sealserve.cli.admin_options import At, on_broker

app = typer.Typer(help="Who holds which secret, and until when.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Who holds which secret, and until when."""


@app.command("list")
@on_broker
def list_leases(
    at: At,
    resource: Annotated[
        str, typer.Option(help="Only leases of this resource.", metavar="NAME")
    ] = "",
    everything: Annotated[bool, typer.Option("--all", help="Also those that are over.")] = False,
) -> None:
    """List the leases that run, the newest first; at most 1000.

    Example: sealserve lease list --resource models/demo --broker DIR
    """
    from sealserve.wire.broker.admin import v1_pb2

    result = at.perform(v1_pb2.LeaseListRequest(resource=resource, all=everything))
    rows = [
        f"{each['id']}  {each['resource']}  version {each['secret_version']}  {each['state']}"
        f"  to {each['peer']}  until {each['expires']}"
        for each in result["leases"]
    ]
    at.show(result, "\n".join(rows) or "no leases")


@app.command()
@on_broker
def revoke(
    at: At,
    lease: Annotated[str, typer.Argument(help="Its name, from `lease list`.")],
) -> None:
    """End a lease before its time; the guest learns it when it next renews.

    What the guest holds in memory cannot be taken from it: rotate the secret if you must.

    Example: sealserve lease revoke 00112233445566778899aabbccddeeff --broker DIR
    """
    from sealserve.wire.broker.admin import v1_pb2

    result = at.perform(v1_pb2.LeaseRevokeRequest(lease=lease))
    at.finish(result, lambda: f"{result['id']}: {result['state']}")
