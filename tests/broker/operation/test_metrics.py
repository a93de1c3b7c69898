"""Prometheus metrics: what is counted, by its own parser."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sealserve import __version__
from sealserve.broker.operation.metrics import BrokerMetrics
from sealserve.broker.operation.watch import Watch
from sealserve.errors import SealserveError, Unavailable
from sealserve.simulator.platform import FMSPC
from sealserve.simulator.td import SoftwareTd
from tests.broker.conftest import World


@pytest.fixture
def metrics(world: World, watch: Callable[[], Watch]) -> BrokerMetrics:
    made = BrokerMetrics(watch().look, lambda: len(world.judge.challenges))
    world.judge.observer = made
    return made


def read(metrics: BrokerMetrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = metrics.exposition().decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(metrics: BrokerMetrics, name: str, **labels: str) -> float | None:
    return read(metrics).get((f"sealserve_broker_{name}", frozenset(labels.items())))


def test_releases_and_denials_are_counted_by_code(world: World, metrics: BrokerMetrics) -> None:
    world.ask()
    with pytest.raises(SealserveError):
        world.ask(SoftwareTd(world.platform, firmware="another"))
    with pytest.raises(SealserveError):
        world.ask(resource="models/none")
    assert value(metrics, "challenges_total", code="issued") == 3
    assert value(metrics, "releases_total", verdict="released", code="released") == 1
    assert value(metrics, "releases_total", verdict="denied", code="release.denied") == 1
    assert value(metrics, "releases_total", verdict="denied", code="release.resource_unknown") == 1
    assert value(metrics, "denial_reasons_total", code="policy.mrtd_unknown") == 1
    for step, count in (("challenge", 3), ("release", 3), ("verify", 3), ("audit", 3),
                        ("appraise", 2), ("seal", 1)):  # fmt: skip
        assert value(metrics, "step_seconds_count", step=step) == count
    assert value(metrics, "step_seconds_bucket", step="release", le="+Inf") == 3
    assert value(metrics, "nonces") == 3
    assert value(metrics, "leases_active") == 1


def test_the_tables_and_the_collateral_are_read(world: World, metrics: BrokerMetrics) -> None:
    assert value(metrics, "audit_lines") == 2
    assert value(metrics, "audit_unsigned_lines") == 2
    assert value(metrics, "audit_whole") == 1
    assert value(metrics, "resources") == 2
    assert value(metrics, "leases_active") == 0
    assert value(metrics, "simulation") == 1
    assert value(metrics, "store_up") == 1
    assert value(metrics, "info", version=__version__) == 1
    for part in ("tcb_info", "qe_identity", "pck_crl", "root_ca_crl"):
        left = value(metrics, "collateral_days_left", fmspc=FMSPC.hex(), ca="platform", part=part)
        assert left is not None
        assert 29 < left < 30
    assert (value(metrics, "certificate_days_left") or 0) > 1800
    assert (value(metrics, "disk_free_bytes") or 0) > 0


def test_store_errors_are_counted_and_a_scrape_survives_them(
    world: World, metrics: BrokerMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise Unavailable("store.unavailable", "the disk is gone")

    monkeypatch.setattr(type(world.broker.store), "reading", broken)
    monkeypatch.setattr(type(world.broker.store), "writing", broken)
    with pytest.raises(SealserveError) as refused:
        world.ask()
    assert refused.value.code == "release.not_recorded"
    assert value(metrics, "store_errors_total", code="store.unavailable") == 1
    assert value(metrics, "releases_total", verdict="failed", code="release.not_recorded") == 1
    assert value(metrics, "store_up") == 0
    assert value(metrics, "audit_lines") is None


def test_peers_make_no_new_series(world: World, metrics: BrokerMetrics) -> None:
    for name in ("a", "b", "c"):
        with pytest.raises(SealserveError):
            world.ask(resource=f"strange/{name}")
    with pytest.raises(SealserveError):
        world.decide.challenge("not a name\n", "192.0.2.1")
    known = read(metrics)
    assert not any("strange" in str(key) for key in known)
    assert value(metrics, "challenges_total", code="resource.name_invalid") == 1


def test_a_broken_chain_shows(world: World, metrics: BrokerMetrics) -> None:
    with sqlite3.connect(world.broker.root / "broker.db") as connection:
        connection.execute("DELETE FROM audit_lines WHERE sequence = 2")
    connection.close()
    assert value(metrics, "audit_whole") == 0
