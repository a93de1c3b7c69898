"""One broker for guests on several platform models, each judged by its own collateral."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest

from sealserve.attestation.verifier import Anchor, Verifier
from sealserve.broker.client import Released, request_release
from sealserve.broker.collateral_source import CollateralDirectory, open_collateral
from sealserve.broker.deposit import seal_for
from sealserve.broker.directory import Broker
from sealserve.errors import InputError, Refused, Unavailable
from sealserve.files import write_atomically
from sealserve.logs import make_log
from sealserve.simulator.der import PckExtension
from sealserve.simulator.pki import issue
from sealserve.simulator.platform import CollateralOptions, SimulatedPlatform
from sealserve.simulator.td import SoftwareTd
from tests.broker.conftest import BOOT_ID, RESOURCE, Served, World, policy_for, serve, utc_now

FIRST, SECOND, THIRD = (f"51494d00000{number}" for number in range(3))


def model(platform: SimulatedPlatform, fmspc: str) -> SimulatedPlatform:
    """A machine of another model, under the same roots."""
    extension = PckExtension(
        ppid=bytes(16), cpu_svn=bytes([3, 3, 2, 2, 4, 1, 0, 5]) + bytes(8), pce_svn=11,
        fmspc=bytes.fromhex(fmspc), piid=bytes(16),
    )  # fmt: skip
    pki = platform.pki
    pck = issue("SGX PCK Certificate", pki.pck_ca, utc_now(), extension=extension.to_der())
    return SimulatedPlatform(replace(pki, pck=pck))


def collateral_of(platform: SimulatedPlatform, fmspc: str, **changes: object) -> bytes:
    stated = CollateralOptions(tcb_info={"fmspc": fmspc.upper()}, **changes)  # type: ignore[arg-type]
    return platform.collateral(utc_now() - timedelta(hours=1), stated)


@dataclass
class Site:
    """A broker that serves with a directory of collateral for two models."""

    broker: Broker
    platform: SimulatedPlatform
    served: Served
    directory: Path

    def ask(self, fmspc: str) -> Released:
        td = SoftwareTd(model(self.platform, fmspc))
        return request_release(
            str(self.served.server.address), self.broker.identity, RESOURCE, td.quote, BOOT_ID,
            timeout=20,
        )  # fmt: skip

    def keep(self, fmspc: str, content: bytes) -> None:
        write_atomically(self.directory / f"{fmspc}.platform.json", content)


@pytest.fixture
def site(broker: Broker, platform: SimulatedPlatform, tmp_path: Path) -> Iterator[Site]:
    broker.put_secret(
        RESOURCE, seal_for(broker.identity, b"secret"),
        record=b"", owner_public_key=b"", policy=policy_for(SoftwareTd(platform)),
    )  # fmt: skip
    directory = tmp_path / "store"
    directory.mkdir()
    for fmspc in (FIRST, SECOND):
        (directory / f"{fmspc}.platform.json").write_bytes(collateral_of(platform, fmspc))
    (directory / ".lock").touch()
    (directory / "notes.json").write_text("none of ours")
    verifier = Verifier(Anchor.simulation(platform.pki.root_der), require_both=True)
    served = serve(broker, verifier, directory)
    yield Site(broker, platform, served, directory)
    served.server.stop()


def reasons(site: Site) -> list[str]:
    last = json.loads(next(site.broker.audit.lines(last=1)))
    return [reason["code"] for reason in last["reasons"]]


def test_guests_on_two_models_are_served_and_a_third_when_its_file_is_there(site: Site) -> None:
    for fmspc in (FIRST, SECOND):
        assert bytes(site.ask(fmspc).secret) == b"secret"
    with pytest.raises(Refused) as caught:
        site.ask(THIRD)
    assert caught.value.code == "release.denied"
    assert reasons(site) == ["collateral.platform_unknown"]
    site.keep(THIRD, collateral_of(site.platform, THIRD))
    assert bytes(site.ask(THIRD).secret) == b"secret"
    in_force = site.served.judge.collateral.in_force()
    assert [each.fmspc for each in in_force] == [FIRST, SECOND, THIRD]


def test_a_bad_file_shuts_out_its_own_model_only(site: Site) -> None:
    site.keep(THIRD, b"junk")
    for _ in range(2):
        with pytest.raises(Refused):
            site.ask(THIRD)
    assert site.served.log.getvalue().count("new collateral not read") == 1
    assert len(site.served.judge.collateral.in_force()) == 2
    assert bytes(site.ask(FIRST).secret) == b"secret"
    site.keep(SECOND, collateral_of(site.platform, SECOND, evaluation_number=16))  # goes back
    site.keep(FIRST, b"junk")
    for fmspc in (FIRST, SECOND):  # what was in force stays in force
        assert bytes(site.ask(fmspc).secret) == b"secret"
    evaluations = {each.evaluation_number for each in site.served.judge.collateral.in_force()}
    assert evaluations == {17}


def test_a_file_under_anothers_name_proves_nothing(site: Site) -> None:
    site.keep(THIRD, collateral_of(site.platform, SECOND))
    with pytest.raises(Refused):
        site.ask(THIRD)
    assert reasons(site) == ["tcb.platform_mismatch"]


def test_what_no_broker_can_serve_with(tmp_path: Path, world: World) -> None:
    log = make_log()
    empty, bad = tmp_path / "empty", tmp_path / "bad"
    for directory in (empty, bad):
        directory.mkdir()
    (bad / f"{FIRST}.platform.json").write_bytes(b"junk")
    kinds: list[tuple[Callable[[], object], type[Exception], str]] = [
        (lambda: open_collateral(empty, log), Unavailable, "collateral.not_stored"),
        (lambda: open_collateral(bad, log), InputError, "collateral.malformed"),
        (lambda: open_collateral(tmp_path / "absent", log), Unavailable, "file.unreadable"),
    ]
    for run, kind, code in kinds:
        with pytest.raises(kind) as caught:
            run()
        assert getattr(caught.value, "code", "") == code
    good = tmp_path / "good"
    good.mkdir()
    (good / f"{FIRST}.platform.json").write_bytes(collateral_of(world.platform, FIRST))
    source = CollateralDirectory(good, log)
    for quote in (b"", b"\x04\x00" + bytes(700), world.td.quote(bytes(64))[:700]):
        with pytest.raises((Refused, InputError)):
            source.for_quote(quote)
