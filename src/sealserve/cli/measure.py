"""``sealserve attest measure``: what a guest's RTMR3 will be, computed without TDX."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sealserve.cli import console

__all__ = ["measure"]


def measure(
    broker_identity: Annotated[
        Path, typer.Option(help="The broker's public document (broker.json).", dir_okay=False)
    ],
    record: Annotated[Path, typer.Option(help="The volume's signed record.", dir_okay=False)],
    owner_pub: Annotated[
        Path, typer.Option(help="The owner's public key: who signed the record.", dir_okay=False)
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Also write the event log (JSON), for --events.", dir_okay=False
        ),
    ] = None,
    as_json: console.JsonFlag = False,
) -> None:
    """Compute the RTMR3 of a guest that opens this volume with a key from this broker.

    No TDX machine is needed: RTMR3 holds sealserve's own events and nothing
    else. The other registers say what was booted, and come from who made it:
    MRTD from the firmware image (the cloud's signed endorsement, or a tool
    that replays how your hypervisor loads it); RTMR0 also from the VM's shape
    (memory, vCPUs), RTMR1 from boot loader and kernel, RTMR2 from command line
    and initrd. Take those from a quote of a guest that you booted yourself
    (`policy init --from-quote`), and compare.

    Example: sealserve attest measure --broker-identity broker.json
    --record models.record.json --owner-pub owner.pub
    """
    from sealserve.files import write_atomically
    from sealserve.guest.measure import events_ahead
    from sealserve.tdx.eventlog import encode_log, replay

    events = events_ahead(broker_identity, record, owner_pub)
    steps = [
        {
            **event.to_dict(),
            "digest": event.digest.hex(),
            "rtmr3_after": replay(events[: index + 1]).hex(),
        }
        for index, event in enumerate(events)
    ]
    if output is not None:
        write_atomically(output, encode_log(events), replace=False)
    lines = [f"{step['name']:8} {step['payload'] or '(empty)'}" for step in steps]
    rtmr3 = replay(events).hex()
    console.emit(
        {"rtmr3": rtmr3, "events": steps},
        as_json=as_json,
        text="\n".join([*lines, f"RTMR3    {rtmr3}"]),
    )
