"""``sealserve simulate``: a SIMULATED platform, TD and impostor, for tests and demos."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from sealserve.cli import console

app = typer.Typer(
    help="SIMULATION: a test platform and software TDs. They protect nothing.",
    no_args_is_help=True,
)


@app.callback()
def group() -> None:
    """SIMULATION: a test platform and software TDs. They protect nothing."""


@app.command()
def platform(
    directory: Annotated[Path, typer.Argument(help="Where to put it.", file_okay=False)],
    as_json: console.JsonFlag = False,
) -> None:
    """Make a SIMULATED platform: test PKI, anchor.der and collateral.json (good for 30 days).

    On a directory that has one, its collateral is renewed.

    Example: sealserve simulate platform ./platform
    """
    from datetime import UTC, datetime

    from sealserve.simulator import fence
    from sealserve.simulator.platform import ANCHOR_FILE, COLLATERAL_FILE, SimulatedPlatform

    fence.require_no_tdx()
    SimulatedPlatform.create_or_renew(directory, datetime.now(UTC))
    paths = {
        "anchor": str(directory / ANCHOR_FILE),
        "collateral": str(directory / COLLATERAL_FILE),
    }
    console.emit(
        {"simulation": True, **paths},
        as_json=as_json,
        text=f"SIMULATION: anchor {paths['anchor']}, collateral {paths['collateral']}",
    )


@app.command()
def pccs(
    platform: Annotated[
        Path, typer.Option(help="Directory of the simulated platform.", file_okay=False)
    ],
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where to listen; port 0 for any.")
    ] = "localhost:0",
) -> None:
    """Run a SIMULATED PCCS that serves this platform's collateral, until SIGTERM.

    Plain HTTP, so it is for this machine; one JSON line on stdout has the URL
    for `collateral fetch --url`. A renewed platform is served renewed.

    Example: sealserve simulate pccs --platform ./platform --listen localhost:8081
    """
    from sealserve.address import Address
    from sealserve.attestation.collateral import Collateral
    from sealserve.simulator import fence
    from sealserve.simulator.pccs import Pccs
    from sealserve.simulator.platform import COLLATERAL_FILE
    from sealserve.stopping import StopSignals

    fence.require_no_tdx()
    file = platform / COLLATERAL_FILE
    fmspc = Collateral.load(file).fmspc
    with (
        StopSignals() as stop,
        Pccs(lambda: Collateral.load(file), Address.parse(listen, where="--listen")) as server,
    ):
        console.ERR.print(f"SIMULATION: PCCS for {fmspc} on {server.url}", markup=False)
        _print_line({"ready": "PCCS", "simulation": True, "url": server.url, "fmspc": fmspc})
        stop.wait()


@app.command()
def td(
    platform: Annotated[
        Path, typer.Option(help="Directory of the simulated platform.", file_okay=False)
    ],
    mount: Annotated[
        Path,
        typer.Option(
            help="Where to show the TD's sysfs: an empty directory, made if missing.",
            file_okay=False,
        ),
    ],
    firmware: Annotated[
        str | None, typer.Option(help="Label that the TD's measurements are derived from.")
    ] = None,
) -> None:
    """Run a SIMULATED TD: its sysfs tree is mounted until SIGTERM.

    Give the mount to other commands as --sysfs, with --simulation. Its
    registers begin anew with each run. One JSON line on stdout says it is ready.

    Example: sealserve simulate td --platform ./platform --mount ./td
    """
    from sealserve.simulator import fence, sysfs
    from sealserve.simulator.platform import SimulatedPlatform
    from sealserve.simulator.td import DEFAULT_FIRMWARE, SoftwareTd

    fence.require_no_tdx()
    firmware = firmware or DEFAULT_FIRMWARE
    software_td = SoftwareTd(SimulatedPlatform.load(platform), firmware)
    console.ERR.print(f"SIMULATION: TD with firmware {firmware!r} under {mount}", markup=False)
    sysfs.mount(
        software_td,
        mount,
        ready=lambda: _print_line(
            {"ready": "simulated TD", "simulation": True, "sysfs": str(mount)}
        ),
    )


@app.command()
def impostor(
    victim: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="The attested server to steal evidence from.")
    ],
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where to listen; port 0 for any.")
    ],
) -> None:
    """Run a server that presents another's evidence with a key of its own.

    It shows that clients refuse before they send anything. Until SIGTERM; then
    one JSON line says how many connections, handshakes and application bytes
    arrived.

    Example: sealserve simulate impostor --victim localhost:8500 --listen localhost:9500
    """
    from sealserve.address import Address
    from sealserve.simulator import fence
    from sealserve.simulator.impostor import Impostor, steal_evidence
    from sealserve.stopping import StopSignals

    fence.require_no_tdx()
    certificate = steal_evidence(Address.parse(victim, where="--victim"))
    server = Impostor(certificate, Address.parse(listen, where="--listen"))
    with StopSignals() as stop:
        console.ERR.print(f"SIMULATION: impostor of {victim} on {server.address}", markup=False)
        _print_line({"ready": "impostor", "simulation": True, "address": str(server.address)})
        server.serve(stop.is_set)
    _print_line(server.counts.to_dict())


def _print_line(value: Mapping[str, object]) -> None:
    typer.echo(json.dumps(value))
