"""A broker's backup: made while it serves, from either database, and restored into either.

The file is a tar archive (POSIX ustar) of exactly these members, in this order:

| member | what it is |
|---|---|
| ``manifest.json`` | whose it is, when it was made, the audit chain's end, sizes and SHA-256 |
| ``broker.json``, ``broker.yaml`` | as in the broker's directory |
| ``broker.db`` | SQLite: all rows but challenges and rate limits, as one moment saw them |

Rules this module keeps:

* Rows are copied, not pages: what was deleted or destroyed is not in a backup.
* Everything secret in it is wrapped, and the key-encryption key is not in it.
* A backup whose audit chain is not whole is neither made nor restored; a restored
  broker appears complete or not at all, and its chain says that it was restored.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session

from sealserve.broker import audit, config_file
from sealserve.broker.audit import AuditLog
from sealserve.broker.audit_chain import ChainHead
from sealserve.broker.config import BrokerConfig, StoreConfig
from sealserve.broker.config_file import CONFIG_FILE
from sealserve.broker.directory import open_without_kek, require_new_place
from sealserve.broker.identity import BrokerIdentity
from sealserve.broker.kek_provider import NEXT_CONFIG
from sealserve.broker.store import Store
from sealserve.broker.tables import AuditHeadRow, Base, ChallengeRow, RateRow
from sealserve.errors import InputError, Refused, Unavailable
from sealserve.files import atomic_file, read_limited, sync_path, write_atomically

__all__ = ["Backup", "backup", "restore"]

_MANIFEST: Final = "manifest.json"
_IDENTITY: Final = "broker.json"
_DATABASE: Final = "broker.db"
_LIMITS: Final = {
    _MANIFEST: 16 * 1024, _IDENTITY: 64 * 1024, CONFIG_FILE: 64 * 1024, _DATABASE: 0o77777777777,
}  # fmt: skip
"""The members, in order, and the most bytes of each; the last is ustar's own limit."""
_LEFT_OUT: Final = {ChallengeRow.__tablename__, RateRow.__tablename__}
_BATCH: Final = 500
_CHUNK: Final = 1 << 20
_HEX: Final = r"^[0-9a-f]{64}$"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


class _File(_Strict):
    """One member: its size in bytes and its SHA-256, hex."""

    size: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=_HEX)]


class Backup(_Strict):
    """A backup's manifest.

    Attributes:
        format: names this document and its version.
        broker: the SHA-256 of the broker's SubjectPublicKeyInfo, hex.
        name: the broker's name.
        created: when the backup was made, UTC.
        kek_id: names the key-encryption key that opens it.
        audit_count: how many lines its audit chain has.
        audit_sha256: the last one's hash.
        files: the other members.
    """

    format: Literal["sealserve-broker-backup/1"] = "sealserve-broker-backup/1"
    broker: Annotated[str, Field(pattern=_HEX)]
    name: Annotated[str, Field(max_length=64)]
    created: Annotated[str, Field(max_length=32)]
    kek_id: Annotated[str, Field(max_length=64)]
    audit_count: Annotated[int, Field(ge=0, lt=10**15)]
    audit_sha256: Annotated[str, Field(pattern=_HEX)]
    files: dict[str, _File]

    @property
    def head(self) -> ChainHead:
        """The end of the audit chain."""
        return ChainHead(self.audit_count, self.audit_sha256)


def backup(root: Path, file: Path) -> Backup:
    """Back a broker up; it may be serving.

    Args:
        root: the broker's directory.
        file: the archive to write, mode 0600; it must not be there.

    Raises:
        InputError: ``file.exists``; as `open_without_kek`.
        Refused: ``audit.*``: the chain is not whole; ``backup.rekey_running``.
        Unavailable: ``file.unwritable``, ``store.*``.
    """
    identity, _, store = open_without_kek(root)
    try:
        with _scratch(file.parent, file.name) as scratch:
            before = _configuration(root)
            head, kek_id = _copy_out(store, identity, scratch)
            if _configuration(root) != before:
                raise _rekey_running(root)
            (scratch / CONFIG_FILE).write_bytes(before)
            (scratch / _IDENTITY).write_bytes(identity.to_json())
            made = Backup(
                broker=identity.spki_sha256.hex(),
                name=identity.name,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                kek_id=kek_id,
                audit_count=head.count,
                audit_sha256=head.sha256,
                files={name: _measured(scratch / name) for name in list(_LIMITS)[1:]},
            )
            (scratch / _MANIFEST).write_text(made.model_dump_json(indent=2) + "\n")
            with atomic_file(file, mode=0o600, replace=False) as archive:
                for name in _LIMITS:
                    _pack(archive, scratch / name)
                archive.write(bytes(2 * tarfile.BLOCKSIZE))
            return made
    finally:
        store.close()


