"""``sealserve owner``: the model owner's keys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sealserve.cli.console import JsonFlag, emit

app = typer.Typer(help="Make the model owner's keys and TLS files.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Make the model owner's keys and TLS files."""


@app.command()
def init(
    directory: Annotated[Path, typer.Argument(help="Where the keys go; made if missing.")],
    json: JsonFlag = False,
) -> None:
    """Make the key pair that signs volume records (Ed25519).

    owner.key stays with you: whoever has it can pass off a volume as yours.
    owner.pub goes to everyone who opens your volumes: broker and guests.

    Example: sealserve owner init ~/owner
    """
    from sealserve.volume.owner import init_owner

    private, public = init_owner(directory)
    emit(
        {"owner_key": str(private), "owner_pub": str(public)},
        as_json=json,
        text=f"made {private} (keep it) and {public} (give it to broker and guests)",
    )


@app.command()
def tls(
    hostname: Annotated[str, typer.Argument(help="DNS name by which clients call the server.")],
    out: Annotated[Path, typer.Option(help="Directory for the files; made if missing.")],
    json: JsonFlag = False,
) -> None:
    """Make the TLS files that go into a volume: server.key, server.crt, ssl.cfg.

    Put ssl.cfg into the volume as tls/ssl.cfg. Give server.crt to clients that
    do not verify attestation: it is the trust root they are to use.

    Example: sealserve owner tls grpc.tf.service.com --out seal/tls
    """
    from sealserve.volume.tls_files import make_tls_files

    files = make_tls_files(hostname, out)
    emit(
        {
            "hostname": hostname,
            "key": str(files.key),
            "certificate": str(files.certificate),
            "ssl_config": str(files.config),
        },
        as_json=json,
        text=f"made {files.config} for {hostname}; clients trust {files.certificate}",
    )
