"""Nonces: single use, short life, and fairness when the table is full."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sealserve.broker.challenges import ChallengeTable
from sealserve.errors import Refused, Unavailable


class _Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def _code_of(table: ChallengeTable, nonce: bytes, resource: str = "models/demo") -> str:
    try:
        table.consume(nonce, resource)
    except Refused as error:
        return error.code
    return "passed"


def test_a_nonce_counts_once() -> None:
    table = ChallengeTable()
    nonce = table.issue("models/demo", "192.0.2.1")
    assert len(nonce) == 32
    assert _code_of(table, nonce) == "passed"
    assert _code_of(table, nonce) == "release.nonce_used"


def test_a_nonce_that_was_never_issued_is_unknown() -> None:
    assert _code_of(ChallengeTable(), bytes(32)) == "release.nonce_unknown"


def test_a_nonce_expires_after_sixty_seconds() -> None:
    clock = _Clock()
    table = ChallengeTable(clock=clock)
    early, late = (table.issue("models/demo", "p") for _ in range(2))
    clock.now += 59.999
    assert _code_of(table, early) == "passed"
    clock.now += 0.001
    assert _code_of(table, late) == "release.nonce_expired"
    assert _code_of(table, late) == "release.nonce_used"


def test_a_nonce_for_another_resource_is_used_up_too() -> None:
    table = ChallengeTable()
    nonce = table.issue("models/other", "p")
    assert _code_of(table, nonce) == "release.nonce_other_resource"
    assert _code_of(table, nonce, "models/other") == "release.nonce_used"


def test_of_many_parallel_uses_exactly_one_wins() -> None:
    table = ChallengeTable()
    threads = 8
    barrier = threading.Barrier(threads)

    def use(nonce: bytes) -> str:
        barrier.wait()
        return _code_of(table, nonce)

    with ThreadPoolExecutor(threads) as pool:
        for _ in range(200):
            nonce = table.issue("models/demo", "p")
            codes = list(pool.map(use, [nonce] * threads))
            assert sorted(codes) == sorted(["passed"] + ["release.nonce_used"] * (threads - 1))


def test_old_nonces_make_room_by_themselves() -> None:
    clock = _Clock()
    table = ChallengeTable(capacity=10, clock=clock)
    for _ in range(10):
        table.issue("models/demo", "p")
        clock.now += 1
    clock.now += 200
    table.issue("models/demo", "p")
    assert len(table) == 1


def test_a_flooding_peer_cannot_push_out_another_ones_nonce() -> None:
    table = ChallengeTable(capacity=100)
    mine = table.issue("models/demo", "guest")
    flood = [table.issue("models/demo", "flood") for _ in range(99)]
    with pytest.raises(Unavailable) as caught:
        table.issue("models/demo", "flood")
    assert caught.value.code == "release.too_many_challenges"
    # A third peer gets in, at the flood's cost.
    other = table.issue("models/demo", "other guest")
    assert len(table) == 100
    assert _code_of(table, flood[0]) == "release.nonce_unknown"
    assert _code_of(table, mine) == _code_of(table, other) == "passed"


class _AgainstAModel(RuleBasedStateMachine):
    """The table beside a dictionary that never forgets, without a full table."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = _Clock()
        self.table = ChallengeTable(capacity=8, clock=self.clock)
        self.issued: dict[bytes, float] = {}
        self.passed: set[bytes] = set()

    @initialize()
    def one(self) -> None:
        self.issue("a")

    @rule(peer=st.sampled_from("abc"))
    def issue(self, peer: str) -> None:
        with contextlib.suppress(Unavailable):  # the table is full, and this peer fills it
            self.issued[self.table.issue("r", peer)] = self.clock.now

    @rule(seconds=st.floats(0, 50))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(data=st.data())
    def use(self, data: st.DataObject) -> None:
        nonce = data.draw(st.sampled_from(sorted(self.issued)))
        if _code_of(self.table, nonce, "r") == "passed":
            assert nonce not in self.passed
            assert self.clock.now - self.issued[nonce] < 60
            self.passed.add(nonce)

    @invariant()
    def bounded(self) -> None:
        assert len(self.table) <= 8


_AgainstAModel.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
test_the_table_against_a_model = _AgainstAModel.TestCase
