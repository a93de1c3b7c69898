"""Azure evidence is bound without a gap: quote, runtime data, request."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from sealserve.attestation.azure import bound_runtime_data, verify_azure
from sealserve.attestation.verifier import VerifiedTd
from sealserve.errors import InputError, Refused
from sealserve.tdx.evidence import AzureEvidence
from sealserve.tdx.quote import parse_quote
from tests.simulated import NOW, collateral, platform, report, verified, verifier
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


def evidence(raw: bytes, **registers: bytes) -> AzureEvidence:
    """As an Azure guest brings it: without SEPT_VE_DISABLE, RTMRs zero."""
    zero = {f"rtmr{index}": bytes(48) for index in range(4)}
    td = {"td_attributes": bytes(8), "report_data": raw[160:224], **zero, **registers}
    return AzureEvidence(platform().quote(report(**td)), raw)


def refusal(brought: AzureEvidence, report_data: bytes | None = DATA) -> str:
    with pytest.raises((Refused, InputError)) as caught:
        verify_azure(brought, verifier().anchor, collateral(), NOW, report_data)
    return caught.value.code


def test_evidence_is_verified_from_the_root_down_to_the_request() -> None:
    brought = evidence(hcl_report(DATA))
    found = verify_azure(brought, verifier().anchor, collateral(), NOW, DATA)
    assert found.runtime.user_data == DATA
    assert found.td.simulated
    assert json.loads(json.dumps(found.to_dict()))["runtime_data"]["user_data"] == DATA.hex()
    assert refusal(brought, bytes(64)) == "binding.azure_user_data"
    # What it answers may be left open, but not that it is of one piece.
    assert verify_azure(brought, verifier().anchor, collateral(), NOW, None) == found


def test_evidence_is_refused_at_the_first_link_that_does_not_hold() -> None:
    raw = hcl_report(DATA)
    debug = evidence(raw, td_attributes=bytes.fromhex("0100000000000000"))
    assert refusal(debug) == "td.debug"
    broken = evidence(raw)
    assert refusal(replace(broken, quote=broken.quote[:-9])) == "quote.truncated"
    assert refusal(replace(broken, hcl_report=hcl_report(bytes(64)))) == (
        "binding.azure_runtime_data"
    )
    assert refusal(replace(broken, hcl_report=b"HCLA")) == "azure.report_malformed"
    forged = bytearray(broken.quote)
    forged[200] ^= 1  # MRTD
    assert refusal(replace(broken, quote=bytes(forged))) == "quote.signature"


def test_the_primary_verifier_never_takes_an_azure_guest_for_a_tdx_guest() -> None:
    with pytest.raises(Refused) as caught:
        verifier().verify(evidence(hcl_report(DATA)).quote, collateral(), NOW)
    assert caught.value.code == "td.sept_ve_disable"
