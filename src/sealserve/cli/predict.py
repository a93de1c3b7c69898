"""``sealserve predict``: classify one picture on a verified server."""

from __future__ import annotations

from pathlib import Path
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

app = typer.Typer(help="Classify a picture on a verified server.")


@app.command()
def predict(
    image: Annotated[
        Path, typer.Argument(help="A picture (JPEG, PNG).", exists=True, dir_okay=False)
    ],
    url: UrlOption,
    model: Annotated[str, typer.Option(help="The servable to call.")] = "efficientnet-lite0",
    top: Annotated[int, typer.Option(help="How many labels to print.", min=1, max=1000)] = 3,
    crt: CrtOption = None,
    connect_to: ConnectToOption = None,
    policy: PolicyOption = None,
    collateral: CollateralOption = None,
    anchor: AnchorOption = None,
    as_json: console.JsonFlag = False,
) -> None:
    """Classify a picture with an ImageNet model, and say first whom it was sent to.

    With --policy and --collateral the server's quote is verified before the
    picture leaves this machine; with --crt only its certificate is.

    Example: sealserve predict cup.jpg --url models.example.com:8500
    --policy client.yaml --collateral intel.json
    """
    from sealserve.client import classify

    with connect(
        url, crt=crt, connect_to=connect_to, policy=policy, collateral=collateral, anchor=anchor
    ) as connection:
        verified = connection.report
        if verified and not as_json:
            console.OUT.print(str(verified), markup=False)
        labels = classify.classify_image(connection, model, image, top=top)
    console.emit(
        {
            "model": model,
            "image": str(image),
            "verified": verified.to_dict() if verified else None,
            "labels": [label.to_dict() for label in labels],
        },
        as_json=as_json,
        text="\n".join(map(str, labels)),
    )
