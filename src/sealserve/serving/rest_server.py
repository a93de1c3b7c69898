"""The HTTP server below the REST API: uvicorn, who is at the other end, and limits of time.

Rules this module keeps:

* TLS 1.3 where there is TLS, with the identities of the gRPC port.
* A connection that says nothing, or its headers too slowly, is closed, and so is one that
  takes nothing of its answer; one that is older than ``max_connection_age`` is closed
  after its next answer.
* A connection that was accepted before the end may still send its request.
* A client that closes its connection has gone, and with it what it has asked for. Over
  plain TCP a client that only says that it sends no more (``nc -N``) looks the same, and
  gets its answers: whether it is there is found out by an interim response,
  ``100 Continue``, which a client that listens skips and a closed socket refuses. Over TLS
  there is no half: who closes has gone.
* The server runs in a thread of its own with its own event loop.
"""

from __future__ import annotations

import asyncio
import math
import socket
import ssl
import sys
import threading
import time

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from sealserve.errors import InternalError, Unavailable
from sealserve.serving.config import ServerConfig
from sealserve.serving.tls import TlsSource

__all__ = ["HttpServer"]

_START_SECONDS = 30.0
_SILENCE_SECONDS = 30.0
_LAST_REQUEST_SECONDS = 1.0
_DOUBT_SECONDS = 0.25


class _Protocol(H11Protocol):
    """Tells the application who is at the other end, and whether it is still there."""

    _sends_no_more = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        self.app_state = {
            **self.app_state,
            "certificate": tls.getpeercert(binary_form=True) if tls else None,
            "connected": time.monotonic(),
        }
        self._silence = self.loop.call_later(_SILENCE_SECONDS, self._close_if_silent)

    def connection_lost(self, exc: Exception | None) -> None:
        self._silence.cancel()
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Whether the connection stays open though the client sends no more."""
        stays = self.scheme == "http" and self._owes_answer()
        if stays and not self._sends_no_more:
            self._sends_no_more = True
            self._ask_later(_DOUBT_SECONDS)
        return stays

    def on_response_complete(self) -> None:
        super().on_response_complete()  # goes on to the next request, if that has been sent
        if self._sends_no_more and not self._owes_answer():
            self.transport.close()

    def _owes_answer(self) -> bool:
        """Whether a request that has come completely is not yet answered."""
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        return cycle is not None and not (cycle.response_complete or cycle.more_body)

    def _ask_later(self, seconds: float) -> None:
        self.loop.call_later(seconds, self._ask_whether_it_is_there, 2 * seconds)

    def _ask_whether_it_is_there(self, again: float) -> None:
        if self.transport.is_closing():
            return
        # HTTP/1.0 has no interim responses, and none may come within an answer.
        cycle: RequestResponseCycle = self.cycle
        if cycle.scope["http_version"] != "1.0" and not cycle.response_started:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._ask_later(again)

    def shutdown(self) -> None:
        # asyncio forgets a TLS connection that is closed twice: it could not be aborted.
        if not self.transport.is_closing():
            super().shutdown()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._silence.cancel()
        self._end_if_it_takes_nothing(sys.maxsize)

    def resume_writing(self) -> None:
        self._silence.cancel()
        super().resume_writing()

    def _end_if_it_takes_nothing(self, before: int) -> None:
        left = self.transport.get_write_buffer_size()
        if left >= before:
            self.transport.abort()
            return
        self._silence = self.loop.call_later(_SILENCE_SECONDS, self._end_if_it_takes_nothing, left)

    def _close_if_silent(self) -> None:
        begun: object = self.cycle  # None until the first request's headers are complete
        if begun is None and not self.transport.is_closing():
            self.transport.close()


class _Server(uvicorn.Server):
    """Ends by no longer listening; only then are silent connections closed."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        grace = self.config.timeout_graceful_shutdown or 0
        deadline = time.monotonic() + min(_LAST_REQUEST_SECONDS, grace)
        while self.server_state.connections and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.02)  # uvicorn has no event for it
        await super().shutdown(sockets)
        # Whoever has had its answer and does not close is waited for no longer.
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)  # for the loop to close them


class HttpServer:
    """One listening socket and what answers on it.

    Attributes:
        port: the TCP port it listens on.
    """

    def __init__(
        self, application: ASGIApp, config: ServerConfig, tls: TlsSource | None, *, keys: bool
    ) -> None:
        """Bind the port; nothing is served before `start`.

        Args:
            application: what answers.
            config: where, and with which limits.
            tls: under which identity.
            keys: clients may show an API key instead of a certificate.

        Raises:
            Unavailable: ``serve.port_unavailable``.
        """
        self._socket = _bind(config.bind_address, config.rest_port or 0)
        self.port: int = self._socket.getsockname()[1]
        self._server = _Server(
            uvicorn.Config(
                application,
                http=_Protocol,
                log_config=None,
                log_level="critical",
                access_log=False,
                lifespan="off",
                ws="none",
                server_header=False,
                h11_max_incomplete_event_size=64 * 1024,
                ssl_context_factory=(lambda *_: tls.ssl_context(optional=keys)) if tls else None,
            )
        )
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="rest", daemon=True
        )

    def start(self) -> None:
        """Begin to serve; returns when connections are accepted.

        Raises:
            InternalError: ``serve.rest_not_started``.
        """
        self._thread.start()
        deadline = time.monotonic() + _START_SECONDS
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise InternalError("serve.rest_not_started", "the REST server did not start")
            time.sleep(0.01)

    def stop(self, grace: float) -> None:
        """Take no more connections, let the requests under way finish for ``grace`` seconds."""
        self._server.config.timeout_graceful_shutdown = math.ceil(grace)
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join()
        self._socket.close()


def _bind(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    # Only of a socket that says it is TCP does asyncio turn off the waiting for more to send.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
    except OSError as error:
        listener.close()
        raise Unavailable(
            "serve.port_unavailable",
            f"cannot listen for REST: {error.strerror}",
            where=f"{address}:{port}",
            hint="another program has the port, or the address is not of this machine",
        ) from None
    return listener
