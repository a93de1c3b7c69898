"""The broker's database: SQLite embedded, through SQLAlchemy.

Rules this module keeps:

* What a transaction has written is on the disk when it ends (WAL, synchronous
  FULL); what it has not finished never happened.
* Writers queue: one inside this process (a lock), one among processes (BEGIN
  IMMEDIATE), so that the audit chain cannot fork.
* No error shows a statement's values.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event, func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from sealserve.broker.keys import KeyEncryptionKey
from sealserve.broker.tables import BrokerKeyRow, ResourceRow, ResourceVersionRow, SecretRow
from sealserve.errors import Refused, Unavailable

__all__ = ["Resource", "SecretInfo", "Store"]

_BUSY_SECONDS: Final = 5
_LIVE: Final = "live"
_RETIRED: Final = "retired"
_VOLUME_KEY: Final = "volume-key"
_FIRST_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Resource:
    """What a guest may ask for by one name.

    Attributes:
        name: such as ``"models/demo"``.
        secret_id: the secret it stands for.
        secret_version: the version of the secret that is released.
        record: the signed volume record, or empty.
        owner_public_key: the key that signed the record, in the form it was given.
        policy: the policy, a YAML document.
        policy_sha256: its SHA-256, hex.
        lease_seconds: how long a guest may keep the secret before it asks again.
    """

    name: str
    secret_id: str
    secret_version: int
    record: bytes
    owner_public_key: bytes
    policy: bytes
    policy_sha256: str
    lease_seconds: int


@dataclass(frozen=True, slots=True)
class SecretInfo:
    """All that may be shown of one version of a secret."""

    id: str
    version: int
    state: str
    created: str


class Store:
    """One broker's database.

    Args:
        engine: made by `open`.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._writer = threading.Lock()

    @classmethod
    def open(cls, path: Path) -> Store:
        """Open the database file, bringing its tables up to date; make it if it is missing.

        Raises:
            Unavailable: ``store.unavailable``.
            Refused: ``store.version_unknown``: a newer sealserve wrote it.
        """
        try:
            path.touch(mode=0o600)
        except OSError as error:
            raise _unavailable(error.strerror or type(error).__name__) from None
        store = cls(_make_engine(path))
        store._migrate()
        return store

    def close(self) -> None:
        """Close every connection; the last one folds the write-ahead log in."""
        self._engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that sees one state of the database.

        Raises:
            Unavailable: ``store.unavailable``.
        """
        try:
            with Session(self._engine) as session:
                yield session
        except SQLAlchemyError as error:
            raise _unavailable(_reason(error)) from None

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A session whose changes are all on disk when the block ends, or none of them.

        Raises:
            Unavailable: ``store.unavailable``.
        """
        try:
            with self._writer, self._engine.connect() as connection:
                connection.execution_options(sealserve_writes=True)
                with Session(connection) as session, session.begin():
                    yield session
        except SQLAlchemyError as error:
            raise _unavailable(_reason(error)) from None

    def put_broker_key(self, name: str, private: bytes, kek: KeyEncryptionKey) -> None:
        """Store a private key of the broker itself, wrapped."""
        wrapped = kek.wrap(private, name=name, version=_FIRST_VERSION)
        row = BrokerKeyRow(name=name, version=_FIRST_VERSION, wrapped=wrapped, kek_id=kek.id)
        with self.writing() as session:
            session.add(row)

    def broker_key(self, name: str, kek: KeyEncryptionKey) -> bytes:
        """Read a private key of the broker itself.

        Raises:
            Refused: ``store.key_missing``, ``kek.unwrap_failed``.
        """
        with self.reading() as session:
            row = session.get(BrokerKeyRow, name)
            if row is None:
                raise Refused(
                    "store.key_missing",
                    f"the database holds no broker key {name!r}",
                    hint="it was not made by `sealserve broker init`, or was changed",
                )
            return kek.unwrap(row.wrapped, name=row.name, version=row.version)

    def put_secret(
        self,
        session: Session,
        name: str,
        secret: bytes,
        kek: KeyEncryptionKey,
        *,
        record: bytes,
        owner_public_key: bytes,
        policy: bytes,
        lease_seconds: int,
    ) -> Resource:
        """Store a secret's next version and point the resource of the same name at it.

        Args:
            session: from `writing`, so that the audit line is part of the same step.
            name: resource and secret.
            secret: the bytes to keep, wrapped.
            kek: wraps them.
            record: signed volume record, or empty.
            owner_public_key: who signed it.
            policy: a YAML document.
            lease_seconds: how long a guest may keep the secret.

        Returns:
            The resource as it is now.
        """
        latest = session.scalar(select(func.max(SecretRow.version)).where(SecretRow.id == name))
        version = (latest or 0) + 1
        for older in session.scalars(select(SecretRow).where(SecretRow.id == name)):
            older.state = _RETIRED
        session.add(
            SecretRow(
                id=name,
                version=version,
                kind=_VOLUME_KEY,
                wrapped=kek.wrap(secret, name=name, version=version),
                kek_id=kek.id,
                state=_LIVE,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
            )
        )
        session.flush()
        row = session.merge(
            ResourceRow(
                name=name,
                secret_id=name,
                secret_version=version,
                policy=policy,
                policy_sha256=hashlib.sha256(policy).hexdigest(),
                lease_seconds=lease_seconds,
            )
        )
        bound = ResourceVersionRow(
            resource=name, secret_version=version, record=record, owner_public_key=owner_public_key
        )
        session.flush()
        session.add(bound)
        session.flush()
        return _resource_of(row, bound)

    def resource(self, name: str) -> Resource | None:
        """The resource of this name, if there is one."""
        with self.reading() as session:
            found = session.execute(_RESOURCES.where(ResourceRow.name == name)).one_or_none()
            return None if found is None else _resource_of(*found)

    def resources(self) -> list[Resource]:
        """All resources, by name."""
        with self.reading() as session:
            rows = session.execute(_RESOURCES.order_by(ResourceRow.name))
            return [_resource_of(*row) for row in rows]

    def secrets(self) -> list[SecretInfo]:
        """All versions of all secrets; nothing of their bytes."""
        with self.reading() as session:
            rows = session.scalars(select(SecretRow).order_by(SecretRow.id, SecretRow.version))
            return [SecretInfo(row.id, row.version, row.state, row.created) for row in rows]

    def secret(self, secret_id: str, version: int, kek: KeyEncryptionKey) -> bytes:
        """The bytes of one live version of a secret.

        Raises:
            Refused: ``store.secret_not_live``, ``kek.unwrap_failed``.
        """
        with self.reading() as session:
            row = session.get(SecretRow, (secret_id, version))
            if row is None or row.state != _LIVE or row.wrapped is None:
                raise Refused(
                    "store.secret_not_live",
                    f"version {version} of the secret {secret_id!r} is not live",
                    hint="`sealserve secret list` shows the states",
                )
            return kek.unwrap(row.wrapped, name=row.id, version=row.version)

    def _migrate(self) -> None:
        config = Config()
        config.set_main_option("script_location", "sealserve.broker:migrations")
        try:
            with self._engine.connect() as connection:
                connection.execution_options(sealserve_writes=True)
                if _is_current(connection, config):
                    return
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
                connection.commit()
        except CommandError:
            raise Refused(
                "store.version_unknown",
                "the database was written by a newer sealserve",
                hint="run that version, or restore a backup made before the update",
            ) from None
        except SQLAlchemyError as error:
            raise _unavailable(_reason(error)) from None


