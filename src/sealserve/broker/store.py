"""What a broker keeps, in the database that `broker.database` opens.

Rules this module keeps:

* What a transaction has written is on the disk when it ends; what it has not
  finished never happened.
* On SQLite writers queue: one inside this process (a lock), one among processes
  (BEGIN IMMEDIATE). On PostgreSQL rows are locked by who changes them; the audit
  chain's head is one row, so that the chain cannot fork.
* Nobody waits for an HSM or Vault inside a transaction: others would wait with him.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sqlalchemy import Engine, func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from sealserve.broker import database
from sealserve.broker.config import StoreConfig
from sealserve.broker.keys import KeyEncryptionKey
from sealserve.broker.secrets import RETIRED_AT_ONCE, Kind, Previous, moment
from sealserve.broker.tables import BrokerKeyRow, ResourceRow, ResourceVersionRow, SecretRow
from sealserve.errors import Refused, Unavailable

__all__ = ["NextVersion", "Resource", "SecretInfo", "Store"]

_LIVE: Final = "live"
_RETIRED: Final = "retired"
_FIRST_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Resource:
    """What a guest may ask for by one name.

    Attributes:
        name: such as ``"models/demo"``.
        secret_id: the secret it stands for.
        secret_version: the version of the secret that is meant.
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


@dataclass(frozen=True, slots=True)
class NextVersion:
    """A secret wrapped as the version that comes next, before there is a transaction.

    Attributes:
        id: the secret's name.
        version: which version it will be.
        wrapped: its bytes, bound to name and version.
        kek_id: what wrapped them.
    """

    id: str
    version: int
    wrapped: bytes = field(repr=False)
    kek_id: str


