"""The store keeps what is Intel's, in time and not older than what it has; nothing else."""

from __future__ import annotations

import functools
import io
import json
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from sealserve.attestation.collateral import Collateral, ending_soon, require_current
from sealserve.attestation.collateral_check import check_signatures
from sealserve.attestation.collateral_store import (
    CollateralStore,
    decode_bundle,
    encode_bundle,
    platform_model,
    require_not_older,
)
from sealserve.attestation.verifier import INTEL, Anchor, Verifier
from sealserve.broker.collateral_source import CollateralFile
from sealserve.errors import InputError, Refused, SealserveError, Unavailable
from sealserve.files import write_atomically
from sealserve.logs import make_log
from sealserve.simulator.platform import CollateralOptions, SimulatedPlatform
from tests.simulated import ISSUED, NOW, platform
from tests.vectors import read_vector

FMSPC = "51494d000000"
ANCHOR = Anchor.simulation(platform().pki.root_der)
REAL = {
    "dcap-qvl/tdx_quote_collateral.json": datetime(2025, 7, 1, tzinfo=UTC),
    "dcap-qvl/tdx_quote_td15ex_collateral.json": datetime(2026, 10, 20, tzinfo=UTC),
    "dcap-qvl/tdx_quote_outdated_collateral.json": datetime(2026, 3, 1, tzinfo=UTC),
}


@pytest.fixture
def store(tmp_path: Path) -> CollateralStore:
    return CollateralStore(tmp_path / "store", ANCHOR)


@functools.cache
def collateral() -> Collateral:
    return issued(ISSUED)


def issued(when: datetime, **options: Any) -> Collateral:
    return Collateral.from_json(platform().collateral(when, CollateralOptions(**options)))


def code_of(call: Any) -> str:
    with pytest.raises(SealserveError) as caught:
        call()
    return caught.value.code


def changed(**parts: str) -> Collateral:
    return Collateral.from_json(json.dumps({**collateral().parts, **parts}).encode())


@pytest.mark.parametrize(("name", "when"), REAL.items())
def test_intels_own_collateral_is_kept(tmp_path: Path, name: str, when: datetime) -> None:
    store = CollateralStore(tmp_path, INTEL)
    real = Collateral.from_json(read_vector(name))
    (path,) = store.put(real, now=when)
    assert Collateral.load(path) == real.for_any_machine()
    assert dict(Collateral.load(path).parts)["tcb_info"] == real.parts["tcb_info"]


def test_intels_collateral_does_not_go_back(tmp_path: Path) -> None:
    """Two real ones of one platform model, a year apart: the older is refused also in its time."""
    store = CollateralStore(tmp_path, INTEL)
    new, old = (
        Collateral.from_json(read_vector(f"dcap-qvl/{name}_collateral.json"))
        for name in ("tdx_quote_td15ex", "tdx_quote")
    )
    assert new.fmspc == old.fmspc
    store.put(new, now=REAL["dcap-qvl/tdx_quote_td15ex_collateral.json"])
    when = REAL["dcap-qvl/tdx_quote_collateral.json"]
    assert code_of(lambda: store.put(old, now=when)) == "collateral.rollback"
    assert store.get(new.fmspc) == new.for_any_machine()


def test_one_machines_certificate_is_not_kept_for_all(tmp_path: Path) -> None:
    """With it, quotes of every other machine of the model would be refused."""
    store = CollateralStore(tmp_path, INTEL)
    name = "dcap-qvl/tdx_quote_td15ex"
    store.put(
        Collateral.from_json(read_vector(f"{name}_collateral.json")),
        now=REAL[f"{name}_collateral.json"],
    )
    kept = store.get("b0c06f000000")
    assert "pck_certificate_chain" not in kept.parts
    Verifier(INTEL).verify(read_vector(name), kept, REAL[f"{name}_collateral.json"])
    other = Verifier(INTEL).verify(
        read_vector("dcap-qvl/tdx_quote"), kept, REAL[f"{name}_collateral.json"]
    )
    assert other.tcb_status == "OutOfDate"


def test_statements_about_sgx_are_not_kept(tmp_path: Path) -> None:
    sgx = Collateral.from_json(read_vector("dcap-qvl/sgx_quote_collateral.json"))
    when = datetime(2025, 7, 1, tzinfo=UTC)
    assert code_of(lambda: CollateralStore(tmp_path, INTEL).put(sgx, now=when)) == (
        "collateral.not_tdx"
    )


def test_what_was_put_is_there_and_readable_by_others(store: CollateralStore) -> None:
    (path,) = store.put(collateral(), now=NOW)
    assert path == store.path(FMSPC)
    assert store.get(FMSPC) == collateral()
    assert store.entries() == (collateral(),)
    assert path.stat().st_mode & 0o777 == 0o644
    store.put(collateral(), now=NOW)  # the same again is not older
    assert len(store.entries()) == 1


