"""Fixtures that every test may ask for."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from sealserve import hardening

ROOT = Path(__file__).parent.parent
IN_CI = os.environ.get("CI") == "true"


def missing(what: str, remedy: str) -> None:
    """Skip with the reason on a newcomer's machine; fail in CI, where all must be there."""
    message = f"{what} is missing: {remedy}"
    if IN_CI:
        pytest.fail(message)
    pytest.skip(message)


def pytest_configure() -> None:
    """Give the tests' processes signals as a terminal does, below ``nohup`` and ``&`` too.

    What is ignored here would be ignored there; a handler does not outlive exec(2).
    """
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


@pytest.fixture(scope="session", autouse=True)
def _this_process_may_leave_a_core() -> Iterator[None]:
    """Some tests call the program within this process, whose limits others inherit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardening, "forbid_core_dumps", lambda: None)
        yield


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what works on by itself: an emulated machine, TensorFlow's models."""
    items.sort(key=lambda item: item.get_closest_marker("begun_first") is None)


@pytest.fixture(scope="session")
def oracle() -> Path:
    """The Python of the virtual environment that holds TensorFlow and its client stubs."""
    python = ROOT / ".venv-oracle" / "bin" / "python"
    if not python.exists():
        missing("the TensorFlow oracle", "run `make test`, which installs it")
    return python
