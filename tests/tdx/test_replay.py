"""Boot log and runtime log together, held against a quote."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sealserve.errors import InputError
from sealserve.tdx import eventlog
from sealserve.tdx.eventlog import RuntimeEvent, encode_log
from sealserve.tdx.quote import load_quote, parse_quote
from sealserve.tdx.replay import compare, replay_logs
from tests.simulated import report
from tests.tdx.boot_logs import Entry, acpi_table, encode
from tests.vectors import read_vector, vector_path

EVENTS = (RuntimeEvent("broker", b"b"), RuntimeEvent("sealed"))
BOOT = encode([Entry(1, 4, b"\1" * 48), Entry(4, 13, b"\2" * 48)])


def test_a_boot_log_explains_a_published_quote() -> None:
    replayed = replay_logs(
        read_vector("go-tdx-guest/ccel/ccel_data.dat"),
        table=read_vector("go-tdx-guest/ccel/ccel_table.dat"),
    )
    quote = load_quote(vector_path("go-tdx-guest/ccel/cos-113-tdx-quote.dat"))
    matches = compare(replayed.registers, parse_quote(quote).report)
    assert [(match.name, match.matches) for match in matches] == [
        (f"rtmr{index}", True) for index in range(4)
    ]
    assert len(replayed.to_dict()["boot_events"]) == 43


def test_a_runtime_log_alone_is_about_rtmr3() -> None:
    replayed = replay_logs(encode_log(EVENTS))
    assert dict(replayed.registers) == {"rtmr3": eventlog.replay(EVENTS)}
    (match,) = compare(replayed.registers, report(rtmr3=eventlog.replay(EVENTS)))
    assert match.matches
    (match,) = compare(replayed.registers, report(rtmr3=bytes(48)))
    assert match.to_dict()["matches"] is False


def test_a_runtime_log_goes_on_where_the_boot_log_ended() -> None:
    boot = replay_logs(BOOT).registers
    both = replay_logs(BOOT, table=acpi_table(len(BOOT)), runtime=encode_log(EVENTS))
    assert both.registers["rtmr0"] == boot["rtmr0"]
    expected = boot["rtmr3"]
    for event in EVENTS:
        expected = eventlog.extend(expected, event.digest)
    assert both.registers["rtmr3"] == expected
    assert both.runtime == EVENTS
    swapped = replay_logs(BOOT, runtime=encode_log(EVENTS[::-1]))
    assert swapped.registers["rtmr3"] != expected


def test_an_added_runtime_event_is_noticed() -> None:
    quoted = replace(report(), rtmr3=eventlog.replay(EVENTS))
    longer = replay_logs(encode_log((*EVENTS, RuntimeEvent("late"))))
    assert not compare(longer.registers, quoted)[0].matches


@pytest.mark.parametrize("option", ["table", "runtime"])
def test_a_runtime_log_has_nothing_beside_it(option: str) -> None:
    with pytest.raises(InputError) as caught:
        replay_logs(encode_log(EVENTS), **{option: b""})
    assert caught.value.code == "eventlog.two_runtime_logs"
