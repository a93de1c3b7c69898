"""Which other services a broker may be told to speak to, and how.

Rules this module keeps: whatever leaves this machine goes under TLS; no password
stands in a URL; a parameter that would lead to another server than the URL names is
refused. A check raises ValueError with the rest of a sentence, for `config`.
"""

from __future__ import annotations

import urllib.parse
from pathlib import Path
from typing import Final

import sqlalchemy
from sqlalchemy.exc import ArgumentError

from sealserve.https import is_this_machine

__all__ = ["PASSWORD", "check_collector", "check_database", "check_vault"]

PASSWORD: Final = "must not hold a password: give it by PGPASSFILE, or use peer authentication"  # noqa: S105
"""What is said of a URL that holds one."""

# Others could lead to another server than the URL names (hostaddr, service), or undo
# what the broker sets (options).
_PARAMETERS: Final = frozenset(
    (
        "host", "port", "sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl", "passfile",
        "target_session_attrs",
    )
)  # fmt: skip
_VERIFIED: Final = ("verify-ca", "verify-full")


def check_database(text: str) -> None:
    """See that a database URL can be used.

    Raises:
        ValueError: it cannot; `PASSWORD` if it holds one.
    """
    try:
        url = sqlalchemy.make_url(text)
    except (ArgumentError, ValueError):
        raise ValueError("is not a database URL") from None
    if url.get_backend_name() == "sqlite":
        _check_sqlite(url)
    elif url.drivername == "postgresql":
        _check_postgresql(url)
    else:
        raise ValueError("must begin with sqlite:/// or postgresql://")


def check_vault(text: str) -> None:
    """See that the address of Vault can be used.

    Raises:
        ValueError: it cannot.
    """
    try:
        parts = urllib.parse.urlsplit(text)
        invalid = parts.port == 0 or not parts.hostname or bool(parts.query or parts.fragment)
    except ValueError:
        raise ValueError("is not the address of a service") from None
    if invalid or not text.isascii() or not text.isprintable() or " " in text or "@" in text:
        raise ValueError("is not the address of a service")
    here = is_this_machine(parts.hostname or "")
    if parts.scheme != "https" and not (parts.scheme == "http" and here):
        raise ValueError("must begin with https://, since Vault is another machine")


def check_collector(text: str) -> None:
    """See that what goes to a collector of traces is not read on the way.

    Raises:
        ValueError: it would be.
    """
    if text.startswith("http://"):
        host = urllib.parse.urlsplit(text).hostname or ""
        if not is_this_machine(host):
            raise ValueError("must be https://, since the collector is another machine")


def _check_sqlite(url: sqlalchemy.URL) -> None:
    name = url.database or ""
    if (
        url.drivername != "sqlite"
        or url.query
        or Path(name).name != name
        or name in ("", ".", "..")
    ):
        raise ValueError("must be sqlite:///FILE, a file in the broker's directory")


def _check_postgresql(url: sqlalchemy.URL) -> None:
    if url.password is not None or {"password", "sslpassword"} & set(url.query):
        raise ValueError(PASSWORD)
    unknown = sorted(set(url.query) - _PARAMETERS)
    if unknown:
        raise ValueError(
            f"has the parameter {unknown[0]!r}; allowed: {', '.join(sorted(_PARAMETERS))}"
        )
    if not url.database:
        raise ValueError("must name a database")
    if url.query.get("sslmode") in _VERIFIED:
        return
    hosts = url.query.get("host", ())
    for host in (hosts,) if isinstance(hosts, str) else hosts or (url.host or "/",):
        # A directory is where the server's UNIX socket is.
        if not host.startswith("/") and not is_this_machine(host):
            raise ValueError("must have sslmode=verify-full, since the server is another machine")
