"""The guest's side: whom it believes, how long it waits, what answers it takes."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sealserve.broker import client
from sealserve.broker.directory import create
from sealserve.broker.protocol import RELEASE_METHOD
from sealserve.errors import InputError, Refused, Unavailable
from tests.broker.conftest import World
from tests.broker.wire import Relay


def test_the_client_refuses_a_broker_with_another_key(world: World, tmp_path: Path) -> None:
    other = create(tmp_path / "other", name="other")
    with pytest.raises(Refused) as caught:
        world.ask(identity=other)
    assert caught.value.code == "release.broker_unproven"
    assert world.lines() == []


def test_the_client_says_when_nobody_answers(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(Unavailable) as caught:
        world.ask(address=address)
    assert caught.value.code == "release.broker_unreachable"
    assert caught.value.hint


def test_the_client_waits_for_a_broker_that_is_just_starting(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    relays: list[Relay] = []

    def relay_later() -> None:
        time.sleep(0.4)
        relays.append(Relay(world.server.address.port, port))

    thread = threading.Thread(target=relay_later)
    thread.start()
    try:
        assert bytes(world.ask(address=f"127.0.0.1:{port}").secret) == world.key
    finally:
        thread.join()
        relays[0].close()


def test_the_client_gives_up_in_time(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(Unavailable) as caught:
        world.ask(address=f"127.0.0.1:{silent.getsockname()[1]}", timeout=0.5)
    assert caught.value.code in ("release.timeout", "release.broker_unreachable")


def test_a_quote_that_takes_too_long_is_a_timeout_and_is_not_sent(world: World) -> None:
    def slow(report_data: bytes) -> bytes:
        time.sleep(1.1)
        return world.td.quote(report_data)

    with pytest.raises(Unavailable) as caught:
        world.ask(quote_of=slow, timeout=1)
    assert caught.value.code == "release.timeout"
    assert world.lines() == []


_CHANGES: list[Callable[[bytes], bytes]] = [
    lambda _: b"\xff\xff",
    lambda _: b"",
    lambda raw: raw[:-1],
    lambda raw: raw + b"\x0a\x01x",
]


@pytest.mark.parametrize("change", _CHANGES)
def test_the_client_takes_no_changed_answer(
    world: World, change: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = client._Caller._call

    def tampered(self: Any, method: str, request: Any) -> bytes:
        raw = original(self, method, request)
        return change(raw) if method == RELEASE_METHOD else raw

    monkeypatch.setattr(client._Caller, "_call", tampered)
    with pytest.raises((InputError, Refused)) as caught:
        world.ask()
    assert caught.value.code in ("release.answer_malformed", "sealing.not_opened")
