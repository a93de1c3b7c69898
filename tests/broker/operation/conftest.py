"""A broker that is watched."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from sealserve.broker.operation.watch import Watch
from tests.broker.conftest import World


@pytest.fixture
def watch(world: World, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Watch]:
    """Makes a watch over the world's broker; without keeping looks, so that each is new."""
    monkeypatch.setattr("sealserve.broker.operation.watch._FRESH", timedelta(seconds=-1))
    collateral = world.judge.collateral

    def make() -> Watch:
        return Watch(world.broker, collateral.current, simulated=True)

    return make
