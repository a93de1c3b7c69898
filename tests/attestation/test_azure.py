"""Azure evidence is bound without a gap: quote, runtime data, request."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sealserve.attestation.azure import bound_runtime_data
from sealserve.attestation.verifier import VerifiedTd
from sealserve.errors import InputError, Refused
from sealserve.tdx.quote import parse_quote
from tests.simulated import NOW, collateral, verified, verifier
from tests.tdx.azure_guest import hcl_report, quote_of
from tests.vectors import read_vector

DATA = bytes(range(64))
HCL = "trustee/az-tdx-vtpm/hcl-report.bin"


def verified_for(raw: bytes) -> VerifiedTd:
    """A quote for this report, verified for good."""
    return verifier().verify(quote_of(raw[32 : 32 + 1024]), collateral(), NOW)


def published() -> VerifiedTd:
    """The published quote's report, as if it had been verified: it has no collateral."""
    quote = parse_quote(read_vector("trustee/az-tdx-vtpm/td-quote.bin"))
    return verified(report=quote.report)


def test_a_published_quote_speaks_for_its_report() -> None:
    runtime = bound_runtime_data(published(), read_vector(HCL), bytes(64))
    assert runtime.user_data == bytes(64)
    assert runtime.ak_modulus.bit_length() == 2048


def test_a_verified_quote_speaks_for_what_was_asked() -> None:
    raw = hcl_report(DATA)
    assert bound_runtime_data(verified_for(raw), raw, DATA).user_data == DATA


def test_evidence_for_another_request_is_refused() -> None:
    raw = hcl_report(DATA)
    with pytest.raises(Refused) as caught:
        bound_runtime_data(verified_for(raw), raw, bytes(64))
    assert caught.value.code == "binding.azure_user_data"


def test_every_changed_byte_of_the_runtime_data_is_refused() -> None:
    raw = read_vector(HCL)
    td = published()
    for at in range(1236, 1236 + 1201, 13):
        changed = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
        with pytest.raises(Refused) as caught:
            bound_runtime_data(td, changed, bytes(64))
        assert caught.value.code == "binding.azure_runtime_data"


def test_the_unverifiable_tdreport_decides_nothing() -> None:
    raw = read_vector(HCL)
    changed = raw[:32] + bytes(1024) + raw[32 + 1024 :]
    assert bound_runtime_data(published(), changed, bytes(64)) == bound_runtime_data(
        published(), raw, bytes(64)
    )


def test_the_second_half_of_the_report_data_must_be_zero() -> None:
    td = published()
    longer = replace(td.report, report_data=td.report.report_data[:63] + b"\1")
    with pytest.raises(Refused) as caught:
        bound_runtime_data(replace(td, report=longer), read_vector(HCL), bytes(64))
    assert caught.value.code == "binding.azure_runtime_data"


def test_another_key_under_the_same_name_is_refused() -> None:
    raw = hcl_report(DATA)
    stolen = hcl_report(DATA, lambda runtime: runtime.replace(b'"n":"yJ', b'"n":"xJ'))
    with pytest.raises(Refused) as caught:
        bound_runtime_data(verified_for(raw), stolen, DATA)
    assert caught.value.code == "binding.azure_runtime_data"


def test_bound_but_unreadable_runtime_data_are_refused() -> None:
    raw = hcl_report(DATA, lambda runtime: runtime.replace(b"HCLAkPub", b"HCLXkPub"))
    with pytest.raises(InputError) as caught:
        bound_runtime_data(verified_for(raw), raw, DATA)
    assert caught.value.code == "azure.runtime_malformed"
