"""The operator's page over HTTP: what it shows, what it refuses, and to whom."""

from __future__ import annotations

import contextlib
import http.client
import socket
import sqlite3
import ssl
import stat
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from sealserve.address import Address
from sealserve.broker.operation.access import PrincipalAccess
from sealserve.broker.operation.findings import Finding, Report
from sealserve.broker.operation.page import Pages, anyone, plain
from sealserve.broker.operation.page_server import PageServer, bind_address, bind_socket
from sealserve.broker.operation.seen import Decided, Reason, Seen
from sealserve.broker.operation.watch import View
from sealserve.broker.principals import make_identity, spki_sha256
from sealserve.broker.tables import PrincipalRow
from sealserve.certificates import key_pem, load_key_pair
from sealserve.errors import Refused, SealserveError, Unavailable
from sealserve.logs import make_log
from sealserve.simulator.td import SoftwareTd
from tests.broker.conftest import BOOT_ID, RESOURCE, World, utc_now
from tests.broker.operation.pages import ask, connected, get, pages_of

VOID = {"meta", "link", "br", "img", "input", "hr"}
HOSTILE = (
    "<script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    '"><svg onload=alert(1)>',
    "</td></tr></table><h1>owned</h1>",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(1)",
    "&lt;b&gt;",
    "`<b>`",
)


