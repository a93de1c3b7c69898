"""Nonces and rate limits that two brokers share, and limits in memory."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import func, select, update

from sealserve.broker.config import LimitsConfig
from sealserve.broker.config_file import with_store
from sealserve.broker.limits import LocalLimits, SharedLimits
from sealserve.broker.shared_challenges import SharedChallenges
from sealserve.broker.store import Store
from sealserve.broker.tables import ChallengeRow, RateRow
from sealserve.errors import Refused, Unavailable
from tests.broker.conftest import Clock
from tests.broker.postgres import Postgres
from tests.soak import times


@pytest.fixture
def stores(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Store]]:
    """One database, opened by two brokers."""
    config = with_store(postgres.new_database(), where="here").store
    opened = [Store.open(config, tmp_path_factory.mktemp("root")) for _ in range(2)]
    yield opened
    for store in opened:
        store.close()


def _age(store: Store, seconds: float) -> None:
    with store.writing() as session:
        session.execute(update(ChallengeRow).values(issued=ChallengeRow.issued - seconds))


def _code_of(table: SharedChallenges, nonce: bytes, resource: str = "r") -> str:
    try:
        table.consume(nonce, resource)
    except Refused as error:
        return error.code
    return "passed"


def test_a_nonce_of_one_broker_counts_once_on_any(stores: list[Store]) -> None:
    one, two = map(SharedChallenges, stores)
    nonce = one.issue("r", "p")
    assert len(nonce) == 32
    assert _code_of(two, nonce) == "passed"
    assert _code_of(one, nonce) == _code_of(two, nonce) == "release.nonce_used"
    assert _code_of(two, bytes(32)) == "release.nonce_unknown"


def test_wrong_uses_use_it_up_too(stores: list[Store]) -> None:
    one, two = map(SharedChallenges, stores)
    old, other = one.issue("r", "p"), one.issue("other", "p")
    _age(stores[0], 60)
    young = one.issue("r", "p")
    _age(stores[0], 59)
    assert _code_of(two, old) == "release.nonce_expired"
    assert _code_of(two, old) == "release.nonce_used"
    assert _code_of(two, young) == "passed"
    assert _code_of(one, other) == "release.nonce_expired"
    assert _code_of(one, one.issue("other", "p")) == "release.nonce_other_resource"


def test_of_parallel_uses_on_two_brokers_exactly_one_wins(stores: list[Store]) -> None:
    tables = [SharedChallenges(store) for store in stores]
    threads = 6
    barrier = threading.Barrier(threads)

    def use(number: int, nonce: bytes) -> str:
        barrier.wait()
        return _code_of(tables[number % 2], nonce)

    with ThreadPoolExecutor(threads) as pool:
        for _ in range(times(500, 30)):
            nonce = tables[0].issue("r", "p")
            codes = Counter(pool.map(use, range(threads), [nonce] * threads))
            assert codes == {"passed": 1, "release.nonce_used": threads - 1}


def test_the_table_is_bounded_and_fair(stores: list[Store]) -> None:
    clock = Clock()
    one = SharedChallenges(stores[0], capacity=20, clock=clock)
    mine = one.issue("r", "guest")
    flood = [one.issue("r", "flood") for _ in range(19)]
    with pytest.raises(Unavailable) as caught:
        one.issue("r", "flood")
    assert caught.value.code == "release.too_many_challenges"
    other = one.issue("r", "other guest")  # at the flood's cost
    assert len(one) == 20
    assert _code_of(one, flood[0]) == "release.nonce_unknown"
    assert _code_of(one, mine) == _code_of(one, other) == "passed"
    # Another broker does not know what the first has issued until it counts.
    two = SharedChallenges(stores[1], capacity=20, clock=clock)
    with pytest.raises(Unavailable):
        two.issue("r", "flood")


def test_old_nonces_make_room_by_themselves(stores: list[Store]) -> None:
    clock = Clock()
    table = SharedChallenges(stores[0], capacity=10, clock=clock)
    for _ in range(10):
        table.issue("r", "p")
    _age(stores[0], 121)
    clock.now += 2
    table.issue("r", "p")
    assert len(table) == 1


CONFIG = LimitsConfig(
    peer_calls_per_second=10, peer_burst=5, resource_releases_per_second=1, resource_burst=2
)


def test_a_bucket_in_memory_empties_and_fills() -> None:
    clock = Clock()
    limits = LocalLimits(CONFIG, clock=clock)
    assert [limits.take("peer", "a") for _ in range(5)] == [0.0] * 5
    assert limits.take("peer", "a") == pytest.approx(0.1)
    assert limits.take("peer", "b") == 0.0
    assert limits.take("resource", "a") == 0.0  # another scope, another bucket
    clock.now += 0.125
    assert limits.take("peer", "a") == 0.0
    assert limits.take("peer", "a") == pytest.approx(0.075)
    clock.now += 1000
    assert [limits.take("peer", "a") for _ in range(6)][4:] == [0.0, pytest.approx(0.1)]


def test_buckets_in_memory_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sealserve.broker.limits._MAX_BUCKETS", 100)
    limits = LocalLimits(CONFIG, clock=Clock())
    for number in range(300):
        limits.take("peer", f"2001:db8:{number}::/64")
    assert len(limits) == 100


def test_two_brokers_share_a_bucket(stores: list[Store]) -> None:
    # Slow enough that no token comes back while this test runs.
    config = LimitsConfig(
        peer_calls_per_second=1, peer_burst=1000, resource_releases_per_second=1, resource_burst=6
    )
    clock = Clock()
    one, two = (SharedLimits(config, store, clock=clock) for store in stores)
    with ThreadPoolExecutor(4) as pool:
        waits = list(
            pool.map(lambda limits: limits.take("resource", "r"), [one, two, one, two] * 5)
        )
    passed = waits.count(0.0)
    assert 6 <= passed <= 9  # the burst, and what a slow machine lets drip in
    assert all(0 < wait <= 1.0 for wait in waits if wait)
    assert one.take("peer", "p") == 0.0


def test_a_flood_does_not_reach_the_database(stores: list[Store]) -> None:
    limits = SharedLimits(CONFIG, stores[0], clock=Clock())
    for _ in range(5):
        limits.take("peer", "flood")
    stores[0].close()
    stores[0]._writer = None  # type: ignore[assignment]  # any use of it would now raise
    assert all(limits.take("peer", "flood") > 0 for _ in range(1000))


def test_buckets_that_are_full_again_are_swept(stores: list[Store]) -> None:
    clock = Clock()
    limits = SharedLimits(CONFIG, stores[0], clock=clock)
    for number in range(10):
        limits.take("peer", f"p{number}")
    with stores[0].writing() as session:
        session.execute(update(RateRow).values(updated=RateRow.updated - 60))
    clock.now += 11
    limits.take("peer", "new")
    with stores[0].reading() as session:
        assert session.scalar(select(func.count()).select_from(RateRow)) == 1
