"""A broker of one's own for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sealserve.broker.directory import Broker, create, open_broker


@pytest.fixture
def broker_root(tmp_path: Path) -> Path:
    root = tmp_path / "broker"
    create(root, name="test broker", hosts=["127.0.0.1"])
    return root


@pytest.fixture
def broker(broker_root: Path) -> Iterator[Broker]:
    with open_broker(broker_root) as opened:
        yield opened