class Outline(HTMLParser):
    """Checks that elements nest, and keeps names, attributes and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def names(self) -> set[str]:
        return {name for name, _ in self.elements}


def test_the_page_shows_what_happened(world: World, page: Path) -> None:
    world.ask()
    stranger = SoftwareTd(world.platform, firmware="another")
    with pytest.raises(SealserveError):
        world.ask(stranger)
    answer = get(page)
    assert answer.status == 200
    outline = Outline(answer.text)
    for shown in (
        "SIMULATION: this broker",  # loud
        "SIMULATION allowed",
        world.broker.identity.spki_sha256.hex(),
        RESOURCE,
        BOOT_ID.hex(),  # who holds the lease
        stranger.report.mrtd.hex(),  # what was found
        world.td.report.mrtd.hex(),  # what was expected
        "policy.mrtd_unknown",
        "lines 1 to 4 were checked",
        "platform model 51494d000000, TCB evaluation 17",
        "models/other",
    ):
        assert shown in outline.text, shown
    assert world.broker.store.resources()[0].policy_sha256[:16] in outline.text
    assert "PLANTED" not in answer.text
    assert world.key.hex() not in answer.text


def test_hostile_text_stays_text(world: World, page: Path) -> None:
    """Whatever a peer could bring into the audit log is shown and does nothing."""
    before = Outline(get(page).text)
    for text in HOSTILE:
        world.broker.audit.append(
            {
                "event": "release", "verdict": text, "code": text, "peer": text,
                "resource": text, "anchor": text, "image_release": text,
                "reasons": [{"code": text, "expected": text, "actual": text},
                            {"code": text, "message": text}],
            }
        )  # fmt: skip
        world.broker.audit.append(
            {
                "event": "release", "verdict": "released", "peer": text, "resource": text,
                "image_release": text, "tcb_status": text, "tcb_date": text,
                "collateral_evaluation": text, "warnings": [text], "secret_version": text,
            }
        )  # fmt: skip
    outline = Outline(pages_of(world)._render(None))  # a page of its own: looks are kept a while
    assert outline.names() == before.names() | {"details", "summary"}
    assert not outline.names() & {"script", "img", "svg", "h3", "b"}
    assert sum(name == "h1" for name, _ in outline.elements) == 1
    handlers = {key for _, attributes in outline.elements for key in attributes}
    assert not any(key.startswith("on") for key in handlers)
    for text in HOSTILE:
        assert plain(text).strip("`") in outline.text, text


def elements_with(pages: Pages, text: str) -> list[str]:
    """The elements of a page with this text wherever a peer's or an operator's could stand."""
    look = pages._watch.look()
    seen = Seen()
    seen.denials.append(decided(text))
    seen.releases.append(decided(text))
    resource = replace(look.snapshot.resources[0], name=text, policy_sha256=text)
    snapshot = replace(look.snapshot, resources=(resource,), principals=((text, text, look.now),))
    finding = Finding(code="x.x", kind="risk", subject=text, message=text, advice=text)
    pages._watch._view = View(
        replace(look, snapshot=snapshot, seen=seen, audit_problem=text or None),
        Report.of([finding], look.now),
        1,
    )
    outline = Outline(pages._render(None))
    # A sentence of ours may have `commands` in backticks.
    return [name for name, _ in outline.elements if name != "code"]


def decided(text: str) -> Decided:
    reasons = (Reason(text, text, text, ""), Reason(text, "", "", text or "x"))
    return Decided(utc_now(), *[text] * 9, (text,), reasons)


def test_no_text_at_all_makes_markup(world: World) -> None:
    pages = pages_of(world)
    expected = elements_with(pages, "x")
    nasty = st.text(st.sampled_from("<>&\"'`/={}%#! ax\n\0\u202e\ud800")) | st.text()

    @settings(max_examples=60, deadline=None)
    @given(nasty.filter(bool))
    def check(text: str) -> None:
        assert elements_with(pages, text) == expected

    check()


def test_characters_that_steer_are_shown_as_numbers() -> None:
    assert plain("a\u202eb\x1b[31m\x00\u200b\ud800") == (
        "a\\u202eb\\u001b[31m\\u0000\\u200b\\ud800"
    )
    assert plain("x" * 500) == "x" * 400 + " …"
    assert plain("Grüße, 世界") == "Grüße, 世界"


def test_every_answer_has_strict_headers(page: Path) -> None:
    for path in ("/", "/metrics", "/healthz", "/page.css", "/icon.svg", "/nothing"):
        answer = get(page, path)
        assert answer.status == (404 if path == "/nothing" else 200)
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; style-src 'self'; img-src 'self';")
        assert "unsafe" not in policy
        assert "script" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-frame-options"] == "DENY"
        assert "set-cookie" not in answer.headers
        assert "server" not in answer.headers
    assert get(page, "/metrics").headers["content-type"].startswith("text/plain; version=")
    assert "sealserve_broker_audit_lines 2.0" in get(page, "/metrics").text
    assert get(page, "/healthz").text == "ok\n"


def test_nothing_can_be_changed(page: Path) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        with connected(page) as connection:
            assert ask(connection, "/", method).status == 405
    with connected(page) as connection:
        head = ask(connection, "/", "HEAD")
    assert (head.status, head.text) == (200, "")
    outline = Outline(get(page).text)
    assert not outline.names() & {"form", "input", "button", "script", "iframe", "object"}
    loaded = [a.get("href") or a.get("src") for _, a in outline.elements]
    assert all(url is None or url.startswith(("/", "#")) for url in loaded)


def test_reloading_is_a_choice(page: Path) -> None:
    def refreshes(html: str) -> bool:
        return any(a.get("http-equiv") == "refresh" for _, a in Outline(html).elements)

    assert not refreshes(get(page).text)
    assert refreshes(get(page, "/?refresh").text)
    assert refreshes(get(page, "/?refresh=<script>").text)


def test_a_broken_chain_is_loud(world: World, page: Path) -> None:
    with sqlite3.connect(world.broker.root / "broker.db") as connection:
        connection.execute("DELETE FROM audit_lines WHERE sequence = 2")
    connection.close()
    text = Outline(get(page).text).text
    assert "BROKEN" in text
    assert "audit.truncated" in text


def test_a_store_that_is_gone_is_said_in_a_sentence(
    world: World, page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise Unavailable("store.unavailable", "the disk is gone")

    monkeypatch.setattr(type(world.broker.store), "reading", broken)
    for path in ("/", "/healthz"):
        answer = get(page, path)
        assert answer.status == 503
        assert "[store.unavailable]" in answer.text
    assert "sealserve_broker_store_up 0.0" in get(page, "/metrics").text


def test_a_bug_is_answered_without_its_text(
    world: World, page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: object, **__: object) -> None:
        raise ValueError("PLANTED")

    monkeypatch.setattr("sealserve.broker.operation.watch.take", bug)
    answer = get(page)
    assert (answer.status, answer.text) == (500, "internal.unexpected\n")
    assert "PLANTED" not in world.log.getvalue()
    assert "ValueError" in world.log.getvalue()


# --- where it listens ---


def test_only_the_owner_may_open_the_socket(page: Path) -> None:
    assert stat.S_IMODE(page.lstat().st_mode) == 0o600


def test_the_socket_goes_with_the_server_and_a_stale_one_is_replaced(
    world: World, place: Path
) -> None:
    path = place / "s"
    left = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    left.bind(str(path))
    left.close()  # as after kill -9
    server = PageServer(pages_of(world).app(anyone), bind_socket(path))
    server.start()
    assert get(path, "/healthz").status == 200
    with pytest.raises(Refused) as second:
        bind_socket(path)
    assert second.value.code == "page.socket_in_use"
    server.stop()
    assert not path.exists()
    path.write_text("a file")
    with pytest.raises(Refused):
        bind_socket(path)
    assert path.read_text() == "a file"


def test_places_that_cannot_be_are_named(place: Path) -> None:
    for path in (place / ("x" * 108), place / "absent" / "s"):
        with pytest.raises(Unavailable) as failed:
            bind_socket(path)
        assert failed.value.code == "page.listen_failed"
    with bind_address(Address("127.0.0.1", 0)) as taken:
        taken.listen()
        with pytest.raises(Unavailable) as failed:
            bind_address(Address("127.0.0.1", taken.getsockname()[1]))
    assert failed.value.code == "page.listen_failed"
    with pytest.raises(Unavailable):
        bind_address(Address("192.0.2.1", 0))


# --- over HTTPS, for principals ---


class Client:
    """A key with a self-signed client certificate."""

    def __init__(self, name: str, *, days: int = 30) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.now(UTC)
        self.name = name
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=40))
            .not_valid_after(now + timedelta(days=days))
            .sign(self.key, hashes.SHA256())
        )

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()

    def row(self, role: str) -> PrincipalRow:
        return PrincipalRow(
            name=self.name,
            role=role,
            certificate=self.pem,
            spki_sha256=spki_sha256(self.certificate),
            added=utc_now().isoformat(),
        )

    def tls(self, broker_certificate: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=broker_certificate)
        load_key_pair(context, key_pem(self.key) + self.pem.encode())
        return context


def register(world: World, client: Client, role: str) -> None:
    with world.broker.store.writing() as session:
        session.add(client.row(role))


def remove(world: World, client: Client) -> None:
    with world.broker.store.writing() as session:
        session.delete(session.get_one(PrincipalRow, client.name))


@pytest.fixture
def https(world: World) -> Iterator[int]:
    broker = world.broker
    pem = broker.tls_private_key() + broker.identity.certificate.encode()
    access = PrincipalAccess(broker.store, pem, make_log(world.log))
    server = PageServer(
        pages_of(world).app(access.guard),
        bind_address(Address("127.0.0.1", 0)),
        tls=access.context(),
    )
    server.start()
    yield server.port
    server.stop()


def is_let_in(world: World, https: int, client: Client) -> bool:
    try:
        answer = get(https, tls=client.tls(world.broker.identity.certificate))
    except (ssl.SSLError, ConnectionResetError, BrokenPipeError):
        return False
    assert answer.status == 200
    return True


def test_registered_principals_of_either_role_may_look(world: World, https: int) -> None:
    alice, bob, eve = (Client(name) for name in ("alice", "bob", "eve"))
    assert not is_let_in(world, https, alice)  # nobody is registered yet
    register(world, alice, "admin")
    assert is_let_in(world, https, alice)
    register(world, bob, "auditor")
    assert is_let_in(world, https, bob)
    assert not is_let_in(world, https, eve)
    # The name says nothing, the key everything.
    assert not is_let_in(world, https, Client("alice"))


def test_the_file_of_admin_identity_opens_the_page(world: World, https: int) -> None:
    made = make_identity("carol", days=1)
    certificate = x509.load_pem_x509_certificate(made.certificate_pem)
    with world.broker.store.writing() as session:
        session.add(
            PrincipalRow(
                name="carol", role="auditor", certificate=made.certificate_pem.decode(),
                spki_sha256=spki_sha256(certificate), added=utc_now().isoformat(),
            )
        )  # fmt: skip
    tls = ssl.create_default_context(cadata=world.broker.identity.certificate)
    load_key_pair(tls, made.key_pem + made.certificate_pem)
    assert get(https, tls=tls).status == 200


def test_a_principal_who_is_removed_is_out_at_once(world: World, https: int) -> None:
    alice, bob = Client("alice"), Client("bob")
    register(world, alice, "admin")
    register(world, bob, "admin")
    tls = alice.tls(world.broker.identity.certificate)
    with connected(https, tls) as connection:
        assert ask(connection).status == 200
        remove(world, alice)
        refused = ask(connection)
        assert refused.status == 403  # on the open connection too
        assert "models/demo" not in refused.text
        assert refused.headers["content-security-policy"]
    assert not is_let_in(world, https, alice)
    assert is_let_in(world, https, bob)


def test_other_roles_and_ended_certificates_are_refused(world: World, https: int) -> None:
    guest, late = Client("guest"), Client("late", days=-1)
    register(world, guest, "visitor")
    register(world, late, "admin")
    assert get(https, tls=guest.tls(world.broker.identity.certificate)).status == 403
    assert not is_let_in(world, https, late)


def test_without_a_certificate_or_in_plaintext_nothing_is_said(world: World, https: int) -> None:
    register(world, Client("alice"), "admin")
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.load_verify_locations(cadata=world.broker.identity.certificate)
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        get(https, tls=bare)
    with socket.create_connection(("127.0.0.1", https), timeout=20) as plaintext:
        plaintext.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"models" not in plaintext.recv(65536)


def test_old_tls_is_refused(world: World, https: int) -> None:
    alice = Client("alice")
    register(world, alice, "admin")
    tls = alice.tls(world.broker.identity.certificate)
    tls.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        get(https, tls=tls)


def test_principals_that_cannot_be_looked_up_let_nobody_in(
    world: World, https: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = Client("alice")
    register(world, alice, "admin")
    tls = alice.tls(world.broker.identity.certificate)

    def broken(*_: object) -> None:
        raise Unavailable("store.unavailable", "the disk is gone")

    with connected(https, tls) as connection:
        assert ask(connection).status == 200
        monkeypatch.setattr(type(world.broker.store), "reading", broken)
        assert ask(connection).status == 403
    assert not is_let_in(world, https, alice)


def test_connections_that_say_nothing_are_bounded(world: World, https: int) -> None:
    """They would take the descriptors that guests and the database need."""
    alice = Client("alice")
    register(world, alice, "admin")
    before = len(list(Path("/proc/self/fd").iterdir()))
    mute = [socket.create_connection(("127.0.0.1", https), timeout=20) for _ in range(100)]
    for each in mute[64:]:
        with contextlib.suppress(ConnectionResetError):
            assert each.recv(1) == b""  # closed
    held = len(list(Path("/proc/self/fd").iterdir())) - before - len(mute)
    assert held <= 66
    assert world.ask().secret  # guests are served meanwhile
    for each in mute:
        each.close()
    deadline = time.monotonic() + 20
    while not is_let_in(world, https, alice):
        assert time.monotonic() < deadline


def test_the_guest_port_has_no_page(world: World) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.load_verify_locations(cadata=world.broker.identity.certificate)
    with (
        pytest.raises((OSError, http.client.HTTPException)),
        connected(world.server.address.port, tls) as c,
    ):
        ask(c)


def test_no_thread_or_file_is_left(world: World, place: Path) -> None:
    server = PageServer(pages_of(world).app(anyone), bind_socket(place / "s"))
    server.start()
    get(place / "s")
    server.stop()
    assert list(place.iterdir()) == []
    assert not server._thread.is_alive()
