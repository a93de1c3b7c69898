"""What is genuine: real quotes of real machines, and every way in which a quote is not."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealserve.attestation import admission
from sealserve.attestation.collateral import MAX_COLLATERAL_BYTES, Collateral
from sealserve.attestation.library import LibraryVerifier
from sealserve.attestation.verifier import INTEL, Anchor, Verifier
from sealserve.errors import InputError, InternalError, Refused, SealserveError
from sealserve.simulator.platform import CollateralOptions, SimulatedPlatform
from sealserve.simulator.td import report_of
from sealserve.tdx.quote import parse_quote
from tests.simulated import ISSUED, NOW, collateral, platform, report, verifier
from tests.vectors import read_vector

SECOND = timedelta(seconds=1)


def real(name: str) -> tuple[bytes, Collateral]:
    return (
        read_vector(f"dcap-qvl/{name}"),
        Collateral.from_json(read_vector(f"dcap-qvl/{name}_collateral.json")),
    )


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


# The windows stand in the vectors' own README. A CRL is good before its
# nextUpdate, a JSON document up to and including it.
WINDOWS = [
    ("tdx_quote", "2025-06-19T10:32:27", "2025-07-19T10:00:34", 17, 4),
    ("tdx_quote_td15ex", "2026-10-08T00:28:26", "2026-11-06T23:45:11", 20, 5),
]


@pytest.mark.parametrize(("name", "begins", "ends", "number", "version"), WINDOWS)
def test_real_quotes_verify_inside_their_windows(
    name: str, begins: str, ends: str, number: int, version: int
) -> None:
    quote, documents = real(name)
    for now in (moment(begins), moment(ends)):
        td = Verifier(INTEL).verify(quote, documents, now)
        assert td.tcb_status == "UpToDate"
        assert td.advisory_ids == ()
        assert td.tcb_evaluation == number
        assert td.quote_version == version
        assert td.fmspc.hex() == "b0c06f000000"
        assert td.simulated is False
        assert td.anchor == "Intel"
        assert (td.dynamic_platform, td.cached_keys, td.smt) == (True, True, True)
        assert td.report == parse_quote(quote).report
        assert td.collateral_ends == moment(ends)
    assert (documents.begins, documents.ends) == (moment(begins), moment(ends))


@pytest.mark.parametrize(("name", "begins", "ends", "number", "version"), WINDOWS)
def test_real_quotes_fail_one_second_outside(
    name: str, begins: str, ends: str, number: int, version: int
) -> None:
    quote, documents = real(name)
    for now, code in (
        (moment(begins) - SECOND, "collateral.not_yet_valid"),
        (moment(ends) + SECOND, "collateral.expired"),
    ):
        with pytest.raises(Refused) as caught:
            Verifier(INTEL).verify(quote, documents, now)
        assert caught.value.code == code


@pytest.mark.parametrize(
    ("name", "when"),
    [
        ("tdx_quote", "2025-06-19T10:32:26"),
        ("tdx_quote", "2025-07-19T10:00:35"),
        ("tdx_quote_td15ex", "2026-11-06T23:45:12"),
    ],
)
def test_the_library_has_the_same_windows(
    name: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours names the part; without it the library refuses the same seconds.

    Except one: it does not look at a CRL's thisUpdate, with which the window
    of tdx_quote_td15ex begins. There our check stands alone.
    """
    monkeypatch.setattr(admission, "require_current", lambda *_: None)
    quote, documents = real(name)
    with pytest.raises(Refused) as caught:
        Verifier(INTEL).verify(quote, documents, moment(when))
    assert caught.value.code.startswith(("collateral.", "crl."))


def test_piid_and_identity_of_a_real_quote() -> None:
    quote, documents = real("tdx_quote")
    td = Verifier(INTEL).verify(quote, documents, moment("2025-07-01T00:00:00"))
    assert td.piid == bytes.fromhex("07828474603e7019dc930775ffe8cdd2")
    assert td.signed_part_sha256 == parse_quote(quote).signed_digest


def test_an_outdated_real_quote_is_refused() -> None:
    quote, documents = real("tdx_quote_outdated")
    with pytest.raises(Refused) as caught:
        Verifier(INTEL).verify(quote, documents, moment("2026-03-01T00:00:00"))
    assert caught.value.code == "tcb.no_matching_level"


