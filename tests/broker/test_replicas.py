"""Several brokers on one PostgreSQL: under load, and while it is restarted."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest

from sealserve.attestation.sealing import generate_key
from sealserve.attestation.verifier import Anchor, Verifier
from sealserve.broker.directory import Broker, open_broker
from sealserve.broker.leases import Leases
from sealserve.errors import Refused, SealserveError, Unavailable
from tests.broker.conftest import Served, World, serve, utc_now
from tests.broker.postgres import Postgres
from tests.broker.wire import Answer, Wire
from tests.soak import times

pytestmark = pytest.mark.parametrize("store_kind", ["postgresql"], indirect=True)


@dataclass
class Replica:
    """A second broker, made as an operator makes one: with a copy of the first's files."""

    broker: Broker
    served: Served

    @property
    def address(self) -> str:
        return str(self.served.server.address)


@pytest.fixture
def replica(world: World, tmp_path: Path) -> Iterator[Replica]:
    root = tmp_path / "replica"
    root.mkdir()
    for name in ("kek", "broker.json", "broker.yaml"):
        shutil.copy(world.broker.root / name, root / name)
    settings = root / "broker.yaml"
    settings.write_text(settings.read_text().replace("# timeout_seconds: 5", "timeout_seconds: 2"))
    verifier = Verifier(Anchor.simulation(world.platform.pki.root_der))
    with open_broker(root) as broker:
        served = serve(broker, verifier, tmp_path / "collateral.json")
        yield Replica(broker, served)
        served.server.stop()


def test_a_challenge_of_one_is_answered_by_the_other_once(world: World, replica: Replica) -> None:
    key = generate_key()
    with Wire(world) as one, Wire(world, replica.address) as two:
        request = one.request(key)
        assert two.release(request).sealed is not None
        assert one.release(request) == Answer(None, "PERMISSION_DENIED", "release.nonce_used")
        assert two.release(request) == Answer(None, "PERMISSION_DENIED", "release.nonce_used")


def test_of_parallel_uses_on_two_replicas_exactly_one_wins(world: World, replica: Replica) -> None:
    rounds = times(200, 8)
    with (
        Wire(world) as one,
        Wire(world, replica.address) as two,
        ThreadPoolExecutor(2) as pool,
    ):
        for _ in range(rounds):
            request = one.request(generate_key())
            start = threading.Barrier(2)

            def use(wire: Wire, request: object = request, start: threading.Barrier = start) -> str:
                start.wait()
                answer = wire.release(request)  # type: ignore[arg-type]
                return answer.details or answer.status

            assert sorted(pool.map(use, (one, two))) == ["OK", "release.nonce_used"]
    codes = Counter(line["code"] for line in world.lines())
    assert codes == {"released": rounds, "release.nonce_used": rounds}


def test_two_replicas_under_load_keep_one_unbroken_chain(world: World, replica: Replica) -> None:
    guests, each = 6, times(200, 10)

    def ask(number: int) -> None:
        for _ in range(each):
            address = (world.address, replica.address)[number % 2]
            assert bytes(world.ask(address=address).secret) == world.key

    with ThreadPoolExecutor(guests) as pool:
        list(pool.map(ask, range(guests)))
    assert replica.broker.audit.verify() == world.broker.audit.verify()
    lines = world.lines()
    assert Counter(line["code"] for line in lines) == {"released": guests * each}
    held = Leases(replica.broker.store).list(limit=10_000)
    assert {lease.id for lease in held} == {line["lease"] for line in lines}


@pytest.mark.parametrize("mode", ["immediate", "fast"])
def test_a_restart_under_load_fails_closed_and_is_recovered_from(
    world: World, replica: Replica, postgres: Postgres, mode: str
) -> None:
    """Every request is answered within its deadline; every key that arrived has its line."""
    deadline = 20.0
    stop = threading.Event()
    received = Counter[str]()
    slowest = [0.0]
    lock = threading.Lock()

    def ask(number: int) -> None:
        address = (world.address, replica.address)[number % 2]
        while not stop.is_set():
            began = time.monotonic()
            try:
                code = "OK" if world.ask(address=address, timeout=deadline).secret else "empty"
            except SealserveError as error:
                code = error.code
            with lock:
                received[code] += 1
                slowest[0] = max(slowest[0], time.monotonic() - began)

    def wait_for_more(code: str = "OK") -> None:
        enough = received[code] + 4
        until = time.monotonic() + 30
        while received[code] < enough:
            assert time.monotonic() < until, received
            time.sleep(0.01)

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, number) for number in range(4)]
        try:
            for _ in range(times(20, 2)):
                wait_for_more()
                postgres.stop(mode)
                time.sleep(0.2)
                postgres.start()
            wait_for_more()  # without anything done to the brokers
        finally:
            stop.set()
        for each in asking:
            each.result()
    # A challenge that the crash forgot is unknown; whatever else fails is unavailable.
    assert set(received) <= {
        "OK", "release.unavailable", "release.not_recorded", "release.nonce_unknown",
    }  # fmt: skip
    assert received["OK"] >= 8
    assert slowest[0] < deadline
    written = Counter(line["code"] for line in world.lines())  # the chain is whole
    # What was written and not received: at most what was in flight at each stop.
    assert 0 <= written["released"] - received["OK"] <= 4 * times(20, 2)
    assert replica.broker.audit.verify() == world.broker.audit.verify()


