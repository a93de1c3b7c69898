"""``sealserve bench``: the original system's benchmark client."""

from __future__ import annotations

from typing import Annotated

import typer

from sealserve.cli import console
from sealserve.cli.server_options import (
    AnchorOption,
    CollateralOption,
    ConnectToOption,
    CrtOption,
    PolicyOption,
    UrlOption,
    connect,
)

app = typer.Typer(help="Measure latency and throughput of a model server.")


@app.command()
def bench(
    url: UrlOption,
    crt: CrtOption = None,
    batch: Annotated[int, typer.Option(help="Examples in a request.", min=1)] = 1,
    cnum: Annotated[int, typer.Option(help="Connections that send at the same time.", min=1)] = 1,
    loop: Annotated[int, typer.Option(help="Requests from each connection.", min=1)] = 50,
    model: Annotated[str, typer.Option(help="The servable to call.")] = "resnet50-v15-fp32",
    connect_to: ConnectToOption = None,
    policy: PolicyOption = None,
    collateral: CollateralOption = None,
    anchor: AnchorOption = None,
    as_json: console.JsonFlag = False,
) -> None:
    """Measure latency and throughput of a model server over TLS.

    Sends random inputs of the shape that the model declares. One line a
    request, then a summary, in the form of the original system's client.

    Example: sealserve bench --url grpc.tf.service.com:8500 --crt server.crt
    --batch 1 --cnum 1 --loop 50
    """
    from sealserve.client import run_bench

    result = run_bench(
        lambda: connect(
            url, crt=crt, connect_to=connect_to, policy=policy, collateral=collateral, anchor=anchor
        ),
        model,
        batch=batch,
        tasks=cnum,
        loops=loop,
        on_query=lambda query: None if as_json else typer.echo(str(query)),
    )
    console.emit(result.to_dict(), as_json=as_json, text=str(result))