def restore(
    file: Path, root: Path, *, store_url: str | None = None, expect: ChainHead | None = None
) -> tuple[Backup, BrokerConfig]:
    """Make a broker's directory, and its database, out of a backup.

    Args:
        file: made by `backup`.
        root: the directory to make; it may exist if it is empty.
        store_url: another database than the backup's; an empty one.
        expect: a head that the chain is known to have had: an older backup is refused.

    Returns:
        The manifest, and the configuration that the new directory has.

    Raises:
        InputError: ``backup.malformed``, ``broker.directory_exists``,
            ``broker.config_invalid``, ``identity.malformed``.
        Refused: ``backup.damaged``, ``backup.mismatch``, ``audit.*``,
            ``broker.database_in_use``, ``store.version_unknown``.
        Unavailable: ``file.unreadable``, ``broker.directory_unwritable``, ``store.*``.
    """
    require_new_place(root)
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with _scratch(root.parent, root.name) as scratch:
            manifest = _unpack(file, scratch)
            chosen = _read_config(scratch, store_url)
            identity = BrokerIdentity.load(scratch / _IDENTITY)
            if identity.spki_sha256.hex() != manifest.broker:
                raise Refused(
                    "backup.mismatch", "its parts are of different brokers", where=str(file)
                )
            _restore_database(scratch, chosen, identity, manifest, expect)
            (scratch / _MANIFEST).unlink()
            if store_url is not None:
                _write_config(scratch / CONFIG_FILE, chosen)
            sync_path(scratch)
            scratch.rename(root)  # also over an empty directory
        sync_path(root.parent)
    except OSError as error:
        raise Unavailable(
            "broker.directory_unwritable",
            f"the broker's directory cannot be made: {error.strerror}",
            where=str(root),
            hint="check the place's owner and free space",
        ) from None
    return manifest, chosen


@contextmanager
def _scratch(parent: Path, name: str) -> Iterator[Path]:
    """A directory that only we can read, beside where the result goes."""
    try:
        place = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=parent))
    except OSError as error:
        raise Unavailable(
            "file.unwritable", f"cannot write here: {error.strerror}", where=str(parent)
        ) from None
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


# --- making ------------------------------------------------------------------------


def _configuration(root: Path) -> bytes:
    if (root / NEXT_CONFIG).exists():
        raise _rekey_running(root)
    path = root / CONFIG_FILE
    return path.read_bytes() if path.exists() else config_file.render(BrokerConfig())


def _rekey_running(root: Path) -> Refused:
    return Refused(
        "backup.rekey_running",
        "the key-encryption key is being changed",
        where=str(root),
        hint="wait for `broker rekey`; if it was interrupted, `broker status` finishes it",
    )


def _copy_out(store: Store, identity: BrokerIdentity, scratch: Path) -> tuple[ChainHead, str]:
    copy = Store.open(StoreConfig(), scratch)
    try:
        with store.reading() as source, copy.writing() as target:
            _copy(source, target)
        return AuditLog(copy, identity).verify(), copy.kek_id()
    finally:
        copy.close()


def _copy(source: Session, target: Session) -> None:
    """All rows but those that mean nothing later; the target has none but the chain's start."""
    target.execute(delete(AuditHeadRow))
    for table in Base.metadata.sorted_tables:
        if table.name in _LEFT_OUT:
            continue
        rows = source.execute(select(table).execution_options(yield_per=_BATCH)).mappings()
        for part in rows.partitions():
            target.execute(insert(table), [dict(row) for row in part])


def _measured(path: Path) -> _File:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return _File(size=path.stat().st_size, sha256=digest)


def _pack(archive: IO[bytes], path: Path) -> None:
    entry = tarfile.TarInfo(path.name)
    entry.size, entry.mode = path.stat().st_size, 0o600
    archive.write(entry.tobuf(tarfile.USTAR_FORMAT))
    with path.open("rb") as content:
        shutil.copyfileobj(content, archive, _CHUNK)
    archive.write(bytes(-entry.size % tarfile.BLOCKSIZE))


