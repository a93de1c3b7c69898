"""The operator's page, the metrics and the health check, as an ASGI application.

Rules this module keeps:

* Read-only: GET and HEAD, no form, no script, no cookie. Everything a peer or a
  file said is text: templates escape by default, and `plain` shows characters
  that steer a terminal or the direction of writing as their numbers.
* Strict headers on every answer; nothing is loaded from elsewhere, nothing is cached.
* Who may look is decided by a guard before anything is read.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from datetime import datetime, timedelta
from importlib import resources
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sealserve import __version__
from sealserve.broker.identity import BrokerIdentity
from sealserve.broker.operation.metrics import CONTENT_TYPE, BrokerMetrics
from sealserve.broker.operation.watch import View, Watch
from sealserve.errors import SealserveError
from sealserve.logs import Log

__all__ = ["Guard", "Pages", "anyone", "plain"]

Guard = Callable[[Scope], str | None]
"""Says why a request is turned away, or ``None``."""

_HEADERS: Final = {
    "content-security-policy": "default-src 'none'; style-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_MAX_TEXT: Final = 400
_STEERING: Final = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
_REFRESH_SECONDS: Final = 60


def anyone(scope: Scope) -> str | None:
    """The guard of a UNIX socket: its file's mode has decided already."""
    del scope
    return None


def plain(value: object) -> str:
    """Text of unknown origin, made visible and short; the template escapes it."""
    text = str(value)
    shown = "".join(
        f"\\u{ord(char):04x}" if unicodedata.category(char) in _STEERING else char
        for char in text[:_MAX_TEXT]
    )
    return shown + (" …" if len(text) > _MAX_TEXT else "")


class Pages:
    """The answers.

    Args:
        watch: what is shown.
        metrics: what `/metrics` answers.
        identity: of the broker.
        log: where what cannot be shown is reported.
    """

    def __init__(
        self, watch: Watch, metrics: BrokerMetrics, identity: BrokerIdentity, log: Log
    ) -> None:
        self._watch = watch
        self._metrics = metrics
        self._identity = identity
        self._log = log
        environment = Environment(
            loader=PackageLoader("sealserve.broker.operation", "assets"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters |= {
            "plain": plain,
            "marked": _marked,
            "moment": _moment,
            "day": _day,
            "span": _span,
        }
        self._template = environment.get_template("overview.html")

    def app(self, guard: Guard) -> ASGIApp:
        """The application for one listener.

        Args:
            guard: who may look; asked in a thread of its own before each answer.
        """
        return Starlette(
            routes=[
                Route("/", self._overview),
                Route("/metrics", self._exposition),
                Route("/healthz", self._health),
                Route("/page.css", _asset("page.css", "text/css")),
                Route("/icon.svg", _asset("icon.svg", "image/svg+xml")),
            ],
            middleware=[Middleware(_Guarded, guard=guard)],
            exception_handlers={HTTPException: _refused},
        )

    async def _overview(self, request: Request) -> Response:
        refresh = _REFRESH_SECONDS if "refresh" in request.query_params else None
        return await self._answer(lambda: self._render(refresh), "text/html")

    async def _exposition(self, request: Request) -> Response:
        del request
        return await self._answer(self._metrics.exposition, CONTENT_TYPE)

    async def _health(self, request: Request) -> Response:
        del request
        return await self._answer(self._healthy, "text/plain")

    async def _answer(self, work: Callable[[], str | bytes], media_type: str) -> Response:
        try:
            return Response(await run_in_threadpool(work), media_type=media_type)
        except SealserveError as error:
            self._log.error("page not shown", **error.to_dict())
            return PlainTextResponse(f"{error}\n", 503)
        except Exception as error:
            self._log.error("page not shown", type=type(error).__name__)
            return PlainTextResponse("internal.unexpected\n", 500)

    def _healthy(self) -> str:
        self._watch.view()
        return "ok\n"

    def _render(self, refresh: int | None) -> str:
        view = self._watch.view()
        due = view.report.due()
        return self._template.render(
            view=view,
            due=due,
            later=[finding for finding in view.report.findings if finding not in due],
            look=view.look,
            now=view.look.now,
            name=self._identity.name,
            fingerprint=self._identity.spki_sha256.hex(),
            version=__version__,
            refresh=refresh,
            counts=_counts(view),
        )


class _Guarded:
    """Turns away who may not look, and puts the headers on every answer."""

    def __init__(self, app: ASGIApp, guard: Guard) -> None:
        self._app = app
        self._guard = guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", ()), *added]}
            await send(message)

        reason = await run_in_threadpool(self._guard, scope)
        if reason is None:
            await self._app(scope, receive, with_headers)
        else:
            await PlainTextResponse(f"{reason}\n", 403)(scope, receive, with_headers)


def _asset(name: str, media_type: str) -> Callable[[Request], Response]:
    content = resources.files("sealserve.broker.operation").joinpath("assets", name).read_bytes()

    def answer(request: Request) -> Response:
        del request
        return Response(content, media_type=media_type)

    return answer


async def _refused(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, HTTPException)  # noqa: S101 (registered for this class)
    return PlainTextResponse(f"{error.detail}\n", error.status_code, headers=error.headers)


def _counts(view: View) -> dict[str, int]:
    now = view.look.now
    states = [finding.state(now) for finding in view.report.due()]
    return {
        "now": states.count("now"),
        "soon": states.count("soon"),
        "denials": view.look.seen.denials_since(now - timedelta(hours=1)),
    }


def _marked(sentence: str) -> Markup:
    """A sentence of ours, in which `commands` stand in backticks; all of it escaped."""
    parts = plain(sentence).split("`")
    code = Markup("<code>{}</code>")
    return Markup("").join(code.format(p) if n % 2 else p for n, p in enumerate(parts))


def _moment(value: datetime) -> str:
    return f"{value:%Y-%m-%d %H:%M:%S}"


def _day(value: datetime | None) -> str:
    return "" if value is None else f"{value:%Y-%m-%d}"


def _span(end: datetime, now: datetime) -> str:
    """How long it is to a moment, in the largest unit that says enough."""
    seconds = int((end - now).total_seconds())
    size = abs(seconds)
    if size == 0:
        return "now"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if size >= 2 * length:
            text = f"{size // length} {unit}"
            break
    else:
        text = f"{size} s"
    return f"{text} ago" if seconds < 0 else f"in {text}"
