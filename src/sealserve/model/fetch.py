"""Downloads that survive a broken connection and notice a changed file.

Rules this module keeps:

* The file appears under its name only when it is complete and its SHA-256 is
  the expected one; until then it is ``NAME.part``, which the next run resumes.
* A download is resumed only with ``If-Range`` and a strong ETag, so that two
  versions of a file are never glued together.
* Trust on first use: where nobody states a digest, that of the first fetch is
  recorded for this URL, and every later file has to match it.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sealserve.errors import InputError, Refused, Unavailable
from sealserve.files import read_limited, write_atomically

__all__ = ["DigestRecord", "FetchedFile", "data_directory", "fetch"]

_TIMEOUT_SECONDS = 30
_CHUNK = 1 << 18
# Attempts in a row that bring not one new byte.
_MAX_IDLE_ATTEMPTS = 3
_MAX_RECORD_BYTES = 1 << 14
_SHA256 = re.compile(r"[0-9a-f]{64}")
# Weak ones (W/"...") stand for files that mean the same and cannot guard a range.
_STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e]{1,250}"')

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are here and the total, if it is known."""


@dataclass(frozen=True)
class FetchedFile:
    """A complete file whose digest was checked.

    Attributes:
        path: the file.
        url: where it comes from.
        sha256: its digest, in hex.
        size: in bytes.
        downloaded: False when the file was there already.
        checked_against: ``"given digest"``, ``"recorded digest"`` or
            ``"nothing: first fetch, digest recorded"``.
    """

    path: Path
    url: str
    sha256: str
    size: int
    downloaded: bool
    checked_against: str

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {**self.__dict__, "path": str(self.path)}


