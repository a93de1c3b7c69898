"""The quoting service's protocol, spoken by a good service and by every kind of bad one."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sealserve.errors import InputError, Refused, SealserveError, Unavailable
from sealserve.tdx import qgs
from sealserve.tdx.evidence import PassingTrouble
from sealserve.tdx.qgs import (
    MAX_FRAME_BYTES,
    QgsProvider,
    decode_response,
    read_port,
    read_tdreport,
)
from sealserve.tdx.quote import MAX_QUOTE_BYTES, parse_quote
from sealserve.tdx.tdreport import report_data_of
from tests.tdx.fake_kernel import answer_for, error
from tests.vectors import read_vector

DATA = bytes(range(64))
Serve = Callable[[socket.socket], None]


def tdreport_for(data: bytes) -> bytes:
    """A real TDREPORT with other report data; only its MAC would tell."""
    raw = read_vector("trustee/az-tdx-vtpm/hcl-report.bin")[32 : 32 + 1024]
    return raw[:128] + data + raw[192:]


def response(
    quote: bytes = b"", *, major: int = 1, kind: int = 1, code: int = 0, extra: int = 0
) -> bytes:
    """A message of the service; ``extra`` falsifies the size it states."""
    body = struct.pack("<II", 0, len(quote)) + quote
    return struct.pack("<HHIII", major, 0, kind, 16 + len(body) + extra, code) + body


def framed(message: bytes, size: int | None = None) -> bytes:
    return struct.pack(">I", len(message) if size is None else size) + message


def read_request(connection: socket.socket) -> bytes:
    """The TDREPORT of a request, read by the letter of the format."""
    raw = b""
    while len(raw) < 4 + 16 + 8 + 1024:
        part = connection.recv(4096)
        assert part, "the request ended early"
        raw += part
    (size,) = struct.unpack_from(">I", raw)
    major, minor, kind, stated, code = struct.unpack_from("<HHIII", raw, 4)
    report_size, id_size = struct.unpack_from("<II", raw, 20)
    assert (major, minor, kind, code) == (1, 0, 0, 0)
    assert size == stated == len(raw) - 4
    assert (report_size, id_size) == (1024, 0)
    return raw[28:]


def quoting(connection: socket.socket) -> None:
    """What a good service does."""
    quote = answer_for(report_data_of(read_request(connection)))
    connection.sendall(framed(response(quote)))


def sending(*parts: bytes) -> Serve:
    def serve(connection: socket.socket) -> None:
        read_request(connection)
        for part in parts:
            connection.sendall(part)

    return serve


@contextmanager
def service(*scripts: Serve) -> Iterator[QgsProvider]:
    """A service that meets each connection with the next script; the last repeats."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        stopping = threading.Event()

        def run() -> None:
            turn = 0
            while not stopping.is_set():
                connection, _ = listener.accept()
                # A peer that gave up on us is what some scripts are about.
                with connection, suppress(ConnectionError):
                    if not stopping.is_set():
                        scripts[min(turn, len(scripts) - 1)](connection)
                turn += 1

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield QgsProvider(
                report=tdreport_for,
                connect=lambda timeout: socket.create_connection(address, timeout),
                deadline=0.3 if len(scripts) == 1 else 5,
                sleep=lambda _: None,
            )
        finally:
            stopping.set()
            socket.create_connection(address).close()
            thread.join()


def silent(connection: socket.socket) -> None:
    """Takes the request and says nothing until the other side gives up."""
    read_request(connection)
    connection.recv(1)


def dripping(connection: socket.socket) -> None:
    """Sends byte by byte, each of them in time, the whole never."""
    read_request(connection)
    with suppress(OSError):
        for byte in framed(response(answer_for(DATA))):
            connection.sendall(bytes([byte]))
            connection.settimeout(0.01)
            with suppress(TimeoutError):
                if not connection.recv(1):
                    return


def test_a_quote_comes_over_the_wire() -> None:
    with service(quoting) as provider:
        assert parse_quote(provider.collect(DATA).quote).report.report_data == DATA
        assert provider.name == "qgs"
        assert provider.simulated is False


def test_the_same_over_a_unix_socket(tmp_path: Path) -> None:
    near, far = socket.socketpair()
    thread = threading.Thread(target=quoting, args=(far,))
    thread.start()
    provider = QgsProvider(report=tdreport_for, connect=lambda _: near)
    assert parse_quote(provider.collect(DATA).quote).report.report_data == DATA
    thread.join()
    far.close()


@pytest.mark.parametrize(
    "trouble",
    [
        lambda _: None,  # accepted, then closed
        sending(),
        sending(b"\0\0"),
        sending(framed(response(bytes(2000)))[:1000]),  # half a frame
        sending(framed(response(bytes(100)))),  # too short for a quote
        lambda connection: sending(framed(response(answer_for(bytes(64)))))(connection),
        lambda connection: sending(framed(response(answer_for(DATA)[:-1])))(connection),
    ],
)
def test_passing_trouble_is_asked_again(trouble: Serve) -> None:
    with service(trouble, trouble, quoting) as provider:
        assert provider.collect(DATA).quote