def test_a_real_sgx_quote_is_refused() -> None:
    quote, documents = real("sgx_quote")
    with pytest.raises(Refused) as caught:
        Verifier(INTEL).verify(quote, documents, moment("2025-07-01T00:00:00"))
    assert caught.value.code == "quote.not_tdx"


def test_a_real_quote_is_nothing_to_the_simulation_and_the_reverse() -> None:
    quote, documents = real("tdx_quote")
    with pytest.raises(Refused) as caught:
        verifier().verify(quote, documents, moment("2025-07-01T00:00:00"))
    assert caught.value.code == "chain.wrong_root"
    with pytest.raises(Refused) as caught:
        Verifier(INTEL).verify(platform().quote(report()), collateral(), NOW)
    assert caught.value.code == "chain.wrong_root"


@pytest.mark.parametrize(("body_type", "pad_to"), [(None, 0), (None, 8000), (2, 0), (3, 0), (4, 0)])
def test_good_simulated_quotes_verify(body_type: int | None, pad_to: int) -> None:
    quote = platform().quote(report(report_data=b"r" * 64), body_type=body_type, pad_to=pad_to)
    td = verifier().verify(quote, collateral(), NOW)
    assert td.simulated
    assert td.anchor.startswith("SIMULATION ")
    assert td.report.report_data == b"r" * 64
    assert td.tcb_status == "UpToDate"
    assert td.collateral_ends == ISSUED + timedelta(days=30) - SECOND
    assert json.loads(json.dumps(td.to_dict()))["simulated"] is True


def attributes(text: str) -> bytes:
    return bytes.fromhex(text)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"td_attributes": attributes("0100001000000000")}, "td.debug"),
        ({"td_attributes": attributes("0000003000000000")}, "td.migratable"),
        ({"td_attributes": attributes("0000000000000000")}, "td.sept_ve_disable"),
        ({"td_attributes": attributes("0200001000000000")}, "td.reserved_bits"),
        ({"td_attributes": attributes("1000001000000000")}, "td.profiling"),
        ({"seam_attributes": b"\x01" + bytes(7)}, "tcb.module_mismatch"),
        ({"mrsignerseam": b"\x01" * 48}, "tcb.module_mismatch"),
        ({"tee_tcb_svn": b"\x01\x01\x00" + bytes(13)}, "tcb.no_matching_level"),
        ({"mrservicetd": b"\x01" * 48}, "td.service_td"),
    ],
)
def test_td_that_is_never_trusted(changes: dict[str, bytes], code: str) -> None:
    quote = platform().quote(replace(report(), **changes), body_type=3)  # type: ignore[arg-type]
    assert refusal(quote=quote) == code


QE_TOO_NEW = [{"tcb": {"isvsvn": 9}, "tcbDate": "2024-01-01T00:00:00Z", "tcbStatus": "UpToDate"}]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (CollateralOptions(revoked=frozenset({"pck"})), "chain.revoked"),
        (CollateralOptions(revoked=frozenset({"pck_ca"})), "chain.revoked"),
        (CollateralOptions(revoked=frozenset({"tcb_signer"})), "chain.revoked"),
        (CollateralOptions(tcb_status="Revoked"), "tcb.revoked"),
        (CollateralOptions(module_status="Revoked"), "tcb.revoked"),
        (CollateralOptions(qe_status="Revoked"), "tcb.revoked"),
        (CollateralOptions(tcb_status="Splendid"), "collateral.malformed"),
        (CollateralOptions(tcb_info={"fmspc": "00" * 6}), "tcb.platform_mismatch"),
        (CollateralOptions(tcb_info={"id": "SGX"}), "tcb.platform_mismatch"),
        (CollateralOptions(tcb_info={"tcbLevels": []}), "tcb.no_matching_level"),
        (CollateralOptions(tcb_info={"tdxModuleIdentities": []}), "tcb.module_mismatch"),
        (CollateralOptions(qe_identity={"mrsigner": "00" * 32}), "qe.identity_mismatch"),
        (CollateralOptions(qe_identity={"isvprodid": 7}), "qe.identity_mismatch"),
        (CollateralOptions(qe_identity={"tcbLevels": QE_TOO_NEW}), "qe.out_of_date"),
        (CollateralOptions(qe_identity={"id": "QE"}), "collateral.malformed"),
        (CollateralOptions(lifetime=timedelta(minutes=30)), "collateral.expired"),
    ],
)
def test_collateral_that_speaks_against_the_platform(options: CollateralOptions, code: str) -> None:
    assert refusal(documents=collateral(options)) == code


