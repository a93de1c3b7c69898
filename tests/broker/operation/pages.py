"""The operator's page of a test's broker, and how to ask it."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sealserve.broker.operation.chain_watch import ChainWatch
from sealserve.broker.operation.metrics import BrokerMetrics
from sealserve.broker.operation.page import Pages
from sealserve.broker.operation.watch import Watch
from sealserve.logs import make_log
from tests.broker.conftest import World


def pages_of(world: World) -> Pages:
    """The page of a world's broker, whose decisions are counted from now on."""
    watch = Watch(
        world.broker,
        ChainWatch(world.broker.audit),
        world.judge.collateral.in_force,
        simulated=True,
    )
    metrics = BrokerMetrics(watch.look, lambda: 0)
    world.judge.observer = metrics
    return Pages(watch, metrics, world.broker.identity, make_log(world.log))


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    text: str


class _SocketConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=20)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(20)
        self.sock.connect(str(self._path))


@contextmanager
def connected(
    where: Path | int, tls: ssl.SSLContext | None = None
) -> Iterator[http.client.HTTPConnection]:
    """A connection to a UNIX socket, or by TLS to a port of this machine."""
    connection: http.client.HTTPConnection
    if isinstance(where, int):
        connection = http.client.HTTPSConnection("127.0.0.1", where, timeout=20, context=tls)
    else:
        connection = _SocketConnection(where)
    try:
        yield connection
    finally:
        connection.close()


def ask(connection: http.client.HTTPConnection, path: str = "/", method: str = "GET") -> Answer:
    """One request."""
    connection.request(method, path)
    response = connection.getresponse()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, headers, response.read().decode())


def get(where: Path | int, path: str = "/", *, tls: ssl.SSLContext | None = None) -> Answer:
    """One GET on a connection of its own."""
    with connected(where, tls) as connection:
        return ask(connection, path)
