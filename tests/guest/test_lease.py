"""How a guest keeps its lease, and what ends it."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable

import pytest

from sealserve.errors import Refused, Unavailable
from sealserve.guest import lease
from sealserve.guest.lease import LeaseKeeper
from sealserve.logs import make_log


class Broker:
    """Answers renewals as a test says; `answered` wakes after each."""

    def __init__(self, *answers: float | Exception) -> None:
        self._answers = list(answers)
        self.answered = threading.Semaphore(0)
        self.asked = 0

    def renew(self) -> float:
        self.asked += 1
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        try:
            if isinstance(answer, Exception):
                raise answer
            return answer
        finally:
            self.answered.release()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sealserve.guest.lease._MIN_PAUSE_SECONDS", 0.001)


def keep(seconds: float, renew: Callable[[], float], log: io.StringIO | None = None) -> LeaseKeeper:
    return LeaseKeeper(seconds, lease.now(), renew, make_log(log or io.StringIO()))


def code_of(keeper: LeaseKeeper) -> str | None:
    try:
        keeper.require()
    except Refused as error:
        return error.code
    return None


def wait_for(keeper: LeaseKeeper, code: str) -> None:
    for _ in range(2000):
        if code_of(keeper) == code:
            return
        threading.Event().wait(0.005)
    pytest.fail(f"never {code}")


def test_a_lease_is_renewed_again_and_again() -> None:
    broker, log = Broker(0.2), io.StringIO()
    with keep(0.2, broker.renew, log) as keeper:
        for _ in range(4):
            assert broker.answered.acquire(timeout=20)
    assert code_of(keeper) in (None, "guest.lease_ended")
    assert log.getvalue().count("lease renewed") >= 3


def test_a_long_lease_asks_nobody_before_its_half() -> None:
    broker = Broker(3600)
    with keep(3600, broker.renew) as keeper:
        assert not broker.answered.acquire(timeout=0.2)
        assert code_of(keeper) is None


@pytest.mark.parametrize("code", ["release.lease_revoked", "release.lease_ended"])
def test_a_revoked_lease_ends_at_once(code: str) -> None:
    broker = Broker(Refused(code, "over"))
    # Half of the lease has gone by already; most of it is left.
    keeper = LeaseKeeper(3600, lease.now() - 1800, broker.renew, make_log(io.StringIO()))
    with keeper:
        wait_for(keeper, "guest.lease_revoked")
    assert broker.asked == 1


@pytest.mark.parametrize(
    "trouble",
    [
        Unavailable("release.broker_unreachable", "down"),
        Refused("release.denied", "collateral.expired"),
        RuntimeError("a bug"),
    ],
)
def test_anything_else_is_tried_again_until_the_lease_ends(trouble: Exception) -> None:
    broker = Broker(trouble, trouble, 3600)
    keeper = LeaseKeeper(3600, lease.now() - 1800, broker.renew, make_log(io.StringIO()))
    with keeper:
        for _ in range(3):
            assert broker.answered.acquire(timeout=20)
        assert code_of(keeper) is None

    never = Broker(trouble)
    with keep(0.1, never.renew) as ending:
        wait_for(ending, "guest.lease_ended")


def test_a_lease_counts_from_before_it_was_asked_for() -> None:
    keeper = LeaseKeeper(10, lease.now() - 10, lambda: 10.0, make_log(io.StringIO()))
    assert code_of(keeper) == "guest.lease_ended"
