"""What a guest extends into RTMR3, and what a client may then demand."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest

from sealserve.attestation.appraisal import appraise
from sealserve.attestation.policy import Policy
from sealserve.errors import Refused
from sealserve.guest.measure import client_policy, guest_events, measure, require_unmeasured
from sealserve.tdx.eventlog import RuntimeEvent, extend, replay
from sealserve.tdx.guest import TdxGuest
from sealserve.volume.record import ModelEntry, VolumeRecord, record_digest
from tests.simulated import NOW, fitting_policy, report, verified

SPKI = bytes(range(32))
SIGNED = b'{"signed": "record"}'
MODELS = (
    ModelEntry(name="lite0", version=3, digest="ab" * 32),
    ModelEntry(name="resnet", version=1, digest="cd" * 32),
)


class FakeTd:
    """RTMR3 as the kernel keeps it."""

    def __init__(self, rtmr3: bytes = bytes(48)) -> None:
        self.rtmr3 = rtmr3

    def read_rtmr(self, index: int) -> bytes:
        assert index == 3
        return self.rtmr3

    def extend_rtmr3(self, digest: bytes) -> None:
        self.rtmr3 = extend(self.rtmr3, digest)

    def as_td(self) -> TdxGuest:
        return cast("TdxGuest", self)


def record() -> VolumeRecord:
    return VolumeRecord.model_construct(models=MODELS)


def test_the_events_name_broker_volume_models_and_an_end() -> None:
    events = guest_events(SPKI, SIGNED, record())
    assert [(event.name, event.payload) for event in events] == [
        ("broker", SPKI),
        ("volume", record_digest(SIGNED)),
        ("model", b"lite0\x003\x00" + b"\xab" * 32),
        ("model", b"resnet\x001\x00" + b"\xcd" * 32),
        ("sealed", b""),
    ]


def test_measuring_extends_the_register_to_what_the_log_replays_to() -> None:
    td = FakeTd()
    events = guest_events(SPKI, SIGNED, record())
    measure(td.as_td(), events)
    assert td.rtmr3 == replay(events)
    assert any(td.rtmr3)


def test_a_td_that_was_measured_already_is_refused() -> None:
    require_unmeasured(FakeTd().as_td())
    with pytest.raises(Refused) as caught:
        require_unmeasured(FakeTd(bytes(47) + b"\1").as_td())
    assert caught.value.code == "guest.already_measured"
    assert "reboot" in (caught.value.hint or "")


def test_a_clients_policy_demands_exactly_these_events() -> None:
    events = guest_events(SPKI, SIGNED, record())
    policy = client_policy(Policy(simulation="allowed"), events)
    assert [(each.name, each.payload) for each in policy.required_events] == [
        (event.name, event.payload.hex()) for event in events
    ]
    assert policy.simulation == "allowed"


@pytest.mark.parametrize("rtmr3", [None, "00" * 48])
def test_no_other_event_may_stand_between_them(rtmr3: str | None) -> None:
    """Also made from a release policy that names the untouched RTMR3 a guest is released at."""
    events = guest_events(SPKI, SIGNED, record())
    (image,) = fitting_policy().releases
    released = fitting_policy(releases=(replace(image, rtmr3=rtmr3),), required_events=())
    policy = client_policy(released, events)
    for log, codes in (
        (events, []),
        ((*events[:2], RuntimeEvent("shell"), *events[2:]), ["policy.rtmr3_unknown"]),
        ((events[1], events[0], *events[2:]), ["policy.rtmr3_unknown"]),
    ):
        td = verified(report=report(rtmr3=replay(log)))
        failures = appraise(policy, td, log, now=NOW).failures
        assert [failure.code for failure in failures] == codes
