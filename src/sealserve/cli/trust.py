"""``sealserve trust``: verify a server and say what was verified."""

from __future__ import annotations

from typing import Annotated

import typer

from sealserve.cli import console
from sealserve.cli.server_options import AnchorOption, CollateralOption, PolicyOption, read_trust

app = typer.Typer(help="Verify a server's quote and say what was verified.")


@app.command()
def trust(
    server: Annotated[str, typer.Argument(metavar="HOST:PORT", help="The server's gRPC port.")],
    policy: PolicyOption = None,
    collateral: CollateralOption = None,
    anchor: AnchorOption = None,
    as_json: console.JsonFlag = False,
) -> None:
    """Verify a server's quote and say what was verified. Sends no request.

    Exit status 0 means: a genuine TD, measured as the policy demands, holds the
    key of this TLS endpoint. Any doubt ends with status 3 and the reason.

    Example: sealserve trust models.example.com:8500 --policy client.yaml --collateral intel.json
    """
    from sealserve.client import connect_attested

    with connect_attested(server, read_trust(policy, collateral, anchor)) as connection:
        report = connection.report
        assert report is not None  # noqa: S101 - an attested connection has one
        console.emit(report.to_dict(), as_json=as_json, text=str(report))
