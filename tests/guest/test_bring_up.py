"""What a guest does before it asks anybody for a key."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from sealserve.address import Address
from sealserve.broker.identity import BrokerIdentity
from sealserve.errors import InputError, Refused, Unavailable
from sealserve.guest import GuestConfig, up
from sealserve.tdx.detect import Choice, choice_of
from sealserve.volume.owner import init_owner, load_owner_public


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GuestConfig:
    monkeypatch.setattr("sealserve.guest.bring_up.forbid_core_dumps", lambda: None)
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
