"""The two engines: atheris (coverage-guided) where it is installed, hypothesis elsewhere.

Both run in a process of their own, one for each target, which holds the limits:
an input that takes longer than :data:`SECONDS_PER_INPUT` or more memory than
:data:`MEMORY_BYTES` is a finding like any other.
"""

from __future__ import annotations

import importlib
import importlib.util
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Final

from fuzz.targets import Target, feed

__all__ = ["ENGINES", "MEMORY_BYTES", "SECONDS_PER_INPUT", "TooSlow", "default_engine"]

SECONDS_PER_INPUT: Final = 5
MEMORY_BYTES: Final = 2 << 30
"""Address space of the hypothesis engine; atheris is held to as much resident memory."""

_EXAMPLES_PER_ROUND: Final = 250
_LARGEST_EDIT: Final = 16


class TooSlow(BaseException):
    """An input took too long. No library may catch this on its way."""


def default_engine() -> str:
    """The best engine that is installed."""
    return "atheris" if importlib.util.find_spec("atheris") else "hypothesis"


def with_hypothesis(target: Target, seconds: float, artifacts: Path) -> int:
    """Random bytes and edited seeds, for some seconds; the number of inputs that ran.

    Raises:
        BaseException: the finding; its smallest input is in ``artifacts/input``.
    """
    hypothesis: Any = importlib.import_module("hypothesis")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGALRM, _too_slow)
    count = 0

    def once(data: bytes) -> None:
        nonlocal count
        count += 1
        signal.setitimer(signal.ITIMER_REAL, SECONDS_PER_INPUT)
        try:
            feed(target, data[: target.max_bytes])
        except BaseException:
            # Shrinking comes here again with ever smaller inputs: the last one stays.
            (artifacts / "input").write_bytes(data[: target.max_bytes])
            raise
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    end = time.monotonic() + seconds
    rounds = 0
    inputs = _inputs(target)
    limits = hypothesis.settings(
        max_examples=_EXAMPLES_PER_ROUND,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    while time.monotonic() < end:
        rounds += 1
        hypothesis.seed(rounds)(limits(hypothesis.given(inputs)(once)))()
    return count


def _inputs(target: Target) -> Any:
    """Any bytes, or a seed with a few edits: replaced, inserted, removed, cut, repeated."""
    from hypothesis import strategies as st

    place = st.integers(0, 1 << 16)
    piece = st.binary(max_size=_LARGEST_EDIT)
    edits = st.lists(st.tuples(st.sampled_from("risct"), place, piece), min_size=1, max_size=4)
    fresh = st.binary(max_size=min(target.max_bytes, 512))
    return fresh | st.builds(_edited, st.sampled_from(list(target.seeds())), edits)


def _edited(seed: bytes, edits: list[tuple[str, int, bytes]]) -> bytes:
    for kind, where, piece in edits:
        at = where % (len(seed) + 1)
        after = min(len(seed), at + max(1, len(piece)))
        seed = {
            "r": seed[:at] + piece + seed[at + len(piece) :],
            "i": seed[:at] + piece + seed[at:],
            "s": seed[:at] + seed[after:],
            "c": seed[:at],
            "t": seed[:after] + seed[at:after] * 64 + seed[after:],
        }[kind]
    return seed


def with_atheris(target: Target, seconds: float, artifacts: Path) -> int:
    """libFuzzer, guided by the coverage of sealserve's own code. Does not return.

    It ends the process itself, with a status that is not 0 after a finding; the
    input is in ``artifacts``, the number of inputs in its last line.
    """
    atheris: Any = importlib.import_module("atheris")
    corpus = artifacts / "corpus"
    corpus.mkdir(exist_ok=True)
    for number, each in enumerate(target.seeds()):
        (corpus / f"seed-{number}").write_bytes(each)
    options = [
        f"-max_total_time={max(1, round(seconds))}",
        f"-timeout={SECONDS_PER_INPUT}",
        f"-rss_limit_mb={MEMORY_BYTES >> 20}",
        f"-max_len={target.max_bytes}",
        f"-artifact_prefix={artifacts}/",
        "-print_final_stats=1",
        "-verbosity=1",
    ]

    def once(data: bytes) -> None:
        feed(target, data)

    atheris.Setup([sys.argv[0], *options, str(corpus)], once)
    atheris.Fuzz()
    raise AssertionError("libFuzzer returned")


ENGINES: dict[str, Callable[[Target, float, Path], int]] = {
    "atheris": with_atheris,
    "hypothesis": with_hypothesis,
}


def _too_slow(_number: int, _frame: FrameType | None) -> None:
    raise TooSlow(f"more than {SECONDS_PER_INPUT} s for one input")
