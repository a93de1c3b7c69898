"""``sealserve volume read|extract``: files out of a sealed volume, without any mount."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sealserve.cli.console import JsonFlag, emit
from sealserve.cli.volume_common import (
    BackupOption,
    FileArgument,
    OptionalKeyFd,
    OwnerPub,
    PhraseFd,
    RecordOption,
    opened_record,
    read_secret,
)

__all__ = ["extract", "read"]

_CHUNK = 1 << 20


def read(
    file: FileArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A path inside the volume.")],
    record: RecordOption,
    owner_pub: OwnerPub,
    key_fd: OptionalKeyFd = None,
    header_backup: BackupOption = None,
    phrase_fd: PhraseFd = None,
    json: JsonFlag = False,
) -> None:
    """Write one file of a sealed volume to standard output, or list a directory.

    Needs no mount, no root and no other program. Every byte is verified.

    Example: my-key-tool | sealserve volume read models.seal models.config
    --record models.record --owner-pub owner.pub --key-fd 0
    """
    import sys

    from sealserve.errors import InputError
    from sealserve.volume.cipher import wipe
    from sealserve.volume.reader import SealedReader

    _, opened = opened_record(record, owner_pub)
    key = read_secret(opened, key_fd, header_backup, phrase_fd)
    try:
        reader = SealedReader(file, opened, key)
    finally:
        wipe(key)
    with reader:
        try:
            content = reader.open(name)
        except InputError:
            names = reader.names(name)
            emit({"directory": name, "names": names}, as_json=json, text="\n".join(names))
            return
        with content:
            while piece := content.read(_CHUNK):
                sys.stdout.buffer.write(piece)


def extract(
    file: FileArgument,
    target: Annotated[Path, typer.Argument(metavar="DIR", help="Is made. Gets the plaintext.")],
    record: RecordOption,
    owner_pub: OwnerPub,
    key_fd: OptionalKeyFd = None,
    header_backup: BackupOption = None,
    phrase_fd: PhraseFd = None,
    json: JsonFlag = False,
) -> None:
    """Copy a sealed volume's files out, IN THE CLEAR, into a new directory.

    For the owner's own machine. Needs no mount and no root; ext4 and erofs.

    Example: sealserve volume extract models.seal out --record models.record
    --owner-pub owner.pub --header-backup models.header
    """
    from sealserve.volume.cipher import wipe
    from sealserve.volume.reader import SealedReader

    _, opened = opened_record(record, owner_pub)
    key = read_secret(opened, key_fd, header_backup, phrase_fd)
    try:
        reader = SealedReader(file, opened, key)
    finally:
        wipe(key)
    with reader:
        count = reader.extract(target)
    emit(
        {"volume": str(file), "target": str(target), "files": count},
        as_json=json,
        text=f"{count} files in {target}, in the clear",
    )
