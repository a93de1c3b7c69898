"""The unsigned end of a quote: one right form, and the parts where dcap-qvl finds them too."""

from __future__ import annotations

from dataclasses import replace

import dcap_qvl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealserve.errors import InputError, Refused, SealserveError
from sealserve.tdx.quote import Quote, parse_quote
from sealserve.tdx.signature_data import PCK_CHAIN, split_signature_data
from tests.simulated import platform, report
from tests.vectors import read_vector

REAL = (
    "dcap-qvl/tdx_quote",
    "dcap-qvl/tdx_quote_td15ex",
    "trustee/tdx_quote_4.dat",
    "trustee/az-tdx-vtpm/td-quote.bin",
    "go-tdx-guest/ccel/cos-113-tdx-quote.dat",
)


@pytest.mark.parametrize("name", REAL)
def test_real_quotes(name: str) -> None:
    raw = read_vector(name)
    quote = parse_quote(raw)
    data = split_signature_data(quote)
    assert data.certification_type == PCK_CHAIN
    theirs = dcap_qvl.parse_quote(raw).cert_chain_pem_bytes()
    assert data.certification.rstrip(b"\0") == theirs.rstrip(b"\0")
    assert len(data.qe_auth_data) == 32
    assert data.qe_report.product_id == 2  # the TD quoting enclave
    assert data.qe_report.report_data[32:] == bytes(32)
    assert data.qe_report.mrsigner.hex().startswith("dc9e2a7c6f948f17")  # Intel's enclaves


def simulated() -> Quote:
    return parse_quote(platform().quote(report()))


def framed(data: bytes) -> Quote:
    """A quote with other signature data, as if its lengths had fitted so far."""
    good = simulated()
    return replace(good, raw=good.signed_part + len(data).to_bytes(4, "little") + data)


def good_data() -> bytes:
    good = simulated()
    return good.raw[len(good.signed_part) + 4 :]


@pytest.mark.parametrize("size", [0, 63, 133, 134, 500, 584, 620, 625])
def test_signature_data_that_ends_too_early(size: int) -> None:
    with pytest.raises(InputError) as caught:
        split_signature_data(framed(good_data()[:size]))
    assert caught.value.code == "quote.malformed"


def test_signature_data_that_does_not_fill_its_place() -> None:
    for data in (good_data() + b"\0", good_data()[:-1]):
        with pytest.raises(InputError) as caught:
            split_signature_data(framed(data))
        assert caught.value.code == "quote.malformed"


@pytest.mark.parametrize("kind", [0, 6, 7, 0xFFFF])
def test_pck_certificates_in_unknown_form(kind: int) -> None:
    data = bytearray(good_data())
    data[616:618] = kind.to_bytes(2, "little")
    with pytest.raises(Refused) as caught:
        split_signature_data(framed(bytes(data)))
    assert caught.value.code == "quote.certification_data"


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=1500))
def test_any_bytes_are_split_or_refused(data: bytes) -> None:
    try:
        split = split_signature_data(framed(data))
    except SealserveError as error:
        assert error.code.startswith("quote.")  # noqa: PT017
    else:
        assert split.qe_report.raw in data