def test_collateral_of_tomorrow() -> None:
    documents = Collateral.from_json(platform().collateral(NOW + timedelta(days=1)))
    assert refusal(documents=documents) == "collateral.not_yet_valid"


@pytest.mark.parametrize(
    "status",
    [
        "OutOfDate",
        "SWHardeningNeeded",
        "ConfigurationNeeded",
        "OutOfDateConfigurationNeeded",
        "ConfigurationAndSWHardeningNeeded",
    ],
)
def test_a_status_is_reported_not_judged(status: str) -> None:
    options = CollateralOptions(
        tcb_status=status, advisory_ids=("INTEL-SA-00002", "INTEL-SA-00001")
    )
    td = verifier().verify(platform().quote(report()), collateral(options), NOW)
    assert td.tcb_status == status
    assert td.advisory_ids == ("INTEL-SA-00001", "INTEL-SA-00002")


@pytest.mark.parametrize(
    ("offset", "code"),
    [
        (28, "quote.signature"),  # user data in the header
        (48, "quote.signature"),  # TEE TCB SVN
        (184, "quote.signature"),  # MRTD
        (376, "quote.signature"),  # RTMR0
        (631, "quote.signature"),  # report data
        (640, "quote.signature"),  # signature
        (704, "qe.key_binding"),  # attestation key
        (770, "qe.signature"),  # QE report
        (1090, "qe.signature"),  # its report data
        (1160, "qe.signature"),  # QE report signature
        (1225, "qe.key_binding"),  # authentication data
        (1254, "quote.malformed"),  # size of the certificate chain
    ],
)
def test_a_flipped_byte_is_refused(offset: int, code: str) -> None:
    quote = bytearray(platform().quote(report()))
    quote[offset] ^= 1
    assert refusal(quote=bytes(quote)) == code


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 1251), st.integers(1, 255))
def test_no_mutant_verifies(offset: int, mask: int) -> None:
    """Everything before the certificate chain is signed, bound or framed."""
    quote = bytearray(platform().quote(report()))
    quote[offset] ^= mask
    with pytest.raises(SealserveError):
        verifier().verify(bytes(quote), collateral(), NOW)


def test_another_platforms_quote_and_a_cut_one() -> None:
    stranger = SimulatedPlatform.new(NOW)
    assert refusal(quote=stranger.quote(report_of())) == "chain.not_verified"
    assert refusal(quote=platform().quote(report())[:-700]) == "quote.truncated"
    assert refusal(quote=platform().quote(report()) + b"garbage") == "quote.trailing_data"


def test_another_simulations_root() -> None:
    stranger = Verifier(Anchor.simulation(SimulatedPlatform.new(NOW).pki.root_der))
    with pytest.raises(Refused) as caught:
        stranger.verify(platform().quote(report()), collateral(), NOW)
    assert caught.value.code == "chain.wrong_root"


