"""What the commands about volumes share: options, opening a record, telling what it says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from sealserve.volume.record import VolumeRecord

__all__ = [
    "BackupOption",
    "DriverOption",
    "FileArgument",
    "KeyFd",
    "OptionalKeyFd",
    "OwnerKey",
    "OwnerPub",
    "PhraseFd",
    "RecordArgument",
    "RecordOption",
    "opened_record",
    "read_passphrase",
    "read_phrase",
    "read_secret",
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
OptionalKeyFd = Annotated[
    int | None,
    typer.Option("--key-fd", help="Descriptor from which the 32-byte key is read, once.", min=0),
]
BackupOption = Annotated[
    Path | None,
    typer.Option("--header-backup", help="Open by this backup and its phrase, without the key."),
]
PhraseFd = Annotated[
    int | None,
    typer.Option(help="Descriptor from which the recovery phrase is read; else typed.", min=0),
]


def read_secret(
    record: VolumeRecord, key_fd: int | None, backup: Path | None, phrase_fd: int | None
) -> bytearray:
    """What opens a volume: its key, or what a header backup and its phrase give for it."""
    from sealserve.errors import InputError
    from sealserve.volume.cipher import XTS_KEY_SIZE, wipe
    from sealserve.volume.process import read_key
    from sealserve.volume.recovery import recover_key

    if key_fd is not None:
        return read_key(key_fd, XTS_KEY_SIZE)
    if backup is None:
        raise InputError(
            "volume.key_missing",
            "nothing opens the volume",
            hint="give --key-fd, or --header-backup and its phrase",
        )
    phrase = read_phrase(phrase_fd, new=False)
    try:
        return recover_key(record, backup, phrase)
    finally:
        wipe(phrase)


def read_phrase(descriptor: int | None, *, new: bool) -> bytearray:
    """A recovery phrase: from a descriptor, byte for byte, or typed at the terminal.

    Args:
        descriptor: where it comes from; the terminal if absent.
        new: ask for it twice, and make one up where nothing is typed.
    """
    import getpass
    import sys

    from sealserve.errors import InputError
    from sealserve.volume.process import read_key
    from sealserve.volume.recovery import MAX_PHRASE, new_phrase

    if descriptor is not None:
        return read_key(descriptor, MAX_PHRASE)
    if not sys.stdin.isatty():
        raise InputError(
            "volume.phrase_missing",
            "there is no terminal to type the recovery phrase at",
            hint="give it through a descriptor: --phrase-fd",
        )
    if not new:
        return bytearray(getpass.getpass("Recovery phrase: ").encode())
    typed = getpass.getpass("New recovery phrase (empty: make one up): ").encode()
    if not typed:
        typed = new_phrase()
        # The terminal only: standard output may go into a file.
        with Path("/dev/tty").open("w") as terminal:
            terminal.write(f"Write this down, it is shown once: {typed.decode()}\n")
    elif getpass.getpass("The same again: ").encode() != typed:
        raise InputError("volume.phrase_differs", "the two phrases are not the same")
    return bytearray(typed)


def read_passphrase(descriptor: int | None) -> bytearray:
    """The passphrase of a volume made elsewhere: from a descriptor, byte for byte, or typed."""
    import getpass
    import sys

    from sealserve.errors import InputError
    from sealserve.volume.foreign import MAX_PASSPHRASE
    from sealserve.volume.process import read_key

    if descriptor is not None:
        return read_key(descriptor, MAX_PASSPHRASE)
    if not sys.stdin.isatty():
        raise InputError(
            "volume.phrase_missing",
            "there is no terminal to type the passphrase at",
            hint="give it through a descriptor: --passphrase-fd",
        )
    return bytearray(getpass.getpass("Passphrase of the old volume: ").encode())


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
        **({"signers": list(record.provenance.trust.names)} if record.provenance else {}),
    }


def table(record: VolumeRecord, signed: bytes, signature: str) -> str:
    """The same for people, one line a field."""
    fields: dict[str, Any] = {"signature": signature, **summary(record, signed)}
    models, signers = fields.pop("models"), fields.pop("signers", [])
    fields["created"] = record.created
    lines = [f"{label.replace('_', ' '):14} {value}" for label, value in fields.items()]
    lines += [f"model          {m['name']} {m['version']} {m['digest']}" for m in models]
    lines += [f"signed by      {signer}" for signer in signers]
    return "\n".join(lines)
