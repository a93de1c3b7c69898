"""Releases against a real broker server over TLS, and every way they must fail."""

from __future__ import annotations

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from sealserve.attestation.sealing import generate_key
from sealserve.attestation.verifier import INTEL, Verifier
from sealserve.broker.deposit import seal_for
from sealserve.broker.directory import Broker
from sealserve.broker.protocol import CHALLENGE_METHOD, RELEASE_METHOD
from sealserve.errors import Refused, SealserveError, Unavailable
from sealserve.simulator.platform import SimulatedPlatform
from sealserve.simulator.td import SoftwareTd
from sealserve.wire.broker import v1_pb2
from tests.broker.conftest import RESOURCE, World, policy_for, serve, utc_now
from tests.broker.wire import Answer, Relay, Wire
from tests.conftest import ROOT, missing

VECTORS = ROOT.parent / "shared" / "vectors"


def test_an_attested_guest_gets_the_secret(world: World) -> None:
    released = world.ask()
    assert bytes(released.secret) == world.key
    assert released.record == world.record
    assert (released.secret_version, released.lease_seconds) == (1, 600)
    released.wipe()
    assert bytes(released.secret) == bytes(len(world.key))
    (line,) = world.lines()
    assert line["verdict"] == line["code"] == "released"
    assert line["resource"] == RESOURCE
    assert line["peer"] == "127.0.0.1"
    assert line["secret_version"] == 1
    assert line["collateral_evaluation"] == 17
    assert line["image_release"] == "test"
    assert line["reasons"] == []
    assert "SIMULATION" in line["anchor"]
    assert len(line["quote_sha256"]) == len(line["policy_sha256"]) == 64


def test_each_release_takes_the_newest_version(world: World) -> None:
    world.broker.put_secret(
        RESOURCE, seal_for(world.broker.identity, b"second key"),
        record=b"second record", owner_public_key=b"owner", policy=policy_for(world.td),
    )  # fmt: skip
    released = world.ask()
    assert (bytes(released.secret), released.secret_version) == (b"second key", 2)