def test_an_absent_one_is_told(store: CollateralStore) -> None:
    assert store.entries() == ()
    with pytest.raises(Unavailable) as caught:
        store.get(FMSPC)
    assert caught.value.code == "collateral.not_stored"
    assert FMSPC in (caught.value.hint or "")


@pytest.mark.parametrize("newer", [{"evaluation_number": 18}, {}])
def test_newer_knowledge_replaces(store: CollateralStore, newer: dict[str, Any]) -> None:
    store.put(issued(ISSUED), now=NOW)
    later = issued(ISSUED + timedelta(minutes=30), **newer)
    store.put(later, now=NOW)
    assert store.get(FMSPC) == later


def test_a_lower_evaluation_number_is_refused_however_new(store: CollateralStore) -> None:
    store.put(issued(ISSUED, evaluation_number=18), now=NOW)
    older = issued(ISSUED + timedelta(minutes=30), evaluation_number=17)
    with pytest.raises(Refused, match="17 is below 18") as caught:
        store.put(older, now=NOW)
    assert caught.value.code == "collateral.rollback"
    assert store.get(FMSPC).evaluation_number == 18


def test_a_lower_number_of_the_quoting_enclave_is_refused(store: CollateralStore) -> None:
    store.put(issued(ISSUED), now=NOW)
    older = issued(ISSUED, qe_identity={"tcbEvaluationDataNumber": 16})
    with pytest.raises(Refused, match="QE identity") as caught:
        store.put(older, now=NOW)
    assert caught.value.code == "collateral.rollback"


@pytest.mark.parametrize("part", ["root_ca_crl", "pck_crl", "tcb_info", "qe_identity"])
def test_one_part_alone_does_not_go_back(part: str) -> None:
    """A revocation list from before a revocation is as good as none."""
    now_held, before = issued(ISSUED), issued(ISSUED - timedelta(days=1))
    keys = [key for key in before.parts if key.startswith(part)]
    mixed = {**now_held.parts, **{key: before.parts[key] for key in keys}}
    offered = Collateral.from_json(json.dumps(mixed).encode())
    check_signatures(offered, ANCHOR)  # each part is genuine
    with pytest.raises(Refused, match=part) as caught:
        require_not_older(offered, now_held)
    assert caught.value.code == "collateral.rollback"


@pytest.mark.parametrize(
    ("when", "code"),
    [
        (NOW + timedelta(days=31), "collateral.expired"),
        (NOW - timedelta(days=2), "collateral.not_yet_valid"),
    ],
)
def test_what_is_out_of_its_time_is_not_kept(
    store: CollateralStore, when: datetime, code: str
) -> None:
    assert code_of(lambda: store.put(collateral(), now=when)) == code
    assert store.entries() == ()


def test_a_window_includes_its_ends() -> None:
    require_current(collateral(), collateral().begins)
    require_current(collateral(), collateral().ends)
    with pytest.raises(Refused):
        require_current(collateral(), collateral().ends + timedelta(seconds=1))


def flipped(part: str) -> Collateral:
    text = collateral().parts[part]
    if part.endswith("_signature"):
        return changed(**{part: ("0" if text[0] != "0" else "1") + text[1:]})
    return changed(
        **{part: text.replace('"tcbEvaluationDataNumber":17', '"tcbEvaluationDataNumber":99')}
    )


@pytest.mark.parametrize(
    "part", ["tcb_info", "qe_identity", "tcb_info_signature", "qe_identity_signature"]
)
def test_a_forged_document_is_refused(store: CollateralStore, part: str) -> None:
    """Else a forged evaluation number would lock out the true ones for good."""
    assert code_of(lambda: store.put(flipped(part), now=NOW)) == "collateral.signature"
    store.put(collateral(), now=NOW)


@pytest.mark.parametrize("signature", ["", "00", "00" * 64, "zz"])
def test_odd_signatures_are_refused(signature: str) -> None:
    found = code_of(lambda: check_signatures(changed(tcb_info_signature=signature), ANCHOR))
    assert found == ("collateral.malformed" if signature == "zz" else "collateral.signature")


@pytest.mark.parametrize(
    ("part", "code"), [("root_ca_crl", "crl.signature"), ("pck_crl", "crl.signature")]
)
def test_a_revocation_list_of_another_is_refused(part: str, code: str) -> None:
    pki = SimulatedPlatform.new(NOW).pki  # the same names, other keys
    signer = pki.root if part == "root_ca_crl" else pki.pck_ca
    forged = pki.crl(signer, (), ISSUED, NOW + timedelta(days=9))
    assert code_of(lambda: check_signatures(changed(**{part: forged.hex()}), ANCHOR)) == code