_RESOURCES: Final = select(ResourceRow, ResourceVersionRow).join(
    ResourceVersionRow,
    (ResourceVersionRow.resource == ResourceRow.name)
    & (ResourceVersionRow.secret_version == ResourceRow.secret_version),
)
"""Every resource with the record of its current version."""


def _resource_of(row: ResourceRow, bound: ResourceVersionRow) -> Resource:
    return Resource(
        name=row.name,
        secret_id=row.secret_id,
        secret_version=bound.secret_version,
        record=bound.record,
        owner_public_key=bound.owner_public_key,
        policy=row.policy,
        policy_sha256=row.policy_sha256,
        lease_seconds=row.lease_seconds,
    )


def _is_current(connection: Connection, config: Config) -> bool:
    # Asked first, because an upgrade takes the write lock even to find nothing to do.
    if not sqlalchemy.inspect(connection).has_table("alembic_version"):
        return False
    present = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    connection.rollback()
    return present == ScriptDirectory.from_config(config).get_current_head()


def _make_engine(path: Path) -> Engine:
    engine = create_engine(
        sqlalchemy.URL.create("sqlite", database=str(path)),
        connect_args={"timeout": _BUSY_SECONDS},
        hide_parameters=True,
    )

    @event.listens_for(engine, "connect")
    def _configure(connection: sqlite3.Connection, _record: Any) -> None:
        # Transactions begin in _begin: sqlite3's own implicit ones take the
        # write lock too late, and would let two writers read the same chain head.
        connection.isolation_level = None
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("sealserve_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _reason(error: SQLAlchemyError) -> str:
    # The driver's own sentence ("disk I/O error"); SQLAlchemy's adds the statement.
    return str(getattr(error, "orig", None) or type(error).__name__)


def _unavailable(reason: str) -> Unavailable:
    return Unavailable(
        "store.unavailable",
        f"the broker's database cannot be used: {reason}",
        hint="check the disk's space and health, and the file's owner",
    )