OTHER_KEY = generate_key()
REFUSALS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    # what is wrong: (what the quote binds, what is sent, the code)
    "quote for another resource": ({"resource": "models/other"}, {}, "release.binding_mismatch"),
    "quote for another broker": (
        {"broker_spki_sha256": bytes(32)}, {}, "release.binding_mismatch",
    ),
    "HPKE key swapped": ({}, {"hpke_public_key": OTHER_KEY.public}, "release.binding_mismatch"),
    "boot id changed": ({}, {"boot_id": bytes(16)}, "release.binding_mismatch"),
    "quote for another nonce": ({"nonce": bytes(32)}, {}, "release.binding_mismatch"),
    "nonce never issued": ({}, {"nonce": bytes(range(32))}, "release.nonce_unknown"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_evidence_that_binds_something_else_is_refused(world: World, name: str) -> None:
    bind, sent, code = REFUSALS[name]
    with Wire(world) as wire:
        answer = wire.release(wire.request(generate_key(), bind=bind, **sent))
    assert answer == Answer(None, "PERMISSION_DENIED", code)
    (line,) = world.lines()
    assert (line["verdict"], line["code"]) == ("denied", code)


def test_a_nonce_of_another_resource_is_refused(world: World) -> None:
    with Wire(world) as wire:
        request = wire.request(generate_key(), nonce=wire.nonce("models/other"))
        answer = wire.release(request)
    assert answer.details == "release.nonce_other_resource"
    assert [line["code"] for line in world.lines()] == ["release.nonce_other_resource"]


def test_a_recorded_exchange_cannot_be_replayed(world: World) -> None:
    key = generate_key()
    with Wire(world) as wire:
        request = wire.request(key)
        first, second = wire.release(request), wire.release(request)
    assert first.sealed is not None
    assert second == Answer(None, "PERMISSION_DENIED", "release.nonce_used")
    assert [line["code"] for line in world.lines()] == ["released", "release.nonce_used"]
    assert world.key not in first.sealed
    assert world.key not in request.SerializeToString()
    # Whoever recorded it and holds another key reads nothing.
    sealed = v1_pb2.ReleaseResponse.FromString(first.sealed).sealed
    with pytest.raises(Refused):
        OTHER_KEY.open(sealed, b"")


def test_an_expired_nonce_is_refused(world: World) -> None:
    with Wire(world) as wire:
        request = wire.request(generate_key())
        world.clock.now += 60
        answer = wire.release(request)
    assert answer == Answer(None, "PERMISSION_DENIED", "release.nonce_expired")
    assert [line["code"] for line in world.lines()] == ["release.nonce_expired"]


def test_of_parallel_uses_of_one_nonce_exactly_one_wins(world: World) -> None:
    with Wire(world) as one, Wire(world) as two, ThreadPoolExecutor(2) as pool:
        for _ in range(10):
            request = one.request(generate_key())
            start = threading.Barrier(2)

            def use(
                wire: Wire,
                request: v1_pb2.ReleaseRequest = request,
                start: threading.Barrier = start,
            ) -> str:
                start.wait()
                answer = wire.release(request)
                return answer.details or answer.status

            assert sorted(pool.map(use, (one, two))) == ["OK", "release.nonce_used"]
    codes = [line["code"] for line in world.lines()]
    assert (codes.count("released"), codes.count("release.nonce_used")) == (10, 10)


def test_a_guest_with_another_measurement_is_denied_with_codes_only(world: World) -> None:
    stranger = SoftwareTd(world.platform, "another firmware")
    with Wire(world) as wire:
        answer = wire.release(wire.request(generate_key(), td=stranger))
    registers = [f"policy.{name}_unknown" for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2")]
    assert answer.status == "PERMISSION_DENIED"
    assert answer.details.split() == ["release.denied", *registers]
    (line,) = world.lines()
    assert [reason["code"] for reason in line["reasons"]] == registers
    mrtd = line["reasons"][0]
    assert mrtd["actual"] == stranger.report.mrtd.hex()
    assert world.td.report.mrtd.hex() in mrtd["expected"]


def test_a_guest_that_has_measured_something_is_denied(world: World) -> None:
    late = SoftwareTd(world.platform)
    late.extend(3, b"x" * 48)
    with pytest.raises(Refused) as caught:
        world.ask(late)
    assert caught.value.code == "release.denied"
    assert "policy.rtmr3_unknown" in caught.value.message
    assert late.report.rtmr3.hex() not in str(caught.value)


def test_a_platform_under_another_root_is_denied(world: World) -> None:
    stranger = SoftwareTd(SimulatedPlatform.new(utc_now()))
    with pytest.raises(Refused) as caught:
        world.ask(stranger)
    assert caught.value.code == "release.denied"
    (line,) = world.lines()
    assert line["code"] == "release.denied"
    assert line["reasons"][0]["code"].split(".")[0] in ("chain", "quote", "qe", "crl")
    assert line["reasons"][0]["code"] in caught.value.message


def test_a_policy_that_does_not_allow_simulation_denies_it(world: World) -> None:
    world.broker.put_secret(
        RESOURCE, seal_for(world.broker.identity, world.key),
        record=b"", owner_public_key=b"", policy=policy_for(world.td, simulation="denied"),
    )  # fmt: skip
    with pytest.raises(Refused) as caught:
        world.ask()
    assert "policy.simulation_denied" in caught.value.message


def test_an_intel_broker_denies_a_simulated_guest(
    broker: Broker, world: World, tmp_path: Path
) -> None:
    _, server, _, log = serve(broker, Verifier(INTEL), tmp_path / "collateral.json")
    try:
        with Wire(world, str(server.address)) as wire:
            answer = wire.release(wire.request(generate_key()))
    finally:
        server.stop()
    assert answer.sealed is None
    assert answer.details.startswith("release.denied ")
    (line,) = world.lines()
    assert (line["anchor"], line["code"]) == ("Intel", "release.denied")
    assert "SIMULATION" not in log.getvalue()


def test_unknown_resources_are_told_to_genuine_guests_only(world: World) -> None:
    stranger = SoftwareTd(SimulatedPlatform.new(utc_now()))
    for td, code in ((world.td, "release.resource_unknown"), (stranger, "release.denied")):
        with pytest.raises(Refused) as caught:
            world.ask(td, resource="models/absent")
        assert caught.value.code == code


def _published() -> list[tuple[str, bytes]]:
    found = [
        (str(path.relative_to(VECTORS)), path.read_bytes())
        for pattern in ("*/tdx_quote*", "*/*quote.bin", "*/sgx_quote", "*/*/*quote.dat")
        for path in sorted(VECTORS.glob(pattern))
        if path.suffix not in (".json", ".hex")
    ]
    if len(found) < 6:
        missing("the set of published quotes", "put the shared vectors beside the repository")
    return found


def test_published_quotes_get_nothing(world: World) -> None:
    with Wire(world) as wire:
        for name, quote in _published():
            answer = wire.release(wire.request(generate_key(), quote=quote))
            assert answer.sealed is None, name
            assert answer.details.startswith(("release.denied ", "release.binding")), name
    assert {line["verdict"] for line in world.lines()} == {"denied"}


@pytest.mark.parametrize(
    ("name", "now"),
    [
        ("tdx_quote", datetime(2025, 7, 1, tzinfo=UTC)),
        ("tdx_quote_td15ex", datetime(2026, 10, 20, tzinfo=UTC)),
    ],
)
def test_a_genuine_published_quote_in_its_time_is_not_fresh(
    broker: Broker, world: World, name: str, now: datetime
) -> None:
    """Intel's anchor and true collateral: all cryptography passes, and still nothing comes."""
    collateral = VECTORS / "dcap-qvl" / f"{name}_collateral.json"
    if not collateral.exists():
        missing("the set of published quotes", "put the shared vectors beside the repository")
    quote = (VECTORS / "dcap-qvl" / name).read_bytes()
    _, server, _, _ = serve(broker, Verifier(INTEL), collateral, now=lambda: now)
    try:
        with Wire(world, str(server.address)) as wire:
            answer = wire.release(wire.request(generate_key(), quote=quote))
    finally:
        server.stop()
    assert answer == Answer(None, "PERMISSION_DENIED", "release.binding_mismatch")
    (line,) = world.lines()
    assert (line["code"], line["tcb_status"]) == ("release.binding_mismatch", "UpToDate")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"resource": ""}, "resource.name_invalid"),
        ({"resource": "../etc"}, "resource.name_invalid"),
        ({"resource": "Models/Demo"}, "resource.name_invalid"),
        ({"resource": "m" * 129}, "resource.name_invalid"),
        ({"nonce": b"short"}, "release.request_malformed"),
        ({"boot_id": b""}, "release.request_malformed"),
        ({"hpke_public_key": bytes(1215)}, "release.request_malformed"),
        ({"quote": b""}, "release.request_malformed"),
        ({"quote": bytes(32 * 1024 + 1)}, "release.request_malformed"),
    ],
)
def test_a_malformed_request_is_named_and_recorded(
    world: World, change: dict[str, Any], code: str
) -> None:
    with Wire(world) as wire:
        request = wire.request(generate_key())
        for field, value in change.items():
            setattr(request, field, value)
        answer = wire.release(request)
    assert answer == Answer(None, "INVALID_ARGUMENT", code)
    (line,) = world.lines()
    assert (line["verdict"], line["code"]) == ("malformed", code)
    assert "resource" not in line or line["resource"] == RESOURCE


