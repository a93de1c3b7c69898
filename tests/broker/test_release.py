"""Releases against a real broker server over TLS, and every way they must fail."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import pytest

from sealserve.attestation import policy_file
from sealserve.attestation.policy import Release
from sealserve.attestation.reference import ReferenceVerifier
from sealserve.attestation.sealing import generate_key
from sealserve.attestation.verifier import INTEL, Anchor, Verifier
from sealserve.broker.audit import describe
from sealserve.broker.deposit import seal_for
from sealserve.broker.directory import Broker
from sealserve.broker.protocol import RELEASE_METHOD
from sealserve.errors import InputError, Refused
from sealserve.simulator.platform import SimulatedPlatform
from sealserve.simulator.td import SoftwareTd
from sealserve.wire.broker import v1_pb2
from sealserve.wire.limits import MAX_RECORD_BYTES
from tests.attestation.test_published_quotes import ROWS, Row, published
from tests.broker.conftest import (
    BOTH_STORES,
    REGISTERS,
    RESOURCE,
    World,
    policy_for,
    serve,
    utc_now,
)
from tests.broker.wire import Answer, Wire
from tests.vectors import read_vector, vector_path

PUBLISHED = (
    "dcap-qvl/tdx_quote",
    "dcap-qvl/tdx_quote_outdated",
    "dcap-qvl/tdx_quote_td15ex",
    "dcap-qvl/sgx_quote",
    "go-tdx-guest/ccel/cos-113-tdx-quote.dat",
    "trustee/tdx_quote_4.dat",
    "trustee/az-tdx-vtpm/td-quote.bin",
)


@BOTH_STORES
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


@BOTH_STORES
@pytest.mark.parametrize("name", REFUSALS)
def test_evidence_that_binds_something_else_is_refused(world: World, name: str) -> None:
    bind, sent, code = REFUSALS[name]
    with Wire(world) as wire:
        answer = wire.release(wire.request(generate_key(), bind=bind, **sent))
    assert answer == Answer(None, "PERMISSION_DENIED", code)
    (line,) = world.lines()
    assert (line["verdict"], line["code"]) == ("denied", code)


@BOTH_STORES
def test_a_nonce_of_another_resource_is_refused(world: World) -> None:
    with Wire(world) as wire:
        request = wire.request(generate_key(), nonce=wire.nonce("models/other"))
        answer = wire.release(request)
    assert answer.details == "release.nonce_other_resource"
    assert [line["code"] for line in world.lines()] == ["release.nonce_other_resource"]


@BOTH_STORES
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


@BOTH_STORES
def test_an_expired_nonce_is_refused(world: World) -> None:
    with Wire(world) as wire:
        request = wire.request(generate_key())
        world.pass_time(60)
        answer = wire.release(request)
    assert answer == Answer(None, "PERMISSION_DENIED", "release.nonce_expired")
    assert [line["code"] for line in world.lines()] == ["release.nonce_expired"]


@BOTH_STORES
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
    registers = [f"policy.{name}_unknown" for name in REGISTERS]
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
    text = describe(world.lines()[0])
    assert "denied models/demo from 127.0.0.1 SIMULATION" in text.splitlines()[0]
    assert f"policy.rtmr3_unknown: expected {'00' * 48} (release test), found" in text
    assert late.report.rtmr3.hex() in text


def test_a_policy_may_name_the_runtime_register_itself(world: World) -> None:
    late = SoftwareTd(world.platform)
    late.extend(3, b"x" * 48)
    registers = {name: getattr(late.report, name).hex() for name in (*REGISTERS, "rtmr3")}
    policy = policy_file.parse(policy_for(late))
    named = replace(policy, releases=(Release(label="late", **registers),))
    world.broker.put_secret(
        RESOURCE, seal_for(world.broker.identity, world.key),
        record=b"", owner_public_key=b"", policy=policy_file.dump(named).encode(),
    )  # fmt: skip
    assert bytes(world.ask(late).secret) == world.key
    with pytest.raises(Refused):
        world.ask()


@BOTH_STORES
def test_the_largest_secret_and_record_fit_into_an_answer(world: World) -> None:
    secret, record = bytes(range(256)) * 16, b"r" * MAX_RECORD_BYTES
    world.broker.put_secret(
        RESOURCE, seal_for(world.broker.identity, secret),
        record=record, owner_public_key=b"", policy=policy_for(world.td),
    )  # fmt: skip
    released = world.ask()
    assert (bytes(released.secret), released.record) == (secret, record)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"record": bytes(MAX_RECORD_BYTES + 1)}, "resource.record_too_large"),
        ({"lease_seconds": 0}, "resource.lease_invalid"),
        ({"lease_seconds": 2**31}, "resource.lease_invalid"),
        ({"policy": b"surprise: 1"}, "policy.malformed"),
        ({"policy": b"\xff\xfe"}, "policy.malformed"),
        ({"policy": b"required_events: [{name: sealed}]"}, "resource.policy_needs_events"),
        ({"resource": "Models"}, "resource.name_invalid"),
    ],
)
def test_a_deposit_that_could_not_work_is_not_taken(
    world: World, change: dict[str, Any], code: str
) -> None:
    given: dict[str, Any] = {
        "resource": RESOURCE, "record": b"", "owner_public_key": b"",
        "policy": policy_for(world.td), **change,
    }  # fmt: skip
    before = world.broker.store.secrets()
    with pytest.raises(InputError) as caught:
        world.broker.put_secret(sealed_key=seal_for(world.broker.identity, b"k"), **given)
    assert caught.value.code == code
    assert world.broker.store.secrets() == before


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
    served = serve(broker, Verifier(INTEL), tmp_path / "collateral.json")
    server, log = served.server, served.log
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


def test_a_broker_may_require_both_verifiers(
    broker: Broker, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both accept: released, and the audit says who judged. One refuses: nothing goes out."""
    verifier = Verifier(Anchor.simulation(world.platform.pki.root_der), require_both=True)
    server = serve(broker, verifier, tmp_path / "collateral.json").server

    def refuse(*_: object) -> NoReturn:
        raise Refused("tcb.revoked", "the second verifier says no")

    try:
        released = world.ask(address=str(server.address))
        monkeypatch.setattr(ReferenceVerifier, "judge", refuse)
        with pytest.raises(Refused) as caught:
            world.ask(address=str(server.address))
    finally:
        server.stop()
    assert bytes(released.secret) == world.key
    assert caught.value.code == "release.denied"
    assert "quote.verifiers_disagree" in caught.value.message
    yes, no = world.lines()
    assert yes["verifiers"] == no["verifiers"] == ["dcap-qvl", "reference"]
    assert no["reasons"][0]["code"] == "quote.verifiers_disagree"


