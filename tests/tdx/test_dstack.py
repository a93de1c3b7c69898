"""dstack's published logs explain its published quotes, and only unchanged."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealserve.errors import InputError
from sealserve.tdx import ccel, dstack
from sealserve.tdx.quote import load_quote, parse_quote
from sealserve.tdx.replay import compare, named, replay_logs
from tests.vectors import read_vector, vector_path

REPORTS = ("dstack/quote-report.json", "dstack/tdx-lite-getquote.json")
EVENT = {"imr": 3, "event_type": 4, "digest": "07" * 48, "event": "", "event_payload": ""}


def explained(name: str, log: list[dict[str, Any]]) -> list[str]:
    """The registers of the report's quote that its log, changed like this, explains."""
    raw = json.dumps({"event_log": log}).encode()
    report = parse_quote(load_quote(vector_path(name))).report
    matches = compare(replay_logs(raw).registers, report)
    return [match.name for match in matches if match.matches]


def log_of(name: str) -> list[dict[str, Any]]:
    log: list[dict[str, Any]] = json.loads(json.loads(read_vector(name))["event_log"])
    return log


@pytest.mark.parametrize("name", REPORTS)
def test_the_logs_explain_all_four_registers_of_their_quotes(name: str) -> None:
    events = dstack.parse_log(read_vector(name))
    report = parse_quote(load_quote(vector_path(name))).report
    assert all(match.matches for match in compare(named(ccel.replay(events)), report))
    assert sum(event.register == 3 for event in events) in (8, 9)
    assert explained(name, log_of(name)) == ["rtmr0", "rtmr1", "rtmr2", "rtmr3"]


@pytest.mark.parametrize("name", REPORTS)
def test_any_change_is_noticed_in_its_register(name: str) -> None:
    log = log_of(name)
    others = ["rtmr0", "rtmr1", "rtmr2"]
    changed = {**log[-2], "event_payload": "00" + log[-2]["event_payload"][2:]}
    renamed = {**log[-1], "event": "system-steady"}
    for wrong in (
        [*log[:-2], changed, log[-1]],
        [*log[:-1], renamed],
        [*log[:-2], log[-1], log[-2]],
        log[:-1],
        [*log, log[-1]],
    ):
        assert explained(name, wrong) == others
    assert explained(name, log[1:]) == ["rtmr1", "rtmr2", "rtmr3"]


def test_the_digest_of_a_runtime_event_in_the_file_is_not_believed() -> None:
    name = REPORTS[0]
    lying = [
        {**entry, "digest": "00" * 48} if entry["imr"] == 3 else entry for entry in log_of(name)
    ]
    assert explained(name, lying) == ["rtmr0", "rtmr1", "rtmr2", "rtmr3"]


@pytest.mark.parametrize(
    "raw",
    [
        b"{}",
        b'{"event_log":1}',
        b'{"event_log":"1"}',
        b'{"event_log":"["}',
        b'{"event_log":[1]}',
        b'{"event_log":' + b"[" * 100000,
        b"{" + b"\xff" * 9,
        *(
            json.dumps({"event_log": [{**EVENT, **change}]}).encode()
            for change in (
                {"imr": 4},
                {"imr": -1},
                {"imr": True},
                {"imr": "0"},
                {"event_type": 2**32},
                {"event_type": 4.0},
                {"digest": "07"},
                {"digest": None},
                {"event_payload": "0"},
                {"event_payload": 7},
                {"event_type": 0x08000001, "event": 7},
                {"event_type": 0x08000001, "event": "\ud800"},
            )
        ),
    ],
)
def test_what_is_no_such_report_is_told(raw: bytes) -> None:
    with pytest.raises(InputError) as caught:
        dstack.parse_log(raw)
    assert caught.value.code == "eventlog.malformed"


def test_size_has_limits() -> None:
    for raw in (
        bytes(ccel.MAX_AREA_BYTES + 1),
        json.dumps({"event_log": [EVENT] * (ccel.MAX_BOOT_EVENTS + 1)}).encode(),
    ):
        with pytest.raises(InputError) as caught:
            dstack.parse_log(raw)
        assert caught.value.code == "eventlog.too_large"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(list(EVENT)), inner)
    ),
    max_leaves=8,
)


@given(JSON)
def test_any_json_gives_events_or_a_typed_error(value: Any) -> None:
    with suppress(InputError):
        dstack.parse_log(json.dumps({"event_log": value}).encode())
    with suppress(InputError):
        dstack.parse_log(
            json.dumps({"event_log": [{**EVENT, "event": value, "imr": value}]}).encode()
        )