def test_an_hpke_key_that_is_no_key_is_refused_and_recorded_as_such(world: World) -> None:
    junk = b"\xff" * 1216  # coefficients out of range: no ML-KEM key (FIPS 203, section 7.2)
    with Wire(world) as wire:
        bind = {"hpke_public_key": junk}
        answer = wire.release(wire.request(generate_key(), bind=bind, hpke_public_key=junk))
    assert answer == Answer(None, "INVALID_ARGUMENT", "sealing.key_malformed")
    assert [line["verdict"] for line in world.lines()] == ["malformed"]


def test_messages_beyond_the_limit_do_not_reach_the_broker(world: World) -> None:
    with Wire(world) as wire:
        answer = wire.call(RELEASE_METHOD, bytes(64 * 1024 + 1))
        assert answer.status == "RESOURCE_EXHAUSTED"
        assert wire.call("/sealserve.broker.v1.KeyBroker/Nothing", b"").status == "UNIMPLEMENTED"
    assert world.lines() == []
    assert bytes(world.ask().secret) == world.key


def test_a_planted_key_is_found_nowhere(world: World) -> None:
    """Database, WAL, directory, logs, audit lines, errors, and every byte on the wire."""
    relay = Relay(world.server.address.port)
    through = f"127.0.0.1:{relay.port}"
    errors: list[str] = []
    released = world.ask(address=through)
    for td in (SoftwareTd(world.platform, "other"), SoftwareTd(SimulatedPlatform.new(utc_now()))):
        with pytest.raises(SealserveError) as caught:
            world.ask(td, address=through)
        errors.append(f"{caught.value!r} {caught.value} {caught.value.to_dict()}")
    relay.close()
    with Wire(world) as wire:
        answer = wire.release(wire.request(generate_key()))
    places = {
        "wire": bytes(relay.recorded),
        "message": answer.sealed or b"",
        "errors": "".join(errors).encode(),
        "log": world.log.getvalue().encode(),
        "repr": repr(released).encode() + repr(world.broker).encode(),
        **{str(path): path.read_bytes() for path in world.broker.root.iterdir()},
    }
    assert any(name.endswith("-wal") for name in places)
    assert len(places["wire"]) > 10_000
    assert bytes(released.secret) == world.key  # what we look for is what was released
    for name, content in places.items():
        for planted in (b"PLANTED-KEY", world.key[11:27], world.key[-16:].hex().encode()):
            assert planted not in content, name


