"""One HTTP exchange that ends in time, whatever the other side does. Standard library only.

Rules this module keeps:

* A deadline holds for everything: connecting, TLS, headers and body. A peer
  that sends a byte now and then is cut off as one that sends nothing.
* No more is read than was asked for, and half an answer is no answer.
* Redirects are not followed. TLS is 1.2 or newer and checks the server's name.

Looking up a name is the system resolver's work and has the resolver's time-out.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urlsplit

__all__ = ["Answer", "TooLarge", "Unreachable", "exchange", "is_this_machine", "trust"]

_CHUNK: Final = 1 << 16


class Unreachable(Exception):
    """The peer did not give a whole answer; to try again may help."""


class TooLarge(Exception):
    """The answer's body has more bytes than are read."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer, read whole.

    Attributes:
        status: the HTTP status.
        headers: by name in lower case; of a repeated one the last.
        body: at most as many bytes as were asked for.
    """

    status: int
    headers: dict[str, str]
    body: bytes


def exchange(
    method: str,
    url: str,
    *,
    tls: ssl.SSLContext | None,
    limit: int,
    deadline: float,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
) -> Answer:
    """Ask once.

    Args:
        method: such as ``"GET"``.
        url: http or https, with path and query.
        tls: whom to believe; None for plain HTTP.
        limit: most bytes of a body.
        deadline: until when, on the clock of :func:`time.monotonic`.
        headers: to send.
        body: to send.

    Raises:
        Unreachable: no connection, no whole answer, or the deadline has passed.
        TooLarge: the body has more bytes than ``limit``.
        ssl.SSLCertVerificationError: the server is not one that ``tls`` believes.
    """
    target = urlsplit(url)
    connection = _Connection(target, tls, deadline)
    # A time-out of a socket is for one read; the timer is for all of them.
    timer = threading.Timer(max(0.0, deadline - time.monotonic()), connection.cut)
    timer.daemon = True
    timer.start()
    try:
        resource = f"{target.path}?{target.query}" if target.query else target.path
        connection.request(method, resource, body, {"User-Agent": "sealserve", **(headers or {})})
        with connection.getresponse() as response:
            content = _body(response, limit)
            connection.require_time()
            received = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, received, content)
    except ssl.SSLCertVerificationError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        if time.monotonic() >= deadline:
            raise Unreachable("no whole answer in time") from None
        raise Unreachable(_reason(error)) from None
    finally:
        timer.cancel()
        connection.close()


def trust(ca_file: Path | None) -> ssl.SSLContext:
    """Whom to believe: the system's authorities, or those of a file instead.

    Raises:
        OSError: the file cannot be read or holds no certificates; also ssl.SSLError.
    """
    context = ssl.create_default_context(cafile=ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def is_this_machine(host: str) -> bool:
    """Whether a host is this machine, so that plain HTTP meets nobody on the way."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Connection(http.client.HTTPConnection):
    """HTTP or HTTPS whose socket is at hand from the first moment, to be cut."""

    def __init__(self, target: SplitResult, tls: ssl.SSLContext | None, deadline: float) -> None:
        default = http.client.HTTP_PORT if tls is None else http.client.HTTPS_PORT
        host = target.hostname or ""
        super().__init__(host, target.port or default)
        self._tls = tls
        self._deadline = deadline
        self._expired = threading.Event()
        # A response that ends with the connection takes `sock` away from us.
        self._socket: socket.socket | None = None

    def connect(self) -> None:
        self.sock = self._socket = self._plain()
        if self._tls is not None:
            secured = self._tls.wrap_socket(
                self.sock, server_hostname=self.host, do_handshake_on_connect=False
            )
            self.sock = self._socket = secured
            secured.do_handshake()
        self.require_time()

    def _plain(self) -> socket.socket:
        """The first of the host's addresses that takes the connection in time."""
        failure: OSError = OSError("the name has no address")
        for family, kind, protocol, _, address in socket.getaddrinfo(
            self.host, self.port, type=socket.SOCK_STREAM
        ):
            self.require_time()
            candidate = socket.socket(family, kind, protocol)
            candidate.settimeout(self._deadline - time.monotonic())
            try:
                candidate.connect(address)
            except OSError as error:
                candidate.close()
                failure = error
            else:
                return candidate
        raise failure

    def require_time(self) -> None:
        """Raise when the deadline has passed: what was read may be cut short."""
        if self._expired.is_set() or time.monotonic() >= self._deadline:
            raise TimeoutError("the deadline has passed")

    def cut(self) -> None:
        """Called by the timer's thread: end every read that is under way."""
        self._expired.set()
        connected = self._socket
        if connected is None:
            return
        try:
            # The plain socket's: TLS has no say in being cut off.
            socket.socket.shutdown(connected, socket.SHUT_RDWR)
        except OSError:
            return


def _body(response: http.client.HTTPResponse, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while chunk := response.read(min(_CHUNK, limit + 1 - size)):
        parts.append(chunk)
        size += len(chunk)
        if size > limit:
            raise TooLarge
    if response.length:
        raise Unreachable(f"the answer ends {response.length} bytes early")
    return b"".join(parts)


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) else None
    return text or type(error).__name__
