"""OpenTelemetry traces of decisions: an option, off unless it is configured.

Rules this module keeps: a span has a step's name, a verdict and codes, and
nothing else: no resource, no peer, no text of an exception. The provider is the
broker's own; nothing global is set. A collector that is away costs spans, and
never a release: they are sent from a queue of bounded size, which drops.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Final

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Status, StatusCode, get_current_span

from sealserve import __version__
from sealserve.broker.observer import Outcome, Step
from sealserve.errors import SealserveError
from sealserve.logs import Log

__all__ = ["BrokerTraces", "otlp_exporter", "say_in"]

_SEND_SECONDS: Final = 5
_SAY_SECONDS: Final = 60.0


class BrokerTraces:
    """Makes a span of each step.

    Args:
        exporter: where finished spans go.
        ratio: the share of calls that are traced, from 0 to 1.
    """

    def __init__(self, exporter: SpanExporter, *, ratio: float = 1.0) -> None:
        # Without detectors: the environment and the host's name stay where they are.
        about = Resource({"service.name": "sealserve-broker", "service.version": __version__})
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(ratio)),
            resource=about,
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("sealserve.broker", __version__)

    @contextmanager
    def step(self, name: Step) -> Iterator[None]:
        """A span around a step; a refusal leaves its code."""
        with self._tracer.start_as_current_span(
            f"broker.{name}", record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield
            except SealserveError as error:
                span.set_attribute("sealserve.code", error.code)
                raise
            except BaseException:
                span.set_status(Status(StatusCode.ERROR))
                raise

    def decided(self, outcome: Outcome) -> None:
        """Write the outcome into the span of the whole release."""
        span = get_current_span()
        span.set_attribute("sealserve.verdict", outcome.verdict)
        span.set_attribute("sealserve.code", outcome.code)
        if outcome.reasons:
            span.set_attribute("sealserve.reasons", list(outcome.reasons))
        if outcome.verdict == "failed":
            span.set_attribute("sealserve.cause", outcome.cause)
            span.set_status(Status(StatusCode.ERROR))

    def flush(self) -> None:
        """Send what is finished; for tests and before stopping."""
        self._provider.force_flush(_SEND_SECONDS * 1000)

    def close(self) -> None:
        """Send what is left, for at most a few seconds."""
        self._provider.shutdown()


@contextmanager
def say_in(log: Log) -> Iterator[None]:
    """What OpenTelemetry has to complain of goes into the broker's own log, without its text."""
    logger = logging.getLogger("opentelemetry")
    handler = _IntoLog(log)
    propagated, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagated


class _IntoLog(logging.Handler):
    """One line a minute at most: a collector that is away is no news a second time."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log
        self._last = -_SAY_SECONDS

    def emit(self, record: logging.LogRecord) -> None:
        now = monotonic()
        if now - self._last >= _SAY_SECONDS:
            self._last = now
            self._log.warning("traces not sent", source=record.name)


def otlp_exporter(endpoint: str) -> SpanExporter:
    """An exporter to an OpenTelemetry collector by OTLP over gRPC.

    Args:
        endpoint: ``https://HOST:PORT``, or ``http://`` for a collector on this machine.
    """
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(
        endpoint=endpoint, insecure=endpoint.startswith("http://"), timeout=_SEND_SECONDS
    )
