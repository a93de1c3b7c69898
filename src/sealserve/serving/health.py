"""Whether this server can be asked: gRPC health, and what REST answers to probes.

Rules this module keeps:

* The truth: SERVING only between the end of loading and the beginning of draining, and
  only while some version is available. The same for ``""`` and for each service.
* Watchers hear of a change within `_LOOK_SECONDS`; whoever asks is told the state of
  this moment.
* A watcher holds no thread, and one that does not listen keeps nobody waiting. (The
  servicer of grpcio-health-checking sends while it holds the lock that gRPC's own thread
  wants when a watcher goes: watchers that come and go end in a server that answers nobody.)
* What watchers name is not remembered.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sealserve.serving.catalog import Catalog

__all__ = ["SERVICES", "Health"]

SERVICES = (
    "tensorflow.serving.PredictionService",
    "tensorflow.serving.ModelService",
    "inference.GRPCInferenceService",
)
# Those under which the original answers, and the full names that others ask for.
_NAMES = frozenset(("", "PredictionService", "ModelService", *SERVICES))
_LOOK_SECONDS = 0.5
_SEND_SECONDS = 20.0
_SENDERS = 4

_States = health_pb2.HealthCheckResponse
Send = Callable[[Any], object]


class _Watcher:
    """One call of Watch."""

    def __init__(self, context: Any, send: Send) -> None:
        self._context = context
        self._send = send
        self._lock = threading.Lock()
        self._shown: int | None = None
        self._since: float | None = None

    def show(self, state: Callable[[], int]) -> None:
        """Tell it the state of this moment, unless it knows; waits until that is sent."""
        with self._lock:
            status = state()
            if status == self._shown:
                return
            self._since = time.monotonic()
            self._send(_States(status=status))
            self._since = None
            self._shown = status

    def knows(self, status: int) -> bool:
        """Whether there is nothing to tell it; one that has long taken nothing is dropped."""
        since = self._since
        if since is not None and time.monotonic() - since > _SEND_SECONDS:
            self._context.cancel()
        return since is not None or status == self._shown


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # has no types
    """Health of the server as a whole; states of single models are GetModelStatus'."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._open = False
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._watchers: set[_Watcher] = set()
        self._senders = ThreadPoolExecutor(_SENDERS, thread_name_prefix="health-send")
        self._thread = threading.Thread(target=self._follow, name="health", daemon=True)

    @property
    def ready(self) -> bool:
        """Whether requests can be answered now."""
        return self._open and bool(self._catalog.available())

    @property
    def draining(self) -> bool:
        """Whether no further request is wanted."""
        return self._ending.is_set()

    @property
    def watchers(self) -> int:
        """How many calls of Watch are open."""
        return len(self._all())

    def open(self) -> None:
        """Loading is over, requests are taken."""
        self._open = True
        self._thread.start()

    def drain(self) -> None:
        """No request is wanted any more; for good."""
        self._open = False
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join()
        for watcher in self._all():
            self._senders.submit(watcher.show, self._status)
        self._senders.shutdown(wait=False)

    def add_to(self, server: grpc.Server) -> None:
        """Serve it."""
        health_pb2_grpc.add_HealthServicer_to_server(self, server)

    def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - the service's name
        """grpc.health.v1.Health/Check."""
        if request.service not in _NAMES:
            context.set_code(grpc.StatusCode.NOT_FOUND)
            return _States()
        return _States(status=self._status())

    def Watch(self, request: Any, context: Any, send: Send) -> None:  # noqa: N802
        """grpc.health.v1.Health/Watch; the call goes on when this returns.

        Args:
            request: which service.
            context: the call.
            send: takes the answers.
        """
        if request.service not in _NAMES:
            send(_States(status=_States.SERVICE_UNKNOWN))  # and no other will ever be known
            return
        watcher = _Watcher(context, send)
        with self._lock:
            self._watchers.add(watcher)
        # gRPC calls this in its one thread: nothing may be sent under the lock.
        if not context.add_callback(lambda: self._forget(watcher)):
            self._forget(watcher)
        watcher.show(self._status)

    # gRPC-Python's own way to leave a stream open without a thread.
    Watch.experimental_non_blocking = True  # type: ignore[attr-defined]

    def _status(self) -> int:
        return int(_States.SERVING if self.ready else _States.NOT_SERVING)

    def _all(self) -> list[_Watcher]:
        with self._lock:
            return list(self._watchers)

    def _forget(self, watcher: _Watcher) -> None:
        with self._lock:
            self._watchers.discard(watcher)

    def _follow(self) -> None:
        while not self._ending.wait(_LOOK_SECONDS):
            self._tell()

    def _tell(self) -> None:
        status = self._status()
        for watcher in self._all():
            if not watcher.knows(status):
                self._senders.submit(watcher.show, self._status)