@pytest.mark.parametrize("trouble", [silent, dripping, sending(b"\0\0\0")])
def test_a_slow_or_broken_peer_is_left_in_the_end(trouble: Serve) -> None:
    with service(trouble) as provider, pytest.raises(Unavailable) as caught:
        provider.collect(DATA)
    assert caught.value.code == "tdx.quote_failed"


def test_nobody_there() -> None:
    def refuse(timeout: float) -> socket.socket:
        raise error(errno.ECONNREFUSED)

    pauses: list[float] = []
    provider = QgsProvider(report=tdreport_for, connect=refuse, sleep=pauses.append)
    with pytest.raises(Unavailable, match="refused") as caught:
        provider.collect(DATA)
    assert caught.value.code == "tdx.quote_failed"
    assert len(pauses) == 7


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (framed(b"", 0), "tdx.qgs_malformed"),
        (framed(b"", 15), "tdx.qgs_malformed"),
        (framed(b"", MAX_FRAME_BYTES + 1), "tdx.qgs_malformed"),
        (framed(b"", 2**32 - 1), "tdx.qgs_malformed"),
        (framed(response(b"x", major=2)), "tdx.qgs_malformed"),
        (framed(response(b"x", kind=0)), "tdx.qgs_malformed"),
        (framed(response(b"x", kind=7)), "tdx.qgs_malformed"),
        (framed(response(b"x", extra=1)), "tdx.qgs_malformed"),
        (framed(response(b"x", extra=-1)), "tdx.qgs_malformed"),
        (framed(response(code=0x12001, extra=1)), "tdx.qgs_malformed"),
        (framed(response(b"x") + b"!"), "tdx.qgs_malformed"),  # sound, and a byte more
        (framed(response(code=0x12001)), "tdx.qgs_refused"),
        (framed(response(bytes(2000))), "quote.unsupported_version"),
        (framed(response(bytes(MAX_QUOTE_BYTES + 1))), "tdx.quote_failed"),
    ],
)
def test_a_wrong_answer_is_an_error_at_once(answer: bytes, code: str) -> None:
    asked = []

    def serve(connection: socket.socket) -> None:
        asked.append(1)
        sending(answer)(connection)

    with service(serve, quoting) as provider, pytest.raises(SealserveError) as caught:
        provider.collect(DATA)
    assert caught.value.code == code
    assert len(asked) == 1


@pytest.mark.parametrize("sizes", [(0, 2), (2, 0), (2**32 - 1, 2), (1, 2**32 - 1)])
def test_parts_must_fill_the_message(sizes: tuple[int, int]) -> None:
    message = struct.pack("<HHIII", 1, 0, 1, 25, 0) + struct.pack("<II", *sizes) + b"q"
    with pytest.raises(InputError) as caught:
        decode_response(message)
    assert caught.value.code == "tdx.qgs_malformed"


def test_a_selected_id_before_the_quote_is_skipped() -> None:
    message = struct.pack("<HHIII", 1, 1, 1, 16 + 8 + 3 + 5, 0) + struct.pack("<II", 3, 5)
    assert decode_response(message + b"idsquote") == b"quote"


@given(st.binary(max_size=80))
@example(response(b"q"))
@example(b"")
def test_any_message_gives_a_quote_or_a_typed_error(message: bytes) -> None:
    with suppress(InputError, Unavailable):
        assert message.endswith(decode_response(message))


@given(st.binary(max_size=120), st.integers(1, 60))
def test_any_stream_gives_a_message_or_a_typed_error(stream: bytes, cut: int) -> None:
    near, far = socket.socketpair()
    with far:
        far.sendall(stream[:cut])
        far.sendall(stream[cut:])
        far.shutdown(socket.SHUT_WR)
        with suppress(InputError, PassingTrouble):
            assert qgs.exchange(b"request", lambda _: near, 5) in stream


def test_a_report_for_another_request_is_noticed() -> None:
    provider = QgsProvider(report=lambda _: tdreport_for(bytes(64)), sleep=lambda _: None)
    with pytest.raises(Unavailable, match="other report data"):
        provider.collect(DATA)


@pytest.mark.parametrize(
    "raw",
    [
        lambda: b"",
        lambda: tdreport_for(DATA)[:-1],
        lambda: b"\x80" + tdreport_for(DATA)[1:],
        lambda: read_vector("go-tdx-guest/report.dat"),  # its right size is all it has
    ],
)
def test_unsound_reports_are_refused(raw: Callable[[], bytes]) -> None:
    with pytest.raises(InputError) as caught:
        report_data_of(raw())
    assert caught.value.code == "tdx.report_malformed"