def test_without_its_database_a_broker_fails_closed_and_at_once(
    world: World, postgres: Postgres
) -> None:
    postgres.stop()
    try:
        began = time.monotonic()
        with pytest.raises(Unavailable) as caught:
            world.ask()
        assert caught.value.code == "release.unavailable"
        assert time.monotonic() - began < 15
        with Wire(world) as wire:
            request = wire.request(generate_key(), nonce=bytes(32))
            assert wire.release(request).details == "release.unavailable"
    finally:
        postgres.start()
    assert bytes(world.ask().secret) == world.key


def test_a_lock_that_is_held_does_not_hold_a_guest_past_the_timeout(
    world: World, replica: Replica
) -> None:
    """Somebody's psql holds the chain's head: the answer is no, in time, and nothing is lost."""
    with world.broker.store.writing() as session:
        session.connection().exec_driver_sql("SELECT * FROM audit_head FOR UPDATE")
        began = time.monotonic()
        with pytest.raises(Unavailable) as caught:
            world.ask(address=replica.address)
        assert caught.value.code == "release.not_recorded"
        assert time.monotonic() - began < 10
    assert world.lines() == []
    assert bytes(world.ask().secret) == world.key


def test_a_server_that_stands_still_is_given_up(
    world: World, replica: Replica, postgres: Postgres
) -> None:
    """No error, no closed connection, no answer: the broker says no in time all the same."""
    assert bytes(world.ask(address=replica.address).secret) == world.key
    postgres.freeze()
    try:
        began = time.monotonic()
        with pytest.raises(Unavailable) as caught:
            world.ask(address=replica.address)
        assert caught.value.code == "release.unavailable"
        assert time.monotonic() - began < 15
    finally:
        postgres.thaw()
    assert bytes(world.ask(address=replica.address).secret) == world.key


def test_the_database_holds_no_secret(world: World, postgres: Postgres) -> None:
    world.ask()
    with world.broker.store.reading() as session:
        connection = session.connection()
        tables = connection.exec_driver_sql(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        ).scalars()
        rows = [
            json.dumps([repr(value) for value in row])
            for table in tables
            for row in connection.exec_driver_sql(f"SELECT * FROM {table}")  # noqa: S608
        ]
    assert len(rows) > 5
    assert not any("PLANTED" in row or world.key.hex() in row for row in rows)


def test_a_lease_given_by_one_replica_is_known_to_the_other(world: World, replica: Replica) -> None:
    released = world.ask()
    found = Leases(replica.broker.store).get(released.lease_id)
    assert found is not None
    assert replace(found, state="active") == found
    assert found.expires - found.issued == timedelta(seconds=600)
    assert abs(found.issued - utc_now()) < timedelta(seconds=60)


def test_a_line_changed_in_the_database_is_found(world: World) -> None:
    for _ in range(3):
        world.ask()
    with world.broker.store.writing() as session:
        session.connection().exec_driver_sql(
            "UPDATE audit_lines SET line = replace(line, 'released', 'denied') WHERE sequence = 4"
        )
    with pytest.raises(Refused) as caught:
        world.broker.audit.verify()
    assert (caught.value.code, caught.value.where) == ("audit.line_changed", "line 4")


def test_an_error_of_the_server_shows_no_values(world: World) -> None:
    """Its own sentences name the row: "Key (name)=(...) already exists"."""
    planted = {"planted-name": b"planted bytes"}
    world.broker.store.put_broker_keys(planted, world.broker.kek)
    with pytest.raises(Unavailable) as caught:
        world.broker.store.put_broker_keys(planted, world.broker.kek)
    text = f"{caught.value!r} {caught.value} {caught.value.__cause__!r}"
    assert "SQLSTATE 23505" in text
    assert "planted" not in text
    assert "INSERT" not in text
