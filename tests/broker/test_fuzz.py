"""Requests of any shape: typed answers, one audit line for each, and no secret."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sealserve.attestation.sealing import generate_key
from sealserve.broker.introspection import HEALTH_METHOD
from sealserve.broker.protocol import CHALLENGE_METHOD, RELEASE_METHOD, RENEW_METHOD
from sealserve.broker.release import ReleaseRequest
from sealserve.broker.renewal import LeaseRenewal, RenewalRequest
from sealserve.errors import InputError, Refused
from sealserve.wire.broker import v1_pb2
from tests.broker.conftest import BOOT_ID, RESOURCE, World
from tests.broker.wire import Wire

_RELAXED = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def wire(world: World) -> Iterator[Wire]:
    with Wire(world) as opened:
        yield opened


@_RELAXED
@given(
    st.sampled_from([CHALLENGE_METHOD, RELEASE_METHOD, RENEW_METHOD, HEALTH_METHOD]),
    st.binary(max_size=300),
)
def test_any_bytes_on_the_wire(world: World, wire: Wire, method: str, raw: bytes) -> None:
    answer = wire.call(method, raw)
    assert answer.status in ("INVALID_ARGUMENT", "PERMISSION_DENIED", "OK", "NOT_FOUND")
    if answer.status == "OK":
        assert method in (CHALLENGE_METHOD, HEALTH_METHOD)
        assert method == HEALTH_METHOD or v1_pb2.ChallengeRequest.FromString(raw).resource
    else:
        assert answer.details.split(".")[0] in ("release", "resource", "lease", "unknown service")


_FIELDS = st.fixed_dictionaries(
    {
        "resource": st.one_of(st.just(RESOURCE), st.text(max_size=40)),
        "nonce": st.one_of(st.just("fresh"), st.binary(max_size=40), st.just(bytes(32))),
        "boot_id": st.one_of(st.just(BOOT_ID), st.binary(max_size=20)),
        "hpke_public_key": st.one_of(st.just(generate_key().public), st.binary(max_size=1300)),
        "quote": st.binary(max_size=2000),
    }
)


@_RELAXED
@given(_FIELDS)
def test_any_fields_of_a_request(world: World, fields: dict[str, Any]) -> None:
    if fields["nonce"] == "fresh":
        fields["nonce"] = world.decide.challenge(RESOURCE, "peer")
    before = world.broker.audit.length()
    decision = world.decide.release(ReleaseRequest(peer="peer", **fields))
    assert decision.answer is None
    assert isinstance(decision.error, (InputError, Refused))
    assert world.broker.audit.length() == before + 1


_RENEWAL = st.fixed_dictionaries(
    {
        "lease_id": st.one_of(st.just("0" * 32), st.text(max_size=40)),
        "resource": st.one_of(st.just(RESOURCE), st.text(max_size=40)),
        "nonce": st.one_of(st.just("fresh"), st.binary(max_size=40), st.just(bytes(32))),
        "boot_id": st.one_of(st.just(BOOT_ID), st.binary(max_size=20)),
        "quote": st.binary(max_size=2000),
    }
)


@_RELAXED
@given(_RENEWAL)
def test_any_fields_of_a_renewal(world: World, fields: dict[str, Any]) -> None:
    if fields["nonce"] == "fresh":
        fields["nonce"] = world.decide.challenge(RESOURCE, "peer")
    before = world.broker.audit.length()
    decision = LeaseRenewal(world.judge).renew(RenewalRequest(peer="peer", **fields))
    assert decision.answer is None
    assert isinstance(decision.error, (InputError, Refused))
    assert world.broker.audit.length() == before + 1


@_RELAXED
@given(st.data())
def test_a_good_quote_with_any_bit_flipped(world: World, wire: Wire, data: st.DataObject) -> None:
    request = wire.request(generate_key())
    quote = bytearray(request.quote)
    bit = data.draw(st.integers(0, len(quote) * 8 - 1))
    quote[bit // 8] ^= 1 << bit % 8
    request.quote = bytes(quote)
    answer = wire.release(request)
    if answer.status == "OK":
        # A quote is malleable outside its signed part (certificate framing); what
        # is attested is still this TD, this nonce and this key.
        assert bit // 8 > 636
    else:
        assert answer.details.startswith(("release.denied ", "release.binding_mismatch"))
