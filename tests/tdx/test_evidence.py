"""Asking again: bounded in number and in time. Evidence in files: of one type or the other."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from sealserve.errors import InputError, Unavailable
from sealserve.tdx.evidence import (
    AzureEvidence,
    PassingTrouble,
    TdxEvidence,
    ask_again,
    load_evidence,
)


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


AZURE = AzureEvidence(b"quote", b"report")


def read(tmp_path: Path, content: bytes | str) -> TdxEvidence | AzureEvidence:
    path = tmp_path / "evidence"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return load_evidence(path)


def test_each_type_of_evidence_is_read_as_what_it_is(tmp_path: Path) -> None:
    printed = {"quote": b"quote".hex(), "hcl_report": b"report".hex(), "provider": "azure"}
    assert read(tmp_path, AZURE.encode()) == AZURE
    assert read(tmp_path, AZURE.encode() + b"\n") == AZURE
    assert read(tmp_path, json.dumps(printed, indent=2)) == AZURE
    assert read(tmp_path, json.dumps({"quote": b"quote".hex()})) == TdxEvidence(b"quote")
    assert read(tmp_path, b"quote".hex()) == TdxEvidence(b"quote")
    assert read(tmp_path, b"\4\0\2\0") == TdxEvidence(b"\4\0\2\0")


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (AZURE.encode().replace(b"hcl_report", b"hcl_Report"), "quote.malformed"),
        (AZURE.encode().replace(b",", b", "), "evidence.malformed"),
        (b'{"hcl_report":1}', "evidence.malformed"),
        (b'{"hcl_report":"00","quote":"zz"}', "evidence.malformed"),
        (b'{"hcl_report":', "evidence.malformed"),
        (b'{"hcl_report":' + b"[" * 100_000, "evidence.malformed"),
        (bytes(200_000), "file.too_large"),
    ],
)
def test_a_file_that_is_no_evidence_is_told(tmp_path: Path, content: bytes, code: str) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, content)
    assert caught.value.code == code
