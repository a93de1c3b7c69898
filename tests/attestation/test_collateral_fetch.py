"""The fetcher against a simulated PCCS over HTTP and TLS, and against servers of bad manners."""

from __future__ import annotations

import base64
import contextlib
import functools
import itertools
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from sealserve.address import Address
from sealserve.attestation import collateral_fetch
from sealserve.attestation.collateral import Collateral
from sealserve.attestation.collateral_fetch import Source, fetch, platform_of_quote
from sealserve.errors import InputError, SealserveError, Unavailable
from sealserve.simulator.pccs import Pccs, PccsAnswer, answer
from tests.simulated import ISSUED, NOW, platform, report, verifier
from tests.vectors import read_vector

FMSPC = "51494d000000"
HERE = Address("127.0.0.1", 0)


@functools.cache
def collateral() -> Collateral:
    return Collateral.from_json(platform().collateral(ISSUED))


@pytest.fixture
def pccs() -> Iterator[Pccs]:
    with Pccs(collateral, HERE) as server:
        yield server


def ask(url: str, fmspc: str = FMSPC, *, seconds: float = 20, **options: Any) -> Collateral:
    pauses: list[float] = []
    return fetch(
        Source.parse(url, ca_file=options.pop("ca_file", None)),
        fmspc,
        deadline_seconds=seconds,
        sleep=pauses.append,
        **options,
    )


def failure(url: str, **options: Any) -> SealserveError:
    with pytest.raises(SealserveError) as caught:
        ask(url, **options)
    return caught.value


def test_what_is_fetched_verifies_a_quote(pccs: Pccs) -> None:
    found = ask(pccs.url)
    assert dict(found.parts) == dict(collateral().parts)
    verifier().verify(platform().quote(report()), found, NOW)


@pytest.mark.parametrize("tail", ["", "/", "/sgx/certification/v4", "/tdx/certification/v4/"])
def test_a_source_is_written_as_quote_libraries_have_it(pccs: Pccs, tail: str) -> None:
    assert ask(pccs.url + tail).fmspc == FMSPC


def test_early_information_is_asked_for(pccs: Pccs) -> None:
    seen: list[str] = []

    def watch(target: str) -> PccsAnswer:
        seen.append(target)
        return answer(collateral(), target)

    with serving(lambda target: _http(watch(target))) as url:
        ask(url, update="early")
        ask(url)
    early, standard = seen[:4], seen[4:]
    assert [target for target in early if "update=early" in target] == [
        f"/tdx/certification/v4/tcb?fmspc={FMSPC.upper()}&update=early",
        "/tdx/certification/v4/qe/identity?update=early",
    ]
    assert not any("update" in target for target in standard)


def test_intel_is_asked_at_its_two_addresses() -> None:
    intel = Source.parse(collateral_fetch.INTEL_PCS_URL)
    assert intel.root_crl is not None
    assert intel.root_crl.base.startswith("https://certificates.trustedservices.intel.com/")
    assert Source.parse("https://pccs.example:8081").root_crl is None


def test_a_quote_names_its_platform() -> None:
    assert platform_of_quote(platform().quote(report())) == (FMSPC, "platform")
    assert platform_of_quote(read_vector("dcap-qvl/tdx_quote")) == ("b0c06f000000", "platform")
    with pytest.raises(InputError):
        platform_of_quote(b"no quote")


def test_an_unknown_platform_is_not_asked_for_again(pccs: Pccs) -> None:
    error = failure(pccs.url, fmspc="000000000000")
    assert error.code == "collateral.unknown_platform"
    assert failure(pccs.url, ca="processor").code == "collateral.unknown_platform"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "pccs.example",
        "ftp://pccs.example",
        "http://pccs.example:8081",
        "http://169.254.169.254",
        "http://localhost.example",
        "https://",
        "https://user:word@pccs.example",
        "https://pccs.example?x=1",
        "https://pccs.example:99999",
        "https://[::1",
        "https://pccs.example/\nX: y",
        "file:///etc/passwd",
    ],
)
def test_addresses_that_are_not_asked(url: str) -> None:
    assert failure(url).code == "collateral.url_invalid"


# --- servers of bad manners -------------------------------------------------

Reply = Callable[[str], bytes]


def _http(found: PccsAnswer, *, claim: int | None = None, status: str = "") -> bytes:
    head = [f"HTTP/1.1 {status or f'{found.status} X'}"]
    head += [f"{name}: {value}" for name, value in found.headers.items()]
    head += [f"Content-Length: {len(found.body) if claim is None else claim}", "", ""]
    return "\r\n".join(head).encode() + found.body


