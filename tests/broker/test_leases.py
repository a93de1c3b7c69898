"""Leases over the wire: who may renew, who may not, and what the audit chain says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import update

from sealserve.attestation.binding import release_transcript, renewal_transcript, report_data_of
from sealserve.attestation.sealing import generate_key
from sealserve.broker import leases
from sealserve.broker.client import Released, request_renewal
from sealserve.broker.deposit import seal_for
from sealserve.broker.guest_events import guest_events
from sealserve.broker.leases import Leases
from sealserve.broker.protocol import RENEW_METHOD
from sealserve.broker.tables import LeaseRow, SecretRow
from sealserve.errors import InputError, Refused, SealserveError, Unavailable
from sealserve.simulator.td import SoftwareTd
from sealserve.tdx.eventlog import RuntimeEvent, replay
from sealserve.volume.record import (
    KEY_SIZE,
    HeaderPin,
    VerityParameters,
    VolumeRecord,
    key_id_of,
    sign_record,
)
from sealserve.wire.broker import v1_pb2
from tests.broker.conftest import BOOT_ID, BOTH_STORES, RESOURCE, World, policy_for
from tests.broker.wire import Answer, Wire
from tests.guest.test_measure import MODELS

HEADER = 16 * 1024 * 1024
RECORD = VolumeRecord(
    name="models",
    uuid="0f6ae7b6-2b1c-4a0e-9d3a-6f1b8a7c5d4e",
    version=1,
    created="2026-01-01T00:00:00Z",
    data_size=8 * 4096,
    header=HeaderPin(sha256="ab" * 32, size=HEADER),
    segment_offset=HEADER,
    verity=VerityParameters(
        data_blocks=HEADER // 4096 + 8,
        hash_offset=HEADER + 8 * 4096,
        salt="cd" * 32,
        root_hash="ef" * 32,
    ),
    key_id=key_id_of(bytes(range(KEY_SIZE))),
    models=MODELS,
)
SIGNED = sign_record(RECORD, Ed25519PrivateKey.from_private_bytes(bytes(32)))


@dataclass
class Holder:
    """A guest that was given a key and has opened its volume."""

    world: World
    td: SoftwareTd
    released: Released
    events: tuple[RuntimeEvent, ...]

    def measure(self) -> None:
        for event in self.events:
            self.td.extend(3, event.digest)

    def renew(self, **changes: Any) -> int:
        asked: dict[str, Any] = {
            "address": self.world.address,
            "identity": self.world.broker.identity,
            "lease_id": self.released.lease_id,
            "resource": RESOURCE,
            "quote_of": self.td.quote,
            "boot_id": BOOT_ID,
            "timeout": 20,
        }
        return request_renewal(**{**asked, **changes})

    def refused(self, **changes: Any) -> str:
        with pytest.raises(SealserveError) as caught:
            self.renew(**changes)
        return caught.value.code


@pytest.fixture
def holder(world: World) -> Holder:
    put(world, SIGNED)
    td = SoftwareTd(world.platform)
    events = guest_events(world.broker.identity.spki_sha256, SIGNED, RECORD)
    return Holder(world, td, world.ask(td), events)


def put(world: World, signed_record: bytes, **changes: Any) -> None:
    given: dict[str, Any] = {"policy": policy_for(world.td), "lease_seconds": 600, **changes}
    world.broker.put_secret(
        RESOURCE, seal_for(world.broker.identity, world.key),
        record=signed_record, owner_public_key=b"owner", **given,
    )  # fmt: skip


def codes(world: World) -> list[str]:
    world.broker.audit.verify()
    return [entry["code"] for entry in _renewals(world)]


def _renewals(world: World) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in world.broker.audit.lines()]
    return [entry for entry in entries if entry["event"] == "renewal"]


@BOTH_STORES
def test_a_release_gives_a_lease_and_names_it_in_its_audit_line(holder: Holder) -> None:
    (lease,) = Leases(holder.world.broker.store).list()
    (line,) = holder.world.lines()
    assert lease.id == line["lease"] == holder.released.lease_id
    assert (lease.resource, lease.secret_version, lease.state) == (RESOURCE, 2, "active")
    assert (lease.boot_id, lease.peer) == (BOOT_ID, "127.0.0.1")
    assert 599 < (lease.expires - lease.issued).total_seconds() < 601
    assert bytes(holder.world.key).hex() not in str(lease.to_dict())


@BOTH_STORES
def test_a_guest_that_opened_its_volume_renews(holder: Holder) -> None:
    before = Leases(holder.world.broker.store).get(holder.released.lease_id)
    holder.measure()
    assert holder.renew() == 600
    assert holder.renew() == 600
    after = Leases(holder.world.broker.store).get(holder.released.lease_id)
    assert before is not None
    assert after is not None
    assert after.expires > before.expires
    assert after.issued == before.issued
    first, second = _renewals(holder.world)
    assert (first["verdict"], first["lease"], first["secret_version"]) == ("renewed", after.id, 2)
    assert first["quote_sha256"] != second["quote_sha256"]


def test_rtmr3_must_be_exactly_what_follows_from_the_record(holder: Holder) -> None:
    assert holder.refused() == "release.denied"  # nothing measured
    for event in holder.events[:-1]:
        holder.td.extend(3, event.digest)
    assert holder.refused() == "release.denied"  # not sealed yet
    holder.td.extend(3, holder.events[-1].digest)
    assert holder.renew() == 600
    holder.td.extend(3, RuntimeEvent("model", b"something more").digest)
    assert holder.refused() == "release.denied"
    denied = _renewals(holder.world)[-1]
    assert [reason["code"] for reason in denied["reasons"]] == ["policy.rtmr3_unknown"]
    assert replay(holder.events).hex() in str(denied["reasons"][0]["expected"])


def test_another_brokers_or_volumes_events_do_not_do(holder: Holder) -> None:
    for event in guest_events(bytes(32), SIGNED, RECORD):
        holder.td.extend(3, event.digest)
    assert holder.refused() == "release.denied"


def test_a_secret_without_a_volume_is_renewed_by_an_untouched_td(world: World) -> None:
    put(world, b"")
    td = SoftwareTd(world.platform)
    holder = Holder(world, td, world.ask(td), ())
    assert holder.renew() == 600
    td.extend(3, bytes(48))
    assert holder.refused() == "release.denied"


def test_a_policys_own_start_of_rtmr3_is_where_the_events_follow(world: World) -> None:
    td = SoftwareTd(world.platform)
    td.extend(3, b"x" * 48)
    start = td.report.rtmr3
    policy = policy_for(td).replace(b"  rtmr2:", f"  rtmr3: {start.hex()}\n  rtmr2:".encode())
    put(world, SIGNED, policy=policy)
    events = guest_events(world.broker.identity.spki_sha256, SIGNED, RECORD)
    holder = Holder(world, td, world.ask(td), events)
    assert holder.refused() == "release.denied"
    holder.measure()
    assert holder.renew() == 600


def test_a_record_that_cannot_be_read_denies(world: World) -> None:
    holder = Holder(world, world.td, world.ask(), ())
    assert holder.refused() == "release.denied"
    assert _renewals(world)[0]["reasons"][0]["code"] == "record.malformed"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"boot_id": bytes(16)}, "release.lease_other_boot"),
        ({"lease_id": "0" * 32}, "release.lease_unknown"),
        ({"resource": "models/other"}, "release.lease_unknown"),
    ],
)
def test_only_the_lease_of_this_boot_and_resource(
    holder: Holder, change: dict[str, Any], code: str
) -> None:
    holder.measure()
    assert holder.refused(**change) == code
    assert codes(holder.world) == [code]


def test_a_malformed_lease_id_is_named_and_recorded(holder: Holder) -> None:
    malformed = ["", "0" * 31, "G" * 32, "0" * 33, "A" * 32]
    with Wire(holder.world) as wire:
        for lease_id in malformed:
            request = v1_pb2.RenewRequest(
                lease_id=lease_id, resource=RESOURCE, nonce=bytes(32), boot_id=BOOT_ID, quote=b"q"
            )
            answer = wire.call(RENEW_METHOD, request.SerializeToString())
            assert answer == Answer(None, "INVALID_ARGUMENT", "lease.id_invalid")
        assert wire.call(RENEW_METHOD, b"\xff").details == "release.request_malformed"
    assert codes(holder.world) == ["lease.id_invalid"] * len(malformed)


REPORTS: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "a quote made for a release": lambda bound: release_transcript(
        hpke_public_key=generate_key().public,
        **{name: bound[name] for name in ("nonce", "broker_spki_sha256", "resource", "boot_id")},
    ),
    "another lease": lambda bound: renewal_transcript(**{**bound, "lease_id": bytes(16)}),
    "another broker": lambda bound: renewal_transcript(
        **{**bound, "broker_spki_sha256": bytes(32)}
    ),
    "another nonce": lambda bound: renewal_transcript(**{**bound, "nonce": bytes(32)}),
    "another boot": lambda bound: renewal_transcript(**{**bound, "boot_id": bytes(16)}),
    "another resource": lambda bound: renewal_transcript(**{**bound, "resource": "models/other"}),
}


def test_a_quote_for_something_else_renews_nothing(holder: Holder) -> None:
    holder.measure()
    with Wire(holder.world) as wire:
        for name, report in REPORTS.items():
            nonce = wire.nonce()
            bound = {
                "nonce": nonce,
                "broker_spki_sha256": holder.world.broker.identity.spki_sha256,
                "lease_id": bytes.fromhex(holder.released.lease_id),
                "resource": RESOURCE,
                "boot_id": BOOT_ID,
            }
            request = v1_pb2.RenewRequest(
                lease_id=holder.released.lease_id, resource=RESOURCE, nonce=nonce,
                boot_id=BOOT_ID, quote=holder.td.quote(report_data_of(report(bound))),
            ).SerializeToString()  # fmt: skip
            answer = wire.call(RENEW_METHOD, request)
            assert answer == Answer(None, "PERMISSION_DENIED", "release.binding_mismatch"), name
            assert wire.call(RENEW_METHOD, request).details == "release.nonce_used", name


@BOTH_STORES
def test_a_revoked_lease_is_over(holder: Holder) -> None:
    holder.measure()
    store = holder.world.broker.store
    lease = Leases(store).revoke(holder.released.lease_id, by="a test")
    assert lease.state == "revoked"
    assert holder.refused() == "release.lease_revoked"
    assert Leases(store).revoke(lease.id, by="a test") == lease
    assert Leases(store).list() == []
    assert [each.state for each in Leases(store).list(active_only=False)] == ["revoked"]
    holder.world.broker.audit.verify()
    events = "".join(holder.world.broker.audit.lines())
    assert events.count("lease.revoke") == 1
    assert '"by":"a test"' in events


@BOTH_STORES
def test_a_lease_revoked_while_its_quote_is_looked_at_is_not_renewed(
    holder: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder.measure()
    store, original = holder.world.broker.store, leases.renew

    def late(*arguments: Any) -> bool:
        session = arguments[0]
        session.execute(update(LeaseRow).values(state="revoked"))
        return original(*arguments)

    monkeypatch.setattr("sealserve.broker.leases.renew", late)
    assert holder.refused() == "release.lease_revoked"
    assert codes(holder.world) == ["release.lease_revoked"]
    # What the transaction had done with it is undone; the line is there by itself.
    (lease,) = Leases(store).list()
    assert lease.state == "active"


@BOTH_STORES
def test_a_lease_that_has_ended_stays_ended(holder: Holder) -> None:
    holder.measure()
    store = holder.world.broker.store
    with store.writing() as session:
        session.execute(update(LeaseRow).values(expires=LeaseRow.expires - 601))
    assert holder.refused() == "release.lease_ended"
    with pytest.raises(Refused) as caught:
        Leases(store).revoke(holder.released.lease_id, by="a test")
    assert caught.value.code == "lease.ended"
    with pytest.raises(Refused) as unknown:
        Leases(store).revoke("0" * 32, by="a test")
    assert unknown.value.code == "lease.unknown"
    with pytest.raises(InputError):
        Leases(store).revoke("nonsense", by="a test")


@BOTH_STORES
def test_a_withdrawn_version_is_neither_released_nor_renewed(holder: Holder) -> None:
    holder.measure()
    with holder.world.broker.store.writing() as session:
        session.execute(update(SecretRow).where(SecretRow.version == 2).values(state="disabled"))
    assert holder.refused() == "release.version_withdrawn"
    with pytest.raises(Refused) as caught:
        holder.world.ask()
    assert caught.value.code == "release.version_withdrawn"


@BOTH_STORES
def test_during_a_rotation_each_version_has_its_own_record(world: World) -> None:
    put(world, SIGNED)
    put(world, b"")
    with world.broker.store.writing() as session:
        session.execute(update(SecretRow).values(state="live"))
    old, new = world.ask(secret_version=2), world.ask()
    assert (old.secret_version, old.record) == (2, SIGNED)
    assert (new.secret_version, new.record) == (3, b"")
    with pytest.raises(Refused) as caught:
        world.ask(secret_version=4)
    assert caught.value.code == "release.resource_unknown"
    td = SoftwareTd(world.platform)
    events = guest_events(world.broker.identity.spki_sha256, SIGNED, RECORD)
    holder = Holder(world, td, world.ask(td, secret_version=2), events)
    holder.measure()
    assert holder.renew() == 600


@BOTH_STORES
def test_without_its_audit_line_there_is_no_lease_and_no_renewal(
    holder: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder.measure()
    before = Leases(holder.world.broker.store).list()

    def fail(*_: object, **__: object) -> None:
        raise Unavailable("store.unavailable", "the disk is full")

    monkeypatch.setattr("sealserve.broker.audit.append", fail)
    assert holder.refused() == "release.not_recorded"
    with pytest.raises(Unavailable):
        holder.world.ask()
    monkeypatch.undo()
    assert Leases(holder.world.broker.store).list() == before
