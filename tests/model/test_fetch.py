"""Downloads against a real server on loopback that breaks, changes and refuses."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.server
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path

import pytest

from sealserve.errors import InputError, Refused, SealserveError, Unavailable
from sealserve.model import fetch as fetch_module
from sealserve.model.fetch import DigestRecord, FetchedFile, fetch

CONTENT = bytes(range(256)) * 4096  # 1 MiB
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Behaviour:
    """What the server does; tests change it between requests."""

    content: bytes = CONTENT
    etag: str = '"v1"'
    ranges: bool = True
    status: int = 200
    length: bool = True
    wrong_range: bool = False
    # For each request in turn: close the connection after this many body bytes.
    breaks: list[int] = field(default_factory=list)
    seen: list[Message] = field(default_factory=list)


class Handler(http.server.BaseHTTPRequestHandler):
    behaviour: Behaviour

    def do_GET(self) -> None:
        behaviour = self.behaviour
        behaviour.seen.append(self.headers)
        if behaviour.status != 200:
            self.send_error(behaviour.status)
            return
        start, status = 0, 200
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if behaviour.ranges and wanted and self.headers.get("If-Range") == behaviour.etag:
            start, status = int(wanted[1]), 206
            if start >= len(behaviour.content):
                self.send_error(416)
                return
        body = behaviour.content[start:]
        self.send_response(status)
        if behaviour.etag:
            self.send_header("ETag", behaviour.etag)
        if status == 206:
            shown = start + behaviour.wrong_range
            total = len(behaviour.content)
            self.send_header("Content-Range", f"bytes {shown}-{total - 1}/{total}")
        if behaviour.length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cut = behaviour.breaks.pop(0) if behaviour.breaks else len(body)
        with contextlib.suppress(ConnectionError):  # a client may stop reading
            self.wfile.write(body[:cut])

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        pass


@dataclass
class Site:
    url: str
    behaviour: Behaviour
    directory: Path

    @property
    def target(self) -> Path:
        return self.directory / "files" / "model.pb"

    @property
    def part(self) -> Path:
        return self.directory / "files" / "model.pb.part"

    def fetch(self, *, sha256: str | None = None, max_bytes: int = 2 << 20) -> FetchedFile:
        self.steps: list[tuple[int, int | None]] = []
        return fetch(
            self.url,
            self.target,
            record=DigestRecord(self.directory / "record"),
            sha256=sha256,
            max_bytes=max_bytes,
            progress=lambda done, total: self.steps.append((done, total)),
        )

    def refuse(self, code: str, kind: type[SealserveError], **options: str | int) -> str:
        with pytest.raises(kind) as caught:
            self.fetch(**options)  # type: ignore[arg-type]
        assert caught.value.code == code
        assert not self.target.exists()
        return caught.value.message


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    behaviour = Behaviour()
    handler = type("BoundHandler", (Handler,), {"behaviour": behaviour})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield Site(f"http://127.0.0.1:{server.server_address[1]}/model.pb", behaviour, tmp_path)
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_file_is_fetched_once_and_checked_ever_after(site: Site) -> None:
    first = site.fetch()
    assert site.target.read_bytes() == CONTENT
    assert (first.sha256, first.size, first.downloaded) == (DIGEST, len(CONTENT), True)
    assert first.checked_against == "nothing: first fetch, digest recorded"
    assert site.steps[-1] == (len(CONTENT), len(CONTENT))
    assert [path.name for path in site.target.parent.iterdir()] == ["model.pb"]

    again = site.fetch()
    assert (again.downloaded, again.checked_against) == (False, "recorded digest")
    assert len(site.behaviour.seen) == 1


def test_a_given_digest_is_checked(site: Site) -> None:
    assert site.fetch(sha256=DIGEST.upper()).checked_against == "given digest"


def test_a_wrong_digest_leaves_nothing_behind(site: Site) -> None:
    message = site.refuse("fetch.digest_mismatch", Refused, sha256="0" * 64)
    assert DIGEST in message
    assert "0" * 64 in message
    assert list(site.target.parent.iterdir()) == []
    assert site.fetch().checked_against.startswith("nothing")  # a refused file is not recorded


def test_a_file_that_changed_since_the_first_fetch_is_refused(site: Site) -> None:
    site.fetch()
    site.target.unlink()
    site.behaviour.content = b"something else"
    site.refuse("fetch.digest_mismatch", Refused)


def test_a_file_that_changed_on_this_disk_is_refused(site: Site) -> None:
    site.fetch()
    site.target.write_bytes(b"x")
    with pytest.raises(Refused, match=r"fetch\.digest_mismatch"):
        site.fetch()
    assert site.target.read_bytes() == b"x"  # the user's to look at


def test_a_broken_connection_is_resumed_at_once(site: Site) -> None:
    site.behaviour.breaks = [300_000, 400_000]
    site.fetch(sha256=DIGEST)
    assert site.target.read_bytes() == CONTENT
    first, second, third = site.behaviour.seen
    assert "Range" not in first
    assert second["Range"] == "bytes=300000-"
    assert second["If-Range"] == '"v1"'
    assert third["Range"] == "bytes=700000-"


def test_a_download_that_stopped_is_resumed_by_the_next_run(site: Site) -> None:
    site.behaviour.breaks = [300_000, 0, 0, 0]
    message = site.refuse("fetch.interrupted", Unavailable)
    assert f"300000 of {len(CONTENT)} bytes" in message
    assert site.part.stat().st_size == 300_000
    site.behaviour.seen.clear()
    site.fetch(sha256=DIGEST)
    assert [request["Range"] for request in site.behaviour.seen] == ["bytes=300000-"]
    assert site.target.read_bytes() == CONTENT


@pytest.mark.parametrize("change", ["no ranges", "no etag", "weak etag"])
def test_what_cannot_be_resumed_safely_starts_over(site: Site, change: str) -> None:
    if change == "no ranges":
        site.behaviour.ranges = False
    else:
        site.behaviour.etag = "" if change == "no etag" else 'W/"v1"'
    site.behaviour.breaks = [300_000]
    site.fetch(sha256=DIGEST)
    assert site.target.read_bytes() == CONTENT
    if change != "no ranges":
        assert "Range" not in site.behaviour.seen[1]


def test_a_damaged_note_of_the_version_starts_over(site: Site) -> None:
    site.target.parent.mkdir()
    site.part.write_bytes(b"x" * 100)
    site.part.with_name("model.pb.part.etag").write_bytes(b'"v1\r\nHost: \xff"')
    site.fetch(sha256=DIGEST)
    assert "Range" not in site.behaviour.seen[0]


def test_two_versions_are_never_glued_together(site: Site) -> None:
    site.behaviour.breaks = [300_000, 0, 0, 0]
    site.refuse("fetch.interrupted", Unavailable)
    site.behaviour.content, site.behaviour.etag = CONTENT[::-1], '"v2"'
    site.fetch()
    assert site.target.read_bytes() == CONTENT[::-1]


def test_a_server_that_sends_another_range_is_not_believed(site: Site) -> None:
    site.behaviour.breaks = [300_000]
    site.behaviour.wrong_range = True
    site.refuse("fetch.interrupted", Unavailable)


def test_more_here_than_there_starts_over(site: Site) -> None:
    site.target.parent.mkdir()
    site.part.write_bytes(b"x" * (len(CONTENT) + 5))
    site.part.with_name("model.pb.part.etag").write_text('"v1"')
    site.fetch(sha256=DIGEST)
    assert site.target.read_bytes() == CONTENT


@pytest.mark.parametrize("length", [True, False])
def test_more_than_accepted_is_refused(site: Site, length: bool) -> None:
    site.behaviour.length = length
    site.refuse("fetch.too_large", InputError, max_bytes=len(CONTENT) - 1)
    assert list(site.target.parent.iterdir()) == []


def test_a_file_without_a_stated_length_is_fetched(site: Site) -> None:
    site.behaviour.length = False
    site.fetch(sha256=DIGEST)
    assert site.steps[-1] == (len(CONTENT), None)


def test_an_error_status_is_reported(site: Site) -> None:
    site.behaviour.status = 404
    assert "404" in site.refuse("fetch.http_status", Unavailable)


def test_no_network_is_one_clear_line(site: Site) -> None:
    site.url = "http://127.0.0.1:1/model.pb"
    message = site.refuse("fetch.unreachable", Unavailable)
    assert message == "cannot reach the server: Connection refused"
    assert list(site.target.parent.iterdir()) == []


def test_two_processes_do_not_write_one_file(site: Site) -> None:
    site.target.parent.mkdir()
    with site.part.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        site.refuse("fetch.busy", Unavailable)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://example.com/x", "model.pb"])
def test_only_http_addresses_are_fetched(site: Site, url: str) -> None:
    site.url = url
    site.refuse("fetch.url_invalid", InputError)


def test_a_digest_has_64_digits(site: Site) -> None:
    site.refuse("fetch.digest_invalid", InputError, sha256="abc")


def test_a_damaged_record_is_not_taken_for_none(site: Site) -> None:
    site.fetch()
    (entry,) = (site.directory / "record").iterdir()
    entry.write_text("{}")
    with pytest.raises(InputError, match=r"fetch\.record_malformed"):
        site.fetch()


def test_a_place_that_cannot_be_written_is_reported(site: Site) -> None:
    (site.directory / "files").write_text("a file, not a directory")
    with pytest.raises(Unavailable, match=r"fetch\.cannot_write"):
        site.fetch()


def test_redirects_never_leave_https() -> None:
    redirects = fetch_module._SafeRedirects()
    request = urllib.request.Request("https://example.com/a")
    with pytest.raises(urllib.error.HTTPError, match="away from https") as caught:
        redirects.redirect_request(request, None, 302, "Found", Message(), "http://example.com/a")
    caught.value.close()
    followed = redirects.redirect_request(
        request, None, 302, "Found", Message(), "https://example.org/a"
    )
    assert followed.full_url == "https://example.org/a"


def test_the_data_directory_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert fetch_module.data_directory() == tmp_path / "sealserve"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")  # the specification says: ignore it
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetch_module.data_directory() == tmp_path / ".local/share/sealserve"
