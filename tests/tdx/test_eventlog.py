"""The runtime event log: one digest an event, one encoding a log."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealserve.errors import InputError
from sealserve.tdx.eventlog import (
    MAX_EVENTS,
    MAX_LOG_BYTES,
    RuntimeEvent,
    decode_log,
    encode_log,
    replay,
)

NAMES = st.from_regex(r"[a-z][a-z0-9_.-]{0,63}", fullmatch=True)
EVENTS = st.lists(st.builds(RuntimeEvent, NAMES, st.binary(max_size=64)), max_size=12)


def test_digest_is_what_the_docs_say() -> None:
    expected = hashlib.sha384(b"\x00\x00\x00\x05model" + b"payload").digest()
    assert RuntimeEvent("model", b"payload").digest == expected


def test_name_and_payload_do_not_run_into_each_other() -> None:
    assert RuntimeEvent("ab", b"c").digest != RuntimeEvent("a", b"bc").digest


def test_replay_extends_from_zero_in_order() -> None:
    first, second = RuntimeEvent("one"), RuntimeEvent("two")
    by_hand = hashlib.sha384(bytes(48) + first.digest).digest()
    by_hand = hashlib.sha384(by_hand + second.digest).digest()
    assert replay([first, second]) == by_hand
    assert replay([second, first]) != by_hand
    assert replay([]) == bytes(48)


@given(EVENTS)
def test_logs_survive_encoding(events: list[RuntimeEvent]) -> None:
    assert decode_log(encode_log(events)) == tuple(events)


@given(st.binary(max_size=256))
def test_any_bytes_give_a_log_or_a_typed_error(raw: bytes) -> None:
    try:
        events = decode_log(raw)
    except InputError:
        return
    assert encode_log(events) == raw


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}",
        b"[1]",
        b'[{"name":"a"}]',
        b'[{"name":"a","payload":"","more":1}]',
        b'[{"name":"a","payload":"0"}]',
        b'[{"name":"A","payload":""}]',
        b'[{"name":"a","payload":"AA"}]',  # not lower case
        b'[ {"name":"a","payload":""}]',  # white space
        b'[{"payload":"","name":"a"}]',  # order of keys
        b'[{"name":"a","name":"b","payload":""}]',  # one of two would win
        "[]".encode("utf-16"),
        b"[" * 60000,
    ],
)
def test_every_other_form_is_refused(raw: bytes) -> None:
    with pytest.raises(InputError) as caught:
        decode_log(raw)
    assert caught.value.code == "eventlog.malformed"


@pytest.mark.parametrize(
    "make",
    [
        lambda: RuntimeEvent("a", bytes(1025)),
        lambda: encode_log([RuntimeEvent("a")] * (MAX_EVENTS + 1)),
        lambda: encode_log([RuntimeEvent("a", bytes(1024))] * 64),
        lambda: decode_log(bytes(MAX_LOG_BYTES + 1)),
    ],
)
def test_size_has_limits(make: object) -> None:
    with pytest.raises(InputError) as caught:
        make()  # type: ignore[operator]
    assert caught.value.code == "eventlog.too_large"


def test_encoding_is_canonical_json() -> None:
    raw = encode_log([RuntimeEvent("broker", b"\xff"), RuntimeEvent("sealed")])
    assert raw == b'[{"name":"broker","payload":"ff"},{"name":"sealed","payload":""}]'
    assert json.loads(raw)[0]["name"] == "broker"
