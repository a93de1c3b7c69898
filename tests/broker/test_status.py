"""The status of a broker: it does not read its whole audit log each time, and says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sealserve.broker import audit
from sealserve.broker.administration import Administration
from sealserve.broker.operation import chain_watch
from sealserve.broker.status import status_of
from sealserve.broker.status_text import text_of
from sealserve.broker.tables import AuditLineRow
from sealserve.errors import Refused, SealserveError
from sealserve.simulator.td import SoftwareTd
from sealserve.wire.broker.admin import v1_pb2
from tests.broker.admin import EVE
from tests.broker.conftest import BOTH_STORES, World


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the lines that were checked, in turn."""
    numbers: list[int] = []
    real: Callable[..., Any] = audit._checked

    def count(sequence: int, *given: Any) -> Any:
        numbers.append(sequence)
        return real(sequence, *given)

    monkeypatch.setattr(audit, "_checked", count)
    return numbers


def _status(admin: Administration) -> dict[str, Any]:
    return admin.perform(EVE, v1_pb2.StatusRequest())


@BOTH_STORES
def test_a_broker_that_runs_checks_each_line_once(world: World, checked: list[int]) -> None:
    admin = Administration(world.broker)
    assert _status(admin)["audit"]["lines"] == 2
    world.ask()
    with pytest.raises(SealserveError):
        world.ask(SoftwareTd(world.platform, firmware="another"))
    found = _status(admin)
    assert (found["audit"]["lines"], found["denials_last_hour"]) == (4, 1)
    assert found["leases"]["active"] == 1
    assert _status(admin)["audit"]["checked"]["last"] == 4
    assert checked == [1, 2, 3, 4]


def test_a_long_log_is_checked_from_near_its_end_and_the_status_says_so(
    world: World, checked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain_watch, "FIRST_LINES", 3)
    for _ in range(5):
        world.broker.audit.append({"event": "test"})
    with world.broker.store.writing() as session:
        session.get_one(AuditLineRow, 2).line += " "
    status = status_of(world.broker.root).to_dict()
    assert checked == [5, 6, 7]
    assert status["audit"]["lines"] == 7
    assert status["audit"]["problem"] is None
    assert (status["audit"]["checked"]["first"], status["audit"]["checked"]["last"]) == (5, 7)
    assert "7 lines, whole from line 5 on (checked until 20" in text_of(status)
    assert "`audit verify` checks all" in text_of(status)
    with pytest.raises(Refused) as caught:
        world.broker.audit.verify()
    assert caught.value.where == "line 2"


@BOTH_STORES
def test_a_line_changed_after_it_was_written_is_in_the_next_status(world: World) -> None:
    admin = Administration(world.broker)
    assert _status(admin)["audit"]["problem"] is None
    world.ask()
    with world.broker.store.writing() as session:
        session.get_one(AuditLineRow, 3).line += " "
    found = _status(admin)["audit"]
    assert "audit.line_changed" in found["problem"]
    assert found["checked"]["last"] == 2
    assert "audit.line_changed" in text_of(_status(admin))