def test_the_driver_is_asked_as_its_header_says(tmp_path: Path) -> None:
    device = tmp_path / "tdx_guest"
    device.touch()

    def ioctl(file: int, command: int, request: bytearray) -> int:
        assert os.fstat(file).st_ino == device.stat().st_ino
        assert command == (3 << 30) | (1088 << 16) | (ord("T") << 8) | 1
        assert bytes(request) == DATA + bytes(1024)
        request[64:] = tdreport_for(bytes(request[:64]))
        return 0

    assert read_tdreport(DATA, device, ioctl) == tdreport_for(DATA)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOENT, "tdx.no_device"),
        (errno.ENODEV, "tdx.no_device"),
        (errno.EACCES, "tdx.permission"),
        (errno.EPERM, "tdx.permission"),
        (errno.ENOTTY, "tdx.device"),
        (errno.EINVAL, "tdx.device"),
    ],
)
def test_a_driver_that_refuses(tmp_path: Path, number: int, code: str) -> None:
    def ioctl(file: int, command: int, request: bytearray) -> int:
        raise error(number)

    (tmp_path / "tdx_guest").touch()
    with pytest.raises(Unavailable) as caught:
        read_tdreport(DATA, tmp_path / "tdx_guest", ioctl)
    assert caught.value.code == code


def test_a_busy_driver_is_asked_again(tmp_path: Path) -> None:
    answers = [error(errno.EBUSY), error(errno.EINTR)]

    def ioctl(file: int, command: int, request: bytearray) -> int:
        if answers:
            raise answers.pop()
        request[64:] = tdreport_for(DATA)
        return 0

    (tmp_path / "tdx_guest").touch()
    near, far = socket.socketpair()
    far.sendall(framed(response(answer_for(DATA))))
    provider = QgsProvider(
        report=lambda data: read_tdreport(data, tmp_path / "tdx_guest", ioctl),
        connect=lambda _: near,
        sleep=lambda _: None,
    )
    assert provider.collect(DATA).quote
    far.close()


def test_a_machine_without_the_driver() -> None:
    with pytest.raises(Unavailable) as caught:
        read_tdreport(DATA, Path("/nonexistent/tdx_guest"))
    assert caught.value.code == "tdx.no_device"


@pytest.mark.parametrize("size", [0, 63, 65])
def test_report_data_has_64_bytes(size: int) -> None:
    with pytest.raises(InputError) as caught:
        QgsProvider(report=tdreport_for).collect(bytes(size))
    assert caught.value.code == "tdx.report_data_length"


@pytest.mark.parametrize(
    ("content", "port"),
    [
        (None, 4050),
        ("", 4050),
        ("port=4050\n", 4050),
        ("# QGS\n\n  port = 5000  # here\n", 5000),
        ("#port=1\n", 4050),
        ("port=4294967294", 4294967294),
    ],
)
def test_the_port_comes_from_the_configuration(
    tmp_path: Path, content: str | None, port: int
) -> None:
    path = tmp_path / "tdx-attest.conf"
    if content is not None:
        path.write_text(content)
    assert read_port(path) == port


@pytest.mark.parametrize(
    "content",
    ["port=", "port=x", "port=0", "port=4294967295", "port=1\nport=2", "prot=1", "port=-1", "\xff"],
)
def test_a_configuration_that_is_not_understood_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tdx-attest.conf"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        read_port(path)
    assert caught.value.code == "tdx.qgs_config"


def test_a_machine_without_vsock(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> socket.socket:
        raise error(errno.EAFNOSUPPORT)

    monkeypatch.setattr(socket, "socket", refuse)
    with pytest.raises(Unavailable) as caught:
        qgs.vsock_connector(4050)(1.0)
    assert caught.value.code == "tdx.no_vsock"


@pytest.mark.parametrize("refused", [False, True])
def test_the_host_is_called_on_its_vsock_port(
    monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    class FakeVsock:
        called: tuple[int, int] | None = None
        closed = False
        timeout = 0.0

        def settimeout(self, timeout: float) -> None:
            self.timeout = timeout

        def connect(self, address: tuple[int, int]) -> None:
            self.called = address
            if refused:
                raise error(errno.ECONNRESET)

        def close(self) -> None:
            self.closed = True

    made = FakeVsock()
    families = []

    def make(family: int, kind: int) -> FakeVsock:
        families.append((family, kind))
        return made

    monkeypatch.setattr(socket, "socket", make)
    connect = qgs.vsock_connector(4050)
    if refused:
        with pytest.raises(ConnectionResetError):
            connect(1.5)
    else:
        assert connect(1.5) is made  # type: ignore[comparison-overlap]
    assert families == [(socket.AF_VSOCK, socket.SOCK_STREAM)]
    assert (made.called, made.timeout) == ((2, 4050), 1.5)
    assert made.closed == refused


def test_a_quote_of_another_kind_is_refused() -> None:
    with service(sending(framed(response(bytes(1100))))) as provider, pytest.raises(Refused):
        provider.collect(DATA)
