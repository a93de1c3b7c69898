"""The life of a secret: kinds, two live versions, expiry; each end is an end for guests."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import update

from sealserve.broker.administration import Administration
from sealserve.broker.deposit import seal_for
from sealserve.broker.principals import local_caller
from sealserve.broker.secrets import moment, read_expiry
from sealserve.broker.tables import SecretRow
from sealserve.certificates import key_pem
from sealserve.errors import InputError, Refused, SealserveError
from sealserve.wire.broker.admin import v1_pb2
from tests.broker.conftest import BOTH_STORES, RESOURCE, World, policy_for

pytestmark = BOTH_STORES


def _rotate(world: World, secret: bytes, **given: object) -> None:
    request = v1_pb2.SecretRotateRequest(
        secret=RESOURCE, sealed_key=seal_for(world.broker.identity, secret), **given
    )
    Administration(world.broker).perform(local_caller(), request)


def _put(world: World, name: str, secret: bytes = b"s", **given: object) -> dict[str, object]:
    request = v1_pb2.SecretPutRequest(
        resource=name, sealed_key=seal_for(world.broker.identity, secret),
        policy=policy_for(world.td), lease_seconds=600, **given,
    )  # fmt: skip
    return Administration(world.broker).perform(local_caller(), request)


@pytest.fixture
def passphrase(world: World) -> World:
    """The resource with a passphrase, version 1 of it, instead of a volume's key."""
    Administration(world.broker).perform(
        local_caller(), v1_pb2.ResourceRemoveRequest(resource=RESOURCE)
    )
    with world.broker.store.writing() as session:
        session.execute(SecretRow.__table__.delete().where(SecretRow.id == RESOURCE))
    _put(world, RESOURCE, b"first", kind="passphrase")
    return world


def test_during_a_rotation_both_versions_are_released(passphrase: World) -> None:
    world = passphrase
    _rotate(world, b"second")
    assert bytes(world.ask().secret) == b"second"
    assert bytes(world.ask(secret_version=1).secret) == b"first"
    assert [s.state for s in world.broker.store.secrets() if s.id == RESOURCE] == ["live", "live"]
    request = v1_pb2.SecretRetireRequest(secret=RESOURCE, version=1)
    Administration(world.broker).perform(local_caller(), request)
    with pytest.raises(Refused) as caught:
        world.ask(secret_version=1)
    assert caught.value.code == "release.version_withdrawn"
    assert bytes(world.ask().secret) == b"second"
    events = [json.loads(line) for line in world.broker.audit.lines()]
    rotated = next(e for e in events if e["event"] == "secret.rotate")
    assert (rotated["version_before"], rotated["secret_version"]) == (1, 2)


def test_the_version_before_ends_by_itself(passphrase: World) -> None:
    world = passphrase
    _rotate(world, b"second", retire_after_seconds=600)
    assert bytes(world.ask(secret_version=1).secret) == b"first"
    past = moment(datetime.now(UTC).timestamp() - 1)
    with world.broker.store.writing() as session:
        row = session.get(SecretRow, (RESOURCE, 1))
        assert row is not None
        assert row.expires is not None
        left = datetime.fromisoformat(row.expires) - datetime.now(UTC)
        assert timedelta(seconds=590) < left <= timedelta(seconds=600)
        row.expires = past
    with pytest.raises(Refused) as caught:
        world.ask(secret_version=1)
    assert caught.value.code == "release.version_withdrawn"


def test_a_rotation_never_lengthens_a_life(passphrase: World) -> None:
    world = passphrase
    soon = moment(datetime.now(UTC).timestamp() + 30)
    with world.broker.store.writing() as session:
        session.execute(update(SecretRow).where(SecretRow.id == RESOURCE).values(expires=soon))
    _rotate(world, b"second", retire_after_seconds=6000)
    with world.broker.store.reading() as session:
        row = session.get(SecretRow, (RESOURCE, 1))
        assert row is not None
        assert row.expires == soon


def test_an_expired_secret_is_not_released(world: World) -> None:
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    _put(world, "secrets/short", expires=tomorrow)
    assert bytes(world.ask(resource="secrets/short").secret) == b"s"
    past = moment(datetime.now(UTC).timestamp() - 1)
    with world.broker.store.writing() as session:
        session.execute(
            update(SecretRow).where(SecretRow.id == "secrets/short").values(expires=past)
        )
    with pytest.raises(Refused) as caught:
        world.ask(resource="secrets/short")
    assert caught.value.code == "release.version_withdrawn"


def test_kinds_are_held_to_what_can_be_seen(world: World) -> None:
    pem = key_pem(ec.generate_private_key(ec.SECP256R1()))
    assert _put(world, "secrets/tls", pem, kind="tls-key")["kind"] == "tls-key"
    assert _put(world, "secrets/any", b"\x00\xff")["kind"] == "opaque"
    assert bytes(world.ask(resource="secrets/any").secret) == b"\x00\xff"
    cases: list[tuple[str, dict[str, object]]] = [
        ("secret.kind_unknown", {"kind": "certificate"}),
        ("secret.kind_mismatch", {"kind": "volume-key"}),
        ("secret.kind_mismatch", {"kind": "passphrase", "record": b"r", "owner_public_key": b"o"}),
        ("secret.not_a_tls_key", {"kind": "tls-key"}),
        ("secret.expires_invalid", {"expires": "yesterday"}),
        ("secret.expires_invalid", {"expires": "2020-01-01"}),
        ("secret.expires_invalid", {"expires": "2999-01-01T00:00:00"}),
    ]
    for code, given in cases:
        with pytest.raises(InputError) as caught:
            _put(world, "secrets/bad", b"PLANTED", **given)
        assert caught.value.code == code
        assert "PLANTED" not in str(caught.value)
    assert world.broker.store.resource("secrets/bad") is None


def test_what_is_not_there_cannot_be_rotated(world: World) -> None:
    for name, code in (("secrets/none", "resource.unknown"), ("BAD", "resource.name_invalid")):
        request = v1_pb2.SecretRotateRequest(
            secret=name, sealed_key=seal_for(world.broker.identity, b"s")
        )
        with pytest.raises(SealserveError) as caught:
            Administration(world.broker).perform(local_caller(), request)
        assert caught.value.code == code


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("2999-01-31", "2999-01-31T00:00:00+00:00"),
        ("2999-01-31T02:00:00+02:00", "2999-01-31T00:00:00+00:00"),
        ("", None),
    ],
)
def test_a_time_of_expiry_has_one_form(text: str, read: str | None, store_kind: str) -> None:
    del store_kind
    assert read_expiry(text) == read


def test_a_name_that_is_there_is_refused_unless_it_shall_be_replaced(passphrase: World) -> None:
    """A put was once the next version by itself, and shut out who still used the one before."""
    world = passphrase
    with pytest.raises(Refused) as caught:
        _put(world, RESOURCE, b"second")
    assert caught.value.code == "secret.exists"
    assert "secret rotate" in str(caught.value.hint)
    assert bytes(world.ask().secret) == b"first"
    _put(world, RESOURCE, b"second", replace=True)
    assert bytes(world.ask().secret) == b"second"
    with pytest.raises(Refused) as withdrawn:
        world.ask(secret_version=1)
    assert withdrawn.value.code == "release.version_withdrawn"
    with pytest.raises(Refused) as unknown:
        _put(world, "models/nowhere", replace=True)
    assert unknown.value.code == "resource.unknown"
