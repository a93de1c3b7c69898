"""The database below the store: SQLite embedded, or PostgreSQL for several brokers.

Rules this module keeps:

* What a transaction has written is on the disk when it ends (SQLite: WAL,
  synchronous FULL; PostgreSQL: synchronous_commit, its default, is demanded).
* Nothing waits longer than the configured timeout: not for a connection, not
  for a lock, not for an answer of a server that has gone.
* Tables are brought up to date by one process at a time.
* No error shows a statement or its values.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any, Final

import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from sealserve.broker.config import StoreConfig
from sealserve.errors import Refused, Unavailable

__all__ = ["WRITES", "clock", "connect", "migrate", "reading_options", "unavailable"]

WRITES: Final = "sealserve_writes"
"""The execution option of a connection that will write."""

_CLOCK: Final = text("SELECT extract(epoch FROM clock_timestamp())::float8")
_MIGRATION_LOCK: Final = 0x5EA15E12  # any number; the same for all brokers of a database
_MIGRATION_SECONDS: Final = 60
_OPERATIONAL: Final = ("08", "25", "28", "3D", "40", "42501", "53", "55", "57", "58")
"""SQLSTATE classes whose message speaks of the server, not of a statement's values."""


def connect(config: StoreConfig, root: Path) -> Engine:
    """An engine on the configured database; it has not been spoken to yet.

    Args:
        config: which one.
        root: the broker's directory; a SQLite file stands in it.

    Raises:
        Unavailable: ``store.driver_missing``, ``store.unavailable``.
    """
    return _postgresql(config) if config.shared else _sqlite(config, root)


def migrate(engine: Engine) -> None:
    """Bring the tables up to date.

    Raises:
        Unavailable: ``store.unavailable``.
        Refused: ``store.version_unknown``: a newer sealserve wrote it.
    """
    scripts = Config()
    scripts.set_main_option("script_location", "sealserve.broker:migrations")
    try:
        with engine.connect() as connection:
            connection.execution_options(**{WRITES: True})
            if _is_current(connection, scripts):
                return
            if engine.dialect.name == "postgresql":
                limit = f"{_MIGRATION_SECONDS}s"
                for setting in ("lock_timeout", "statement_timeout"):
                    connection.exec_driver_sql(f"SET LOCAL {setting} = '{limit}'")
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
            scripts.attributes["connection"] = connection
            command.upgrade(scripts, "head")
            connection.commit()
    except CommandError:
        raise Refused(
            "store.version_unknown",
            "the database was written by a newer sealserve",
            hint="run that version, or restore a backup made before the update",
        ) from None
    except SQLAlchemyError as error:
        raise unavailable(error) from None


def reading_options(engine: Engine) -> dict[str, Any]:
    """Execution options under which a session sees one state of the database."""
    if engine.dialect.name == "postgresql":
        return {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    return {}


def clock(session: Session) -> float:
    """Seconds since 1970 by the database's own clock; SQLite's is this machine's."""
    if session.get_bind().dialect.name == "postgresql":
        return float(session.scalar(_CLOCK) or 0)
    return time.time()


def unavailable(error: SQLAlchemyError) -> Unavailable:
    """What to raise for an error of the database."""
    return _unavailable(_reason(error))


def _is_current(connection: Connection, scripts: Config) -> bool:
    # Asked first, because an upgrade takes the write lock even to find nothing to do.
    if not sqlalchemy.inspect(connection).has_table("alembic_version"):
        connection.rollback()
        return False
    present = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    connection.rollback()
    return present == ScriptDirectory.from_config(scripts).get_current_head()


def _sqlite(config: StoreConfig, root: Path) -> Engine:
    path = root / str(config.location.database)
    try:
        path.touch(mode=0o600)
    except OSError as error:
        raise _unavailable(error.strerror or type(error).__name__) from None
    engine = create_engine(
        sqlalchemy.URL.create("sqlite", database=str(path)),
        connect_args={"timeout": config.timeout_seconds},
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
        writes = connection.get_execution_options().get(WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _postgresql(config: StoreConfig) -> Engine:
    try:
        from sealserve.broker import postgresql
    except ModuleNotFoundError as error:
        if error.name not in ("psycopg", "psycopg_binary"):
            raise
        raise Unavailable(
            "store.driver_missing",
            "the driver for PostgreSQL is not installed",
            hint="pip install 'sealserve[broker,postgres]'",
        ) from None
    return postgresql.connect(config)


def _reason(error: SQLAlchemyError) -> str:
    # The driver's own sentence ("disk I/O error"); SQLAlchemy's adds the statement.
    original = getattr(error, "orig", None)
    if original is None:
        return type(error).__name__
    state = getattr(original, "sqlstate", None)
    if state is not None and not state.startswith(_OPERATIONAL):
        return f"SQLSTATE {state}"
    return str(original).strip().partition("\n")[0]


def _unavailable(reason: str) -> Unavailable:
    return Unavailable(
        "store.unavailable",
        f"the broker's database cannot be used: {reason}",
        hint="check that the database runs, its disk's space and health, and who owns it",
    )