@pytest.mark.parametrize("part", ["root_ca_crl", "pck_crl"])
def test_any_byte_of_a_revocation_list_may_be_wrong(part: str) -> None:
    """Names inside are read late: a fuzzer found that such an error came out untyped."""
    raw = bytes.fromhex(collateral().parts[part])
    for at in range(len(raw)):
        for mask in (0x01, 0x10, 0x80):
            wrong = raw[:at] + bytes([raw[at] ^ mask]) + raw[at + 1 :]
            refused_or_malformed(**{part: wrong.hex()})


@pytest.mark.parametrize("part", ["root_ca_crl", "pck_crl"])
def test_a_name_that_is_a_string_of_bits_is_told(part: str) -> None:
    """The X.509 parser has a way of its own to fail at it: a TypeError."""
    der = bytes.fromhex(collateral().parts[part])
    at = der.index(b"SIMULATION") - 2
    assert der[at] == 0x0C  # UTF8String
    odd = der[:at] + b"\x03" + der[at + 1 : at + 2] + b"\0" + der[at + 3 :]
    assert code_of(lambda: check_signatures(changed(**{part: odd.hex()}), ANCHOR)) in (
        "collateral.malformed",
        "crl.signature",
    )


@pytest.mark.parametrize("chain", ["pck_crl_issuer_chain", "tcb_info_issuer_chain"])
def test_any_byte_of_a_certificate_may_be_wrong(chain: str) -> None:
    ders = [
        certificate.public_bytes(Encoding.DER)
        for certificate in x509.load_pem_x509_certificates(collateral().parts[chain].encode())
    ]
    for which, raw in enumerate(ders):
        for at in range(len(raw)):
            wrong = raw[:at] + bytes([raw[at] ^ 0x01]) + raw[at + 1 :]
            pem = (ssl.DER_cert_to_PEM_cert(wrong if n == which else ders[n]) for n in range(2))
            refused_or_malformed(**{chain: "".join(pem)})


def refused_or_malformed(**parts: str) -> None:
    with pytest.raises((InputError, Refused)):
        check_signatures(changed(**parts), ANCHOR)


@pytest.mark.parametrize(
    "chain", ["pck_crl_issuer_chain", "tcb_info_issuer_chain", "qe_identity_issuer_chain"]
)
def test_chains_end_in_the_anchor(chain: str) -> None:
    stranger = Collateral.from_json(SimulatedPlatform.new(NOW).collateral(ISSUED))
    other = changed(**{chain: stranger.parts[chain]})
    assert code_of(lambda: check_signatures(other, ANCHOR)) == "chain.wrong_root"
    leaf = stranger.parts[chain].partition("-----END CERTIFICATE-----\n")
    root = collateral().parts[chain].partition("-----END CERTIFICATE-----\n")[2]
    mixed = changed(**{chain: "".join(leaf[:2]) + root})
    assert code_of(lambda: check_signatures(mixed, ANCHOR)) == "chain.not_verified"
    short = changed(**{chain: root})
    assert code_of(lambda: check_signatures(short, ANCHOR)) == "collateral.malformed"


@pytest.mark.parametrize("who", ["pck_ca", "tcb_signer"])
def test_revoked_signers_are_refused(who: str) -> None:
    revoked = issued(ISSUED, revoked=frozenset({who}))
    assert code_of(lambda: check_signatures(revoked, ANCHOR)) == "chain.revoked"


def test_the_anchors_are_kept_apart(tmp_path: Path) -> None:
    simulated, real = (
        collateral(),
        Collateral.from_json(read_vector("dcap-qvl/tdx_quote_collateral.json")),
    )
    when = datetime(2025, 7, 1, tzinfo=UTC)
    assert code_of(lambda: CollateralStore(tmp_path, INTEL).put(simulated, now=NOW)) == (
        "chain.wrong_root"
    )
    assert code_of(lambda: CollateralStore(tmp_path, ANCHOR).put(real, now=when)) == (
        "chain.wrong_root"
    )


def test_a_bundle_is_carried_and_asked_the_same_questions(
    store: CollateralStore, tmp_path: Path
) -> None:
    store.put(collateral(), now=NOW)
    bundle = encode_bundle(store.entries())
    offline = CollateralStore(tmp_path / "offline", ANCHOR)
    offline.put(*decode_bundle(bundle), now=NOW)
    assert offline.get(FMSPC) == collateral()
    forged = bundle.replace(b'DataNumber\\":17', b'DataNumber\\":18')
    assert forged != bundle
    assert code_of(lambda: offline.put(*decode_bundle(forged), now=NOW)) == "collateral.signature"


