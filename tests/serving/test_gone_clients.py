"""REST clients that go: what they asked for is not computed. And those that only look so."""

from __future__ import annotations

import io
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sealserve.logs import make_log
from sealserve.serving import rest_server
from sealserve.serving.config import ModelConfig, ServerConfig, TlsConfig
from sealserve.serving.tls import TlsSource
from tests.serving.conftest import make_pair
from tests.serving.fakes import FakeModel, FakeServer, make_versions

INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"


def asking(x: float, version: str = "1.1") -> bytes:
    body = json.dumps({"instances": [x]}).encode()
    head = f"POST /v1/models/m:predict HTTP/{version}\r\nHost: x\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n".encode() + body


class World:
    """A server whose one REST thread is held by a request, and what others do meanwhile."""

    def __init__(self, root: Path, *, tls: bool) -> None:
        self.pair = make_pair("server.example")
        (root / "identity").write_bytes(self.pair.key + self.pair.certificate)
        config = TlsConfig(identity_files=(root / "identity",))
        self.server = FakeServer(
            ModelConfig("m", make_versions(root / "m", 1)),
            config=ServerConfig(
                (ModelConfig("m", root / "m"),),
                bind_address="127.0.0.1",
                grpc_port=0,
                rest_port=0,
                rest_threads=1,
            ),
            tls=TlsSource(config, make_log(io.StringIO())) if tls else None,
        )
        self.tls = tls
        self.model: FakeModel = self.server.runtime.models["m/1"]

    def connect(self) -> socket.socket:
        assert self.server.rest is not None
        plain = socket.create_connection(("127.0.0.1", self.server.rest.port), timeout=30)
        if not self.tls:
            return plain
        context = ssl.create_default_context(cadata=self.pair.certificate.decode())
        return context.wrap_socket(plain, server_hostname=self.pair.name)

    def hold(self) -> socket.socket:
        """Occupy the model and the thread; `let_go` ends it."""
        self.model.may_end.clear()
        holding = self.connect()
        holding.sendall(asking(0))
        assert self.model.begun.wait(30)
        return holding

    def let_go(self) -> None:
        self.model.may_end.set()

    def ask(self, request: bytes) -> socket.socket:
        """Send a request that waits behind the one that holds; returns when it waits."""
        waiting = self.waiting()
        connection = self.connect()
        connection.sendall(request)
        until(lambda: self.waiting() > waiting)
        return connection

    def waiting(self) -> int:
        assert self.server.rest is not None
        return self.server.rest._pool._work_queue.qsize()

    def cancelled(self) -> int:
        lines = map(json.loads, self.server.log.getvalue().splitlines())
        found = [line for line in lines if line.get("status") == "CANCELLED"]
        assert all(line["code"] == "request.cancelled" for line in found)
        counted = [
            line for line in self.server.metrics.text().splitlines() if 'status="CANCELLED"' in line
        ]
        # Which model was meant is not known before the request has had its turn.
        assert len(found) == sum(int(line.rpartition(" ")[2]) for line in counted)
        return len(found)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def answer_of(connection: socket.socket) -> bytes:
    answer = b""
    while not answer.endswith(b"}"):
        piece = connection.recv(2**16)
        assert piece, answer
        answer += piece
    connection.close()
    return answer


def rest_of(connection: socket.socket) -> bytes:
    """All that comes until the server closes."""
    answer = b""
    while piece := connection.recv(2**16):
        answer += piece
    return answer