@contextmanager
def listening(handle: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server whose handler has each connection in a thread, until it returns."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        stop = threading.Event()

        def one(peer: socket.socket) -> None:
            with peer:
                peer.settimeout(5)
                try:
                    handle(peer)
                except OSError:
                    return

        def loop() -> None:
            while not stop.is_set():
                try:
                    peer, _ = server.accept()
                except TimeoutError:
                    continue
                threading.Thread(target=one, args=(peer,), daemon=True).start()

        thread = threading.Thread(target=loop)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            stop.set()
            thread.join()


@contextmanager
def serving(reply: Reply) -> Iterator[str]:
    """An HTTP server that answers each GET with the bytes of ``reply``."""

    def handle(peer: socket.socket) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            if not (part := peer.recv(4096)):
                return
            request += part
        peer.sendall(reply(request.split(b" ")[1].decode()))

    with listening(handle) as url:
        yield url


def altered(path: str, change: Callable[[PccsAnswer], bytes]) -> Reply:
    """A good PCCS but for one path."""

    def reply(target: str) -> bytes:
        found = answer(collateral(), target)
        return change(found) if path in target else _http(found)

    return reply


def without_headers(found: PccsAnswer) -> bytes:
    return _http(PccsAnswer(found.status, found.body))


def with_body(body: bytes) -> Callable[[PccsAnswer], bytes]:
    return lambda found: _http(PccsAnswer(200, body, found.headers))


def with_header(value: str) -> Callable[[PccsAnswer], bytes]:
    return lambda found: _http(PccsAnswer(200, found.body, dict.fromkeys(found.headers, value)))


WRONG: list[tuple[str, Callable[[PccsAnswer], bytes], str]] = [
    ("/tcb", without_headers, "collateral.answer_malformed"),
    ("/qe/", without_headers, "collateral.answer_malformed"),
    ("/pckcrl", without_headers, "collateral.answer_malformed"),
    ("/tcb", with_header("nonsense"), "collateral.answer_malformed"),
    ("/tcb", with_header("-----BEGIN%20CERTIFICATE-----%0A"), "collateral.malformed"),
    ("/tcb", with_body(b""), "collateral.answer_malformed"),
    ("/tcb", with_body(b"<html>"), "collateral.answer_malformed"),
    ("/tcb", with_body(b"[]"), "collateral.answer_malformed"),
    ("/tcb", with_body(b"{}"), "collateral.answer_malformed"),
    ("/tcb", with_body(b"[" * 100_000), "collateral.answer_malformed"),
    ("/tcb", with_body(b'{"tcbInfo":' + b"[" * 100_000), "collateral.answer_malformed"),
    (
        "/tcb",
        with_body(b'{"tcbInfo":{},"tcbInfo":{},"signature":""}'),
        "collateral.answer_malformed",
    ),
    ("/tcb", with_body(b'{"tcbInfo":{},"signature":5}'), "collateral.answer_malformed"),
    ("/tcb", with_body(b'{"tcbInfo":{},"signature":""}'), "collateral.malformed"),
    ("/tcb", with_body(b'{"tcbInfo":{},"signature":""} x'), "collateral.answer_malformed"),
    ("/tcb", with_body(b'{"tcbInfo":{} "signature":""}'), "collateral.answer_malformed"),
    ("/tcb", with_body(b"\xff\xfe"), "collateral.answer_malformed"),
    ("/pckcrl", with_body(b"no CRL"), "collateral.answer_malformed"),
    ("/rootcacrl", with_body(b"00ff"), "collateral.answer_malformed"),
    ("/rootcacrl", with_body(b""), "collateral.answer_malformed"),
    ("/tcb", with_body(bytes(2 << 20)), "collateral.answer_too_large"),
    ("/rootcacrl", with_body(bytes(4 << 20)), "collateral.answer_too_large"),
    ("/tcb", lambda found: _http(found, status="500 X"), "collateral.http_status"),
    ("/tcb", lambda found: _http(found, status="302 X"), "collateral.http_status"),
    ("/tcb", lambda found: _http(found, status="204 X"), "collateral.http_status"),
    ("/pckcrl", lambda found: _http(found, status="404 X"), "collateral.unknown_platform"),
    ("/tcb", lambda found: _http(found)[:-9], "collateral.unreachable"),
    ("/tcb", lambda found: _http(found, claim=1 << 40), "collateral.unreachable"),
    ("/tcb", lambda _: b"", "collateral.unreachable"),
    ("/tcb", lambda _: b"SSH-2.0-OpenSSH\r\n", "collateral.unreachable"),
    ("/tcb", lambda _: b"HTTP/1.1 200 X\r\nA: " + b"a" * 100_000, "collateral.unreachable"),
    ("/tcb", lambda _: b"HTTP/1.1 200 X\r\n" + b"A: b\r\n" * 1000, "collateral.unreachable"),
    (
        "/tcb",
        lambda _: b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\nffffff\r\n{",
        "collateral.unreachable",
    ),
]


@pytest.mark.parametrize(("path", "change", "code"), WRONG)
def test_wrong_answers(path: str, change: Callable[[PccsAnswer], bytes], code: str) -> None:
    with serving(altered(path, change)) as url:
        assert failure(url).code == code


def test_an_answer_about_another_platform_is_refused() -> None:
    def reply(target: str) -> bytes:
        return _http(answer(collateral(), target.replace("00000000AAAA", FMSPC)))

    with serving(reply) as url:
        assert failure(url, fmspc="00000000aaaa").code == "collateral.wrong_platform"


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_may_pass_is_asked_again(status: int) -> None:
    asked: list[str] = []

    def reply(target: str) -> bytes:
        asked.append(target)
        good = _http(answer(collateral(), target))
        return good if len(asked) > 2 else f"HTTP/1.1 {status} X\r\n\r\n".encode()

    with serving(reply) as url:
        assert ask(url).fmspc == FMSPC
    assert len(asked) == 2 + 4


def test_attempts_end() -> None:
    asked: list[str] = []

    def reply(target: str) -> bytes:
        asked.append(target)
        return b"HTTP/1.1 503 X\r\n\r\n"

    with serving(reply) as url:
        assert failure(url).code == "collateral.http_status"
    assert len(asked) == 3


def drip(peer: socket.socket) -> None:
    """A byte now and then: no single read ever times out."""
    peer.recv(4096)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"
    for byte in itertools.chain(head, itertools.repeat(0)):
        peer.sendall(bytes([byte]))
        time.sleep(0.02)


def drip_and_close(peer: socket.socket) -> None:
    """The same in a body that ends with the connection, for which no length is told."""
    peer.recv(4096)
    peer.sendall(b"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\n")
    while True:
        peer.sendall(b"{")
        time.sleep(0.02)


def silence(peer: socket.socket) -> None:
    while peer.recv(4096):
        pass


@pytest.mark.parametrize("handle", [drip, drip_and_close, silence])
def test_a_slow_peer_is_cut_off(handle: Callable[[socket.socket], None]) -> None:
    with listening(handle) as url:
        error = failure(url, seconds=0.3)
    assert error.code == "collateral.unreachable"
    assert "in time" in error.message


def test_a_slow_peer_under_tls_is_cut_off() -> None:
    with listening(silence) as url:
        error = failure(url.replace("http:", "https:"), seconds=0.3)
    assert error.code == "collateral.unreachable"


def test_a_body_without_end_that_the_deadline_cuts_is_not_complete() -> None:
    def handle(peer: socket.socket) -> None:
        peer.recv(4096)
        peer.sendall(b"HTTP/1.0 200 OK\r\n\r\n{}")
        while peer.recv(1):
            pass

    with listening(handle) as url:
        assert failure(url, seconds=0.3).code == "collateral.unreachable"


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    error = failure(f"http://127.0.0.1:{port}")
    assert isinstance(error, Unavailable)
    assert error.code == "collateral.unreachable"
    assert "import" in (error.hint or "")


def server_certificate(directory: Path, name: str) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = directory / f"{name}.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path


@contextmanager
def serving_tls(certificate: Path) -> Iterator[int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def handle(peer: socket.socket) -> None:
        with context.wrap_socket(peer, server_side=True) as secured:
            target = secured.recv(65536).split(b" ")[1].decode()
            secured.sendall(_http(answer(collateral(), target)))

    with listening(handle) as url:
        yield int(url.rpartition(":")[2])


def test_tls_is_checked(tmp_path: Path) -> None:
    certificate = server_certificate(tmp_path, "localhost")
    with serving_tls(certificate) as port:
        url = f"https://localhost:{port}"
        assert ask(url, ca_file=certificate).fmspc == FMSPC
        assert failure(url).code == "collateral.tls_refused"
        other = server_certificate(tmp_path, "other")
        assert failure(url, ca_file=other).code == "collateral.tls_refused"
        other_name = failure(f"https://127.0.0.1:{port}", ca_file=certificate)
        assert other_name.code == "collateral.tls_refused"
        absent = failure(url, ca_file=tmp_path / "absent")
        assert absent.code == "collateral.ca_file_unusable"
        (tmp_path / "odd").write_text("odd")
        assert failure(url, ca_file=tmp_path / "odd").code == "collateral.ca_file_unusable"


@settings(deadline=None, max_examples=200)
@given(
    st.dictionaries(
        st.text(max_size=5),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=9),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
            max_leaves=8,
        ),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from([None, 0, 1, 3]),
)
def test_members_are_cut_out_as_they_are_written(document: dict[str, Any], indent: Any) -> None:
    text = json.dumps(document, indent=indent, ensure_ascii=False)
    members = collateral_fetch._members(text)
    assert {name: json.loads(value) for name, value in members.items()} == document
    assert all(value in text for value in members.values())


@pytest.mark.parametrize("encoding", ["der", "pem"])
def test_a_crl_of_an_unknown_version_is_a_typed_error(encoding: str) -> None:
    """Found by fuzzing: the library has an exception of its own for it."""
    der = bytes.fromhex(collateral().parts["pck_crl"]).replace(b"\x02\x01\x01", b"\x02\x01\x69", 1)
    text = f"-----BEGIN X509 CRL-----\n{base64.encodebytes(der).decode()}-----END X509 CRL-----\n"
    with pytest.raises(InputError) as caught:
        collateral_fetch.read_crl(der if encoding == "der" else text.encode(), "here")
    assert caught.value.code == "collateral.answer_malformed"


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=80) | st.text('{}[]":, \\signature', max_size=60).map(str.encode))
def test_any_body_is_read_or_a_typed_error(body: bytes) -> None:
    with contextlib.suppress(InputError):
        collateral_fetch.read_signed(body, "tcbInfo", "here")