FIELDS = json.loads(platform().collateral(ISSUED))


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_no_field_of_the_collateral_can_be_cut(name: str) -> None:
    # To a quarter: the second half of a chain is the root, which nobody reads.
    changed = {**FIELDS, name: FIELDS[name][: len(FIELDS[name]) // 4]}
    with pytest.raises(SealserveError) as caught:
        verifier().verify(
            platform().quote(report()), Collateral.from_json(json.dumps(changed).encode()), NOW
        )
    assert caught.value.code.partition(".")[0] in ("collateral", "crl", "chain")


@pytest.mark.parametrize("name", ["tcb_info", "qe_identity"])
def test_signed_documents_cannot_be_edited(name: str) -> None:
    edited = FIELDS[name].replace('"tcbEvaluationDataNumber":17', '"tcbEvaluationDataNumber":99')
    assert edited != FIELDS[name]
    documents = Collateral.from_json(json.dumps({**FIELDS, name: edited}).encode())
    assert refusal(documents=documents) == "collateral.signature"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 100000,
        json.dumps({**FIELDS, "more": ""}).encode(),
        json.dumps({k: v for k, v in FIELDS.items() if k != "pck_crl"}).encode(),
        json.dumps({**FIELDS, "pck_crl": 1}).encode(),
        json.dumps({**FIELDS, "tcb_info": "[]"}).encode(),
        json.dumps({**FIELDS, "tcb_info": "[" * 100000}).encode(),
        json.dumps(FIELDS).encode()[:-1] + b', "tcb_info": ""}',
        json.dumps({**FIELDS, "tcb_info": FIELDS["tcb_info"].replace(":17", ':"17"')}).encode(),
    ],
)
def test_malformed_collateral_is_refused_at_the_door(raw: bytes) -> None:
    with pytest.raises(InputError) as caught:
        Collateral.from_json(raw)
    assert caught.value.code == "collateral.malformed"


def test_a_file_of_malformed_collateral_is_named(tmp_path: Path) -> None:
    path = tmp_path / "collateral.json"
    path.write_bytes(b"{}")
    with pytest.raises(InputError) as caught:
        Collateral.load(path)
    assert caught.value.where == str(path)


def test_huge_collateral_is_not_read() -> None:
    with pytest.raises(InputError) as caught:
        Collateral.from_json(bytes(MAX_COLLATERAL_BYTES + 1))
    assert caught.value.code == "collateral.too_large"


def test_an_anchor_must_say_simulation() -> None:
    root = read_vector_root()
    with pytest.raises(Refused) as caught:
        Anchor.simulation(root)
    assert caught.value.code == "chain.anchor_not_simulation"
    for raw in (b"", b"not a certificate", bytes(20000)):
        with pytest.raises(InputError) as malformed:
            Anchor.simulation(raw)
        assert malformed.value.code == "chain.anchor_malformed"


def test_a_file_with_intels_own_root_names_intel(tmp_path: Path) -> None:
    path = tmp_path / "root.der"
    path.write_bytes(read_vector_root())
    assert Anchor.load(path) is INTEL
    path.write_bytes(read_vector_root()[:-1])
    with pytest.raises(InputError):
        Anchor.load(path)


def read_vector_root() -> bytes:
    """Intel's root, from the chain inside a real collateral file."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    fields = json.loads(read_vector("dcap-qvl/tdx_quote_collateral.json"))
    chain = x509.load_pem_x509_certificates(fields["pck_crl_issuer_chain"].encode())
    return chain[-1].public_bytes(Encoding.DER)


def test_what_the_library_has_never_said_is_a_refusal_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Strange:
        def verify_with_policy(self, *_: object) -> None:
            raise ValueError("Verification failed: the moon is in the wrong place")

    strange = LibraryVerifier(verifier().anchor)
    monkeypatch.setattr(strange, "_library", Strange())
    monkeypatch.setattr(strange, "_reason", lambda *_: "")
    with pytest.raises(Refused) as caught:
        strange.verify(platform().quote(report()), collateral(), NOW)
    assert caught.value.code == "quote.not_verified"


def test_two_readings_of_one_quote_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    lying = replace(parse_quote(platform().quote(report())).report, mrtd=bytes(48))
    honest = admission.parse_quote

    def lie(raw: bytes) -> object:
        return replace(honest(raw), report=lying)

    monkeypatch.setattr(admission, "parse_quote", lie)
    assert refusal() == "quote.parsers_disagree"


def test_a_time_without_zone_is_our_own_mistake() -> None:
    with pytest.raises(InternalError):
        verifier().verify(platform().quote(report()), collateral(), datetime(2026, 1, 1))  # noqa: DTZ001


def refusal(quote: bytes | None = None, documents: Collateral | None = None) -> str:
    """The code with which a quote is refused."""
    with pytest.raises(SealserveError) as caught:
        verifier().verify(quote or platform().quote(report()), documents or collateral(), NOW)
    return caught.value.code
