"""``broker.yaml``: what it may say, and that what `init` writes says nothing new."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import sealserve.broker
from sealserve.broker import config_file
from sealserve.broker.config import BrokerConfig
from sealserve.broker.directory import create, open_broker
from sealserve.errors import InputError, Refused, Unavailable
from tests.broker.conftest import BOTH_STORES
from tests.broker.postgres import Postgres


def test_the_written_file_is_the_defaults_commented_or_not() -> None:
    written = config_file.render(BrokerConfig())
    assert config_file.parse(written) == BrokerConfig()
    bare = re.sub(rb"^  # ([a-z_]+: .*)$", rb"  \1", written, flags=re.MULTILINE)
    assert b"\n  url:" in bare
    assert config_file.parse(bare) == BrokerConfig()


def test_a_choice_survives_the_written_file() -> None:
    chosen = config_file.with_store("postgresql://u@/db?host=/run/postgresql", where="here")
    assert config_file.parse(config_file.render(chosen)) == chosen
    assert chosen.store.shared
    assert not BrokerConfig().store.shared


OWN = b"""# Ours. Ask Carol before you change anything.
store:
    url: "sqlite:///broker.db"   # moved in May

kek:            # see the binder
  # the first one; 'kek' is what the binder says
  file: 'kek-1'

  provider: file   # until the HSM is there

admin:
  two_person:
    - destroy
  # listen: "127.0.0.1:7001"
