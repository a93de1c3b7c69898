"""How long gRPC waits for a client that has begun a call, and how many calls are worked on.

gRPC-Python gives each call a thread and lets it wait there, for ever, for the message: as
many calls without one as there are threads, and the server answers nobody.

Rules this module keeps:

* A call whose message does not come within `SECONDS` is ended. So is a stream whose next
  one does not.
* Waiting takes a thread, of which there are many, and none of those that work.
* What nobody waits for any more is not worked on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import grpc

__all__ = ["SECONDS", "WAITING", "Patience"]

SECONDS: Final = 120.0
"""For the largest request that is read, 256 MiB, that is a line of 18 Mbit/s."""

WAITING: Final = 512
"""Calls that may wait for their message, or for their turn, beside those worked on."""

_LOOK_SECONDS: Final = 1.0

Behaviour = Callable[..., Any]


class Patience(grpc.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Stands before every method of a server."""

    def __init__(self, working: int, seconds: float = SECONDS) -> None:
        """Wait for nobody yet.

        Args:
            working: calls that are worked on at a time.
            seconds: how long a message may take to come.
        """
        self._turns = threading.Semaphore(working)
        self._seconds = seconds
        self._lock = threading.Lock()
        self._waiting: dict[object, tuple[float, Callable[[], object]]] = {}
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="patience", daemon=True)

    def start(self) -> None:
        """Begin to end calls that wait too long."""
        self._thread.start()

    def stop(self) -> None:
        """End no more calls; the server has stopped."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join()

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Give the method's handler, with patience before it."""
        handler: Any = continuation(handler_call_details)
        if handler is None:
            return None
        codec = handler.request_deserializer, handler.response_serializer
        # To gRPC, a method that fetches its messages itself is one of streams. The
        # wire is the same.
        if handler.unary_unary:
            return grpc.stream_unary_rpc_method_handler(self._one(handler.unary_unary), *codec)
        if handler.unary_stream:
            return grpc.stream_stream_rpc_method_handler(self._first(handler.unary_stream), *codec)
        if handler.stream_stream:
            return grpc.stream_stream_rpc_method_handler(self._each(handler.stream_stream), *codec)
        raise NotImplementedError("no service has methods of this kind")

    def _one(self, work: Behaviour) -> Behaviour:
        """One request, one answer: done when its turn comes."""

        def answer(requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
            request = self._only(requests, context)
            with self._turns:
                if not context.is_active():
                    context.abort(grpc.StatusCode.CANCELLED, "the client has gone")
                return work(request, context)

        return answer

    def _first(self, work: Behaviour) -> Behaviour:
        """One request, many answers."""

        def answer(requests: Iterator[Any], context: grpc.ServicerContext, *more: Any) -> Any:
            return work(self._only(requests, context), context, *more)

        return _like(work, answer)

    def _each(self, work: Behaviour) -> Behaviour:
        """Many requests, many answers."""

        def answer(requests: Iterator[Any], context: grpc.ServicerContext, *more: Any) -> Any:
            # `iter` with a sentinel: until `_next` gives `self`, the end.
            return work(iter(lambda: self._next(requests, context), self), context, *more)

        return _like(work, answer)

    def _only(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
        request = self._next(requests, context)
        if request is self:
            # In gRPC's own words where one message is expected.
            text = "the method requires exactly one request message"
            context.abort(grpc.StatusCode.UNIMPLEMENTED, text)
        return request

    def _next(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
        """The next message, or ``self`` if there is none to come."""
        key = object()
        with self._lock:
            self._waiting[key] = (time.monotonic() + self._seconds, context.cancel)
        try:
            return next(requests, self)
        finally:
            with self._lock:
                del self._waiting[key]

    def _follow(self) -> None:
        while not self._ending.wait(min(_LOOK_SECONDS, self._seconds)):
            now = time.monotonic()
            with self._lock:
                late = [end for due, end in self._waiting.values() if due <= now]
            for end in late:
                end()


def _like(old: Any, new: Any) -> Behaviour:
    """A watcher of health holds no thread: gRPC knows that by a mark on the method."""
    for mark in ("experimental_non_blocking", "experimental_thread_pool"):
        if hasattr(old, mark):
            setattr(new, mark, getattr(old, mark))
    behaviour: Behaviour = new
    return behaviour
