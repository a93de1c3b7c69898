"""A scripted kernel behind configfs-tsm: every trouble it may answer with, on request."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from sealserve.tdx import configfs
from tests.simulated import platform, report

__all__ = ["FakeKernel", "answer_for", "error", "fake_kernel"]

Answer = bytes | OSError | Callable[[bytes], bytes]
T = TypeVar("T")


def answer_for(data: bytes) -> bytes:
    """A good quote for this report data."""
    return platform().quote(report(report_data=data))


def error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class FakeKernel:
    """Directories are real, attributes are not. Scripts' last entries repeat.

    Attributes:
        answers: what reading ``outblob`` gives, in order.
        steps: what a write adds to ``generation``.
        provider: what reading ``provider`` gives, in order.
        asked: how often ``outblob`` was read.
        refusals: how often it answered EBUSY by itself, since it was asked in parallel.
        entered: called while a quote is being made.
    """

    def __init__(self, root: Path) -> None:
        self.reports = root / configfs.REPORTS
        self.reports.mkdir(parents=True)
        self.provider: list[bytes | OSError] = [b"tdx_guest\n"]
        self.answers: list[Answer] = [answer_for]
        self.steps = [1]
        self.first_generation = 0
        self.asked = 0
        self.refusals = 0
        self.entered: Callable[[], None] = lambda: None
        self._quoting = threading.Lock()
        self._inblobs: dict[Path, bytes] = {}
        self._generations: dict[Path, int] = {}

    def read(self, path: Path, limit: int = 4096) -> bytes:
        if self.reports not in path.parents:
            return _REAL_READ(path, limit)
        assert path.parent.is_dir()
        if path.name == "generation":
            return b"%d\n" % self._generations.get(path.parent, self.first_generation)
        if path.name == "provider":
            return _unless_error(_next(self.provider))[:limit]
        return self._make_quote(path.parent)[:limit]

    def write(self, path: Path, data: bytes) -> None:
        assert path.name == "inblob"
        request = path.parent
        self._inblobs[request] = data
        before = self._generations.get(request, self.first_generation)
        self._generations[request] = before + _next(self.steps)

    def _make_quote(self, request: Path) -> bytes:
        # One GetQuote at a time, as the TDX driver has it.
        if not self._quoting.acquire(blocking=False):
            self.refusals += 1
            raise error(errno.EBUSY)
        try:
            self.asked += 1
            self.entered()
            answer = _next(self.answers)
            if callable(answer):
                return answer(self._inblobs[request])
            return _unless_error(answer)
        finally:
            self._quoting.release()


_REAL_READ = configfs.read_attribute


@contextmanager
def fake_kernel(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKernel]:
    """A kernel below ``root``; at the end no request directory may be left."""
    kernel = FakeKernel(root)
    monkeypatch.setattr(configfs, "read_attribute", kernel.read)
    monkeypatch.setattr(configfs, "write_attribute", kernel.write)
    yield kernel
    assert list(kernel.reports.iterdir()) == [], "a request directory was left behind"


def _next(script: list[T]) -> T:
    return script.pop(0) if len(script) > 1 else script[0]


def _unless_error(answer: bytes | OSError) -> bytes:
    if isinstance(answer, OSError):
        raise answer
    return answer
