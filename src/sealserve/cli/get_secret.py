"""``sealserve get-secret``: what a script in the TD calls."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sealserve.cli.td_options import SYSFS, SimulationOption, SysfsOption

app = typer.Typer()


@app.command()
def get_secret(
    name: Annotated[str, typer.Argument(help="The name under which the broker has it.")],
    broker: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where the broker listens.")],
    broker_identity: Annotated[
        Path,
        typer.Option(help="The broker's public document (broker.json): the only one to believe."),
    ],
    version: Annotated[
        int, typer.Option(help="Which version, where two are live; 0: the current one.", min=0)
    ] = 0,
    provider: Annotated[
        str,
        typer.Option(help="The way to evidence: 'configfs', 'qgs'; 'auto' takes what is here."),
    ] = "auto",
    terminal: Annotated[
        bool, typer.Option("--terminal", help="Show the secret on this terminal.")
    ] = False,
    sysfs: SysfsOption = SYSFS,
    simulation: SimulationOption = False,
) -> None:
    """Attest this TD to the broker and write one secret to stdout, and nothing else.

    To be called before `sealserve guest up` has measured anything: afterwards a
    release policy that does not say otherwise lets no secret out.

    Example: sealserve get-secret legacy/db --broker broker.example.com:7000
    --broker-identity broker.json | cryptsetup open --key-file=- data.img data
    """
    from sealserve.address import Address
    from sealserve.broker.identity import BrokerIdentity
    from sealserve.guest.secret import SecretRequest, write_secret
    from sealserve.tdx.detect import choice_of

    request = SecretRequest(
        name=name,
        broker=Address.parse(broker, where="--broker"),
        identity=BrokerIdentity.load(broker_identity),
        version=version,
        provider=choice_of(provider),
        sysfs=sysfs,
        allow_simulation=simulation,
    )
    write_secret(request, 1, terminal=terminal)