"""


def test_a_change_leaves_every_other_line_as_it_is() -> None:
    settings = ["vault_url=https://v", "vault_key=k", "vault_token_file=/t", "timeout_seconds=7"]
    chosen = config_file.with_kek(config_file.parse(OWN), "vault", settings, where="here")
    revised = config_file.revise(OWN, chosen)
    assert revised is not None
    assert config_file.parse(revised) == chosen
    added = [line for line in revised.splitlines() if line not in OWN.splitlines()]
    assert added == [
        b'  vault_url: "https://v"',
        b'  vault_key: "k"',
        b'  vault_token_file: "/t"',
        b"  timeout_seconds: 7",
        b'  # file: "kek"',
        b'  provider: "vault"   # until the HSM is there',
    ]
    removed = [line for line in OWN.splitlines() if line not in revised.splitlines()]
    assert removed == [b"  file: 'kek-1'", b"  provider: file   # until the HSM is there"]


def test_a_change_takes_the_place_of_a_commented_default() -> None:
    written = config_file.render(BrokerConfig())
    chosen = config_file.with_kek(BrokerConfig(), "file", ["file=kek-2"], where="here")
    assert config_file.revise(written, chosen) == config_file.render(chosen)
    assert config_file.revise(config_file.render(chosen), BrokerConfig()) == written


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (b"", b'\nkek:\n  file: "kek-2"\n'),
        (b"kek:", b'kek:\n  file: "kek-2"\n'),
        (b"kek: {provider: file}", None),
        (b"{}", None),
        (b"kek:\n  file: >\n    kek-1", None),
        (b'"kek":\n  file: a', None),
    ],
)
def test_what_cannot_be_changed_by_lines_is_said_so(written: bytes, expected: bytes | None) -> None:
    chosen = config_file.with_kek(BrokerConfig(), "file", ["file=kek-2"], where="here")
    assert config_file.revise(written, chosen) == expected


def test_without_a_file_or_with_an_empty_one_the_defaults_hold(tmp_path: Path) -> None:
    assert config_file.load(tmp_path) == BrokerConfig()
    (tmp_path / "broker.yaml").write_bytes(b"# nothing\n")
    assert config_file.load(tmp_path) == BrokerConfig()


@pytest.mark.parametrize(
    "document",
    [
        "- a list",
        "stores: {}",
        "store: {uri: x}",
        "store: {url: 7}",
        "store: {url: ''}",
        "store: {url: 'mysql://host/db'}",
        "store: {url: 'postgresql+psycopg://host/db'}",
        "store: {url: 'sqlite:////var/lib/broker.db'}",
        "store: {url: 'sqlite:///../broker.db'}",
        "store: {url: 'sqlite:///:memory:?cache=shared'}",
        "store: {url: 'sqlite://'}",
        "store: {url: 'postgresql:///'}",
        "store: {url: 'postgresql://db.example.com/broker'}",
        "store: {url: 'postgresql://db.example.com/broker?sslmode=require'}",
        "store: {url: 'postgresql:///broker?host=127.0.0.1&host=192.0.2.1'}",
        "store: {url: 'postgresql://localhost/broker?hostaddr=192.0.2.1'}",
        "store: {url: 'postgresql:///broker?service=elsewhere'}",
        "store: {url: 'postgresql:///broker?options=-csynchronous_commit%3Doff'}",
        "store: {url: 'postgresql://h/broker?sslmode=verify-full&sslmode=disable'}",
        "store: {timeout_seconds: 0}",
        "admin: {page_listen: nowhere}",
        "admin: {page_socket: 5}",
        "telemetry: {otlp_endpoint: 'http://collector.example.com:4317'}",
        "telemetry: {otlp_endpoint: 'file:///etc/passwd'}",
        "telemetry: {otlp_endpoint: 'https://user:planted@host'}",
        "telemetry: {trace_percent: 101}",
        "store: {timeout_seconds: 1, timeout_seconds: 2}",
        "store: &a {}\nkek: *a",
        "store: {timeout_seconds: !!python/name:os.system }",
        "\x00",
        "a: " + "[" * 3000,
        "x" * 65537,
    ],
)  # fmt: skip
def test_what_it_may_not_say_is_named(document: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        config_file.parse(document.encode(), where="broker.yaml")
    assert caught.value.code == "broker.config_invalid"
    assert "broker.yaml" in str(caught.value.where)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:planted@db.example.com/broker?sslmode=verify-full",
        "postgresql:///broker?password=planted",
        "postgresql:///broker?sslpassword=planted",
    ],
)
def test_a_password_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(Refused) as caught:
        config_file.parse(f"store: {{url: '{url}'}}".encode())
    assert caught.value.code == "broker.config_has_password"
    assert "PGPASSFILE" in caught.value.message
    assert "planted" not in str(caught.value)


@BOTH_STORES
def test_a_directory_opens_its_database(broker_root: Path, store_kind: str) -> None:
    with open_broker(broker_root) as broker:
        assert broker.store.shared == (store_kind == "postgresql")
        broker.audit.append({"event": "test"})
    with open_broker(broker_root) as broker:
        assert broker.audit.verify().count == 1
    assert (broker_root / "broker.db").exists() == (store_kind == "sqlite")


def test_a_database_holds_one_broker(postgres: Postgres, tmp_path: Path) -> None:
    chosen = config_file.with_store(postgres.new_database(), where="here")
    create(tmp_path / "one", name="one", chosen=chosen)
    with pytest.raises(Refused) as caught:
        create(tmp_path / "two", name="two", chosen=chosen)
    assert caught.value.code == "broker.database_in_use"
    assert not (tmp_path / "two").exists()
    with open_broker(tmp_path / "one") as broker:
        assert broker.tls_private_key()


def test_a_lost_database_is_not_replaced_by_an_empty_one(broker_root: Path) -> None:
    (broker_root / "broker.db").unlink()
    with pytest.raises(Unavailable) as caught:
        open_broker(broker_root)
    assert caught.value.code == "broker.database_missing"
    assert not (broker_root / "broker.db").exists()


def test_a_server_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    chosen = config_file.with_store(f"postgresql:///broker?host={tmp_path}", where="here")
    with pytest.raises(Unavailable) as caught:
        create(tmp_path / "broker", name="one", chosen=chosen)
    assert caught.value.code == "store.unavailable"
    assert "No such file" in caught.value.message


def test_without_the_driver_its_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "sealserve.broker.postgresql", raising=False)
    monkeypatch.delattr(sealserve.broker, "postgresql", raising=False)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    chosen = config_file.with_store("postgresql:///broker?host=/run/postgresql", where="here")
    with pytest.raises(Unavailable) as caught:
        create(tmp_path / "broker", name="one", chosen=chosen)
    assert caught.value.code == "store.driver_missing"
    assert "postgres" in str(caught.value.hint)
    assert not (tmp_path / "broker").exists()
