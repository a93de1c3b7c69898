"""TensorFlow begins to make the models of these tests first: see `tests/background.py`."""

from __future__ import annotations

import pytest

from tests.serving.conftest import Making


@pytest.mark.begun_first
def test_models_are_being_made(making_models: Making) -> None:
    """They take it some ten seconds, most of them for TensorFlow itself to start."""
    assert making_models.process.poll() in (None, 0)
