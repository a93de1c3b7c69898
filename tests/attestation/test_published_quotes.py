"""Quotes that other projects published, of real machines, judged by both verifiers.

They are public: none of them may ever open anything. Genuine and up to date
is what they are, and nothing more.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from sealserve.attestation.collateral import Collateral
from sealserve.attestation.library import LibraryVerifier
from sealserve.attestation.reference import ReferenceVerifier
from sealserve.attestation.reference.td import check_td
from sealserve.attestation.verified import VerifiedTd, differences
from sealserve.attestation.verifier import INTEL, Verifier
from sealserve.errors import SealserveError
from sealserve.tdx.quote import load_quote, parse_quote
from tests.vectors import read_vector, vector_path

# Three sets of collateral, each with a day inside its window.
JULY = ("tdx_quote", "2025-07-01")  # platform B0C06F000000, Intel's knowledge nr 17
MARCH = ("tdx_quote_outdated", "2026-03-01")  # platform 90C06F000000, nr 18
OCTOBER = ("tdx_quote_td15ex", "2026-10-20")  # platform B0C06F000000, nr 20, with PCK chain


@dataclass(frozen=True)
class Row:
    """One quote, the collateral it is held against, and what both must say."""

    quote: str
    collateral: tuple[str, str]
    outcome: str


ROWS = (
    # Complete sets: the outcomes stand in the vectors' own README.
    Row("dcap-qvl/tdx_quote", JULY, "UpToDate"),
    Row("dcap-qvl/tdx_quote", ("tdx_quote", "2025-06-19"), "collateral.not_yet_valid"),
    Row("dcap-qvl/tdx_quote", ("tdx_quote", "2025-07-20"), "collateral.expired"),
    Row("dcap-qvl/tdx_quote_td15ex", OCTOBER, "UpToDate"),
    Row("dcap-qvl/tdx_quote_td15ex", (OCTOBER[0], "2026-10-08"), "collateral.not_yet_valid"),
    Row("dcap-qvl/tdx_quote_td15ex", (OCTOBER[0], "2026-11-08"), "collateral.expired"),
    Row("dcap-qvl/tdx_quote_outdated", MARCH, "tcb.no_matching_level"),
    Row("dcap-qvl/tdx_quote_outdated", (MARCH[0], "2026-02-18"), "collateral.not_yet_valid"),
    Row("dcap-qvl/tdx_quote_outdated", (MARCH[0], "2026-03-21"), "collateral.expired"),
    Row("dcap-qvl/sgx_quote", ("sgx_quote", "2025-07-01"), "quote.not_tdx"),
    # The same platform model as another quote's collateral: genuine, judged by that.
    Row("dstack/quote-report.json", MARCH, "UpToDate"),
    Row("dstack/tdx-lite-getquote.json", MARCH, "chain.not_yet_valid"),  # PCK issued later
    Row("dcap-qvl/tdx-quote.hex", JULY, "tcb.no_matching_level"),  # older than any level
    Row("dcap-qvl/quote-from-tappd.hex", JULY, "tcb.no_matching_level"),
    Row("dstack/tdx_quote", JULY, "tcb.no_matching_level"),
    # Without collateral of their platform.
    Row("go-tdx-guest/ccel/cos-113-tdx-quote.dat", JULY, "tcb.platform_mismatch"),
    Row("trustee/tdx_quote_4.dat", JULY, "tcb.platform_mismatch"),
    Row("trustee/az-tdx-vtpm/td-quote.bin", JULY, "tcb.platform_mismatch"),
    # This collateral brings another machine's PCK certificate.
    Row("dcap-qvl/tdx_quote", OCTOBER, "qe.signature"),
    Row("go-tdx-guest/ccel/cos-113-tdx-quote.dat", OCTOBER, "qe.signature"),
)  # fmt: skip


def published(name: str) -> bytes:
    if name.endswith(".json"):
        return bytes.fromhex(json.loads(read_vector(name))["quote"])
    return load_quote(vector_path(name))


def judged(verifier: object, row: Row) -> VerifiedTd | str:
    collateral, day = row.collateral
    documents = Collateral.load(vector_path(f"dcap-qvl/{collateral}_collateral.json"))
    now = datetime.fromisoformat(day).replace(tzinfo=UTC)
    try:
        return verifier.verify(published(row.quote), documents, now)  # type: ignore[attr-defined,no-any-return]
    except SealserveError as error:
        return error.code


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.quote} at {row.collateral[1]}")
def test_both_verifiers_give_the_row_s_outcome(row: Row) -> None:
    first = judged(LibraryVerifier(INTEL), row)
    second = judged(ReferenceVerifier(INTEL), row)
    if isinstance(first, VerifiedTd) and isinstance(second, VerifiedTd):
        assert differences(first, second) == ()
        assert first.tcb_status == row.outcome
        assert judged(Verifier(INTEL, require_both=True), row) == first
    else:
        assert (first, second) == (row.outcome, row.outcome)
        assert judged(Verifier(INTEL, require_both=True), row) == row.outcome


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("trustee/tdx_quote_4.dat", "td.debug"),
        ("trustee/az-tdx-vtpm/td-quote.bin", "td.sept_ve_disable"),
    ],
)
def test_real_tds_that_are_refused_for_how_they_were_launched(name: str, code: str) -> None:
    """There is no collateral for these two; the check of the TD itself needs none."""
    with pytest.raises(SealserveError) as caught:
        check_td(parse_quote(published(name)).report)
    assert caught.value.code == code