@BOTH_STORES
def test_unknown_resources_are_told_to_genuine_guests_only(world: World) -> None:
    stranger = SoftwareTd(SimulatedPlatform.new(utc_now()))
    for td, code in ((world.td, "release.resource_unknown"), (stranger, "release.denied")):
        with pytest.raises(Refused) as caught:
            world.ask(td, resource="models/absent")
        assert caught.value.code == code


def test_published_quotes_get_nothing(world: World) -> None:
    with Wire(world) as wire:
        for name in PUBLISHED:
            answer = wire.release(wire.request(generate_key(), quote=read_vector(name)))
            assert answer.sealed is None, name
            assert answer.details.startswith(("release.denied ", "release.binding")), name
    assert {line["verdict"] for line in world.lines()} == {"denied"}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.quote} by {row.collateral[0]}")
def test_a_published_quote_gets_nothing_and_its_own_code(
    broker: Broker, world: World, row: Row
) -> None:
    """Intel's anchor and true collateral: at best all cryptography passes, and nothing comes."""
    collateral, day = row.collateral
    genuine = row.outcome == "UpToDate"
    server = serve(
        broker,
        Verifier(INTEL, require_both=True),
        vector_path(f"dcap-qvl/{collateral}_collateral.json"),
        now=lambda: datetime.fromisoformat(day).replace(tzinfo=UTC),
    ).server
    try:
        with Wire(world, str(server.address)) as wire:
            answer = wire.release(wire.request(generate_key(), quote=published(row.quote)))
    finally:
        server.stop()
    assert answer.sealed is None
    (line,) = world.lines()
    if genuine:
        assert answer == Answer(None, "PERMISSION_DENIED", "release.binding_mismatch")
        assert (line["code"], line["tcb_status"]) == ("release.binding_mismatch", "UpToDate")
    else:
        assert answer == Answer(None, "PERMISSION_DENIED", f"release.denied {row.outcome}")
        assert [reason["code"] for reason in line["reasons"]] == [row.outcome]


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
