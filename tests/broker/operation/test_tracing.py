"""OpenTelemetry spans of decisions: their shape, and that they carry nothing secret."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sealserve.broker.observer import NOBODY, Outcome
from sealserve.broker.operation.metrics import BrokerMetrics
from sealserve.broker.operation.telemetry import Together
from sealserve.broker.operation.tracing import BrokerTraces
from sealserve.broker.operation.watch import Watch
from sealserve.errors import Refused, SealserveError
from sealserve.simulator.td import SoftwareTd
from tests.broker.conftest import RESOURCE, World


@pytest.fixture
def spans(world: World) -> Iterator[Callable[[], list[ReadableSpan]]]:
    exporter = InMemorySpanExporter()
    traces = BrokerTraces(exporter)
    world.judge.observer = traces

    def finished() -> list[ReadableSpan]:
        traces.flush()
        return list(exporter.get_finished_spans())

    yield finished
    traces.close()


def tree(spans: list[ReadableSpan], name: str) -> dict[str, dict[str, Any]]:
    """The children of the only span of this name, with their attributes."""
    (root,) = [span for span in spans if span.name == name]
    assert root.parent is None
    assert root.context is not None
    children = [s for s in spans if s.parent and s.parent.span_id == root.context.span_id]
    return {span.name: dict(span.attributes or {}) for span in [root, *children]}


def test_a_release_is_a_span_with_its_steps(
    world: World, spans: Callable[[], list[ReadableSpan]]
) -> None:
    world.ask()
    assert tree(spans(), "broker.challenge") == {"broker.challenge": {}}
    outcome = {"sealserve.verdict": "released", "sealserve.code": "released"}
    assert tree(spans(), "broker.release") == {
        "broker.release": outcome,
        "broker.verify": {},
        "broker.appraise": {},
        "broker.seal": {},
        "broker.audit": {},
    }


def test_a_denial_has_its_codes_and_nothing_more(
    world: World, spans: Callable[[], list[ReadableSpan]]
) -> None:
    with pytest.raises(SealserveError):
        world.ask(SoftwareTd(world.platform, firmware="another"))
    found = tree(spans(), "broker.release")["broker.release"]
    assert found["sealserve.code"] == "release.denied"
    assert "policy.mrtd_unknown" in found["sealserve.reasons"]
    with pytest.raises(SealserveError):
        world.decide.challenge("not a name\n", "192.0.2.1")
    refused = [dict(s.attributes or {}) for s in spans() if s.name == "broker.challenge"][-1]
    assert refused == {"sealserve.code": "resource.name_invalid"}


def test_spans_hold_no_secret_no_peer_and_no_resource(
    world: World, spans: Callable[[], list[ReadableSpan]]
) -> None:
    world.ask()
    with pytest.raises(SealserveError):
        world.ask(SoftwareTd(world.platform, firmware="another"))
    written = "".join(str(span.to_json()) for span in spans())
    for planted in ("PLANTED", world.key.hex(), RESOURCE, "127.0.0.1"):
        assert planted not in written
    assert not any(span.events for span in spans())


def test_a_bug_inside_a_step_leaves_no_text(spans: Callable[[], list[ReadableSpan]]) -> None:
    exporter = InMemorySpanExporter()
    traces = BrokerTraces(exporter)
    with pytest.raises(ValueError, match="PLANTED"), traces.step("seal"):
        raise ValueError("PLANTED")
    traces.close()
    (span,) = exporter.get_finished_spans()
    assert "PLANTED" not in str(span.to_json())
    assert span.status.is_ok is False


def test_a_ratio_of_nothing_traces_nothing(world: World) -> None:
    exporter = InMemorySpanExporter()
    traces = BrokerTraces(exporter, ratio=0.0)
    world.judge.observer = traces
    world.ask()
    traces.close()
    assert exporter.get_finished_spans() == ()


def test_several_observers_hear_the_same(world: World, watch: Callable[[], Watch]) -> None:
    exporter = InMemorySpanExporter()
    metrics, traces = BrokerMetrics(watch().look, lambda: 0), BrokerTraces(exporter)
    both = Together(metrics, traces, NOBODY)
    with both.step("release"):
        both.decided(Outcome("denied", "release.denied", "release.denied", ("policy.smt",)))
    with pytest.raises(Refused), both.step("verify"):
        raise Refused("tcb.revoked", "no")
    traces.close()
    names = [span.name for span in exporter.get_finished_spans()]
    assert names == ["broker.release", "broker.verify"]
    assert b'verdict="denied"' in metrics.exposition()
