"""REST: requests to answers, errors to statuses, and who may ask for what.

Rules this module keeps:

* Errors are ``{"error": "..."}`` with the status of `sealserve.serving.status`.
* The gate is asked before a body is read. Probes (``/v1/health/live`` and ``.../ready``)
  are for everybody: they say nothing of models. Metrics have a role of their own.
* Work is done in a pool of threads, never in the event loop; it has a time limit.
* A client that goes gives up what it asked for: what has not begun never begins
  (`rest_server` says when a client has gone).
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from urllib.parse import unquote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from sealserve.errors import InputError, SealserveError
from sealserve.logs import Log
from sealserve.serving.access import Gate, Peer, Role, key_in
from sealserve.serving.calls import REQUEST_ID, Call, Calls
from sealserve.serving.config import ServerConfig
from sealserve.serving.dataplane import Dataplane
from sealserve.serving.deadline import Deadline, under
from sealserve.serving.health import Health
from sealserve.serving.metrics import CONTENT_TYPE
from sealserve.serving.rest_api import RestApi, no_such_path
from sealserve.serving.rest_body import read_body
from sealserve.serving.rest_json import dump
from sealserve.serving.rest_server import HttpServer
from sealserve.serving.status import HTTP_STATUS, Status, status_of
from sealserve.serving.tls import TlsSource
from sealserve.serving.v2_binary import LENGTH, Packed
from sealserve.serving.v2_rest import RestV2

__all__ = ["RestFront"]

_CORS = {
    "access-control-allow-origin": "*",
    "access-control-allow-methods": "POST, GET",
    "access-control-allow-headers": "Content-Type",
}
_HOST = re.compile(rb"https?://[^/]*", re.IGNORECASE)
_LIVE = ("/v1/health/live", "/v2/health/live")
_READY = ("/v1/health/ready", "/v2/health/ready")


class RestFront:
    """The REST server.

    Attributes:
        port: the TCP port it listens on.
    """

    def __init__(
        self,
        dataplane: Dataplane,
        config: ServerConfig,
        tls: TlsSource | None,
        log: Log,
        *,
        gate: Gate,
        calls: Calls,
        health: Health,
    ) -> None:
        """Bind the port; nothing is served before `start`.

        Raises:
            Unavailable: ``serve.port_unavailable``.
        """
        self._api = RestApi(dataplane)
        self._v2 = RestV2(dataplane)
        self._config = config
        self._log = log
        self._gate = gate
        self._calls = calls
        self._health = health
        self._pool = ThreadPoolExecutor(config.rest_threads, thread_name_prefix="rest")
        methods = ["GET", "POST", "OPTIONS"]
        application = Starlette(
            routes=[Route("/{path:path}", self._answer, methods=methods)],
            exception_handlers={HTTPException: self._malformed},
        )
        self._server = HttpServer(_of_any_form(application), config, tls, keys=gate.takes_keys)
        self.port = self._server.port

    def start(self) -> None:
        """Begin to serve; returns when connections are accepted.

        Raises:
            InternalError: ``serve.rest_not_started``.
        """
        self._server.start()

    def stop(self, grace: float) -> None:
        """Take no more connections, let the requests under way finish for ``grace`` seconds."""
        self._server.stop(grace)
        self._pool.shutdown()

    async def _answer(self, request: Request) -> Response:
        path = request.url.path
        if path in _LIVE + _READY:
            good = path in _LIVE or self._health.ready
            response = _json(dump({path.rpartition("/")[2]: good}), 200 if good else 503)
        elif request.method == "OPTIONS":
            response = self._preflight(request)
        elif path == self._config.metrics_path:
            response = self._metrics(request)
        else:
            response = await self._call(request)
        self._add_cors(response)
        if self._health.draining or self._is_old(request):
            response.headers["connection"] = "close"
        return response

    async def _malformed(self, request: Request, error: Exception) -> Response:
        """Methods that no path has; Starlette refuses them before they come to us."""
        del error
        refusal = no_such_path(request.method, request.url.path)
        response = _json(dump({"error": refusal.message}), HTTP_STATUS[status_of(refusal)])
        self._add_cors(response)
        return response

    def _add_cors(self, response: Response) -> None:
        if self._config.cors:
            response.headers.update(_CORS)

    def _is_old(self, request: Request) -> bool:
        age: float = time.monotonic() - request.scope["state"]["connected"]
        return 0 < self._config.max_connection_age < age

    async def _call(self, request: Request) -> Response:
        call = Call("", "REST", _peer(request), request.headers.get(REQUEST_ID, ""))
        failure: SealserveError | None = None
        status = Status.OK
        try:
            response = _answer(await self._work(request, call))
        except SealserveError as error:
            failure, status = error, status_of(error)
            http = 413 if error.code == "request.too_large" else HTTP_STATUS[status]
            response = _json(dump({"error": error.message}), http)
        except Exception as error:  # a bug is answered too, without its values
            status = Status.INTERNAL
            self._log.error("unexpected", error=type(error).__name__, front="rest", id=call.id)
            response = _json(dump({"error": f"unexpected {type(error).__name__}"}), 500)
        response.headers[REQUEST_ID] = call.id
        self._calls.ended(call, status, failure)
        return response

    async def _work(self, request: Request, call: Call) -> bytes | Packed:
        self._gate.check(Role.PREDICT, call.peer)
        # The path as it was sent: a name may hold an encoded slash.
        path = request.scope["raw_path"].decode("latin-1")
        json_size = request.headers.get(LENGTH)
        found = self._v2.find(request.method, path, json_size)
        call.api, work = found or self._api.find(request.method, path)
        body = b""
        if request.method == "POST":
            limits = self._config.max_request_bytes, self._config.rest_timeout
            body = await read_body(request, *limits)
        return await self._in_pool(request, lambda: work(body, call))

    async def _in_pool(
        self, request: Request, work: Callable[[], bytes | Packed]
    ) -> bytes | Packed:
        gone: Future[None] = Future()
        deadline = Deadline(
            until=time.monotonic() + self._config.rest_timeout,
            cancelled=gone.done,
            when_cancelled=lambda call: gone.add_done_callback(lambda _: call()),
        )

        def in_time() -> bytes | Packed:
            deadline.check()  # `cancel` below may come too late to the pool
            with under(deadline):
                return work()

        running = asyncio.get_running_loop().run_in_executor(self._pool, in_time)
        going = asyncio.create_task(_gone(request))
        await asyncio.wait(
            (running, going),
            timeout=self._config.rest_timeout,
            return_when=asyncio.FIRST_COMPLETED,
        )
        went = going.done()
        going.cancel()
        if running.done():
            return running.result()
        running.cancel()  # what has begun goes on, until it looks at its deadline
        if went:
            gone.set_result(None)
            raise deadline.refusal("")
        raise deadline.refusal(f"the request took longer than {self._config.rest_timeout} s")

    def _metrics(self, request: Request) -> Response:
        try:
            self._gate.check(Role.METRICS, _peer(request))
        except SealserveError as error:
            return _json(dump({"error": error.message}), HTTP_STATUS[status_of(error)])
        return Response(self._calls.metrics.text(), media_type=CONTENT_TYPE)

    def _preflight(self, request: Request) -> Response:
        """What browsers ask first; the original answers it with or without the CORS flag."""
        if request.headers.get("origin", "").startswith(("http://", "https://")):
            return _json(b"")
        error = InputError("request.origin", "Origin header is missing in CORS preflight")
        return _json(dump({"error": error.message}), 400)


async def _gone(request: Request) -> None:
    """Return when the client has gone; what it sends meanwhile is not wanted."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _of_any_form(application: ASGIApp) -> ASGIApp:
    """Take a target with scheme and host, as to a proxy (RFC 9112, 3.2.2), for its path."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (host := _HOST.match(scope["raw_path"])):
            path = scope["raw_path"][host.end() :] or b"/"
            scope = {**scope, "raw_path": path, "path": unquote(path.decode("latin-1"))}
        await application(scope, receive, send)

    return answer


def _peer(request: Request) -> Peer:
    return Peer(request.scope["state"]["certificate"], key_in(request.headers.items()))


def _answer(answer: bytes | Packed) -> Response:
    if isinstance(answer, bytes):
        return _json(answer)
    headers = {LENGTH: str(answer.json_size)}
    return Response(answer.body, headers=headers, media_type="application/octet-stream")


def _json(body: bytes, status: int = 200) -> Response:
    return Response(body, status, media_type="application/json")
