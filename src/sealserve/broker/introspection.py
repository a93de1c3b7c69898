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
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc
from sqlalchemy import text

from sealserve.broker.protocol import SERVICE
from sealserve.broker.store import Store
from sealserve.errors import InputError, Unavailable
from sealserve.wire import private_pool

__all__ = ["HEALTH_METHOD", "Health", "add_reflection"]

HEALTH_METHOD: Final = "/grpc.health.v1.Health/Check"

_FRESH_SECONDS: Final = 1.0
_REFLECTION_SECONDS: Final = 5.0


def add_reflection(server: grpc.Server) -> None:
    """Offer ``grpc.reflection.v1alpha.ServerReflection``."""
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(_Reflection(), server)


class Health:
    """Answers ``grpc.health.v1.Health/Check``.

    Args:
        store: what has to be readable.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._asked = -_FRESH_SECONDS
        self._serving = False

    def check(self, raw: bytes) -> bytes | None:
        """The answer to a ``HealthCheckRequest``; None for a service that is not here.

        Raises:
            InputError: ``release.request_malformed``.
        """
        try:
            request = health_pb2.HealthCheckRequest.FromString(raw)
        except DecodeError:
            raise InputError(
                "release.request_malformed", "not a HealthCheckRequest message"
            ) from None
        if request.service not in ("", SERVICE):
            return None
        states = health_pb2.HealthCheckResponse
        status = states.SERVING if self._now() else states.NOT_SERVING
        return bytes(states(status=status).SerializeToString())

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
