"""The guest is booted before any other test: see `tests/background.py`."""

from __future__ import annotations

import pytest

from tests.kernel.conftest import Booted


@pytest.mark.begun_first
def test_a_guest_boots(booted: Booted) -> None:
    """It works for a minute or two, on a processor of its own where there are two."""
    assert booted.disk.is_file()
