"""One of the broker's ports: a gRPC server, its threads and its door."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import grpc

from sealserve.address import Address
from sealserve.broker.door import Door

__all__ = ["Port"]

_DRAIN_SECONDS: Final = 10.0
"""How long calls in flight may take to finish when a port is closed."""


class Port:
    """A gRPC server that is open from `start` to `stop`.

    Args:
        name: of its threads.
        door: what every call passes.
        calls: how many calls there may be at once: its threads.
        options: gRPC's channel arguments.
    """

    address: Address
    """Where it listens, once it does; with the port that it got if it asked for any."""

    def __init__(
        self, name: str, door: Door, *, calls: int, options: Sequence[tuple[str, int]]
    ) -> None:
        self.door = door
        self._pool = ThreadPoolExecutor(calls, thread_name_prefix=name)
        self.server = grpc.server(self._pool, options=options, maximum_concurrent_rpcs=calls)

    def listen(self, where: Address, credentials: grpc.ServerCredentials) -> bool:
        """Take an address; whether it was to be had."""
        try:
            port = self.server.add_secure_port(str(where), credentials)
        except RuntimeError:
            return False
        self.address = Address(where.host, port)
        return bool(port)

    def start(self) -> None:
        """Answer calls from now on."""
        self.door.start()
        self.server.start()

    def stop(self) -> None:
        """Refuse new calls, let those in flight finish, and return when all is still."""
        self.server.stop(_DRAIN_SECONDS).wait()
        self.door.stop()
        self._pool.shutdown()
