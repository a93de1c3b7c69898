"""Where the operator's page listens: a UNIX socket, an HTTPS address, or both.

Rules this module keeps:

* Never the guest port, and nothing in plaintext but through a socket whose file
  only its owner may open.
* Everything is bounded: connections, header size, idle time. The servers run in
  a thread of their own each, and their end is waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import stat
import threading
import time
from pathlib import Path
from typing import Any, Final, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from sealserve.address import Address
from sealserve.broker.operation.access import PEER_CERTIFICATE
from sealserve.errors import InternalError, Refused, Unavailable

__all__ = ["PageServer", "bind_address", "bind_socket"]

_START_SECONDS: Final = 30.0
_MAX_CONNECTIONS: Final = 64
_MAX_PATH_BYTES: Final = 107  # sun_path of unix(7), with its final zero


class PageServer:
    """One listener that serves one application.

    Args:
        app: what to serve.
        listener: bound, from `bind_socket` or `bind_address`; closed by `stop`.
        tls: for an address.
    """

    def __init__(
        self, app: ASGIApp, listener: socket.socket, *, tls: ssl.SSLContext | None = None
    ) -> None:
        self._socket = listener
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=_WithPeer,
                loop="asyncio",
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="critical",
                access_log=False,
                server_header=False,
                backlog=_MAX_CONNECTIONS,
                timeout_keep_alive=15,
                timeout_graceful_shutdown=2,
                ssl_context_factory=(lambda *_: tls) if tls is not None else None,
            )
        )
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listener]}, name="page", daemon=True
        )

    @property
    def port(self) -> int:
        """The TCP port, for a listener that took any."""
        return int(self._socket.getsockname()[1])

    def start(self) -> None:
        """Serve from now on.

        Raises:
            InternalError: ``page.not_started``.
        """
        self._thread.start()
        deadline = time.monotonic() + _START_SECONDS
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise InternalError("page.not_started", "the operator's page did not start")
            time.sleep(0.01)

    def stop(self) -> None:
        """Let requests under way finish, and close; a socket's file goes too."""
        name = self._socket.getsockname() if self._socket.family == socket.AF_UNIX else ""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join()
        self._socket.close()
        if name:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)  # noqa: PTH108 (as the kernel names it)


class _Listener(socket.socket):
    """Accepts so many connections at a time and drops the others.

    Also those that never finish a handshake: they must not take the descriptors
    that guests' connections and the database need.
    """

    def __init__(self, family: int, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> None:
        super().__init__(family, kind, protocol)
        self._accepted: list[socket.socket] = []

    def accept(self) -> tuple[socket.socket, Any]:
        """A connection; what asyncio takes for one that went away by itself if there are enough."""
        connection, peer = super().accept()
        self._accepted = [each for each in self._accepted if each.fileno() >= 0]
        if len(self._accepted) >= _MAX_CONNECTIONS:
            connection.close()
            raise ConnectionAbortedError(errno.ECONNABORTED, "too many connections")
        self._accepted.append(connection)
        return connection, peer


class _WithPeer(H11Protocol):
    """Puts the client's certificate into the state of each of its requests."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        connection = transport.get_extra_info("ssl_object")
        if connection is not None:
            der = cast("ssl.SSLObject", connection).getpeercert(binary_form=True)
            added: dict[str, Any] = {PEER_CERTIFICATE: der}
            self.app_state = {**self.app_state, **added}


def bind_socket(path: Path) -> socket.socket:
    """A UNIX socket that only its owner may open.

    A socket file that nobody listens on is replaced.

    Raises:
        Unavailable: ``page.listen_failed``.
        Refused: ``page.socket_in_use``: another process listens there, or it is no socket.
    """
    name = os.fsencode(path)
    if len(name) > _MAX_PATH_BYTES:
        raise _failed(f"the path is longer than {_MAX_PATH_BYTES} bytes", str(path))
    _remove_stale(path)
    listener = _Listener(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        listener.bind(name)
    except OSError as error:
        listener.close()
        raise _failed(error.strerror or type(error).__name__, str(path)) from None
    finally:
        os.umask(before)
    return listener


def bind_address(address: Address) -> socket.socket:
    """A TCP socket for HTTPS; port 0 takes any free one.

    Raises:
        Unavailable: ``page.listen_failed``.
    """
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = _Listener(family, kind, protocol)
    except OSError as error:
        raise _failed(error.strerror or type(error).__name__, str(address)) from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
    except OSError as error:
        listener.close()
        raise _failed(error.strerror or type(error).__name__, str(address)) from None
    return listener


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISSOCK(mode):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            if probe.connect_ex(os.fsencode(path)) == errno.ECONNREFUSED:
                path.unlink()
                return
    raise Refused(
        "page.socket_in_use",
        "something is at this place already",
        where=str(path),
        hint="another broker process may serve this directory",
    )


def _failed(reason: str, where: str) -> Unavailable:
    return Unavailable(
        "page.listen_failed",
        f"the operator's page cannot listen there: {reason}",
        where=where,
        hint="see `admin` in broker.yaml",
    )
