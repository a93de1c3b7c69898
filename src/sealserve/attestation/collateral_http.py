"""One GET that ends in time, whatever the other side does. Standard library only.

Rules this module keeps:

* A deadline holds for everything: connecting, TLS, headers and body. A peer
  that sends a byte now and then is cut off as one that sends nothing.
* No more is read than was asked for, and half an answer is no answer.
* TLS is checked against the system's authorities or the given one. Plain HTTP
  goes to this machine only. Redirects are not followed.

Looking up a name is the system resolver's work and has the resolver's time-out.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urlsplit

from sealserve.errors import InputError, Refused, Unavailable

__all__ = ["Answer", "Endpoint", "Unreachable", "get"]

_CHUNK: Final = 1 << 16


class Unreachable(Exception):
    """The peer did not give a whole answer; to try again may help."""


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


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address to ask.

    Attributes:
        base: scheme, host, port and path that stand before every path asked.
        ca_file: certificates (PEM) to believe instead of the system's.
    """

    base: str
    ca_file: Path | None = None

    @classmethod
    def parse(cls, url: str, ca_file: Path | None = None) -> Endpoint:
        """Read a URL; a path's closing slash does not matter.

        Raises:
            InputError: ``collateral.url_invalid``.
        """
        try:
            parts = urlsplit(url)
            invalid = parts.port == 0 or not parts.hostname or bool(parts.query or parts.fragment)
        except ValueError:
            invalid = True
        if invalid or not url.isascii() or not url.isprintable() or " " in url or "@" in url:
            raise InputError(
                "collateral.url_invalid",
                f"{url[:200]!r} is not the address of a service",
                hint="write it as https://HOST[:PORT][/PATH]",
            )
        if parts.scheme != "https" and not (parts.scheme == "http" and _is_here(parts)):
            raise InputError(
                "collateral.url_invalid",
                f"{url[:200]!r} is not an https address",
                hint="plain http is for this machine (localhost, 127.0.0.1, ::1) only: who can "
                "change answers on the way can hold back what is new",
            )
        return cls(url.rstrip("/"), ca_file)


def get(endpoint: Endpoint, path: str, *, limit: int, deadline: float) -> Answer:
    """Ask once.

    Args:
        endpoint: whom.
        path: what, from the endpoint's base on, with its query.
        limit: most bytes of a body.
        deadline: until when, on the clock of :func:`time.monotonic`.

    Raises:
        Unreachable: no connection, no whole answer, or the deadline has passed.
        InputError: ``collateral.answer_too_large``.
        Refused: ``collateral.tls_refused``.
        Unavailable: ``collateral.ca_file_unusable``.
    """
    target = urlsplit(endpoint.base + path)
    connection = _Connection(target, _tls(endpoint.ca_file, target), deadline)
    # A time-out of a socket is for one read; the timer is for all of them.
    timer = threading.Timer(max(0.0, deadline - time.monotonic()), connection.cut)
    timer.daemon = True
    timer.start()
    try:
        resource = f"{target.path}?{target.query}" if target.query else target.path
        connection.request("GET", resource, headers={"User-Agent": "sealserve"})
        with connection.getresponse() as response:
            body = _body(response, limit, endpoint.base + path)
            connection.require_time()
            headers = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, headers, body)
    except ssl.SSLCertVerificationError as error:
        raise Refused(
            "collateral.tls_refused",
            f"its TLS certificate is not trusted: {error.verify_message}",
            where=endpoint.base,
            hint="for a PCCS of your own give its CA with --ca-file",
        ) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        if time.monotonic() >= deadline:
            raise Unreachable("no whole answer in time") from None
        raise Unreachable(_reason(error)) from None
    finally:
        timer.cancel()
        connection.close()


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


def _body(response: http.client.HTTPResponse, limit: int, where: str) -> bytes:
    parts: list[bytes] = []
    size = 0
    while chunk := response.read(min(_CHUNK, limit + 1 - size)):
        parts.append(chunk)
        size += len(chunk)
        if size > limit:
            raise InputError(
                "collateral.answer_too_large",
                f"the answer has more than the {limit} bytes that are read",
                where=where,
            )
    if response.length:
        raise Unreachable(f"the answer ends {response.length} bytes early")
    return b"".join(parts)


def _tls(ca_file: Path | None, target: SplitResult) -> ssl.SSLContext | None:
    if target.scheme != "https":
        return None
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise Unavailable(
            "collateral.ca_file_unusable",
            f"no certificates can be read: {error.strerror or type(error).__name__}",
            where=str(ca_file),
            hint="give certificates in PEM",
        ) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _is_here(target: SplitResult) -> bool:
    host = target.hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) else None
    return text or type(error).__name__
