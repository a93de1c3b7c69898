"""``sealserve volume import|adopt``: volumes that others made become ours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sealserve.cli.console import JsonFlag
from sealserve.cli.volume_common import KeyFd, OwnerKey, PhraseFd, read_passphrase
from sealserve.cli.volume_make import (
    Backup,
    Broker,
    Filesystem,
    Force,
    NewRecord,
    SealedKey,
    Size,
    deliver,
)

if TYPE_CHECKING:
    from sealserve.volume.maker import Progress

__all__ = ["adopt", "import_volume"]

_Old = Annotated[Path, typer.Argument(metavar="OLD", help="The volume; it is only read.")]
_Out = Annotated[Path, typer.Option(help="The volume to make.")]
_Name = Annotated[str, typer.Option(help="The volume's name, for example: models.")]
_Version = Annotated[int, typer.Option(help="Counts up with each remake.", min=1)]


def import_volume(
    old: _Old,
    out: _Out,
    owner_key: OwnerKey,
    name: _Name,
    record: NewRecord,
    broker: Broker,
    sealed_key: SealedKey,
    passphrase_fd: Annotated[
        int | None,
        typer.Option(
            help="Descriptor from which the old volume's passphrase is read; else typed.", min=0
        ),
    ] = None,
    rearrange: Annotated[
        bool,
        typer.Option(
            "--rearrange",
            help="model/ becomes models/, ssl_configure/ becomes tls/, models.config is written.",
        ),
    ] = False,
    volume_version: _Version = 1,
    size: Size = None,
    filesystem: Filesystem = "ext4",
    header_backup: Backup = None,
    phrase_fd: PhraseFd = None,
    force: Force = False,
    json: JsonFlag = False,
) -> None:
    """Seal the files of a LUKS1 or LUKS2 volume, as the original's scripts made it.

    Needs neither root nor device-mapper, and leaves no plaintext on the disk. Nothing
    vouched for the old content: look at it before you give the new volume to anyone.

    Example: my-password-tool | sealserve volume import vfs --out models.seal
    --passphrase-fd 0 --rearrange --owner-key ~/owner/owner.key --name models
    --record models.record --broker broker.json --sealed-key models.key
    """
    from sealserve.model.config_file import config_of
    from sealserve.volume import importing
    from sealserve.volume.cipher import wipe
    from sealserve.volume.owner import load_owner_key

    signer = load_owner_key(owner_key)
    passphrase = read_passphrase(passphrase_fd)

    def make(key: bytearray, progress: Progress) -> bytes:
        return importing.import_volume(
            old, out, passphrase=passphrase, key=key, owner_key=signer, name=name,
            version=volume_version, size=size and size << 20, filesystem=filesystem,
            config_of=(lambda models: config_of(models)[0]) if rearrange else None,
            force=force, progress=progress,
        )  # fmt: skip

    try:
        deliver(
            make, out, record, broker, sealed_key, header_backup, phrase_fd, owner_key,
            f"importing {old}", force=force, json=json,
        )  # fmt: skip
    finally:
        wipe(passphrase)


def adopt(
    old: _Old,
    out: _Out,
    owner_key: OwnerKey,
    name: _Name,
    record: NewRecord,
    broker: Broker,
    sealed_key: SealedKey,
    key_fd: KeyFd,
    volume_version: _Version = 1,
    header_backup: Backup = None,
    phrase_fd: PhraseFd = None,
    force: Force = False,
    json: JsonFlag = False,
) -> None:
    """Seal a LUKS2 volume made elsewhere as it is: a copy, a hash tree, a record.

    Its header and ciphertext stay what they are; it is opened read-only. For aes-xts-plain64
    with a 512-bit key, sectors of 512 or 4096 bytes, and one keyslot that 32 random bytes
    open; others are for `volume import`.

    Example: my-key-tool | sealserve volume adopt disk.luks --out models.seal --key-fd 0
    --owner-key ~/owner/owner.key --name models --record models.record
    --broker broker.json --sealed-key models.key
    """
    from sealserve.volume import importing
    from sealserve.volume.owner import load_owner_key
    from sealserve.volume.process import read_key

    signer = load_owner_key(owner_key)

    def make(key: bytearray, progress: Progress) -> bytes:
        return importing.adopt(
            old, out, key=key, owner_key=signer, name=name, version=volume_version, force=force,
            progress=progress,
        )  # fmt: skip

    deliver(
        make, out, record, broker, sealed_key, header_backup, phrase_fd, owner_key,
        f"adopting {old}", force=force, json=json, given=read_key(key_fd),
    )  # fmt: skip
