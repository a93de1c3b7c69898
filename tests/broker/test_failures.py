"""What the broker shows and does when things go wrong: no secret, no release without a line."""

from __future__ import annotations

import sqlite3
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from sealserve.attestation.sealing import generate_key
from sealserve.broker.protocol import CHALLENGE_METHOD
from sealserve.broker.service import _host_of
from sealserve.broker.status import status_of
from sealserve.errors import Refused, SealserveError, Unavailable
from sealserve.simulator.platform import CollateralOptions, SimulatedPlatform
from sealserve.simulator.td import SoftwareTd
from tests.broker.conftest import World, utc_now
from tests.broker.wire import Relay, Wire


def test_a_planted_key_is_found_nowhere(world: World) -> None:
    """Database, WAL, directory, logs, audit lines, errors, and every byte on the wire."""
    relay = Relay(world.server.address.port)
    through = f"127.0.0.1:{relay.port}"
    errors: list[str] = []
    released = world.ask(address=through)
    for td in (SoftwareTd(world.platform, "other"), SoftwareTd(SimulatedPlatform.new(utc_now()))):
        with pytest.raises(SealserveError) as caught:
            world.ask(td, address=through)
        errors.append(f"{caught.value!r} {caught.value} {caught.value.to_dict()}")
    relay.close()
    with Wire(world) as wire:
        answer = wire.release(wire.request(generate_key()))
    places = {
        "wire": bytes(relay.recorded),
        "message": answer.sealed or b"",
        "errors": "".join(errors).encode(),
        "log": world.log.getvalue().encode(),
        "repr": repr(released).encode() + repr(world.broker).encode(),
        **{str(path): path.read_bytes() for path in world.broker.root.iterdir()},
    }
    assert any(name.endswith("-wal") for name in places)
    assert len(places["wire"]) > 10_000
    assert bytes(released.secret) == world.key  # what we look for is what was released
    for name, content in places.items():
        for planted in (b"PLANTED-KEY", world.key[11:27], world.key[-16:].hex().encode()):
            assert planted not in content, name


def test_every_log_line_of_a_simulation_says_so(world: World) -> None:
    world.ask()
    with pytest.raises(Refused):
        world.ask(SoftwareTd(world.platform, "other"))
    with Wire(world) as wire:
        wire.call(CHALLENGE_METHOD, b"\xff")
    lines = world.log.getvalue().splitlines()
    assert len(lines) == 3
    assert all("SIMULATION" in line for line in lines)
    status = status_of(world.broker.root)
    assert "models/demo  version 1" in status.to_text()
    assert status.to_text().count("SIMULATION allowed") == 2
    assert {each["simulation"] for each in status.to_dict()["resources"]} == {"allowed"}


def test_without_an_audit_line_there_is_no_release(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise Unavailable("store.unavailable", "the disk is full")

    monkeypatch.setattr("sealserve.broker.audit.append", fail)
    with pytest.raises(Unavailable) as caught:
        world.ask()
    assert caught.value.code == "release.not_recorded"
    monkeypatch.undo()
    assert world.lines() == []
    assert bytes(world.ask().secret) == world.key


def test_the_audit_line_is_on_disk_before_the_answer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the decision returns, a process of its own would already read the line."""
    seen: list[int] = []
    original = world.decide.release

    def watched(request: Any) -> Any:
        decision = original(request)
        with sqlite3.connect(f"file:{world.broker.root}/broker.db?mode=ro", uri=True) as other:
            row = other.execute("SELECT count FROM audit_head").fetchone()
        other.close()
        seen.append(row[0])
        return decision

    before = world.broker.audit.length()
    monkeypatch.setattr(world.decide, "release", watched)
    world.ask()
    assert seen == [before + 1]


def test_trouble_inside_the_broker_is_not_told_to_the_peer(world: World) -> None:
    with sqlite3.connect(world.broker.root / "broker.db") as connection:
        connection.execute("UPDATE secrets SET wrapped = zeroblob(92)")
    connection.close()
    with pytest.raises(Unavailable) as caught:
        world.ask()
    assert caught.value.code == "release.unavailable"
    (line,) = world.lines()
    assert line["verdict"] == "failed"
    assert line["reasons"][0]["code"] == "kek.unwrap_failed"


def test_a_bug_is_answered_and_recorded_without_its_text(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> bytes:
        raise RuntimeError(f"planted {world.key!r}")

    monkeypatch.setattr("sealserve.broker.release.seal", broken)
    with pytest.raises(Unavailable) as caught:
        world.ask()
    assert caught.value.code == "release.unavailable"
    (line,) = world.lines()
    assert line["reasons"][0]["code"] == "internal.unexpected"
    assert "RuntimeError at test_failures.py" in line["reasons"][0]["message"]
    assert "planted" not in str(line) + world.log.getvalue()


def test_new_collateral_is_taken_up_and_bad_collateral_is_not(world: World, tmp_path: Path) -> None:
    path = tmp_path / "collateral.json"
    world.ask()
    path.write_bytes(b"{}")
    assert bytes(world.ask().secret) == world.key
    assert "collateral not read" in world.log.getvalue()
    path.write_bytes(world.platform.collateral(utc_now() - timedelta(days=40)))
    world.ask()
    assert "collateral.rollback" in world.log.getvalue()
    short = CollateralOptions(lifetime=timedelta(minutes=1))
    path.write_bytes(world.platform.collateral(utc_now() - timedelta(minutes=5), short))
    with pytest.raises(Refused) as caught:
        world.ask()
    assert "collateral.expired" in caught.value.message
    path.write_bytes(world.platform.collateral(utc_now() - timedelta(minutes=1)))
    world.ask()
    path.unlink()
    world.ask()
    codes = [line["code"] for line in world.lines()]
    assert codes == [*["released"] * 3, "release.denied", "released", "released"]


def test_a_release_under_way_is_finished_when_the_server_stops(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, begun = world.decide.release, threading.Event()

    def slow(request: Any) -> Any:
        begun.set()
        time.sleep(0.5)
        return original(request)

    monkeypatch.setattr(world.decide, "release", slow)
    secrets: list[bytes] = []
    thread = threading.Thread(target=lambda: secrets.append(bytes(world.ask().secret)))
    thread.start()
    assert begun.wait(20)
    world.server.stop()
    thread.join()
    assert secrets == [world.key]


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:192.0.2.7:5000", "192.0.2.7"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:5000", "2001:db8:1:2::/64"),
        ("ipv6:[2001:db8:1:2::9]:1", "2001:db8:1:2::/64"),
        ("ipv6:%5Bfe80::1%25eth0%5D:5", "fe80::/64"),
        ("unix:", "unix:"),
        ("ipv6:nonsense", "ipv6:nonsense"),
    ],
)
def test_a_peer_is_its_host(peer: str, host: str) -> None:
    assert _host_of(peer) == host