def data_directory() -> Path:
    """The user's directory for what sealserve keeps (XDG base directories)."""
    base = os.environ.get("XDG_DATA_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".local/share") / "sealserve"


class DigestRecord:
    """The digests of first fetches: a directory with one small file for each URL."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def get(self, url: str) -> str | None:
        """The digest recorded for a URL, in hex, or None.

        Raises:
            InputError: ``fetch.record_malformed``.
        """
        path = self._path(url)
        if not path.exists():
            return None
        try:
            entry = json.loads(read_limited(path, _MAX_RECORD_BYTES))
            if entry["url"] == url and _SHA256.fullmatch(entry["sha256"]):
                return str(entry["sha256"])
        except (ValueError, TypeError, KeyError):
            pass
        raise InputError(
            "fetch.record_malformed",
            "the record of a first fetch is damaged",
            where=str(path),
            hint="restore it; if you remove it, the next fetch is trusted as the first",
        )

    def put(self, url: str, sha256: str) -> None:
        """Record a digest for good.

        Raises:
            InputError: ``file.exists``: there is one already.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        entry = json.dumps({"url": url, "sha256": sha256}, indent=2)
        write_atomically(self._path(url), entry.encode() + b"\n", replace=False)

    def _path(self, url: str) -> Path:
        return self._directory / f"{hashlib.sha256(url.encode()).hexdigest()[:32]}.json"


def _ignore(done: int, total: int | None) -> None:
    del done, total


def fetch(
    url: str,
    target: Path,
    *,
    record: DigestRecord,
    sha256: str | None = None,
    max_bytes: int,
    progress: Progress = _ignore,
) -> FetchedFile:
    """Get a file by HTTPS (or HTTP), once, whole, and the same as ever.

    Args:
        url: the file's address.
        target: where to put it; its directory is made.
        record: the digests of first fetches.
        sha256: the digest it must have, in hex.
        max_bytes: refuse more than this.
        progress: told about the bytes as they come.

    Raises:
        Refused: ``fetch.digest_mismatch``: the file is not the expected one.
        Unavailable: ``fetch.unreachable`` (no network or no such host),
            ``fetch.http_status``, ``fetch.interrupted`` (run again to resume),
            ``fetch.busy`` (another process is at it), ``fetch.cannot_write``.
        InputError: ``fetch.url_invalid``, ``fetch.digest_invalid``,
            ``fetch.too_large``, ``fetch.record_malformed``.
    """
    if urllib.parse.urlsplit(url).scheme not in {"http", "https"}:
        raise InputError("fetch.url_invalid", f"{url!r} is not an http or https address")
    if sha256 is not None and not _SHA256.fullmatch(sha256 := sha256.lower()):
        raise InputError("fetch.digest_invalid", "a SHA-256 digest is 64 hexadecimal digits")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.part")
        with part.open("ab+") as file:
            _lock(file, target)
            try:
                return _fetch_locked(url, target, part, file, record, sha256, max_bytes, progress)
            finally:
                if part.exists() and not part.stat().st_size:
                    _forget(part)
    except OSError as error:
        raise Unavailable(
            "fetch.cannot_write", f"cannot write: {error.strerror}", where=str(target)
        ) from error


def _fetch_locked(
    url: str,
    target: Path,
    part: Path,
    file: IO[bytes],
    record: DigestRecord,
    sha256: str | None,
    max_bytes: int,
    progress: Progress,
) -> FetchedFile:
    recorded = record.get(url)
    downloaded = not target.exists()
    if downloaded:
        _Download(url, part, file, max_bytes, progress).run()
    found = _digest(part if downloaded else target)
    for expected, whose in ((sha256, "given"), (recorded, "recorded")):
        if expected is not None and found != expected:
            _forget(part)
            raise Refused(
                "fetch.digest_mismatch",
                f"SHA-256 is {found}; the {whose} digest is {expected}",
                where=url if downloaded else str(target),
                hint="the file was replaced or damaged; find out why before you use it",
            )
    if recorded is None:
        record.put(url, found)
    if downloaded:
        os.fsync(file.fileno())
        part.rename(target)
    _forget(part)
    checked = "given digest" if sha256 else "recorded digest" if recorded else _FIRST
    return FetchedFile(target, url, found, target.stat().st_size, downloaded, checked)


_FIRST = "nothing: first fetch, digest recorded"


class _Download:
    """One file on its way into ``part``, over as many connections as it takes."""

    def __init__(
        self, url: str, part: Path, file: IO[bytes], max_bytes: int, progress: Progress
    ) -> None:
        self._url = url
        self._file = file
        self._max_bytes = max_bytes
        self._progress = progress
        self._etag_file = _etag_file(part)
        self._total: int | None = None
        self._opener = urllib.request.build_opener(_SafeRedirects)

    def run(self) -> None:
        idle = 0
        while True:
            before = self._have()
            try:
                self._attempt()
            except urllib.error.HTTPError as error:
                error.close()
                raise Unavailable(
                    "fetch.http_status",
                    f"the server answered {error.code} {error.reason}",
                    where=self._url,
                ) from error
            except (OSError, http.client.HTTPException) as error:
                reason = _reason(error)
            else:
                if self._total is None or self._have() == self._total:
                    return
                reason = "the connection ended too early"
            idle = 0 if self._have() > before else idle + 1
            if self._have() == 0 and idle:
                raise Unavailable(
                    "fetch.unreachable",
                    f"cannot reach the server: {reason}",
                    where=self._url,
                    hint="check the network; or copy the file here by other means",
                )
            if idle == _MAX_IDLE_ATTEMPTS:
                raise Unavailable(
                    "fetch.interrupted",
                    f"{reason}; {self._have()} of {self._total or '?'} bytes are here",
                    where=self._url,
                    hint="run the same command again: it goes on from there",
                )

    def _attempt(self) -> None:
        have = self._have()
        etag = self._etag_file.read_text(errors="replace") if self._etag_file.exists() else ""
        headers = {"Accept-Encoding": "identity"}
        resuming = have > 0 and _STRONG_ETAG.fullmatch(etag) is not None
        if resuming:
            headers |= {"Range": f"bytes={have}-", "If-Range": etag}
        request = urllib.request.Request(self._url, headers=headers)  # noqa: S310 - scheme checked
        with self._open(request) as response:
            if response.status == 206 and resuming:
                start, self._total = _content_range(response.headers.get("Content-Range", ""))
                if start != have:
                    raise http.client.HTTPException("the server sent another range")
            else:
                self._restart(response)
            if self._total is not None and self._total > self._max_bytes:
                raise self._too_large()
            while block := response.read(_CHUNK):
                self._file.write(block)
                self._file.flush()
                if self._have() > (self._total or self._max_bytes):
                    raise self._too_large()
                self._progress(self._have(), self._total)

    def _open(self, request: urllib.request.Request) -> Any:
        try:
            return self._opener.open(request, timeout=_TIMEOUT_SECONDS)
        except urllib.error.HTTPError as error:
            if error.code != 416:
                raise
            # What is here is not the beginning of what is there: start over.
            error.close()
            self._file.truncate(0)
            plain = urllib.request.Request(  # noqa: S310 - scheme checked
                self._url, headers={"Accept-Encoding": "identity"}
            )
            return self._opener.open(plain, timeout=_TIMEOUT_SECONDS)

    def _restart(self, response: Any) -> None:
        """The whole file comes: the server cannot resume, or its file has changed."""
        self._file.truncate(0)
        self._etag_file.unlink(missing_ok=True)
        length = response.headers.get("Content-Length", "")
        self._total = int(length) if length.isascii() and length.isdecimal() else None
        etag = response.headers.get("ETag", "")
        if _STRONG_ETAG.fullmatch(etag):
            self._etag_file.write_text(etag)

    def _have(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def _too_large(self) -> InputError:
        self._file.truncate(0)
        return InputError(
            "fetch.too_large",
            f"the file has more than the {min(self._total or self._max_bytes, self._max_bytes)} "
            "bytes that were announced or are accepted",
            where=self._url,
        )


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects, but never from HTTPS down to something anyone can change."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        if req.type == "https" and urllib.parse.urlsplit(newurl).scheme != "https":
            raise urllib.error.HTTPError(newurl, code, "redirect away from https", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _lock(file: IO[bytes], target: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise Unavailable(
            "fetch.busy", "another process is fetching this file", where=str(target)
        ) from error


def _content_range(text: str) -> tuple[int, int | None]:
    match = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", text)
    if match is None:
        raise http.client.HTTPException("the server sent no usable Content-Range")
    return int(match[1]), None if match[2] == "*" else int(match[2])


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _etag_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.etag")


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _etag_file(part).unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return "no answer in time"
    text = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    return str(text)[:200]