class Store:
    """One broker's database.

    Args:
        engine: made by `open`.
        config: what it was made from.
    """

    def __init__(self, engine: Engine, config: StoreConfig) -> None:
        self._engine = engine
        self._config = config
        self._reader = engine.execution_options(**database.reading_options(engine))
        self._writer = engine.execution_options(**{database.WRITES: True})
        self._writers = threading.Lock()

    @classmethod
    def open(cls, config: StoreConfig, root: Path) -> Store:
        """Open the database, bringing its tables up to date; make them if they are missing.

        Args:
            config: which database.
            root: the broker's directory.

        Raises:
            Unavailable: ``store.unavailable``, ``store.driver_missing``.
            Refused: ``store.version_unknown``: a newer sealserve wrote it.
        """
        store = cls(database.connect(config, root), config)
        try:
            database.migrate(store._engine)
        except BaseException:
            store.close()
            raise
        return store

    @property
    def shared(self) -> bool:
        """Whether other brokers may write here at the same time."""
        return self._config.shared

    def close(self) -> None:
        """Close every connection; SQLite's last one folds the write-ahead log in."""
        self._engine.dispose()

    def clock(self, session: Session) -> float:
        """Seconds since 1970 by the clock that all brokers on this database share."""
        return database.clock(session)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that sees one state of the database.

        Raises:
            Unavailable: ``store.unavailable``.
        """
        try:
            with self._reader.connect() as connection, Session(connection) as session:
                yield session
        except SQLAlchemyError as error:
            raise database.unavailable(error) from None

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A session whose changes are all on disk when the block ends, or none of them.

        Raises:
            Unavailable: ``store.unavailable``, ``store.busy``.
        """
        try:
            with (
                self._turn(),
                self._writer.connect() as connection,
                Session(connection) as session,
                session.begin(),
            ):
                yield session
        except SQLAlchemyError as error:
            raise database.unavailable(error) from None

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if self.shared:
            yield  # the database's own locks decide
            return
        if not self._writers.acquire(timeout=self._config.timeout_seconds):
            raise Unavailable("store.busy", "other writers hold the broker's database")
        try:
            yield
        finally:
            self._writers.release()

    def has_broker_keys(self) -> bool:
        """Whether a broker lives in this database."""
        with self.reading() as session:
            return session.scalar(select(func.count()).select_from(BrokerKeyRow)) != 0

    def put_broker_keys(self, keys: Mapping[str, bytes], kek: KeyEncryptionKey) -> None:
        """Store the private keys of the broker itself, wrapped, by their names."""
        rows = [
            BrokerKeyRow(
                name=name,
                version=_FIRST_VERSION,
                wrapped=kek.wrap(private, name=name, version=_FIRST_VERSION),
                kek_id=kek.id,
            )
            for name, private in keys.items()
        ]
        with self.writing() as session:
            session.add_all(rows)

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
            wrapped, version = row.wrapped, row.version
        return kek.unwrap(wrapped, name=name, version=version)

    def kek_id(self) -> str:
        """Names the key-encryption key under which the database is wrapped."""
        with self.reading() as session:
            return session.scalar(select(BrokerKeyRow.kek_id).limit(1)) or ""

    def wrap_next(self, name: str, secret: bytes, kek: KeyEncryptionKey) -> NextVersion:
        """Wrap what will be a secret's next version, for `put_secret`.

        Raises:
            Unavailable, Refused: ``kek.*``.
        """
        with self.reading() as session:
            version = _latest(session, name) + 1
        kek_id = kek.id
        return NextVersion(name, version, kek.wrap(secret, name=name, version=version), kek_id)

    def put_secret(
        self,
        session: Session,
        new: NextVersion,
        *,
        record: bytes,
        owner_public_key: bytes,
        policy: bytes,
        lease_seconds: int,
        kind: Kind = "opaque",
        expires: str | None = None,
        previous: Previous = RETIRED_AT_ONCE,
    ) -> Resource:
        """Store a secret's next version and point the resource of the same name at it.

        Args:
            session: from `writing`, so that the audit line is part of the same step.
            new: from `wrap_next`; the resource has the secret's name.
            record: signed volume record, or empty.
            owner_public_key: who signed it.
            policy: a YAML document.
            lease_seconds: how long a guest may keep the secret.
            kind: what it is.
            expires: from when on it is not released; in the form of `secrets.moment`.
            previous: what becomes of the versions that are live.

        Returns:
            The resource as it is now.

        Raises:
            Unavailable: ``kek.changed``.
            Refused: ``secret.version_taken``.
        """
        _require_current(session, new.kek_id)
        if _latest(session, new.id) + 1 != new.version:
            raise Refused(
                "secret.version_taken",
                f"somebody else has just put version {new.version} of {new.id!r}",
                hint="look at it with `sealserve secret show`, and try again if yours shall follow",
            )
        live = select(SecretRow).where(SecretRow.id == new.id, SecretRow.state == _LIVE)
        now = self.clock(session)
        for older in session.scalars(live):
            if previous.retired:
                older.state = _RETIRED
            elif previous.seconds:
                until = moment(now + previous.seconds)
                older.expires = min(older.expires or until, until)
        session.add(
            SecretRow(
                id=new.id,
                version=new.version,
                kind=kind,
                wrapped=new.wrapped,
                kek_id=new.kek_id,
                state=_LIVE,
                created=moment(now),
                expires=expires,
            )
        )
        session.flush()
        row = session.merge(
            ResourceRow(
                name=new.id,
                secret_id=new.id,
                secret_version=new.version,
                policy=policy,
                policy_sha256=hashlib.sha256(policy).hexdigest(),
                lease_seconds=lease_seconds,
            )
        )
        bound = ResourceVersionRow(
            resource=new.id,
            secret_version=new.version,
            record=record,
            owner_public_key=owner_public_key,
        )
        session.flush()
        session.add(bound)
        session.flush()
        return _resource_of(row, bound)

    def resource(self, name: str, version: int = 0) -> Resource | None:
        """The resource of this name, if there is one.

        Args:
            name: which one.
            version: of its secret, with the record that belongs to it; 0 for the current one.
        """
        chosen = _RESOURCES if version == 0 else _VERSIONS
        if version:
            chosen = chosen.where(ResourceVersionRow.secret_version == version)
        with self.reading() as session:
            found = session.execute(chosen.where(ResourceRow.name == name)).one_or_none()
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

    def kind(self, secret_id: str, version: int) -> str:
        """What a version of a secret is; empty if there is none."""
        with self.reading() as session:
            row = session.get(SecretRow, (secret_id, version))
            return "" if row is None else row.kind

    def is_live(self, secret_id: str, version: int) -> bool:
        """Whether this version of a secret may be given to guests."""
        with self.reading() as session:
            return self._live(session, secret_id, version) is not None

    def secret(self, secret_id: str, version: int, kek: KeyEncryptionKey) -> bytes:
        """The bytes of one live version of a secret.

        Raises:
            Refused: ``store.secret_not_live``, ``kek.unwrap_failed``.
            Unavailable, Refused: other ``kek.*``.
        """
        with self.reading() as session:
            wrapped = self._live(session, secret_id, version)
        if wrapped is None:
            raise Refused(
                "store.secret_not_live",
                f"version {version} of the secret {secret_id!r} is not live",
                hint="`sealserve secret list` shows states and expiry",
            )
        # With no session held: an HSM or Vault may take its time.
        return kek.unwrap(wrapped, name=secret_id, version=version)

    def _live(self, session: Session, secret_id: str, version: int) -> bytes | None:
        """The wrapped bytes of a version that may be given out."""
        row = session.get(SecretRow, (secret_id, version))
        if row is None or row.state != _LIVE:
            return None
        if row.expires is not None and row.expires <= moment(self.clock(session)):
            return None
        return row.wrapped


def _latest(session: Session, secret_id: str) -> int:
    """The number of a secret's newest version; 0 if there is none."""
    return session.scalar(select(func.max(SecretRow.version)).where(SecretRow.id == secret_id)) or 0


def _require_current(session: Session, kek_id: str) -> None:
    """Keep nothing under a key that the database has left; hold off a `rekey` until the end."""
    held = select(BrokerKeyRow.kek_id).limit(1).with_for_update(read=True)
    if session.scalar(held) != kek_id:
        raise Unavailable(
            "kek.changed",
            "the database is wrapped under another key-encryption key than this broker has",
            hint="`broker rekey` was run: give this broker the new broker.yaml, and try again",
        )


_VERSIONS: Final = select(ResourceRow, ResourceVersionRow).join(
    ResourceVersionRow, ResourceVersionRow.resource == ResourceRow.name
)
"""Every resource with each version of its secret that has a record."""

_RESOURCES: Final = _VERSIONS.where(ResourceVersionRow.secret_version == ResourceRow.secret_version)
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
