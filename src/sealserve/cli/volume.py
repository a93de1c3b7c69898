"""``sealserve volume``: make sealed volumes, check them, look into them."""

from __future__ import annotations

import typer

from sealserve.cli import volume_import, volume_make, volume_mount, volume_read
from sealserve.cli.console import JsonFlag, byte_progress, emit
from sealserve.cli.volume_common import (
    FileArgument,
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


app.command()(volume_make.create)
app.command()(volume_make.rebuild)
app.command("import")(volume_import.import_volume)
app.command()(volume_import.adopt)
app.command()(volume_make.rotate)
app.command()(volume_make.backup_header)
app.command()(volume_make.restore_header)
app.command()(volume_read.read)
app.command()(volume_read.extract)
app.command()(volume_mount.mount)
app.command()(volume_mount.unmount)
app.command("list")(volume_mount.list_mounts)
app.command()(volume_mount.status)
app.command()(volume_mount.grow)
app.command()(volume_mount.doctor)
