"""What a guest does before it asks anybody for a key."""

from __future__ import annotations

import io
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from sealserve.address import Address
from sealserve.broker.client import Released
from sealserve.broker.identity import BrokerIdentity
from sealserve.errors import InputError, Refused, Unavailable
from sealserve.guest import GuestConfig, bring_up, up
from sealserve.logs import make_log
from sealserve.provenance import load_trust, make_signing_key
from sealserve.tdx.detect import Choice, choice_of
from sealserve.volume.owner import init_owner, load_owner_key, load_owner_public
from sealserve.volume.provenance import Provenance
from sealserve.volume.record import sign_record
from tests.volume.test_record import example


@pytest.fixture
def config(tmp_path: Path) -> GuestConfig:
    _, public = init_owner(tmp_path / "owner")
    return GuestConfig(
        volume=tmp_path / "models.seal",
        resource="models/demo",
        broker=Address("127.0.0.1", 1),
        identity=cast("BrokerIdentity", None),  # nobody is asked in these tests
        owner_public_key=load_owner_public(public),
        driver="fuse",
        sysfs=tmp_path / "sys",
        state_dir=tmp_path / "state",
    )


def start(config: GuestConfig, **changes: object) -> None:
    def never(_ports: object) -> None:
        pytest.fail("this guest must not serve")

    up(replace(config, **changes), on_ready=never)  # type: ignore[arg-type]


def test_a_machine_that_is_no_td_is_told_what_it_lacks(config: GuestConfig) -> None:
    with pytest.raises(Unavailable) as caught:
        start(config)
    assert caught.value.code == "tdx.no_evidence"
    assert "configfs" in caught.value.message


def test_what_was_chosen_is_what_is_used(config: GuestConfig) -> None:
    with pytest.raises(Unavailable) as caught:
        start(config, provider=Choice.CONFIGFS)
    assert caught.value.code == "tdx.no_configfs"


def test_azures_evidence_gets_no_key(config: GuestConfig) -> None:
    with pytest.raises(Refused) as caught:
        start(config, provider=Choice.AZURE)
    assert caught.value.code == "guest.evidence_unsupported"


def test_an_unknown_way_is_named() -> None:
    with pytest.raises(InputError) as caught:
        choice_of("magic")
    assert caught.value.code == "tdx.provider_unknown"


def test_a_guest_that_cannot_check_the_models_opens_nothing(
    config: GuestConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record demands signatures; the library is not there: no mount, and the key is gone."""
    owner = load_owner_key(tmp_path / "owner" / "owner.key")
    trust = load_trust(make_signing_key(tmp_path / "signer")[1])
    raw = sign_record(example(provenance=Provenance.of(trust)), owner)
    released = Released(bytearray(b"k" * 32), 1, raw, 0)
    monkeypatch.setattr(bring_up, "request_release", lambda *_, **__: released)
    monkeypatch.setattr(
        bring_up, "mount_sealed", lambda *_, **__: pytest.fail("the volume was opened")
    )
    monkeypatch.setattr("sealserve.provenance.library.find_spec", lambda _: None)
    with ExitStack() as down, pytest.raises(Unavailable) as caught:
        bring_up._open_volume(
            replace(config, full_check=False),
            lambda _: b"quote",
            tmp_path / "mnt",
            down,
            make_log(io.StringIO()),
        )
    assert caught.value.code == "provenance.extra_missing"
    assert "sealserve[provenance]" in str(caught.value)
    assert released.secret == bytearray(32)