@pytest.fixture
def world(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    """Over TLS, unless the test says otherwise."""
    monkeypatch.setattr(rest_server, "_DOUBT_SECONDS", 0.05)
    world = World(tmp_path, tls=getattr(request, "param", True))
    yield world
    world.let_go()
    assert world.server.rest is not None
    world.server.health.drain()
    world.server.rest.stop(5)
    world.server.grpc.stop(0)
    world.server.catalog.close()


EITHER = pytest.mark.parametrize("world", [True, False], indirect=True, ids=["tls", "plain"])
PLAIN = pytest.mark.parametrize("world", [False], indirect=True, ids=["plain"])


@EITHER
@pytest.mark.parametrize("how", ["close", "reset", "many requests"])
def test_what_a_client_has_asked_for_goes_with_it(world: World, how: str) -> None:
    """It was found out only when its answer was written, and computed before."""
    holding = world.hold()
    others = [world.ask(asking(1) * (3 if how == "many requests" else 1)) for _ in range(3)]
    stays = world.ask(asking(2))
    for each in others:
        if how == "reset":
            each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        each.close()
    until(lambda: world.cancelled() == 3)
    world.let_go()
    for connection, answer in ((holding, b"[1.0]"), (stays, b"[3.0]")):
        assert answer in answer_of(connection)
    assert world.model.runs == 2


def test_watching_for_clients_that_go_takes_no_threads(world: World) -> None:
    world.hold().close()  # of one whose work has begun nobody waits for the answer either
    until(lambda: world.cancelled() == 1)
    threads = threading.active_count()
    others = [world.ask(asking(1)) for _ in range(40)]
    assert threading.active_count() == threads
    for each in others:
        each.close()
    until(lambda: world.cancelled() == 41)
    assert world.model.runs == 1


def test_a_client_that_goes_while_it_sends_is_noted_likewise(world: World) -> None:
    with world.connect() as connection:
        connection.sendall(asking(1)[:-3])
    until(lambda: world.cancelled() == 1)
    assert world.model.runs == 0


@PLAIN
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_client_that_only_sends_no_more_gets_its_answer(world: World, version: str) -> None:
    """Its connection was closed on it."""
    with world.connect() as connection:
        connection.sendall(asking(1, version))
        connection.shutdown(socket.SHUT_WR)
        answer = rest_of(connection)  # and the server closes when it has answered
        assert answer.endswith(b'{"predictions":[2.0]}')
    holding = world.hold()
    with world.ask(asking(1, version)) as connection:
        connection.shutdown(socket.SHUT_WR)
        if version == "1.1":  # it is asked whether it is there, and asked again
            assert connection.recv(len(INTERIM)) == INTERIM
            assert connection.recv(len(INTERIM)) == INTERIM
        else:
            time.sleep(2 * rest_server._DOUBT_SECONDS)
        world.let_go()
        answer = rest_of(connection).removeprefix(INTERIM)
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.endswith(b'{"predictions":[2.0]}')
    assert world.cancelled() == 0
    holding.close()


@PLAIN
def test_requests_sent_in_one_go_are_all_answered(world: World) -> None:
    holding = world.hold()
    with world.ask(b"".join(map(asking, range(5)))) as connection:
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(len(INTERIM)) == INTERIM
        world.let_go()
        answer = rest_of(connection).replace(INTERIM, b"")
    bodies = [part.partition(b"\r\n\r\n")[2] for part in answer.split(b"HTTP/1.1 200 ")[1:]]
    assert bodies == [b'{"predictions":[%.1f]}' % (x + 1) for x in range(5)]
    assert world.cancelled() == 0
    holding.close()


@PLAIN
@pytest.mark.parametrize("end", [-3, 40])
def test_half_a_request_behind_a_whole_one_is_given_up(world: World, end: int) -> None:
    holding = world.hold()
    with world.ask(asking(1) + asking(2)[:end]) as connection:
        connection.shutdown(socket.SHUT_WR)
        world.let_go()
        answer = rest_of(connection)
    assert answer.replace(INTERIM, b"").count(b"HTTP/1.1") == 1
    assert answer.endswith(b'{"predictions":[2.0]}')
    until(lambda: world.cancelled() == (end < 0))  # of less than a head nothing is known
    holding.close()


@PLAIN
def test_a_client_that_sends_no_more_and_then_goes_has_gone(world: World) -> None:
    holding = world.hold()
    connection = world.ask(asking(1))
    connection.shutdown(socket.SHUT_WR)
    assert connection.recv(len(INTERIM)) == INTERIM
    connection.close()
    until(lambda: world.cancelled() == 1)
    world.let_go()
    assert b"[1.0]" in answer_of(holding)
    assert world.model.runs == 1


def test_many_that_come_and_go_leave_nothing(world: World) -> None:
    """Each goes in a moment of its own choosing; all that stay are answered."""
    holding = world.hold()

    def come_and_go(number: int) -> bool:
        with world.connect() as connection:
            connection.sendall(asking(1))
            if number % 3:
                time.sleep(number % 7 / 1000)
                return True
            return b"[2.0]" in answer_of(connection)

    with ThreadPoolExecutor(16) as pool:
        answers = pool.map(come_and_go, range(60))
        time.sleep(0.2)
        world.let_go()
        assert all(answers)
    assert b"[1.0]" in answer_of(holding)
    assert world.server.rest is not None
    server = world.server.rest._server._server
    until(lambda: not server.server_state.connections and not server.server_state.tasks)
