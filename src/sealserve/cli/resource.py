"""``sealserve resource``: what guests may ask a broker for."""

from __future__ import annotations

from typing import Annotated

import typer

from sealserve.cli.admin_options import At, on_broker

app = typer.Typer(help="What guests may ask the broker for.", no_args_is_help=True)

_Resource = Annotated[str, typer.Argument(help="The resource's name: models/demo.")]


@app.callback()
def group() -> None:
    """What guests may ask the broker for."""


@app.command("list")
@on_broker
def list_resources(
    at: At,
) -> None:
    """List the resources with their secrets' versions and the digests of their policies.

    Example: sealserve resource list --broker DIR
    """
    from sealserve.wire.broker.admin import v1_pb2

    result = at.perform(v1_pb2.ResourceListRequest())
    rows = [
        f"{each['name']}  version {each['secret_version']}  policy {each['policy_sha256'][:16]}"
        f"  lease {each['lease_seconds']} s"
        for each in result["resources"]
    ]
    at.show(result, "\n".join(rows) or "no resources yet")


@app.command()
@on_broker
def show(
    at: At,
    resource: _Resource,
) -> None:
    """Show a resource: its secret, the volume records of its versions, and its policy.

    Example: sealserve resource show models/demo --broker DIR
    """
    from sealserve.wire.broker.admin import v1_pb2

    result = at.perform(v1_pb2.ResourceShowRequest(resource=resource))
    lines = [
        f"{result['name']}: version {result['secret_version']} of the secret {result['secret']}",
        f"  a lease is {result['lease_seconds']} s",
    ]
    lines += [
        f"  version {each['secret_version']} opens record {each['record_sha256'] or 'none'}"
        for each in result["records"]
    ]
    lines += [f"policy {result['policy_sha256']}:", result["policy"]]
    at.show(result, "\n".join(lines))


@app.command()
@on_broker
def remove(
    at: At,
    resource: _Resource,
) -> None:
    """Let no guest ask for it any more; its secret stays until it is destroyed.

    Example: sealserve resource remove models/old --broker DIR
    """
    from sealserve.wire.broker.admin import v1_pb2

    result = at.perform(v1_pb2.ResourceRemoveRequest(resource=resource))
    at.finish(result, f"{resource}: removed; no guest can ask for it")