def test_every_log_line_of_a_simulation_says_so(world: World) -> None:
    world.ask()
    with pytest.raises(Refused):
        world.ask(SoftwareTd(world.platform, "other"))
    with Wire(world) as wire:
        wire.call(CHALLENGE_METHOD, b"\xff")
    lines = world.log.getvalue().splitlines()
    assert len(lines) == 3
    assert all("SIMULATION" in line for line in lines)


def test_without_an_audit_line_there_is_no_release(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise Unavailable("store.unavailable", "the disk is full")

    monkeypatch.setattr(type(world.decide._audit), "append", fail)
    with pytest.raises(Unavailable) as caught:
        world.ask()
    assert caught.value.code == "release.not_recorded"
    monkeypatch.undo()
    assert world.lines() == []
    assert bytes(world.ask().secret) == world.key


def test_the_audit_line_is_on_disk_before_the_answer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the decision returns, a process of its own would already read the line."""
    seen: list[int] = []
    original = world.decide.release

    def watched(request: Any) -> Any:
        decision = original(request)
        with sqlite3.connect(f"file:{world.broker.root}/broker.db?mode=ro", uri=True) as other:
            row = other.execute("SELECT count FROM audit_head").fetchone()
        other.close()
        seen.append(row[0])
        return decision

    before = world.broker.audit.length()
    monkeypatch.setattr(world.decide, "release", watched)
    world.ask()
    assert seen == [before + 1]


def test_trouble_inside_the_broker_is_not_told_to_the_peer(world: World) -> None:
    with sqlite3.connect(world.broker.root / "broker.db") as connection:
        connection.execute("UPDATE secrets SET wrapped = zeroblob(92)")
    connection.close()
    with pytest.raises(Unavailable) as caught:
        world.ask()
    assert caught.value.code == "release.unavailable"
    (line,) = world.lines()
    assert line["verdict"] == "failed"
    assert line["reasons"][0]["code"] == "kek.unwrap_failed"


def test_a_bug_is_answered_and_recorded_without_its_text(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> bytes:
        raise RuntimeError(f"planted {world.key!r}")

    monkeypatch.setattr("sealserve.broker.release.seal", broken)
    with pytest.raises(Unavailable) as caught:
        world.ask()
    assert caught.value.code == "release.unavailable"
    (line,) = world.lines()
    assert line["reasons"][0]["code"] == "internal.unexpected"
    assert "RuntimeError at test_release.py" in line["reasons"][0]["message"]
    assert "planted" not in str(line) + world.log.getvalue()


def test_new_collateral_is_taken_up_and_bad_collateral_is_not(world: World, tmp_path: Path) -> None:
    path = tmp_path / "collateral.json"
    good = path.read_bytes()
    world.ask()
    path.write_bytes(b"{}")
    assert bytes(world.ask().secret) == world.key
    assert "collateral not read" in world.log.getvalue()
    path.write_bytes(world.platform.collateral(utc_now() - timedelta(days=40)))
    with pytest.raises(Refused) as caught:
        world.ask()
    assert "collateral.expired" in caught.value.message
    path.write_bytes(good)
    world.ask()
    path.unlink()
    world.ask()
    codes = [line["code"] for line in world.lines()]
    assert codes == ["released", "released", "release.denied", "released", "released"]
