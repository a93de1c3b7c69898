"""``sealserve volume``: make volumes, their next versions, new keys and header backups."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sealserve.cli.console import JsonFlag, byte_progress, emit
from sealserve.cli.volume_common import (
    FileArgument,
    OptionalKeyFd,
    OwnerKey,
    OwnerPub,
    PhraseFd,
    RecordOption,
    opened_record,
    read_phrase,
    read_secret,
    summary,
)

if TYPE_CHECKING:
    from sealserve.provenance import Trust
    from sealserve.volume.maker import Progress

__all__ = [
    "Backup",
    "Broker",
    "Filesystem",
    "Force",
    "NewRecord",
    "SealedKey",
    "Size",
    "backup_header",
    "create",
    "deliver",
    "rebuild",
    "restore_header",
    "rotate",
]

_NewFile = Annotated[Path, typer.Argument(metavar="FILE", help="The volume to make.")]
_Source = Annotated[
    Path, typer.Option("--from", help="Directory with models.config, models/ and tls/.")
]
NewRecord = Annotated[Path, typer.Option("--record", help="Where the signed record goes.")]
Broker = Annotated[
    Path, typer.Option(help="The broker's public document (broker.json): who gets the key.")
]
SealedKey = Annotated[
    Path, typer.Option(help="Where the key goes, sealed so that only that broker can read it.")
]
Size = Annotated[
    int | None, typer.Option(help="MiB for the filesystem; else chosen from the source.", min=1)
]
Filesystem = Annotated[
    Literal["ext4", "erofs"],
    typer.Option("--fs", help="erofs is read-only by nature, and takes no more than it needs."),
]
Backup = Annotated[
    Path | None,
    typer.Option("--header-backup", help="Where a header backup goes, which a phrase opens."),
]
_SignModels = Annotated[
    Path | None,
    typer.Option(
        help="Sign each model that is unsigned with this ECDSA key; guests then serve no other."
    ),
]
_SignedBy = Annotated[
    Path | None,
    typer.Option(
        help="Public keys and root certificates, PEM: each model must be signed by one of them, "
        "now and whenever a guest loads it."
    ),
]
Force = Annotated[bool, typer.Option(help="Replace files that are there.")]


def create(
    file: _NewFile,
    owner_key: OwnerKey,
    name: Annotated[str, typer.Option(help="The volume's name, for example: models.")],
    record: NewRecord,
    broker: Broker,
    sealed_key: SealedKey,
    source: Annotated[
        Path | None, typer.Option("--from", help="Directory with models.config, models/ and tls/.")
    ] = None,
    kind: Annotated[
        Literal["sealed", "writable"],
        typer.Option(help="sealed: read-only and verified. writable: for state; not verified."),
    ] = "sealed",
    volume_version: Annotated[int, typer.Option(help="Counts up with each remake.", min=1)] = 1,
    size: Size = None,
    filesystem: Filesystem = "ext4",
    sign_models: _SignModels = None,
    signed_by: _SignedBy = None,
    header_backup: Backup = None,
    phrase_fd: PhraseFd = None,
    force: Force = False,
    json: JsonFlag = False,
) -> None:
    """Seal a directory into an encrypted, authenticated volume; or make one for state.

    Needs neither root nor device-mapper. The key is made here and leaves this
    process only sealed to the broker: no disk ever holds it in the clear.

    Example: sealserve volume create models.seal --from seal/ --owner-key ~/owner/owner.key
    --name models --record models.record --broker broker.json --sealed-key models.key
    """
    from sealserve.errors import InputError
    from sealserve.volume.maker import create_sealed, create_writable
    from sealserve.volume.owner import load_owner_key

    signer = load_owner_key(owner_key)
    if kind == "sealed" and source is None:
        raise InputError("volume.source_missing", "a sealed volume needs content", where="--from")
    if kind == "writable" and (size is None or filesystem != "ext4"):
        raise InputError(
            "volume.size", "a writable volume is ext4 and needs a size", hint="--size MIB"
        )
    signers = _signers(source if kind == "sealed" else None, sign_models, signed_by)

    def make(key: bytearray, progress: Progress) -> bytes:
        if kind == "writable":
            return create_writable(
                file, size=(size or 0) << 20, key=key, owner_key=signer, name=name,
                version=volume_version, source=source, force=force, progress=progress,
            )  # fmt: skip
        return create_sealed(
            file, source or Path(), key=key, owner_key=signer, name=name, version=volume_version,
            size=size and size << 20, filesystem=filesystem, signers=signers, force=force,
            progress=progress,
        )  # fmt: skip

    deliver(
        make, file, record, broker, sealed_key, header_backup, phrase_fd, owner_key,
        f"sealing {source or name}", force=force, json=json,
    )  # fmt: skip


def rebuild(
    file: _NewFile,
    source: _Source,
    previous: Annotated[Path, typer.Option(help="The signed record of the version before.")],
    owner_key: OwnerKey,
    record: NewRecord,
    broker: Broker,
    sealed_key: SealedKey,
    size: Size = None,
    filesystem: Filesystem = "ext4",
    sign_models: _SignModels = None,
    signed_by: _SignedBy = None,
    header_backup: Backup = None,
    phrase_fd: PhraseFd = None,
    force: Force = False,
    json: JsonFlag = False,
) -> None:
    """Seal the next version of a volume: the same name and owner, its version one higher.

    What the previous record demands of the models' signatures is demanded again, unless
    other signers are named.

    Example: sealserve volume rebuild models-2.seal --from seal/ --previous models.record
    --owner-key owner.key --record models-2.record --broker broker.json --sealed-key models-2.key
    """
    from sealserve.files import read_limited
    from sealserve.volume.maker import create_sealed
    from sealserve.volume.owner import load_owner_key
    from sealserve.volume.record import open_record
    from sealserve.wire.limits import MAX_RECORD_BYTES

    signer = load_owner_key(owner_key)
    before = open_record(read_limited(previous, MAX_RECORD_BYTES), signer.public_key())
    _ = before.tree  # a sealed one: a writable volume has no versions of its content
    signers = _signers(source, sign_models, signed_by)
    if signers is None and before.provenance is not None:
        signers = before.provenance.trust

    def make(key: bytearray, progress: Progress) -> bytes:
        return create_sealed(
            file, source, key=key, owner_key=signer, name=before.name,
            version=before.version + 1, size=size and size << 20, filesystem=filesystem,
            signers=signers, force=force, progress=progress,
        )  # fmt: skip

    deliver(
        make, file, record, broker, sealed_key, header_backup, phrase_fd, owner_key,
        f"sealing {source}", force=force, json=json,
    )  # fmt: skip


def rotate(
    file: FileArgument,
    out: Annotated[Path, typer.Option(help="The new volume.")],
    previous: Annotated[Path, typer.Option(help="The volume's signed record.")],
    owner_key: OwnerKey,
    record: NewRecord,
    broker: Broker,
    sealed_key: SealedKey,
    key_fd: OptionalKeyFd = None,
    old_backup: Annotated[
        Path | None,
        typer.Option(help="Open the old volume by this header backup, without its key."),
    ] = None,
    old_phrase_fd: PhraseFd = None,
    header_backup: Backup = None,
    phrase_fd: PhraseFd = None,
    json: JsonFlag = False,
) -> None:
    """Encrypt a volume anew, under a new volume key; its version is one higher.

    Changing a keyslot would revoke nothing: who kept the old file and its key can
    open that for ever. The new file cannot be opened by the old key.

    Example: sealserve volume rotate models.seal --out models-2.seal --previous models.record
    --owner-key owner.key --record models-2.record --broker broker.json --sealed-key models-2.key
    --old-backup models.header
    """
    from sealserve.files import read_limited
    from sealserve.volume.cipher import wipe
    from sealserve.volume.owner import load_owner_key
    from sealserve.volume.record import open_record
    from sealserve.volume.rotate import rotate as rotate_volume
    from sealserve.wire.limits import MAX_RECORD_BYTES

    signer = load_owner_key(owner_key)
    before = open_record(read_limited(previous, MAX_RECORD_BYTES), signer.public_key())
    old = read_secret(before, key_fd, old_backup, old_phrase_fd)

    def make(key: bytearray, progress: Progress) -> bytes:
        return rotate_volume(
            file, before, old, new_key=key, owner_key=signer, target=out, progress=progress
        )

    try:
        deliver(
            make, out, record, broker, sealed_key, header_backup, phrase_fd, owner_key,
            f"rotating {file}", force=False, json=json,
        )  # fmt: skip
    finally:
        wipe(old)


def backup_header(
    file: FileArgument,
    out: Annotated[Path, typer.Option(help="The backup to make. Keep it at home.")],
    record: RecordOption,
    owner_pub: OwnerPub,
    key_fd: Annotated[
        int | None,
        typer.Option(help="With the key, the backup gets a recovery phrase.", min=0),
    ] = None,
    phrase_fd: PhraseFd = None,
    json: JsonFlag = False,
) -> None:
    """Copy a volume's header, so that a damaged one can be put back.

    With the key it gets a second header, which a phrase of yours opens (Argon2id,
    1 GiB): a way back in when the broker is lost. The volume itself never has it.

    Example: my-key-tool | sealserve volume backup-header models.seal --out models.header
    --record models.record --owner-pub owner.pub --key-fd 0
    """
    from sealserve.volume import recovery
    from sealserve.volume.cipher import XTS_KEY_SIZE, wipe
    from sealserve.volume.process import read_key

    _, opened = opened_record(record, owner_pub)
    if key_fd is None:
        recovery.backup_header(file, opened, out)
    else:
        key = read_key(key_fd, XTS_KEY_SIZE)
        phrase = read_phrase(phrase_fd, new=True)
        try:
            recovery.backup_header(file, opened, out, key=key, phrase=phrase)
        finally:
            wipe(key)
            wipe(phrase)
    emit(
        {"volume": str(file), "header_backup": str(out), "recovery": key_fd is not None},
        as_json=json,
        text=f"made {out}; keep it where the host of {file} cannot come",
    )


def restore_header(
    file: FileArgument,
    backup: Annotated[Path, typer.Option("--header-backup", help="From `backup-header`.")],
    record: RecordOption,
    owner_pub: OwnerPub,
    json: JsonFlag = False,
) -> None:
    """Put a volume's header back, exactly as its record pins it.

    Example: sealserve volume restore-header models.seal --header-backup models.header
    --record models.record --owner-pub owner.pub
    """
    from sealserve.volume.recovery import restore_header as restore

    _, opened = opened_record(record, owner_pub)
    restore(file, opened, backup)
    emit(
        {"volume": str(file), "restored": True},
        as_json=json,
        text=f"{file} has the header that its record pins",
    )


def _signers(source: Path | None, sign_models: Path | None, signed_by: Path | None) -> Trust | None:
    """Sign the models of a source, if that is asked for; whose signatures they must carry."""
    from sealserve.errors import InputError
    from sealserve.provenance import SIGNATURE_NAME, Signing, Trust, load_trust, sign_model
    from sealserve.volume.tree import find_models

    if sign_models is None and signed_by is None:
        return None
    if source is None:
        raise InputError("provenance.model_missing", "a writable volume has no models to be signed")
    pem = load_trust(signed_by).pem if signed_by else b""
    if sign_models is not None:
        signing = Signing.load(sign_models)
        for model in find_models(source):
            place = source / "models" / model.name / str(model.version)
            if not (place / SIGNATURE_NAME).exists():
                sign_model(place, signing)
        pem += signing.trust.pem
    return Trust.from_pem(pem, where="--sign-models and --signed-by")


def deliver(
    make: Callable[[bytearray, Progress], bytes],
    file: Path,
    record: Path,
    broker: Path,
    sealed_key: Path,
    header_backup: Path | None,
    phrase_fd: int | None,
    owner_key: Path,
    what: str,
    *,
    force: bool,
    json: bool,
    given: bytearray | None = None,
) -> None:
    """Make a volume; hand out record, sealed key and header backup.

    Its key is a new one, unless one is given, which is wiped.
    """
    import secrets

    from sealserve.broker.deposit import seal_for
    from sealserve.broker.identity import BrokerIdentity
    from sealserve.files import require_absent, require_writable_place, write_atomically
    from sealserve.volume.cipher import wipe
    from sealserve.volume.owner import load_owner_key
    from sealserve.volume.record import KEY_SIZE, open_record
    from sealserve.volume.recovery import backup_header as back_up

    identity = BrokerIdentity.load(broker)
    for target in filter(None, (record, sealed_key, header_backup)):
        require_writable_place(target)
        if not force or target == header_backup:
            require_absent(target)
    phrase = read_phrase(phrase_fd, new=True) if header_backup else bytearray()
    key = bytearray(secrets.token_bytes(KEY_SIZE)) if given is None else given
    try:
        deposit = seal_for(identity, bytes(key))
        with byte_progress() as bars:
            bar = bars.add_task(what, total=None)
            signed = make(key, lambda done, total: bars.update(bar, completed=done, total=total))
        made = open_record(signed, load_owner_key(owner_key).public_key())
        with _removed_on_failure(file):  # without its companions no one could ever open it
            if header_backup:
                back_up(file, made, header_backup, key=key, phrase=phrase)
            write_atomically(sealed_key, deposit)
            write_atomically(record, signed)
    finally:
        wipe(key)
        wipe(phrase)
    extra = {"header_backup": str(header_backup)} if header_backup else {}
    emit(
        {
            "volume": str(file),
            "record": str(record),
            "sealed_key": str(sealed_key),
            **extra,
            **summary(made, signed),
        },
        as_json=json,
        text=(
            f"made {file} ({made.file_size >> 20} MiB, {len(made.models)} models), "
            f"{record} and {sealed_key}\nnext: give the last two to the broker with "
            "`sealserve secret put` (or `rotate`, after the first), and the first to any host"
        ),
    )


@contextlib.contextmanager
def _removed_on_failure(file: Path) -> Iterator[None]:
    from sealserve.errors import SealserveError

    try:
        yield
    except SealserveError:
        file.unlink()
        raise