def test_a_bundle_is_kept_whole_or_not_at_all(store: CollateralStore) -> None:
    other = issued(ISSUED, tcb_info={"fmspc": "51494D000001"})
    expired = issued(ISSUED - timedelta(days=40), tcb_info={"fmspc": "51494D000002"})
    assert code_of(lambda: store.put(other, expired, now=NOW)) == "collateral.expired"
    assert store.entries() == ()
    store.put(collateral(), other, now=NOW)
    assert [each.fmspc for each in store.entries()] == [FMSPC, "51494d000001"]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"{}",
        b"null",
        b'{"format": "another", "collateral": []}',
        b'{"format": "sealserve collateral bundle 1", "collateral": {}}',
        b'{"format": "sealserve collateral bundle 1", "collateral": ' + b"[0," * 300 + b"]",
        b'{"format": "sealserve collateral bundle 1", "collateral": ['
        + b",".join([b"{}"] * 257)
        + b"]}",
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_odd_bundles_are_typed_errors(raw: bytes) -> None:
    assert code_of(lambda: decode_bundle(raw)) == "collateral.bundle_malformed"


def test_a_damaged_file_is_named_and_never_replaced_by_accident(store: CollateralStore) -> None:
    (path,) = store.put(collateral(), now=NOW)
    path.write_text("{")
    for call in (lambda: store.get(FMSPC), lambda: store.put(collateral(), now=NOW)):
        with pytest.raises(InputError) as caught:
            call()
        assert caught.value.code == "collateral.malformed"
        assert str(path) in (caught.value.where or "")
    assert path.read_text() == "{"


def test_a_broker_follows_the_stores_file(store: CollateralStore) -> None:
    """Each file of a store is what `broker serve --collateral` takes, and replaced by rename."""
    (path,) = store.put(collateral(), now=NOW)
    lines = io.StringIO()
    followed = CollateralFile(path, make_log(lines))
    assert followed.current() == collateral()
    store.put(issued(ISSUED, evaluation_number=18), now=NOW)
    assert followed.current().evaluation_number == 18
    assert "collateral read" in lines.getvalue()


def test_a_broker_does_not_go_back_either(tmp_path: Path) -> None:
    """Whoever can put an old file in its place would hide a revocation."""
    path, lines = tmp_path / "collateral.json", io.StringIO()
    path.write_bytes(issued(ISSUED, evaluation_number=18).to_json())
    followed = CollateralFile(path, make_log(lines))
    for older in (issued(ISSUED), issued(ISSUED - timedelta(hours=1), evaluation_number=18)):
        write_atomically(path, older.to_json())
        assert followed.current() != older
        assert followed.current().evaluation_number == 18
    assert lines.getvalue().count("collateral.rollback") == 2
    newer = issued(ISSUED + timedelta(minutes=1), evaluation_number=19)
    write_atomically(path, newer.to_json())
    assert followed.current() == newer


def test_a_place_that_is_no_directory_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = CollateralStore(tmp_path / "file", ANCHOR)
    assert code_of(lambda: store.put(collateral(), now=NOW)) == "collateral.store_unusable"
    assert code_of(store.entries) == "collateral.store_unusable"


def test_writers_do_not_undo_each_other(store: CollateralStore) -> None:
    """Twenty writers at once, in any order: the highest number wins."""
    offers = [issued(ISSUED, evaluation_number=10 + n) for n in range(20)]
    refused: list[str] = []

    def write(offer: Collateral) -> None:
        try:
            store.put(offer, now=NOW)
        except Refused as error:
            refused.append(error.code)

    threads = [threading.Thread(target=write, args=(offer,)) for offer in reversed(offers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.get(FMSPC).evaluation_number == 29
    assert set(refused) <= {"collateral.rollback"}


@pytest.mark.parametrize(
    ("days", "urgent", "warned"),
    [(15, False, False), (14, False, True), (8, False, True), (1, True, True), (0.2, True, True)],
)
def test_warnings_grow_more_urgent(days: float, urgent: bool, warned: bool) -> None:
    text = ending_soon(NOW + timedelta(days=days), NOW) or ""
    assert bool(text) == warned
    assert ("URGENT" in text) == urgent
    assert ending_soon(NOW - timedelta(seconds=1), NOW) is None


@pytest.mark.parametrize(
    "text", ["", "B0C06F00000", "B0C06F0000000", "G0C06F000000", "\u0660" * 12]
)
def test_a_platform_model_has_twelve_digits(text: str) -> None:
    assert platform_model("B0C06F000000") == "b0c06f000000"
    assert code_of(lambda: platform_model(text)) == "collateral.fmspc_malformed"
