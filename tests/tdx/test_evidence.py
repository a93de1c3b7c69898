"""Asking again: bounded in number and in time."""

from __future__ import annotations

import itertools

import pytest

from sealserve.errors import Unavailable
from sealserve.tdx.evidence import PassingTrouble, ask_again


def busy() -> int:
    raise PassingTrouble("busy")


def test_an_answer_ends_the_asking() -> None:
    pauses: list[float] = []
    assert ask_again(lambda: 7, sleep=pauses.append, where="here") == 7
    assert pauses == []


def test_pauses_double_and_end() -> None:
    pauses: list[float] = []
    with pytest.raises(Unavailable, match=r"8 attempts.*busy") as caught:
        ask_again(busy, sleep=pauses.append, where="here", clock=lambda: 0.0)
    assert caught.value.code == "tdx.quote_failed"
    assert caught.value.where == "here"
    assert len(pauses) == 7
    assert all(later == 2 * earlier for earlier, later in itertools.pairwise(pauses))


def test_slow_refusals_are_not_waited_for_many_times() -> None:
    """A kernel says ETIMEDOUT after 30 s: two of those are enough."""
    now = 0.0

    def slow() -> int:
        nonlocal now
        now += 30.0
        raise PassingTrouble("ETIMEDOUT")

    with pytest.raises(Unavailable, match=r"2 attempts.*ETIMEDOUT"):
        ask_again(slow, sleep=lambda _: None, where="here", clock=lambda: now)


def test_other_errors_are_not_asked_again() -> None:
    asked = []

    def broken() -> int:
        asked.append(1)
        raise Unavailable("tdx.no_device", "none")

    with pytest.raises(Unavailable) as caught:
        ask_again(broken, sleep=lambda _: None, where="here")
    assert caught.value.code == "tdx.no_device"
    assert len(asked) == 1
