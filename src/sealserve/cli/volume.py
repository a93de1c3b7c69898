"""``sealserve volume``: make sealed volumes, check them, look into them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sealserve.cli import volume_mount
from sealserve.cli.console import JsonFlag, byte_progress, emit
from sealserve.cli.volume_common import (
    FileArgument,
    OwnerKey,
    OwnerPub,
    RecordArgument,
    RecordOption,
    opened_record,
    summary,
    table,
)

app = typer.Typer(help="Make, check and mount volumes.", no_args_is_help=True)
record_app = typer.Typer(help="Look at volume records.", no_args_is_help=True)
app.add_typer(record_app, name="record")


@app.callback()
def group() -> None:
    """Make, check and mount volumes."""


@app.command()
def create(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The volume to make.")],
    source: Annotated[
        Path, typer.Option("--from", help="Directory with models.config, models/ and tls/.")
    ],
    owner_key: OwnerKey,
    name: Annotated[str, typer.Option(help="The volume's name, for example: models.")],
    record: Annotated[Path, typer.Option(help="Where the signed record goes.")],
    broker: Annotated[
        Path, typer.Option(help="The broker's public document (broker.json): who gets the key.")
    ],
    sealed_key: Annotated[
        Path, typer.Option(help="Where the key goes, sealed so that only that broker can read it.")
    ],
    volume_version: Annotated[int, typer.Option(help="Counts up with each remake.", min=1)] = 1,
    size: Annotated[
        int | None, typer.Option(help="MiB for the filesystem; else chosen from the source.", min=1)
    ] = None,
    force: Annotated[bool, typer.Option(help="Replace files that are there.")] = False,
    json: JsonFlag = False,
) -> None:
    """Seal a directory into an encrypted, authenticated volume.

    Needs neither root nor device-mapper. The key is made here and leaves this
    process only sealed to the broker: no disk ever holds it in the clear.

    Example: sealserve volume create models.seal --from seal/ --owner-key ~/owner/owner.key
    --name models --record models.record --broker broker.json --sealed-key models.key
    """
    import secrets

    from sealserve.broker.deposit import seal_for
    from sealserve.broker.identity import BrokerIdentity
    from sealserve.errors import SealserveError
    from sealserve.files import require_absent, require_writable_place, write_atomically
    from sealserve.volume.cipher import wipe
    from sealserve.volume.maker import create_sealed
    from sealserve.volume.owner import load_owner_key
    from sealserve.volume.record import KEY_SIZE, open_record

    signer = load_owner_key(owner_key)
    identity = BrokerIdentity.load(broker)
    for target in (record, sealed_key):
        require_writable_place(target)
        if not force:
            require_absent(target)
    key = bytearray(secrets.token_bytes(KEY_SIZE))
    try:
        deposit = seal_for(identity, bytes(key))
        with byte_progress() as bars:
            bar = bars.add_task(f"sealing {source}", total=None)
            signed = create_sealed(
                file,
                source,
                key=key,
                owner_key=signer,
                name=name,
                version=volume_version,
                size=size and size << 20,
                force=force,
                progress=lambda done, total: bars.update(bar, completed=done, total=total),
            )
    finally:
        wipe(key)
    try:
        write_atomically(sealed_key, deposit)
        write_atomically(record, signed)
    except SealserveError:
        file.unlink()  # no one could ever open it
        raise
    made = open_record(signed, signer.public_key())
    emit(
        {
            "volume": str(file),
            "record": str(record),
            "sealed_key": str(sealed_key),
            **summary(made, signed),
        },
        as_json=json,
        text=(
            f"made {file} ({made.file_size >> 20} MiB, {len(made.models)} models), "
            f"{record} and {sealed_key}\nnext: give the last two to the broker with "
            "`sealserve secret put`, and the first to any host"
        ),
    )


@app.command()
def verify(
    file: FileArgument,
    record: RecordOption,
    owner_pub: OwnerPub,
    json: JsonFlag = False,
) -> None:
    """Check every byte of a volume against its record; needs no key.

    Example: sealserve volume verify models.seal --record models.record --owner-pub owner.pub
    """
    from sealserve.volume.engine import verify_file
    from sealserve.volume.mapper import open_volume_file

    signed, opened = opened_record(record, owner_pub)
    with open_volume_file(file) as descriptor, byte_progress() as bars:
        bar = bars.add_task(f"verifying {file}", total=None)
        verify_file(
            descriptor,
            opened,
            lambda done, total: bars.update(bar, completed=done, total=total),
        )
    emit(
        {"volume": str(file), "verified": True, **summary(opened, signed)},
        as_json=json,
        text=f"{file} is volume {opened.name!r} version {opened.version}, every byte of it",
    )


@record_app.command("show")
def show(record: RecordArgument, json: JsonFlag = False) -> None:
    """Print what a record states, WITHOUT checking who signed it.

    Example: sealserve volume record show models.record
    """
    from sealserve.files import read_limited
    from sealserve.volume.record import peek_record
    from sealserve.wire.limits import MAX_RECORD_BYTES

    signed = read_limited(record, MAX_RECORD_BYTES)
    found = peek_record(signed)
    result = {**found.model_dump(mode="json"), "signature_checked": False}
    emit(result, as_json=json, text=table(found, signed, "NOT checked"))


@record_app.command("verify")
def verify_record(record: RecordArgument, owner_pub: OwnerPub, json: JsonFlag = False) -> None:
    """Check that the owner signed a record, and print what it states.

    Example: sealserve volume record verify models.record --owner-pub owner.pub
    """
    signed, found = opened_record(record, owner_pub)
    result = {**found.model_dump(mode="json"), "signature_checked": True}
    emit(result, as_json=json, text=table(found, signed, "good"))


app.command()(volume_mount.mount)
app.command()(volume_mount.unmount)
app.command("list")(volume_mount.list_mounts)
app.command()(volume_mount.status)
app.command()(volume_mount.grow)
app.command()(volume_mount.doctor)
