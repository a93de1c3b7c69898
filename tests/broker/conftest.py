"""A broker of one's own for each test."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
from sqlalchemy import update

from sealserve.address import Address
from sealserve.attestation import policy_file
from sealserve.attestation.policy import PlatformFlags, Policy, Release
from sealserve.attestation.verifier import Anchor, Verifier
from sealserve.broker.challenges import ChallengeTable
from sealserve.broker.client import Released, request_release
from sealserve.broker.collateral_source import open_collateral
from sealserve.broker.config import LimitsConfig
from sealserve.broker.config_file import with_store
from sealserve.broker.deposit import seal_for
from sealserve.broker.directory import Broker, create, open_broker
from sealserve.broker.judge import Judge
from sealserve.broker.limits import Limits
from sealserve.broker.release import KeyRelease
from sealserve.broker.renewal import LeaseRenewal
from sealserve.broker.service import BrokerServer
from sealserve.broker.shared_challenges import SharedChallenges
from sealserve.broker.tables import ChallengeRow
from sealserve.logs import make_log
from sealserve.simulator.platform import SimulatedPlatform
from sealserve.simulator.td import SoftwareTd
from tests.broker.postgres import Postgres, find_bin
from tests.broker.softhsm import find_module, make_token
from tests.conftest import missing

RESOURCE = "models/demo"
BOOT_ID = bytes(range(16))
REGISTERS = ("mrtd", "rtmr0", "rtmr1", "rtmr2")


def utc_now() -> datetime:
    return datetime.now(UTC)


BOTH_STORES = pytest.mark.parametrize("store_kind", ["sqlite", "postgresql"], indirect=True)
"""For a test, or a module's `pytestmark`: run it on either database."""


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server for the session; `new_database()` is a test's own."""
    programs = find_bin()
    if programs is None:
        missing("PostgreSQL", "apt install postgresql (`scripts/system-packages.sh --tests`)")
        return
    with Postgres(programs) as server:
        yield server


@pytest.fixture
def store_kind(request: pytest.FixtureRequest) -> str:
    return str(getattr(request, "param", "sqlite"))


@pytest.fixture
def store_url(store_kind: str, request: pytest.FixtureRequest) -> str:
    if store_kind == "sqlite":
        return "sqlite:///broker.db"
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture
def broker_root(tmp_path: Path, store_url: str) -> Path:
    root = tmp_path / "broker"
    # All guests of these tests have one address; the limits have tests of their own.
    limits = LimitsConfig(peer_calls_per_second=10_000, peer_burst=10_000)
    chosen = with_store(store_url, where="store_url").model_copy(update={"limits": limits})
    create(root, name="test broker", hosts=["127.0.0.1"], chosen=chosen)
    return root


@pytest.fixture
def broker(broker_root: Path) -> Iterator[Broker]:
    with open_broker(broker_root) as opened:
        yield opened


@dataclass
class World:
    """A broker with one secret behind a real TLS server, and a simulated TD that may have it."""

    broker: Broker
    platform: SimulatedPlatform
    td: SoftwareTd
    key: bytes
    record: bytes
    judge: Judge
    decide: KeyRelease
    server: BrokerServer
    clock: Clock
    log: io.StringIO

    @property
    def address(self) -> str:
        return str(self.server.address)

    def ask(self, td: SoftwareTd | None = None, **changes: Any) -> Released:
        """A release as a guest asks for it, through the real client."""
        asked: dict[str, Any] = {
            "address": self.address,
            "identity": self.broker.identity,
            "resource": RESOURCE,
            "quote_of": (td or self.td).quote,
            "boot_id": BOOT_ID,
            "timeout": 20,
        }
        return request_release(**{**asked, **changes})

    def pass_time(self, seconds: float) -> None:
        """Let challenges age, on either database."""
        self.clock.now += seconds
        with self.broker.store.writing() as session:
            session.execute(update(ChallengeRow).values(issued=ChallengeRow.issued - seconds))

    def lines(self) -> list[dict[str, Any]]:
        """The audit lines about releases; the chain is checked on the way."""
        self.broker.audit.verify()
        entries = [json.loads(line) for line in self.broker.audit.lines()]
        return [entry for entry in entries if entry["event"] == "release"]


class Clock:
    """A monotonic clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def policy_for(td: SoftwareTd, simulation: Literal["allowed", "denied"] = "allowed") -> bytes:
    """A policy that accepts exactly this TD."""
    registers = {name: getattr(td.report, name).hex() for name in REGISTERS}
    policy = Policy(
        releases=(Release(label="test", **registers),),
        platform_flags=PlatformFlags(dynamic_platform=True, cached_keys=True, smt=True),
        simulation=simulation,
    )
    return policy_file.dump(policy).encode()


@dataclass(frozen=True)
class Served:
    """A listening broker; the caller stops it."""

    judge: Judge
    decide: KeyRelease
    server: BrokerServer
    clock: Clock
    log: io.StringIO


def serve(
    broker: Broker,
    verifier: Verifier,
    collateral: Path,
    *,
    now: Callable[[], datetime] = utc_now,
    limits: Limits | None = None,
) -> Served:
    """Start a real server on a free port."""
    clock, stream = Clock(), io.StringIO()
    log = make_log(stream, anchor=verifier.anchor.name)
    table = SharedChallenges(broker.store) if broker.store.shared else ChallengeTable(clock=clock)
    read = open_collateral(collateral, log)
    judge = Judge(broker, verifier, read, table, log, now=now, limits=limits)
    decide = KeyRelease(judge)
    server = BrokerServer(decide, LeaseRenewal(judge), Address("127.0.0.1", 0), log)
    server.start()
    return Served(judge, decide, server, clock, stream)


@pytest.fixture(scope="session")
def platform() -> SimulatedPlatform:
    return SimulatedPlatform.new(utc_now())


@pytest.fixture
def world(broker: Broker, platform: SimulatedPlatform, tmp_path: Path) -> Iterator[World]:
    td = SoftwareTd(platform)
    key, record = b"PLANTED-KEY" + os.urandom(53), b"record of the volume"
    for resource in (RESOURCE, "models/other"):
        broker.put_secret(
            resource, seal_for(broker.identity, key),
            record=record, owner_public_key=b"owner", policy=policy_for(td), lease_seconds=600,
        )  # fmt: skip
    collateral = tmp_path / "collateral.json"
    collateral.write_bytes(platform.collateral(utc_now() - timedelta(hours=1)))
    verifier = Verifier(Anchor.simulation(platform.pki.root_der))
    made = serve(broker, verifier, collateral)
    yield World(
        broker, platform, td, key, record,
        made.judge, made.decide, made.server, made.clock, made.log,
    )  # fmt: skip
    made.server.stop()


@pytest.fixture(scope="session")
def softhsm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SoftHSM2's module, with the tests' token in it."""
    module = find_module()
    if module is None:
        missing("SoftHSM2", "apt install softhsm2 (`scripts/system-packages.sh --tests`)")
        return Path()
    make_token(module, tmp_path_factory.mktemp("softhsm"))
    return module
