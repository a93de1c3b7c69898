"""Quotes by ``/dev/tdx_guest`` and the quote generation service (QGS) of the host.

Rules this module keeps:

* The service is the host's, so it is an attacker: lengths are capped before
  memory is given, every frame has one right form, and a request has a deadline
  that no slow peer can stretch.
* What it answers is no more than bytes until a verifier has spoken; here it
  must be a TDX quote for our report data.

Sources: Linux ``include/uapi/linux/tdx-guest.h``; Intel DCAP, message format
of the quote generation service.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

from sealserve.errors import InputError, SealserveError, Unavailable
from sealserve.files import read_limited
from sealserve.tdx.evidence import (
    PassingTrouble,
    TdxEvidence,
    ask_again,
    check_answer,
    check_report_data,
)
from sealserve.tdx.quote import MAX_QUOTE_BYTES
from sealserve.tdx.tdreport import TDREPORT_BYTES, report_data_of

__all__ = [
    "CONFIG",
    "DEVICE",
    "MAX_FRAME_BYTES",
    "QgsProvider",
    "decode_response",
    "encode_request",
    "exchange",
    "read_port",
    "read_tdreport",
    "vsock_connector",
]

DEVICE = Path("/dev/tdx_guest")
CONFIG = Path("/etc/tdx-attest.conf")

_TDX_CMD_GET_REPORT0 = 0xC4405401  # _IOWR('T', 1, 64 + 1024)
_PASSING = frozenset({errno.EBUSY, errno.EINTR, errno.EIO})

_DEFAULT_PORT = 4050
_HOST_CID = 2
_DEADLINE = 10.0  # seconds for one exchange, connecting included
_MAX_CONFIG_BYTES = 4096
_PORT_LINE = re.compile(r"\s*port\s*=\s*([0-9]{1,10})\s*(?:#.*)?")
_VMADDR_PORT_ANY = 0xFFFFFFFF

_LENGTH = struct.Struct(">I")  # the one big-endian number: size of the message
_HEADER = struct.Struct("<HHIII")  # major, minor, type, size of the message, error
_PAIR = struct.Struct("<II")  # two sizes
_MAJOR, _MINOR = 1, 0
_REQUEST, _RESPONSE = 0, 1
_MAX_ID_BYTES = 1024
MAX_FRAME_BYTES = _HEADER.size + _PAIR.size + _MAX_ID_BYTES + MAX_QUOTE_BYTES
"""Largest answer taken from the service."""

Connector = Callable[[float], socket.socket]
"""Connects within so many seconds; raises OSError."""


class QgsProvider:
    """The TDX driver's report, made a quote by the host's quoting service.

    Args:
        report: report data -> TDREPORT; the driver's device by default.
        connect: how to reach the service; by default the vsock port that
            ``/etc/tdx-attest.conf`` names.
        deadline: seconds for one exchange.
        sleep: how to wait between attempts, in seconds.
    """

    name = "qgs"
    simulated = False
    """Only a TD has the device."""

    def __init__(
        self,
        *,
        report: Callable[[bytes], bytes] | None = None,
        connect: Connector | None = None,
        deadline: float = _DEADLINE,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._report = report or read_tdreport
        self._connect = connect
        self._deadline = deadline
        self._sleep = sleep

    def collect(self, report_data: bytes) -> TdxEvidence:
        """Make a quote for 64 bytes; ends within about a minute, whatever the host does.

        Raises:
            InputError: ``tdx.report_data_length``, ``tdx.report_malformed``,
                ``tdx.qgs_config`` or ``tdx.qgs_malformed``.
            Unavailable: ``tdx.no_device``, ``tdx.permission``, ``tdx.device``,
                ``tdx.no_vsock``, ``tdx.qgs_refused`` or ``tdx.quote_failed``.
            Refused: ``quote.*`` for an answer that is no TDX quote.
        """
        check_report_data(report_data)
        connect = self._connect or vsock_connector(read_port())
        return ask_again(lambda: self._ask(report_data, connect), sleep=self._sleep, where="QGS")

    def _ask(self, report_data: bytes, connect: Connector) -> TdxEvidence:
        tdreport = self._report(report_data)
        if report_data_of(tdreport) != report_data:
            raise PassingTrouble("a TDREPORT for other report data")
        quote = decode_response(exchange(encode_request(tdreport), connect, self._deadline))
        check_answer(quote, report_data, where="QGS")
        return TdxEvidence(quote)


def read_tdreport(
    report_data: bytes,
    device: Path = DEVICE,
    ioctl: Callable[[int, int, bytearray], int] = fcntl.ioctl,
) -> bytes:
    """Ask the TDX driver for a TDREPORT (1024 bytes) with this report data.

    Raises:
        Unavailable: ``tdx.no_device``, ``tdx.permission`` or ``tdx.device``.
        PassingTrouble: the driver is busy.
    """
    request = bytearray(report_data + bytes(TDREPORT_BYTES))
    try:
        file = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        try:
            ioctl(file, _TDX_CMD_GET_REPORT0, request)
        finally:
            os.close(file)
    except OSError as error:
        raise _device_failure(error, device) from None
    return bytes(request[len(report_data) :])


def read_port(config: Path = CONFIG) -> int:
    """The vsock port of the service; 4050, its default, where no file names one.

    Raises:
        InputError: ``tdx.qgs_config``, ``file.too_large``.
        Unavailable: ``file.unreadable``.
    """
    if not config.exists():
        return _DEFAULT_PORT
    ports = []
    for line in read_limited(config, _MAX_CONFIG_BYTES).decode("ascii", "replace").splitlines():
        if not line.split("#")[0].strip():
            continue
        found = _PORT_LINE.fullmatch(line)
        if found is None:
            raise _bad_config(config, f"not understood: {line[:80]!r}")
        ports.append(int(found[1]))
    if len(ports) > 1:
        raise _bad_config(config, "more than one port")
    if ports and not 0 < ports[0] < _VMADDR_PORT_ANY:
        raise _bad_config(config, f"{ports[0]} is not a vsock port")
    return ports[0] if ports else _DEFAULT_PORT


def vsock_connector(port: int) -> Connector:
    """Connects to a vsock port of the host.

    Raises:
        Unavailable: ``tdx.no_vsock`` when it is used on a machine without vsock.
    """

    def connect(timeout: float) -> socket.socket:
        try:
            connection = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        except OSError as error:
            raise Unavailable(
                "tdx.no_vsock",
                f"this machine has no vsock: {error.strerror}",
                hint="load the driver: modprobe vmw_vsock_virtio_transport",
            ) from None
        try:
            connection.settimeout(timeout)
            connection.connect((_HOST_CID, port))
        except BaseException:
            connection.close()
            raise
        return connection

    return connect


def exchange(request: bytes, connect: Connector, deadline: float) -> bytes:
    """Send one message and take one message, without their length prefixes.

    Raises:
        PassingTrouble: unreachable, broken off, or not done before the deadline.
        InputError: ``tdx.qgs_malformed`` for an impossible length.
    """
    end = time.monotonic() + deadline
    try:
        with connect(deadline) as connection:
            connection.settimeout(_left(end))
            connection.sendall(_LENGTH.pack(len(request)) + request)
            (size,) = _LENGTH.unpack(_receive(connection, _LENGTH.size, end))
            if not _HEADER.size <= size <= MAX_FRAME_BYTES:
                raise _malformed(f"a message of {size} bytes")
            return _receive(connection, size, end)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise PassingTrouble(f"the quoting service cannot be reached: {reason}") from None


def encode_request(tdreport: bytes) -> bytes:
    """The message that asks for a quote, without its length prefix."""
    body = _PAIR.pack(len(tdreport), 0) + tdreport
    return _HEADER.pack(_MAJOR, _MINOR, _REQUEST, _HEADER.size + len(body), 0) + body


def decode_response(message: bytes) -> bytes:
    """The quote in a message of the service, given without its length prefix.

    Raises:
        InputError: ``tdx.qgs_malformed``.
        Unavailable: ``tdx.qgs_refused`` with the service's error number.
    """
    if len(message) < _HEADER.size:
        raise _malformed(f"a message of {len(message)} bytes")
    major, _, kind, size, error = _HEADER.unpack_from(message)
    if major != _MAJOR:
        raise _malformed(f"a message of version {major}, not {_MAJOR}")
    if kind != _RESPONSE:
        raise _malformed(f"a message of type {kind}, not {_RESPONSE}")
    if size != len(message):
        raise _malformed(f"a message of {len(message)} bytes that says {size}")
    if error:
        raise Unavailable(
            "tdx.qgs_refused",
            f"the quoting service answered with error {error:#x}",
            where="QGS",
            hint="its log on the host says why; often the platform is not registered or its "
            "PCCS cannot be reached",
        )
    if size < _HEADER.size + _PAIR.size:
        raise _malformed("a message without a quote")
    id_size, quote_size = _PAIR.unpack_from(message, _HEADER.size)
    if _HEADER.size + _PAIR.size + id_size + quote_size != size:
        raise _malformed(f"parts of {id_size} and {quote_size} bytes do not fill the message")
    return message[size - quote_size :]


def _receive(connection: socket.socket, size: int, end: float) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        connection.settimeout(_left(end))
        part = connection.recv(size - len(parts))
        if not part:
            raise PassingTrouble(
                f"the quoting service broke off after {len(parts)} of {size} bytes"
            )
        parts += part
    return bytes(parts)


def _left(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError(errno.ETIMEDOUT, "not done in time")
    return left


def _device_failure(error: OSError, device: Path) -> SealserveError | PassingTrouble:
    if error.errno in _PASSING:
        return PassingTrouble(f"{errno.errorcode[error.errno or 0]} ({error.strerror})")
    if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
        return Unavailable(
            "tdx.no_device",
            "this machine has no TDX guest device",
            where=str(device),
            hint="run inside a TDX guest and load its driver: modprobe tdx_guest",
        )
    if error.errno in (errno.EPERM, errno.EACCES):
        return Unavailable(
            "tdx.permission",
            "a report cannot be asked for as this user",
            where=str(device),
            hint="run as root",
        )
    return Unavailable("tdx.device", f"the driver refused: {error.strerror}", where=str(device))


def _bad_config(config: Path, message: str) -> InputError:
    return InputError(
        "tdx.qgs_config",
        message,
        where=str(config),
        hint=f"one line names the vsock port of the quoting service: port={_DEFAULT_PORT}",
    )


def _malformed(message: str) -> InputError:
    return InputError("tdx.qgs_malformed", f"the quoting service sent {message}", where="QGS")
