"""The database: durable settings, versions, and what it says when it cannot."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from sealserve.broker.config import StoreConfig
from sealserve.broker.directory import Broker
from sealserve.broker.kek_file import FileKek
from sealserve.broker.store import Resource, Store
from sealserve.broker.tables import Base
from sealserve.errors import Refused, Unavailable


def _put(broker: Broker, name: str, secret: bytes) -> Resource:
    new = broker.store.wrap_next(name, secret, broker.kek)
    with broker.store.writing() as session:
        return broker.store.put_secret(
            session, new,
            record=b"record", owner_public_key=b"owner", policy=b"{}", lease_seconds=60,
        )  # fmt: skip


def test_the_migrations_make_exactly_the_tables_of_the_code(broker: Broker) -> None:
    with broker.store._engine.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, Base.metadata) == []


def test_every_connection_is_durable_and_checks_references(broker: Broker) -> None:
    with broker.store._engine.connect() as connection:
        pragma = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert pragma == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


def test_the_files_are_private(broker: Broker) -> None:
    _put(broker, "models/demo", b"s" * 64)
    for path in broker.root.glob("broker.db*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_second_put_is_the_next_version_and_retires_the_first(broker: Broker) -> None:
    assert _put(broker, "models/demo", b"one").secret_version == 1
    assert _put(broker, "models/demo", b"two").secret_version == 2
    assert _put(broker, "models/more", b"else").secret_version == 1
    states = {(s.id, s.version): s.state for s in broker.store.secrets()}
    assert states == {
        ("models/demo", 1): "retired", ("models/demo", 2): "live", ("models/more", 1): "live",
    }  # fmt: skip
    assert broker.store.secret("models/demo", 2, broker.kek) == b"two"
    with pytest.raises(Refused) as caught:
        broker.store.secret("models/demo", 1, broker.kek)
    assert caught.value.code == "store.secret_not_live"
    assert [resource.name for resource in broker.store.resources()] == [
        "models/demo",
        "models/more",
    ]
    assert broker.store.resource("models/none") is None


def test_wrapped_values_cannot_change_places(broker: Broker) -> None:
    _put(broker, "models/a", b"key of a")
    _put(broker, "models/b", b"key of b")
    with sqlite3.connect(broker.root / "broker.db") as connection:
        connection.execute(
            "UPDATE secrets SET wrapped = (SELECT wrapped FROM secrets WHERE id = 'models/b')"
            " WHERE id = 'models/a'"
        )
    connection.close()
    with pytest.raises(Refused) as caught:
        broker.store.secret("models/a", 1, broker.kek)
    assert caught.value.code == "kek.unwrap_failed"


def test_the_store_reopens_with_what_it_had(broker: Broker) -> None:
    resource = _put(broker, "models/demo", b"secret")
    broker.store.close()
    again = Store.open(StoreConfig(), broker.root)
    assert again.resource("models/demo") == resource
    again.close()


def test_another_brokers_key_opens_nothing(broker: Broker, tmp_path: Path) -> None:
    _put(broker, "models/demo", b"secret")
    other = FileKek.create(tmp_path / "other")
    with pytest.raises(Refused) as caught:
        broker.store.secret("models/demo", 1, other)
    assert caught.value.code == "kek.unwrap_failed"


@pytest.mark.parametrize(
    "content", [b"not a database at all " * 100, b"SQLite format 3\x00" + bytes(84)]
)
def test_a_file_that_is_no_database_is_said_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broker.db"
    path.write_bytes(content)
    with pytest.raises(Unavailable) as caught:
        Store.open(StoreConfig(), path.parent)
    assert caught.value.code == "store.unavailable"


def test_a_database_of_a_newer_version_is_left_alone(broker: Broker) -> None:
    broker.store.close()
    path = broker.root / "broker.db"
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(Refused) as caught:
        Store.open(StoreConfig(), path.parent)
    assert caught.value.code == "store.version_unknown"
    assert path.read_bytes() == before


def test_an_error_of_the_database_shows_no_values(broker: Broker) -> None:
    _put(broker, "models/demo", b"first")
    with sqlite3.connect(broker.root / "broker.db") as connection:
        connection.execute("DROP TABLE resources")
    connection.close()
    with pytest.raises(Unavailable) as caught:
        _put(broker, "models/demo", b"planted secret bytes")
    text = f"{caught.value!r} {caught.value} {caught.value.__cause__!r}"
    assert caught.value.code == "store.unavailable"
    assert "INSERT" not in text
    assert "models/demo" not in text