# --- restoring ---------------------------------------------------------------------


def _unpack(file: Path, scratch: Path) -> Backup:
    try:
        archive = file.open("rb")
    except OSError as error:
        raise Unavailable(
            "file.unreadable", f"cannot read: {error.strerror}", where=str(file)
        ) from None
    with archive:
        for name, limit in _LIMITS.items():
            _unpack_one(archive, name, limit, scratch, file)
    try:
        manifest = Backup.model_validate_json((scratch / _MANIFEST).read_bytes())
    except ValidationError:
        raise _malformed(file, "its manifest is not one") from None
    if manifest.files != {name: _measured(scratch / name) for name in list(_LIMITS)[1:]}:
        raise Refused(
            "backup.damaged",
            "a part of it is not what its manifest says",
            where=str(file),
            hint="take another copy of the backup",
        )
    return manifest


def _unpack_one(archive: IO[bytes], name: str, limit: int, scratch: Path, file: Path) -> None:
    try:
        # One header of 512 bytes: no extended headers, links or surprises are read.
        entry = tarfile.TarInfo.frombuf(archive.read(tarfile.BLOCKSIZE), "ascii", "strict")
    except (tarfile.TarError, ValueError):
        raise _malformed(file, f"has no {name} where it belongs") from None
    if entry.name != name or entry.type != tarfile.REGTYPE or not 0 <= entry.size <= limit:
        raise _malformed(file, f"has no {name} where it belongs")
    descriptor = os.open(scratch / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as target:
        left = entry.size
        while left and (part := archive.read(min(left, _CHUNK))):
            target.write(part)
            left -= len(part)
        os.fsync(target.fileno())
    padding = -entry.size % tarfile.BLOCKSIZE
    if left or len(archive.read(padding)) != padding:
        raise _malformed(file, "is cut off")


def _read_config(scratch: Path, store_url: str | None) -> BrokerConfig:
    chosen = config_file.parse(read_limited(scratch / CONFIG_FILE, _LIMITS[CONFIG_FILE]))
    if store_url is None:
        return chosen
    named = config_file.with_store(store_url, where="--store")
    return chosen.model_copy(update={"store": named.store})


def _write_config(path: Path, chosen: BrokerConfig) -> None:
    """Put the choice into the operator's own file, or into a new one where that cannot be."""
    revised = config_file.revise(read_limited(path, _LIMITS[CONFIG_FILE]), chosen)
    write_atomically(path, revised or config_file.render(chosen))


def _restore_database(
    scratch: Path,
    chosen: BrokerConfig,
    identity: BrokerIdentity,
    manifest: Backup,
    expect: ChainHead | None,
) -> None:
    copy = Store.open(StoreConfig(), scratch)
    try:
        if AuditLog(copy, identity).verify(expect) != manifest.head:
            raise Refused("backup.mismatch", "its audit chain does not end where it says")
        if not chosen.store.shared:
            with copy.writing() as session:
                _note(session, manifest)
        else:
            _copy_in(copy, chosen.store, scratch, manifest)
    finally:
        copy.close()
    if chosen.store.shared:
        (scratch / _DATABASE).unlink()
    else:
        (scratch / _DATABASE).rename(scratch / str(chosen.store.location.database))


def _copy_in(copy: Store, chosen: StoreConfig, scratch: Path, manifest: Backup) -> None:
    target = Store.open(chosen, scratch)
    try:
        if target.has_broker_keys() or AuditLog(target).length():
            raise Refused(
                "broker.database_in_use",
                "the database holds a broker already",
                hint="give an empty one with --store",
            )
        with copy.reading() as source, target.writing() as session:
            _copy(source, session)
            session.flush()
            _note(session, manifest)
    finally:
        target.close()


def _note(session: Session, manifest: Backup) -> None:
    """What comes after this line did not come after the line before it, once."""
    audit.append(
        session,
        {
            "event": "broker.restore",
            "backup_created": manifest.created,
            "backup_head": str(manifest.head),
        },
    )


def _malformed(file: Path, reason: str) -> InputError:
    return InputError(
        "backup.malformed",
        reason,
        where=str(file),
        hint="give a file that `sealserve broker backup` wrote",
    )
