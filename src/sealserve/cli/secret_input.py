"""How a secret comes into a command: sealed in a file, or by a descriptor; never as an argument."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from sealserve.cli.admin_options import At

__all__ = ["SealedKeyOption", "SecretFdOption", "deposit_of", "signed_record"]

SealedKeyOption = Annotated[
    Path | None,
    typer.Option(help="The secret, sealed to this broker: the file of `volume create`."),
]
SecretFdOption = Annotated[
    int | None,
    typer.Option(
        help="Or a descriptor to read it from, to the last byte; 0 is stdin.", metavar="N", min=0
    ),
]


def deposit_of(at: At, sealed_key: Path | None, secret_fd: int | None) -> bytes:
    """The secret, sealed to the broker.

    Raises:
        InputError: ``admin.which_broker``, ``secret.which_source``,
            ``secret.from_terminal``, ``deposit.key_size``, ``file.too_large``.
        Unavailable: ``file.unreadable``, ``secret.fd_unreadable``.
    """
    from sealserve.broker.deposit import MAX_DEPOSIT_BYTES, seal_for
    from sealserve.errors import InputError
    from sealserve.files import read_limited

    if (sealed_key is None) == (secret_fd is None):
        raise InputError(
            "secret.which_source",
            "give the secret sealed (--sealed-key) or by a descriptor (--secret-fd)",
            where="--sealed-key, --secret-fd",
        )
    if sealed_key is not None:
        return read_limited(sealed_key, MAX_DEPOSIT_BYTES)
    return seal_for(at.public(), _read(secret_fd or 0))


def signed_record(record: Path | None, owner_pub: Path | None) -> tuple[bytes, bytes, str | None]:
    """The volume record with its owner's key, checked, and the volume's name; or nothing.

    Raises:
        InputError: ``secret.record_incomplete``; as the two files' readers.
        Refused: ``record.signature_invalid``.
        Unavailable: ``file.unreadable``.
    """
    from sealserve.errors import InputError
    from sealserve.files import read_limited
    from sealserve.volume.owner import load_owner_public
    from sealserve.volume.record import open_record
    from sealserve.wire.limits import MAX_RECORD_BYTES

    if record is None and owner_pub is None:
        return b"", b"", None
    if record is None or owner_pub is None:
        raise InputError(
            "secret.record_incomplete",
            "a volume's record and its owner's public key belong together",
            where="--record, --owner-pub",
        )
    signed = read_limited(record, MAX_RECORD_BYTES)
    owner = load_owner_public(owner_pub)
    return signed, owner.public_bytes_raw(), open_record(signed, owner).name


def _read(descriptor: int) -> bytes:
    from sealserve.broker.protocol import MAX_SECRET_BYTES
    from sealserve.errors import InputError, Unavailable

    try:
        if os.isatty(descriptor):
            raise InputError(
                "secret.from_terminal",
                "a terminal would show the secret and keep it",
                where=f"descriptor {descriptor}",
                hint="pipe it in: printf %s ... | sealserve secret put ... --secret-fd 0",
            )
        raw = b""
        while len(raw) <= MAX_SECRET_BYTES and (part := os.read(descriptor, MAX_SECRET_BYTES + 1)):
            raw += part
    except OSError as error:
        raise Unavailable(
            "secret.fd_unreadable",
            f"cannot be read: {error.strerror}",
            where=f"descriptor {descriptor}",
        ) from None
    return raw
