"""What a running broker sees of itself: new lines only, and what is broken stays broken."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest

from sealserve.broker.operation import chain_watch
from sealserve.broker.operation.chain_watch import ChainWatch
from sealserve.broker.operation.watch import Watch
from sealserve.broker.tables import AuditLineRow, ResourceRow
from sealserve.errors import SealserveError
from sealserve.simulator.td import SoftwareTd
from tests.broker.conftest import BOTH_STORES, RESOURCE, World, policy_for

pytestmark = BOTH_STORES


def test_each_look_follows_the_chain(world: World, watch: Callable[[], Watch]) -> None:
    watched = watch()
    assert watched.view().look.seen.lines == 2  # two deposits
    world.ask()
    with pytest.raises(SealserveError):
        world.ask(SoftwareTd(world.platform, firmware="another"))
    view = watched.view()
    assert view.look.seen.lines == view.look.snapshot.audit.lines == 4
    assert (view.chain.first, view.chain.last) == (1, 4)
    assert view.look.audit_problem is None
    assert [entry.verdict for entry in view.look.seen.releases] == ["released"]
    assert [entry.verdict for entry in view.look.seen.denials] == ["denied"]
    assert (RESOURCE, "test") in view.look.seen.matched
    assert len(view.look.seen.platforms) == 1


def test_a_long_chain_is_read_from_near_its_end(
    world: World, watch: Callable[[], Watch], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain_watch, "FIRST_LINES", 3)
    for _ in range(5):
        world.broker.audit.append({"event": "test"})
    view = watch().view()
    assert (view.chain.first, view.chain.last) == (5, 7)
    assert view.look.seen.lines == 3
    assert view.look.audit_problem is None


def test_a_broken_chain_is_seen_and_not_forgotten(world: World, watch: Callable[[], Watch]) -> None:
    watched = watch()
    assert watched.view().look.audit_problem is None
    world.broker.audit.append({"event": "test"})
    with world.broker.store.writing() as session:
        row = session.get_one(AuditLineRow, 3)
        line, row.line = row.line, row.line.replace("test", "tost")
    view = watched.view()
    assert "audit.line_changed" in (view.look.audit_problem or "")
    assert "audit.broken" in [finding.code for finding in view.report.due()]
    with world.broker.store.writing() as session:
        session.get_one(AuditLineRow, 3).line = line
    assert watched.view().look.audit_problem is not None


def test_a_cut_off_end_is_seen(world: World, watch: Callable[[], Watch]) -> None:
    watched = watch()
    world.broker.audit.append({"event": "test"})
    watched.view()
    with world.broker.store.writing() as session:
        session.delete(session.get_one(AuditLineRow, 3))  # its head still names three lines
    assert "audit.line_missing" in (watched.view().look.audit_problem or "")


def test_a_view_does_not_change_under_its_reader(world: World, watch: Callable[[], Watch]) -> None:
    watched = watch()
    before = watched.view()
    world.ask()
    watched.view()
    assert not before.look.seen.releases


def test_a_changed_policy_is_read(world: World, watch: Callable[[], Watch]) -> None:
    watched = watch()
    assert all(each.simulation for each in watched.look().snapshot.resources)
    with world.broker.store.writing() as session:
        row = session.get_one(ResourceRow, RESOURCE)
        row.policy = policy_for(world.td, simulation="denied")
        row.policy_sha256 = hashlib.sha256(row.policy).hexdigest()
    found = {each.name: each.simulation for each in watched.look().snapshot.resources}
    assert found == {RESOURCE: False, "models/other": True}


def test_looks_are_kept_for_seconds(world: World) -> None:
    watched = Watch(
        world.broker,
        ChainWatch(world.broker.audit),
        world.judge.collateral.in_force,
        simulated=True,
    )
    first = watched.view()
    assert watched.view() is first
    assert watched.look() is first.look
