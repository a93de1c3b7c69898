"""REST: TensorFlow Serving's HTTP API over the dataplane, by Starlette on uvicorn.

``POST /v1/models/M[/versions/N|/labels/L]:predict``, ``GET`` of the same path
for its status, and ``GET .../metadata``.

Rules this module keeps:

* Errors are ``{"error": "..."}`` with the status of `sealserve.serving.status`.
* A body is read up to its size limit and no further.
* TLS 1.3, with the identities of the gRPC port. The server runs in a thread of
  its own with its own event loop; predictions run in a thread pool beside it.
"""

from __future__ import annotations

import asyncio
import re
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import uvicorn
from google.protobuf.json_format import MessageToDict
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from sealserve.errors import InputError, InternalError, SealserveError, Unavailable
from sealserve.logs import Log
from sealserve.serving.catalog import ModelSpec
from sealserve.serving.config import ServerConfig
from sealserve.serving.dataplane import Dataplane
from sealserve.serving.rest_json import dump, parse_request, response_body
from sealserve.serving.status import HTTP_STATUS, status_of
from sealserve.serving.tls import TlsSource
from sealserve.wire.serving import api_pb2

__all__ = ["RestFront"]

_MODEL = r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>[0-9]+)|/labels/(?P<label>[^/:]+))?"
_PREDICT = re.compile(_MODEL + ":predict", re.IGNORECASE)
_METADATA = re.compile(_MODEL + "/metadata", re.IGNORECASE)
_STATUS = re.compile(_MODEL, re.IGNORECASE)
_MAX_VERSION = 2**63 - 1
_MAX_DIGITS = 1000  # Python reads no number of more than 4300 digits
_START_SECONDS = 30.0


class RestFront:
    """The REST server.

    Attributes:
        port: the TCP port it listens on.
    """

    def __init__(
        self, dataplane: Dataplane, config: ServerConfig, tls: TlsSource | None, log: Log
    ) -> None:
        """Bind the port; nothing is served before `start`.

        Raises:
            Unavailable: ``serve.port_unavailable``.
        """
        self._dataplane = dataplane
        self._config = config
        self._log = log
        self._pool = ThreadPoolExecutor(config.rest_threads, thread_name_prefix="rest")
        self._socket = _bind(config.bind_address, config.rest_port or 0)
        self.port: int = self._socket.getsockname()[1]
        self._server = uvicorn.Server(
            uvicorn.Config(
                Starlette(
                    routes=[Route("/{path:path}", self._answer, methods=["GET", "POST"])],
                    exception_handlers={HTTPException: _malformed},
                ),
                log_config=None,
                log_level="critical",
                access_log=False,
                lifespan="off",
                ws="none",
                server_header=False,
                ssl_context_factory=(lambda *_: tls.ssl_context()) if tls else None,
                timeout_graceful_shutdown=max(1, int(config.drain_seconds)),
            )
        )
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="rest", daemon=True
        )

    def start(self) -> None:
        """Begin to serve; returns when connections are accepted.

        Raises:
            InternalError: ``serve.rest_not_started``.
        """
        self._thread.start()
        deadline = time.monotonic() + _START_SECONDS
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise InternalError("serve.rest_not_started", "the REST server did not start")
            time.sleep(0.01)

    def stop(self) -> None:
        """Take no more connections, and let the requests under way finish."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join()
        self._pool.shutdown()
        self._socket.close()

    async def _answer(self, request: Request) -> Response:
        try:
            return _json(await self._dispatch(request))
        except ClientDisconnect:
            return Response(status_code=499)
        except SealserveError as error:
            status = 413 if error.code == "request.too_large" else HTTP_STATUS[status_of(error)]
            return _json(dump({"error": error.message}), status)
        except Exception as error:  # a bug is answered too, without its values
            self._log.error("unexpected", error=type(error).__name__, front="rest")
            return _json(dump({"error": f"unexpected {type(error).__name__}"}), 500)

    async def _dispatch(self, request: Request) -> bytes:
        path = request.url.path
        if request.method == "POST" and (match := _PREDICT.fullmatch(path)):
            body = await self._body(request)
            spec = _spec(match)
            return await self._in_pool(lambda: self._predict(spec, body))
        if request.method == "GET" and (match := _METADATA.fullmatch(path)):
            return self._metadata(_spec(match))
        if request.method == "GET" and (match := _STATUS.fullmatch(path)):
            return self._status(_spec(match))
        raise InputError("request.path_unknown", f"Malformed request: {request.method} {path}")

    async def _in_pool(self, work: Callable[[], bytes]) -> bytes:
        call = asyncio.get_running_loop().run_in_executor(self._pool, work)
        try:
            return await asyncio.wait_for(call, self._config.rest_timeout)
        except TimeoutError:
            raise Unavailable(
                "request.too_late", f"the request took longer than {self._config.rest_timeout} s"
            ) from None

    async def _body(self, request: Request) -> bytes:
        limit = self._config.max_request_bytes
        if request.headers.get("content-encoding", "identity") != "identity":
            raise InputError("request.encoding", "compressed bodies are not supported")
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise InputError("request.too_large", f"the body is larger than {limit} bytes")
        return bytes(body)

    def _predict(self, spec: ModelSpec, body: bytes) -> bytes:
        request = parse_request(body)
        prediction = self._dataplane.predict(spec, request.signature, request.decode)
        return response_body(prediction.outputs, row=request.row)

    def _metadata(self, spec: ModelSpec) -> bytes:
        version, definitions = self._dataplane.definitions(spec)
        return dump(
            {
                "model_spec": {"name": spec.name, "signature_name": "", "version": str(version)},
                "metadata": {"signature_def": _to_dict(definitions)},
            }
        )

    def _status(self, spec: ModelSpec) -> bytes:
        return dump(
            {
                "model_version_status": [
                    {
                        "version": str(each.version),
                        "state": each.state.name,
                        "status": {"error_code": each.code.name, "error_message": each.message},
                    }
                    for each in self._dataplane.status(spec)
                ]
            }
        )


def _to_dict(message: api_pb2.SignatureDefMap) -> dict[str, Any]:
    return MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def _spec(match: re.Match[str]) -> ModelSpec:
    digits = match["version"] or "0"
    if len(digits) > _MAX_DIGITS or int(digits) > _MAX_VERSION:
        raise InputError(
            "request.version_invalid", f"Failed to convert version: {digits} to numeric."
        )
    return ModelSpec(match["name"], int(digits) if match["version"] else None, match["label"])


def _json(body: bytes, status: int = 200) -> Response:
    return Response(body, status, media_type="application/json")


async def _malformed(request: Request, error: Exception) -> Response:
    """Methods that no path has; Starlette refuses them before they come to us."""
    del error
    return _json(dump({"error": f"Malformed request: {request.method} {request.url.path}"}), 400)


def _bind(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
    except OSError as error:
        listener.close()
        raise Unavailable(
            "serve.port_unavailable",
            f"cannot listen for REST: {error.strerror}",
            where=f"{address}:{port}",
            hint="another program has the port, or the address is not of this machine",
        ) from None
    return listener
