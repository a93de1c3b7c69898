"""Boot event logs: real ones replay to the registers of real quotes, and only unchanged."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import struct
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sealserve.errors import InputError
from sealserve.tdx import ccel
from sealserve.tdx.ccel import BootEvent, load_log, parse_log, parse_table
from sealserve.tdx.quote import load_quote, parse_quote
from sealserve.tdx.replay import compare, named
from tests.tdx.boot_logs import SHA384, Entry, acpi_table, encode, spec_id
from tests.vectors import read_vector, vector_path

COS_LOG = "go-tdx-guest/ccel/ccel_data.dat"
COS_TABLE = "go-tdx-guest/ccel/ccel_table.dat"
COS_QUOTE = "go-tdx-guest/ccel/cos-113-tdx-quote.dat"

# First six bytes of RTMR0 to RTMR3, as independent tools replay these logs.
REPLAYED = {
    COS_LOG: (43, "3fa2f61f395b", "f62dbc072bd5", "4969684dc873", "000000000000"),
    "dstack/ccel.bin": (18, "274c2344116d", "bdcf4ee0f7fd", "000000000000", "000000000000"),
    "trustee/ccel/CCEL_data": (5, "2dc712306a96", "0fa3be56af61", "000000000000", "000000000000"),
    "trustee/ccel/CCEL_data_gcp": (
        *(21, "3300980705ad", "204d49f78d29", "000000000000", "000000000000"),
    ),
    "trustee/ccel/CCEL_data_grub": (
        *(37, "cec0a104f691", "6c289e0c6218", "08919d017ba0", "000000000000"),
    ),
    "trustee/ccel/CCEL_data_grub_gke": (
        *(35, "bc9945139042", "c17cb288a4de", "334aeba2c985", "000000000000"),
    ),
    "trustee/ccel/CCEL_data_ovmf": (
        *(20, "8566f998798d", "775b9f6bfe99", "94eaf7a7bf39", "000000000000"),
    ),
    "trustee/ccel/CCEL_AAEL_alibabacloud": (
        *(87, "b796e1c11396", "3b0b906140fc", "35f2801338c1", "5e4ecd49d3c7"),
    ),
}


def cos_events() -> tuple[BootEvent, ...]:
    return load_log(vector_path(COS_LOG), parse_table(read_vector(COS_TABLE)))


def explains(events: tuple[BootEvent, ...]) -> bool:
    """Whether these events give all four registers of the COS quote."""
    report = parse_quote(load_quote(vector_path(COS_QUOTE))).report
    return all(match.matches for match in compare(named(ccel.replay(events)), report))


@pytest.mark.parametrize("name", REPLAYED)
def test_real_logs_replay_to_the_published_registers(name: str) -> None:
    events = load_log(vector_path(name))
    count, *registers = REPLAYED[name]
    assert len(events) == count
    assert [value.hex()[:12] for value in ccel.replay(events)] == registers


@pytest.mark.parametrize(
    "name", ["CCEL_data", "CCEL_data_grub", "CCEL_data_grub_gke", "CCEL_data_ovmf"]
)
def test_another_parser_reads_the_same_events(name: str) -> None:
    events = load_log(vector_path(f"trustee/ccel/{name}"))
    theirs = json.loads(read_vector(f"trustee/ccel/{name}_out.json"))["uefi_event_logs"]
    for ours, other in zip(events, theirs, strict=True):
        assert [ours.digest.hex()] == [each["digest"] for each in other["digests"]]
        assert ours.unauthenticated_text == base64.b64decode(other["event"])
        assert ours.register == (other["index"] - 1 if other["index"] else None)
        if ours.register is not None:
            assert (ours.measured_text is not None) == other["digest_matches_event"]


def test_the_cos_log_explains_all_four_registers_of_its_quote() -> None:
    assert explains(cos_events())


def test_one_register_can_be_explained_alone() -> None:
    """The same firmware, another boot: RTMR0 agrees, and RTMR2 has nothing in either."""
    report = parse_quote(load_quote(vector_path("dcap-qvl/quote-from-tappd.hex"))).report
    events = load_log(vector_path("dstack/ccel.bin"))
    matches = compare(named(ccel.replay(events)), report)
    assert [match.name for match in matches if match.matches] == ["rtmr0", "rtmr2"]


def test_a_log_of_another_machine_does_not_match() -> None:
    assert not explains(load_log(vector_path("trustee/ccel/CCEL_data")))


def test_every_dropped_doubled_or_changed_event_is_noticed() -> None:
    events = cos_events()
    for at, event in enumerate(events):
        if event.register is None:
            continue
        wrong = replace(event, digest=bytes([event.digest[0] ^ 1]) + event.digest[1:])
        assert not explains(events[:at] + events[at + 1 :])
        assert not explains((*events[: at + 1], *events[at:]))
        assert not explains((*events[:at], wrong, *events[at + 1 :]))
        elsewhere = replace(event, register=(event.register + 1) % 4)
        assert not explains((*events[:at], elsewhere, *events[at + 1 :]))


def test_every_swap_of_neighbours_in_one_register_is_noticed() -> None:
    events = cos_events()
    for register in range(4):
        own = [at for at, event in enumerate(events) if event.register == register]
        for one, other in itertools.pairwise(own):
            swapped = list(events)
            swapped[one], swapped[other] = swapped[other], swapped[one]
            same = events[one].digest == events[other].digest
            assert explains(tuple(swapped)) == same


def test_changed_text_changes_nothing_that_is_decided() -> None:
    raw = bytearray(read_vector(COS_LOG))
    events = cos_events()
    labels = [event for event in events if event.measured_text is None]
    assert labels, "this vector has unauthenticated labels"
    for event in labels:
        at = raw.find(event.unauthenticated_text)
        raw[at : at + len(event.unauthenticated_text)] = bytes(len(event.unauthenticated_text))
    changed = parse_log(bytes(raw))
    assert [e.unauthenticated_text for e in changed] != [e.unauthenticated_text for e in events]
    assert changed == events, "equality is about registers and digests only"
    assert hash(changed) == hash(events)
    assert explains(changed)


def test_text_is_measured_only_where_it_is_what_was_hashed() -> None:
    text = b"ExitBootServices"
    measured = BootEvent(1, hashlib.sha384(text).digest(), 0x80000007, text)
    assert measured.measured_text == text
    assert replace(measured, unauthenticated_text=b"other").measured_text is None
    assert replace(measured, register=None).measured_text is None
    assert measured.to_dict()["text_is_measured"] is True


def test_entries_without_action_extend_nothing() -> None:
    entries = [Entry(1, 4, b"\1" * 48), Entry(0, 3, bytes(48), b"note"), Entry(4, 3, b"\2" * 48)]
    events = parse_log(encode(entries))
    assert [event.register for event in events] == [0, None, None]
    assert ccel.replay(events) == ccel.replay(events[:1])
    assert ccel.replay(events)[0] == hashlib.sha384(bytes(48) + b"\1" * 48).digest()


@pytest.mark.parametrize("padding", [b"", b"\xff", b"\xff" * 4, b"\xff" * 99, b"\0", bytes(99)])
def test_both_kinds_of_padding_and_none_end_a_log(padding: bytes) -> None:
    entry = Entry(2, 4, b"\7" * 48, b"text")
    assert parse_log(encode([entry], padding)) == (BootEvent(1, b"\7" * 48, 4, b"text"),)


GOOD = Entry(1, 4, b"\7" * 48, b"text")


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "eventlog.truncated"),
        (encode([])[:40], "eventlog.truncated"),
        (encode([GOOD], b"")[:-1], "eventlog.truncated"),
        (encode([GOOD], b"\1"), "eventlog.truncated"),
        (encode([GOOD], b"\xff" * 64 + b"\0"), "eventlog.malformed"),
        (encode([GOOD], bytes(64) + b"\1"), "eventlog.malformed"),
        (encode([GOOD], b"\xff" * 8 + GOOD.encode()), "eventlog.malformed"),
        (GOOD.encode(), "eventlog.malformed"),
        (spec_id(name=b"Spec ID Event02\0"), "eventlog.malformed"),
        (spec_id([]), "eventlog.malformed"),
        (spec_id([(0x0B, 32)]), "eventlog.malformed"),
        (spec_id([(SHA384, 47)]), "eventlog.malformed"),
        (spec_id([(SHA384, 48), (SHA384, 48)]), "eventlog.malformed"),
        (spec_id([(SHA384, 48), (0x99, 8)]), "eventlog.malformed"),
        (spec_id([(n, 48) for n in range(9)]), "eventlog.malformed"),
        (encode([Entry(5, 4, bytes(48))]), "eventlog.malformed"),
        (encode([Entry(0, 4, bytes(48))]), "eventlog.malformed"),
        (
            spec_id() + struct.pack("<IIIH", 1, 4, 1, 0x0B) + bytes(40),
            "eventlog.malformed",
        ),
        (spec_id() + struct.pack("<III", 1, 4, 2**32 - 1), "eventlog.malformed"),
        (
            spec_id() + struct.pack("<IIIH48sI", 1, 4, 1, SHA384, b"", 2**32 - 1),
            "eventlog.too_large",
        ),
        (encode([GOOD] * (ccel.MAX_BOOT_EVENTS + 1)), "eventlog.too_large"),
        (bytes(ccel.MAX_AREA_BYTES + 1), "eventlog.too_large"),
    ],
)
def test_unsound_logs_are_refused(raw: bytes, code: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_log(raw)
    assert caught.value.code == code


def test_a_spec_id_event_may_name_its_vendor_and_other_digests() -> None:
    head = spec_id([(4, 20), (SHA384, 48)], vendor=b"td-shim")
    body = struct.pack("<IIIH20sH48sI", 3, 13, 2, 4, b"\1" * 20, SHA384, b"\2" * 48, 0)
    assert parse_log(head + body) == (BootEvent(2, b"\2" * 48, 13, b""),)


def test_the_table_says_where_the_log_is() -> None:
    table = parse_table(read_vector(COS_TABLE))
    assert table.area_bytes == 262144
    assert parse_table(acpi_table(4096)).area_bytes == 4096


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "eventlog.malformed"),
        (acpi_table(64) + b"\0", "eventlog.malformed"),
        (acpi_table(64)[:-1] + b"\1", "eventlog.malformed"),  # the checksum
        (acpi_table(64, cc_type=1), "eventlog.malformed"),  # AMD SEV
        (acpi_table(64, signature=b"TPM2"), "eventlog.malformed"),
        (acpi_table(2**40), "eventlog.too_large"),
    ],
)
def test_unsound_tables_are_refused(raw: bytes, code: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_table(raw)
    assert caught.value.code == code


def test_a_log_larger_than_its_table_says_is_refused() -> None:
    raw = encode([GOOD])
    assert parse_log(raw, parse_table(acpi_table(len(raw)))) == parse_log(raw)
    with pytest.raises(InputError, match="ACPI table"):
        parse_log(raw, parse_table(acpi_table(len(raw) - 1)))


@given(st.binary(max_size=256))
@example(b"\xff" * 64)
def test_any_bytes_after_the_head_give_events_or_a_typed_error(raw: bytes) -> None:
    with suppress(InputError):  # anything else fails the test
        assert len(parse_log(spec_id() + raw)) * 66 <= len(raw)


@given(st.data())
def test_a_real_log_with_any_bytes_changed_gives_events_or_a_typed_error(
    data: st.DataObject,
) -> None:
    raw = bytearray(read_vector("dstack/ccel.bin")[:2048])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] = data.draw(st.integers(0, 255))
    with suppress(InputError):
        assert len(ccel.replay(parse_log(bytes(raw)))) == 4


DIGESTS = st.binary(min_size=48, max_size=48)
KINDS = st.sampled_from([1, 3, 4, 13])
ENTRIES = st.lists(
    st.builds(Entry, st.integers(1, 4), KINDS, DIGESTS, st.binary(max_size=40)), max_size=8
)


@given(ENTRIES, st.sampled_from([b"", b"\xff" * 16, bytes(16)]))
def test_what_is_encoded_is_read_back(entries: list[Entry], padding: bytes) -> None:
    events = parse_log(encode(entries, padding))
    assert [(e.digest, e.unauthenticated_type, e.unauthenticated_text) for e in events] == [
        (entry.digest, entry.kind, entry.text) for entry in entries
    ]
