"""The CBOR subset: one encoding for each value, bounded, nothing else accepted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealserve.attestation.cbor import MAX_CBOR_BYTES, Tag, decode, encode
from sealserve.errors import InputError


def depth(value: object) -> int:
    """How many values stand inside one another."""
    inside: list[object] = []
    if isinstance(value, Tag):
        inside = [value.value]
    elif isinstance(value, tuple):
        inside = list(value)
    elif isinstance(value, dict):
        inside = [*value.keys(), *value.values()]
    return 1 + max(map(depth, inside), default=0)


KEYS = st.one_of(st.integers(0, 2**64 - 1), st.binary(max_size=40), st.text(max_size=20))
VALUES = st.recursive(
    KEYS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(KEYS, inner, max_size=4),
        st.builds(Tag, st.integers(0, 2**64 - 1), inner),
    ),
    max_leaves=8,
).filter(lambda value: depth(value) <= 8)


@given(VALUES)
def test_values_survive_encoding(value: object) -> None:
    assert decode(encode(value)) == value  # type: ignore[arg-type]


@given(st.binary(max_size=200))
def test_any_bytes_are_the_encoding_of_their_value_or_a_typed_error(raw: bytes) -> None:
    try:
        value = decode(raw)
    except InputError:
        return
    assert encode(value) == raw


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        # RFC 8949, appendix A
        (0, "00"),
        (23, "17"),
        (24, "1818"),
        (100, "1864"),
        (1000, "1903e8"),
        (1000000, "1a000f4240"),
        (18446744073709551615, "1bffffffffffffffff"),
        (b"", "40"),
        (b"\x01\x02\x03\x04", "4401020304"),
        ("", "60"),
        ("IETF", "6449455446"),
        ("\u6c34", "63e6b0b4"),
        ((), "80"),
        ((1, (2, 3), (4, 5)), "8301820203820405"),
        ({}, "a0"),
        ({"a": 1, "b": (2, 3)}, "a26161016162820203"),
        (Tag(23, b"\x01\x02\x03\x04"), "d74401020304"),
        (Tag(60000, ()), "d9ea6080"),
    ],
)
def test_the_examples_of_the_rfc(value: object, encoded: str) -> None:
    assert encode(value).hex() == encoded  # type: ignore[arg-type]
    assert decode(bytes.fromhex(encoded)) == value


@pytest.mark.parametrize(
    "encoded",
    [
        "",
        "18",
        "1817",  # 23 in two bytes
        "190018",  # 24 in three
        "20",  # negative
        "f4",  # false
        "f6",  # null
        "f90000",  # a float
        "5f4100ff",  # indefinite bytes
        "9fff",  # indefinite array
        "bfff",  # indefinite map
        "1c",  # reserved
        "0000",  # two values
        "4201",  # cut short
        "61ff",  # not UTF-8
        "a2616201616101",  # keys out of order
        "a2616101616102",  # a key twice
        "a18000",  # an array as key
        "a1",  # a map cut short
    ],
)
def test_every_other_form_is_refused(encoded: str) -> None:
    with pytest.raises(InputError) as caught:
        decode(bytes.fromhex(encoded))
    assert caught.value.code == "cbor.malformed"


@pytest.mark.parametrize(
    "raw",
    [
        bytes(MAX_CBOR_BYTES + 1),
        b"\x81" * 9 + b"\0",
        b"\xd7" * 9 + b"\0",
        b"\x9b" + b"\xff" * 8,
        b"\xbb" + b"\xff" * 8,
        b"\x99\x04\x01" + bytes(1025),
    ],
)
def test_size_and_depth_have_limits(raw: bytes) -> None:
    with pytest.raises(InputError) as caught:
        decode(raw)
    assert caught.value.code == "cbor.too_large"


@pytest.mark.parametrize("value", [-1, 1 << 64, True, None, 1.0, {1.0: 1}, Tag(1 << 64, 0)])
def test_what_is_outside_the_data_model_is_not_encoded(value: object) -> None:
    with pytest.raises(InputError) as caught:
        encode(value)  # type: ignore[arg-type]
    assert caught.value.code == "cbor.unsupported"
