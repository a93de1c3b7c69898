"""Rate limits as guests meet them, and callers who never finish what they began."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from sealserve.attestation.binding import NONCE_BYTES
from sealserve.attestation.sealing import PUBLIC_KEY_BYTES, generate_key
from sealserve.attestation.verifier import Anchor, Verifier
from sealserve.broker.config import LimitsConfig
from sealserve.broker.limits import LocalLimits
from sealserve.broker.protocol import CHALLENGE_METHOD, PUSHBACK_KEY
from sealserve.errors import Unavailable
from sealserve.wire.broker import v1_pb2
from tests.broker.conftest import BOOT_ID, RESOURCE, Clock, Served, World, serve
from tests.broker.wire import Wire

CONFIG = LimitsConfig(
    peer_calls_per_second=10, peer_burst=4, resource_releases_per_second=1, resource_burst=2
)

Start = Callable[[Clock | None], Served]


@pytest.fixture
def start(world: World, tmp_path: Path) -> Iterator[Start]:
    """Starts a broker with tight limits, by the true clock or one that stands still."""
    started: list[Served] = []

    def begin(clock: Clock | None) -> Served:
        limits = LocalLimits(CONFIG, clock=clock) if clock else LocalLimits(CONFIG)
        verifier = Verifier(Anchor.simulation(world.platform.pki.root_der))
        served = serve(world.broker, verifier, tmp_path / "collateral.json", limits=limits)
        started.append(served)
        return served

    yield begin
    for served in started:
        served.server.stop()


def test_a_peer_beyond_its_limit_is_told_how_long_to_wait(world: World, start: Start) -> None:
    clock = Clock()
    address = str(start(clock).server.address)
    raw = v1_pb2.ChallengeRequest(resource=RESOURCE).SerializeToString()
    with Wire(world, address) as wire:
        call = wire.channel.unary_unary(CHALLENGE_METHOD)
        for _ in range(4):
            call(raw, timeout=20)
        with pytest.raises(grpc.RpcError) as caught:
            call(raw, timeout=20)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert caught.value.details() == "release.peer_limited"
        assert (PUSHBACK_KEY, "100") in [(k, v) for k, v in caught.value.trailing_metadata()]
        # It is not worked on, whatever it asks: no line is written.
        assert wire.release(v1_pb2.ReleaseRequest()).details == "release.peer_limited"
        assert world.lines() == []
        clock.now += 0.125
        call(raw, timeout=20)


def test_the_client_waits_as_long_as_it_is_told(world: World, start: Start) -> None:
    address = str(start(None).server.address)
    with Wire(world, address) as wire:
        for _ in range(4):
            wire.nonce()
    # A tenth of a second brings one token: challenge and release are put off, and taken up again.
    assert bytes(world.ask(address=address).secret) == world.key
    assert [line["code"] for line in world.lines()] == ["released"]
    with Wire(world, address) as wire:
        while wire.call(CHALLENGE_METHOD, b"").status != "RESOURCE_EXHAUSTED":
            pass
    with pytest.raises(Unavailable) as caught:
        world.ask(address=address, timeout=0.05)
    assert caught.value.code in ("release.peer_limited", "release.timeout")


def test_a_resource_beyond_its_limit_is_refused_to_guests_that_may_have_it(
    world: World, start: Start
) -> None:
    clock = Clock()
    address = str(start(clock).server.address)
    for _ in range(2):
        world.ask(address=address)
        clock.now += 0.5  # for the peer's own bucket; half a token for the resource
    clock.now -= 0.5
    with Wire(world, address) as wire:
        clock.now += 0.25
        answer = wire.release(wire.request(generate_key()))
    assert (answer.status, answer.details) == ("RESOURCE_EXHAUSTED", "release.resource_limited")
    assert [line["code"] for line in world.lines()] == [
        "released", "released", "release.resource_limited",
    ]  # fmt: skip
    clock.now += 1
    assert bytes(world.ask(address=address).secret) == world.key


@contextmanager
def begun(wires: list[Wire], each: int) -> Iterator[list[grpc.Future]]:
    """Calls whose one message never comes."""
    over = threading.Event()

    def never() -> Iterator[bytes]:
        over.wait(60)
        yield from ()

    calls = [
        wire.channel.stream_unary(CHALLENGE_METHOD).future(never(), timeout=60)
        for wire in wires
        for _ in range(each)
    ]
    try:
        yield calls
    finally:
        over.set()
        for call in calls:
            call.cancel()


def test_calls_that_never_arrive_do_not_stop_the_others(world: World) -> None:
    """Each held one of eight threads, for as long as its caller liked."""
    with Wire(world) as one, Wire(world) as two, begun([one, two], 16):
        assert bytes(world.ask(timeout=20).secret) == world.key


def test_calls_that_never_arrive_are_ended(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sealserve.broker.door._ARRIVAL_SECONDS", 0.1)
    with Wire(world) as wire, begun([wire], 2) as calls:
        for call in calls:
            with pytest.raises(grpc.RpcError):
                call.result(timeout=20)
        assert bytes(world.ask().secret) == world.key
    assert len(world.lines()) == 1


def test_one_address_has_only_a_part_of_the_calls(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world.server.door, "_per_peer", 3)
    raw = v1_pb2.ChallengeRequest(resource=RESOURCE).SerializeToString()
    with Wire(world) as wire:
        with begun([wire], 3):
            # Not by asking: a question would take a place that one of the three was to have.
            for _ in range(400):
                if world.server.door._open["127.0.0.1"] == 3:
                    break
                time.sleep(0.05)
            answer = wire.call(CHALLENGE_METHOD, raw)
            assert (answer.status, answer.details) == ("RESOURCE_EXHAUSTED", "release.peer_limited")
        for _ in range(400):  # until they have left it
            if wire.call(CHALLENGE_METHOD, raw).status == "OK":
                break
            time.sleep(0.05)
        assert bytes(world.ask().secret) == world.key


def test_many_denied_releases_on_one_connection_are_all_answered(world: World) -> None:
    """gRPC counts a call until it is collected: a denial must be part of no cycle."""
    request = v1_pb2.ReleaseRequest(
        resource=RESOURCE,
        nonce=bytes(NONCE_BYTES),
        boot_id=BOOT_ID,
        hpke_public_key=bytes(PUBLIC_KEY_BYTES),
        quote=b"quote",
    )
    gc.disable()
    try:
        with Wire(world) as wire:
            answers = {wire.release(request).details for _ in range(100)}
    finally:
        gc.enable()
    assert answers == {"release.nonce_unknown"}
