"""Quotes are split as Intel lays them out, and only sound ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import dcap_qvl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealserve.errors import InputError, Refused, SealserveError
from sealserve.tdx.quote import (
    MAX_QUOTE_BYTES,
    encode_body,
    load_quote,
    parse_quote,
)
from tests.simulated import platform, report
from tests.vectors import read_vector, vector_path

REAL = [
    ("dcap-qvl/tdx_quote", 4, 2),
    ("dcap-qvl/tdx_quote_outdated", 5, 3),
    ("dcap-qvl/tdx_quote_td15ex", 5, 4),
    ("dcap-qvl/tdx-quote.hex", 4, 2),
    ("trustee/tdx_quote_4.dat", 4, 2),
    ("trustee/az-tdx-vtpm/td-quote.bin", 4, 2),
    ("go-tdx-guest/ccel/cos-113-tdx-quote.dat", 4, 2),
]


@pytest.mark.parametrize(("name", "version", "body_type"), REAL)
def test_real_quotes_read_as_the_library_reads_them(
    name: str, version: int, body_type: int
) -> None:
    raw = load_quote(vector_path(name))
    quote = parse_quote(raw)
    assert (quote.version, quote.body_type) == (version, body_type)
    theirs = dcap_qvl.parse_quote(raw).report
    ours = quote.report
    assert ours.mrtd == theirs.mr_td
    assert ours.mrseam == theirs.mr_seam
    assert ours.mrconfigid == theirs.mr_config_id
    assert ours.td_attributes == theirs.td_attributes
    assert ours.xfam == theirs.xfam
    assert [ours.rtmr0, ours.rtmr1, ours.rtmr2, ours.rtmr3] == [
        theirs.rt_mr0,
        theirs.rt_mr1,
        theirs.rt_mr2,
        theirs.rt_mr3,
    ]
    assert ours.report_data == theirs.report_data
    if body_type >= 3:
        assert ours.tee_tcb_svn2 == theirs.tee_tcb_svn2
        assert ours.mrservicetd == theirs.mr_service_td
    if body_type == 4:
        assert ours.td_id == theirs.td_id
        assert ours.cur_service_td_attributes == theirs.cur_service_td_attributes


@pytest.mark.parametrize("name", [name for name, _, _ in REAL])
def test_body_encodes_to_the_bytes_it_came_from(name: str) -> None:
    quote = parse_quote(load_quote(vector_path(name)))
    assert quote.signed_part.endswith(encode_body(quote.report, quote.body_type))


def test_zero_padding_is_allowed_and_left_out() -> None:
    raw = platform().quote(report())
    padded = parse_quote(raw.ljust(8000, b"\0"))
    assert padded == parse_quote(raw)
    assert padded.raw == raw


def test_identity_ignores_what_the_signature_does_not_cover() -> None:
    quote = parse_quote(platform().quote(report()))
    other = parse_quote(platform().quote(report()))  # ECDSA signatures differ each time
    assert quote.raw != other.raw
    assert quote.signed_digest == other.signed_digest


def _changed(offset: int, value: bytes) -> bytes:
    raw = bytearray(platform().quote(report()))
    raw[offset : offset + len(value)] = value
    return bytes(raw)


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (lambda: b"", "quote.truncated"),
        (lambda: platform().quote(report())[:-1], "quote.truncated"),
        (lambda: platform().quote(report())[:600], "quote.truncated"),
        (lambda: platform().quote(report()) + b"\0\0x", "quote.trailing_data"),
        (lambda: bytes(MAX_QUOTE_BYTES + 1), "quote.too_large"),
        (lambda: _changed(0, b"\x03\0"), "quote.unsupported_version"),
        (lambda: _changed(0, b"\x06\0"), "quote.unsupported_version"),
        (lambda: _changed(2, b"\x03\0"), "quote.key_type"),
        (lambda: _changed(4, b"\0\0\0\0"), "quote.not_tdx"),
        (lambda: _changed(4, b"\x82\0\0\0"), "quote.not_tdx"),
        (lambda: _changed(12, b"\0"), "quote.qe_vendor"),
        (lambda: _changed(764, b"\x05\0"), "quote.certification_data"),
        (lambda: _changed(766, b"\x01\0\0\0"), "quote.malformed"),
    ],
)
def test_unsound_quotes_are_refused(raw: object, code: str) -> None:
    with pytest.raises(SealserveError) as caught:
        parse_quote(raw())  # type: ignore[operator]
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("descriptor", "code"),
    [
        (b"\x01\x00\x80\x01\x00\x00", "quote.not_tdx"),
        (b"\x02\x00\x00\x00\x00\x00", "quote.malformed"),
        (b"\x09\x00\x48\x02\x00\x00", "quote.malformed"),
    ],
)
def test_version_5_bodies_that_are_not_a_td(descriptor: bytes, code: str) -> None:
    raw = bytearray(platform().quote(report(), body_type=2))
    raw[48:54] = descriptor
    with pytest.raises(SealserveError) as caught:
        parse_quote(bytes(raw))
    assert caught.value.code == code


def test_sgx_quote_is_refused_before_anything_else() -> None:
    with pytest.raises(Refused) as caught:
        parse_quote(read_vector("dcap-qvl/sgx_quote"))
    assert caught.value.code == "quote.not_tdx"


@given(st.binary(max_size=2048))
def test_any_bytes_give_a_quote_or_a_typed_error(raw: bytes) -> None:
    with pytest.raises(SealserveError):
        parse_quote(raw)


@given(st.integers(0, 4200), st.integers(0, 255), st.integers(0, 4300))
def test_mutants_give_a_quote_or_a_typed_error(offset: int, value: int, size: int) -> None:
    raw = bytearray(platform().quote(report(), body_type=4))
    raw[offset] = value
    try:
        quote = parse_quote(bytes(raw[:size]))
    except SealserveError:
        return
    assert bytes(raw).startswith(quote.raw)


def test_files_are_read_in_binary_and_hexadecimal_and_json(tmp_path: Path) -> None:
    raw = platform().quote(report())
    for content in (
        raw,
        raw.hex().encode(),
        f"0x{raw.hex()}\n".encode(),
        f'\n{{"quote": "{raw.hex()}", "more": [1]}}\n'.encode(),
    ):
        path = tmp_path / "quote"
        path.write_bytes(content)
        assert load_quote(path) == raw


@pytest.mark.parametrize(
    "text", ["{", "{}", '{"quote":1}', '{"quote":"zz"}', '{"quote":null}', '{"a":' * 20000]
)
def test_a_json_object_without_a_quote_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "quote"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_quote(path)
    assert caught.value.code == "quote.malformed"


@pytest.mark.parametrize(("start", "told"), [(b"\x06\0", False), (b"#!", True), (b"HC", True)])
def test_what_does_not_even_look_like_a_quote_is_told_so(start: bytes, told: bool) -> None:
    with pytest.raises(Refused) as caught:
        parse_quote(start + bytes(2000))
    assert caught.value.code == "quote.unsupported_version"
    assert ("does not look like" in caught.value.message) == told


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InputError) as caught:
        load_quote(path)
    assert caught.value.code == "file.too_large"


def test_a_field_of_the_wrong_length_is_not_encoded() -> None:
    with pytest.raises(InputError) as caught:
        encode_body(replace(report(), mrtd=bytes(47)), 2)
    assert caught.value.code == "quote.malformed"
