"""Health and reflection on the guest port: the standard services, kept from harm.

Rules this module keeps:

* Health says whether guests can be answered: whether the database can be read. It
  is asked for at most once a second, however often a balancer asks.
* `Watch` is not offered: a stream that stays open costs its caller nothing, and the
  broker a place among the calls in flight. Balancers and Kubernetes use `Check`.
* One reflection stream at a time, for a few seconds: it holds a thread as long as
  its caller likes. It describes the guests' service, from our own descriptor pool.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc
from sqlalchemy import text

from sealserve.broker.protocol import SERVICE
from sealserve.broker.store import Store
from sealserve.errors import Unavailable
from sealserve.wire import private_pool

__all__ = ["add_health", "add_reflection"]

_FRESH_SECONDS: Final = 1.0
_REFLECTION_SECONDS: Final = 5.0


def add_health(server: grpc.Server, store: Store) -> None:
    """Offer ``grpc.health.v1.Health``."""
    health_pb2_grpc.add_HealthServicer_to_server(_Health(store), server)


def add_reflection(server: grpc.Server) -> None:
    """Offer ``grpc.reflection.v1alpha.ServerReflection``."""
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(_Reflection(), server)


class _Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # has no types
    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._asked = -_FRESH_SECONDS
        self._serving = False

    def Check(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - gRPC's name
        if request.service not in ("", SERVICE):
            context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        states = health_pb2.HealthCheckResponse
        return states(status=states.SERVING if self._now() else states.NOT_SERVING)

    def Watch(self, request: Any, context: grpc.ServicerContext) -> None:  # noqa: N802
        del request
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "use Check")

    def _now(self) -> bool:
        # While one looks, the others answer with what was seen last.
        if time.monotonic() - self._asked >= _FRESH_SECONDS and self._lock.acquire(blocking=False):
            try:
                self._serving = self._look()
                self._asked = time.monotonic()
            finally:
                self._lock.release()
        return self._serving

    def _look(self) -> bool:
        try:
            with self._store.reading() as session:
                session.execute(text("SELECT 1 FROM audit_head"))
        except Unavailable:
            return False
        return True


class _Reflection(reflection_pb2_grpc.ServerReflectionServicer):  # type: ignore[misc]
    def __init__(self) -> None:
        self._answers: Any = reflection.ReflectionServicer((SERVICE,), private_pool.Default())
        self._turn = threading.Semaphore()

    def ServerReflectionInfo(  # noqa: N802 - gRPC's name
        self, request_iterator: Iterator[Any], context: grpc.ServicerContext
    ) -> Iterator[Any]:
        if not self._turn.acquire(blocking=False):
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "one at a time")
        timer = threading.Timer(_REFLECTION_SECONDS, context.cancel)
        timer.daemon = True
        timer.start()
        try:
            yield from self._answers.ServerReflectionInfo(request_iterator, context)
        finally:
            timer.cancel()
            self._turn.release()
