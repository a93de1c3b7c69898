"""``sealserve guest``: what runs inside the TD."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from sealserve.cli.td_options import SYSFS, SimulationOption, SysfsOption

app = typer.Typer(
    help="Run inside the TD: attest, open the volume, measure, serve.", no_args_is_help=True
)


@app.callback()
def group() -> None:
    """Run inside the TD: attest, open the volume, measure, serve."""


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def up(
    context: typer.Context,
    volume: Annotated[Path, typer.Argument(help="The sealed volume.", exists=True, dir_okay=False)],
    resource: Annotated[
        str, typer.Option(help="The name under which the broker holds the volume's key.")
    ],
    broker: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where the broker listens.")],
    broker_identity: Annotated[
        Path,
        typer.Option(
            help="The broker's public document (broker.json): the only broker to believe.",
            exists=True,
            dir_okay=False,
        ),
    ],
    owner_pub: Annotated[
        Path,
        typer.Option(
            help="The model owner's public key, which signs the volume's record.",
            exists=True,
            dir_okay=False,
        ),
    ],
    secret_version: Annotated[
        int,
        typer.Option(
            help="Ask for this version of the key, while the owner rotates it; 0: the current one.",
            min=0,
            max=2**31 - 1,
        ),
    ] = 0,
    driver: Annotated[
        str,
        typer.Option(
            help="Who decrypts: 'kernel' (dm-verity and dm-crypt) or 'fuse' (user space)."
        ),
    ] = "kernel",
    provider: Annotated[
        str,
        typer.Option(help="The way to evidence: 'configfs', 'qgs'; 'auto' takes what is here."),
    ] = "auto",
    full_check: Annotated[
        bool, typer.Option(help="Verify the whole volume first, not only what is read.")
    ] = True,
    port: Annotated[int, typer.Option(help="TLS port of the gRPC API; 0 for any.")] = 8500,
    rest_api_port: Annotated[int, typer.Option(help="TLS port of the REST API; 0 for any.")] = 8501,
    sysfs: SysfsOption = SYSFS,
    simulation: SimulationOption = False,
    state_dir: Annotated[
        Path, typer.Option(help="For the mount point and the event log.", file_okay=False)
    ] = Path("/run/sealserve"),
) -> None:
    """Attest to the broker, open the volume, measure it, serve its models.

    Runs until SIGTERM. Once it serves, one JSON line with the ports goes to
    stdout; the log goes to stderr. The lease on the key is renewed in the background;
    when it is revoked or ends, the guest stops. Flags after `--` go to `sealserve serve`.

    Example: sealserve guest up models.seal --resource models/demo --broker broker.example.com:7000
    --broker-identity broker.json --owner-pub owner.pub --driver kernel
    """
    from sealserve.address import Address
    from sealserve.broker.identity import BrokerIdentity
    from sealserve.guest import GuestConfig
    from sealserve.guest import up as bring_up
    from sealserve.tdx.detect import choice_of
    from sealserve.volume.owner import load_owner_public

    bring_up(
        GuestConfig(
            volume=volume,
            resource=resource,
            broker=Address.parse(broker, where="--broker"),
            identity=BrokerIdentity.load(broker_identity),
            owner_public_key=load_owner_public(owner_pub),
            driver=driver,
            secret_version=secret_version,
            provider=choice_of(provider),
            full_check=full_check,
            sysfs=sysfs,
            allow_simulation=simulation,
            serve_flags=(
                f"--port={port}",
                f"--rest_api_port={rest_api_port}",
                *context.args,
            ),
            state_dir=state_dir,
        ),
        on_ready=lambda ports: typer.echo(json.dumps({"ready": "guest", **ports})),
    )
