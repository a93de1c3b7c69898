"""A broker that is watched."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from sealserve.broker.operation.chain_watch import ChainWatch
from sealserve.broker.operation.page import anyone
from sealserve.broker.operation.page_server import PageServer, bind_socket
from sealserve.broker.operation.watch import Watch
from tests.broker.conftest import World
from tests.broker.operation.pages import pages_of


@pytest.fixture
def watch(world: World, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Watch]:
    """Makes a watch over the world's broker; without keeping looks, so that each is new."""
    monkeypatch.setattr("sealserve.broker.operation.watch._FRESH", timedelta(seconds=-1))
    collateral = world.judge.collateral

    def make() -> Watch:
        return Watch(
            world.broker, ChainWatch(world.broker.audit), collateral.in_force, simulated=True
        )

    return make


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory whose name is short enough for a socket's."""
    made = Path(tempfile.mkdtemp(prefix="sealserve-page-"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def page(world: World, place: Path) -> Iterator[Path]:
    """The page's socket."""
    server = PageServer(pages_of(world).app(anyone), bind_socket(place / "s"))
    server.start()
    yield place / "s"
    server.stop()
