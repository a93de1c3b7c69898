"""The simulated firmware's log, read by the production parser: it explains the TD's registers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealserve.simulator.boot_log import AREA_BYTES, BootLog, boot_log
from sealserve.simulator.td import DEFAULT_FIRMWARE, SoftwareTd, report_of
from sealserve.tdx import ccel
from sealserve.tdx.ccel import BootEvent, parse_log, parse_table
from sealserve.tdx.quote import parse_quote
from sealserve.tdx.replay import compare, named
from tests.simulated import platform

SEPARATOR, EFI_ACTION = 0x4, 0x80000007
LOG = boot_log(DEFAULT_FIRMWARE)

# First six bytes of RTMR0 to RTMR2, as tpm2-tools 5.4 (`tpm2 eventlog`) replays this log.
# It wants register 0 in the first event; TDX firmware writes 1 there.
REPLAYED = ["d7347271c700", "b9072c763ee8", "efefaccfbbb8"]


def test_another_tool_replays_the_log_to_the_same_registers() -> None:
    assert [value.hex()[:12] for value in LOG.registers] == REPLAYED


def events(log: BootLog = LOG) -> tuple[BootEvent, ...]:
    return parse_log(log.area, parse_table(log.table))


def test_the_log_explains_the_quote_of_a_fresh_td() -> None:
    td = SoftwareTd(platform(), "some firmware")
    quoted = parse_quote(td.quote(bytes(64))).report
    matches = compare(named(ccel.replay(events(td.boot_log))), quoted)
    assert [match.name for match in matches if match.matches] == [
        *("rtmr0", "rtmr1", "rtmr2", "rtmr3")
    ]
    assert quoted.rtmr3 == bytes(48)
    assert all(any(match.quoted) for match in matches[:3])


@pytest.mark.parametrize("left_out", range(len(events())))
def test_no_event_can_be_left_out(left_out: int) -> None:
    kept = events()[:left_out] + events()[left_out + 1 :]
    matches = compare(named(ccel.replay(kept)), report_of())
    register = events()[left_out].register
    assert [match.name for match in matches if not match.matches] == [f"rtmr{register}"]


def test_each_register_has_several_events_and_only_the_first_three_have_any() -> None:
    registers = [event.register for event in events()]
    assert {register: registers.count(register) for register in registers} == {0: 6, 1: 6, 2: 2}


def test_only_actions_and_separators_are_what_was_measured() -> None:
    for event in events():
        measured = event.unauthenticated_type in (SEPARATOR, EFI_ACTION)
        assert (event.measured_text is not None) == measured
        assert (event.unauthenticated_text == bytes(4)) == (event.unauthenticated_type == SEPARATOR)


def test_everything_but_separators_says_simulation() -> None:
    word = "SIMULATION"
    for event in events():
        text = event.unauthenticated_text
        said = word.encode() in text or word.encode("utf-16-le") in text
        assert said == (event.unauthenticated_type != SEPARATOR)
    assert word.encode() in LOG.table
    assert word.encode() in LOG.area[:80], "in the head"


def test_the_table_speaks_of_the_whole_area() -> None:
    assert parse_table(LOG.table).area_bytes == len(LOG.area) == AREA_BYTES
    assert LOG.area.endswith(b"\xff" * 64), "a reader can see where the log ends"


@given(st.text(st.characters(exclude_categories=["Cs"])), st.text("ab", max_size=2))
def test_the_label_decides_the_log(firmware: str, other: str) -> None:
    log = boot_log(firmware)
    assert log == boot_log(firmware)
    assert ccel.replay(events(log))[:3] == log.registers
    different = boot_log(other)
    assert (log.area == different.area) == (firmware == other)
    for mine, others in zip(log.registers, different.registers, strict=True):
        assert (mine == others) == (firmware == other)


def test_a_long_label_makes_no_longer_log() -> None:
    log = boot_log("x" * 100_000)
    assert len(log.area) == AREA_BYTES
    assert len(events(log)) == len(events())


def test_what_a_guest_extends_is_not_in_the_boot_log() -> None:
    td = SoftwareTd(platform())
    before = td.boot_log
    td.extend(2, b"d" * 48)
    assert td.boot_log == before
    matches = compare(named(ccel.replay(events(td.boot_log))), td.report)
    assert [match.name for match in matches if not match.matches] == ["rtmr2"]
