"""Where collateral is asked for, and one GET there.

Rules this module keeps, beside those of `sealserve.https`: TLS is checked against
the system's authorities or the given one, and plain HTTP goes to this machine only.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from sealserve.errors import InputError, Refused, Unavailable
from sealserve.https import Answer, TooLarge, Unreachable, exchange, is_this_machine, trust

__all__ = ["Answer", "Endpoint", "Unreachable", "get"]


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
        if parts.scheme != "https" and not (
            parts.scheme == "http" and is_this_machine(parts.hostname or "")
        ):
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
    url = endpoint.base + path
    tls = _tls(endpoint.ca_file) if url.startswith("https:") else None
    try:
        return exchange("GET", url, tls=tls, limit=limit, deadline=deadline)
    except TooLarge:
        raise InputError(
            "collateral.answer_too_large",
            f"the answer has more than the {limit} bytes that are read",
            where=url,
        ) from None
    except ssl.SSLCertVerificationError as error:
        raise Refused(
            "collateral.tls_refused",
            f"its TLS certificate is not trusted: {error.verify_message}",
            where=endpoint.base,
            hint="for a PCCS of your own give its CA with --ca-file",
        ) from None


def _tls(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return trust(ca_file)
    except OSError as error:
        raise Unavailable(
            "collateral.ca_file_unusable",
            f"no certificates can be read: {error.strerror or type(error).__name__}",
            where=str(ca_file),
            hint="give certificates in PEM",
        ) from None
