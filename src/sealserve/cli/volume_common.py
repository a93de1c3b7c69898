"""What the commands about volumes share: options, opening a record, telling what it says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from sealserve.volume.record import VolumeRecord

__all__ = [
    "DriverOption",
    "FileArgument",
    "KeyFd",
    "OwnerKey",
    "OwnerPub",
    "RecordArgument",
    "RecordOption",
    "opened_record",
    "summary",
    "table",
]

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="The volume.")]
RecordOption = Annotated[Path, typer.Option("--record", help="The volume's signed record.")]
RecordArgument = Annotated[Path, typer.Argument(metavar="RECORD", help="A signed record.")]
OwnerPub = Annotated[
    Path, typer.Option("--owner-pub", help="The owner's public key: who must have signed.")
]
OwnerKey = Annotated[
    Path, typer.Option("--owner-key", help="The owner's private key: signs the record.")
]
DriverOption = Annotated[
    str, typer.Option("--driver", help="kernel (dm-verity and dm-crypt) or fuse (user space).")
]
KeyFd = Annotated[
    int,
    typer.Option("--key-fd", help="Descriptor from which the 32-byte key is read, once.", min=0),
]


def opened_record(record: Path, owner_pub: Path) -> tuple[bytes, VolumeRecord]:
    """A signed record, and what it says; the owner's signature is checked."""
    from sealserve.files import read_limited
    from sealserve.volume.owner import load_owner_public
    from sealserve.volume.record import open_record
    from sealserve.wire.limits import MAX_RECORD_BYTES

    signed = read_limited(record, MAX_RECORD_BYTES)
    return signed, open_record(signed, load_owner_public(owner_pub))


def summary(record: VolumeRecord, signed: bytes) -> dict[str, Any]:
    """What a command says of a record."""
    from sealserve.volume.record import record_digest

    return {
        "kind": record.kind,
        "name": record.name,
        "version": record.version,
        "uuid": record.uuid,
        "size": record.file_size,
        "filesystem": record.filesystem,
        **({"root_hash": record.verity.root_hash} if record.verity else {}),
        "key_id": record.key_id,
        "record_digest": record_digest(signed).hex(),
        "models": [model.model_dump(mode="json") for model in record.models],
    }


def table(record: VolumeRecord, signed: bytes, signature: str) -> str:
    """The same for people, one line a field."""
    fields: dict[str, Any] = {"signature": signature, **summary(record, signed)}
    models = fields.pop("models")
    fields["created"] = record.created
    lines = [f"{label.replace('_', ' '):14} {value}" for label, value in fields.items()]
    lines += [f"model          {m['name']} {m['version']} {m['digest']}" for m in models]
    return "\n".join(lines)
