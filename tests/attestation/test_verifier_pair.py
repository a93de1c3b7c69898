"""Asked for both: each must accept, and they must agree on every fact."""

from __future__ import annotations

import time
import types
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest

from sealserve.attestation import admission
from sealserve.attestation.collateral import Collateral
from sealserve.attestation.library import LibraryVerifier
from sealserve.attestation.reference import ReferenceVerifier
from sealserve.attestation.verified import VerifiedTd, differences
from sealserve.attestation.verifier import Verifier
from sealserve.errors import InputError, InternalError, Refused, SealserveError
from sealserve.simulator.platform import CollateralOptions, SimulatedPlatform
from tests.attestation.evidence import given
from tests.simulated import ISSUED, NOW, collateral, platform, report, verified, verifier

GOOD = platform().quote(report())


def pair() -> Verifier:
    return Verifier(verifier().anchor, require_both=True)


def test_agreement_gives_the_facts() -> None:
    assert pair().verify(GOOD, collateral(), NOW) == verified()


@pytest.mark.parametrize(
    "change",
    [
        {"tcb_status": "OutOfDate"},
        {"advisory_ids": ("INTEL-SA-1",)},
        {"tcb_evaluation": 16},
        {"piid": None},
        {"smt": False},
        {"simulated": False},
        {"collateral_ends": NOW},
    ],
)
def test_one_fact_that_differs_is_a_refusal(
    change: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(verified(), **change)  # type: ignore[arg-type]
    monkeypatch.setattr(ReferenceVerifier, "judge", lambda *_: other)
    with pytest.raises(Refused) as caught:
        pair().verify(GOOD, collateral(), NOW)
    assert caught.value.code == "quote.verifiers_disagree"
    assert f"differ in {next(iter(change))}" in caught.value.message


def test_every_fact_is_compared() -> None:
    for name in VerifiedTd.__dataclass_fields__:
        other = replace(verified(), **{name: object()})  # type: ignore[arg-type]
        assert differences(verified(), other) == (name,)


def test_what_only_the_first_accepts_is_refused_with_the_second_s_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> VerifiedTd:
        raise Refused("td.debug", "the host can read it")

    monkeypatch.setattr(ReferenceVerifier, "judge", refuse)
    with pytest.raises(Refused) as caught:
        pair().verify(GOOD, collateral(), NOW)
    assert caught.value.code == "quote.verifiers_disagree"
    assert "td.debug" in caught.value.message


def test_what_the_first_refuses_keeps_its_code() -> None:
    debug = platform().quote(report(td_attributes=bytes.fromhex("0100001000000000")))
    with pytest.raises(Refused) as caught:
        pair().verify(debug, collateral(), NOW)
    assert caught.value.code == "td.debug"


def test_alone_the_first_is_not_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ReferenceVerifier, "judge", lambda *_: pytest.fail("asked"))
    assert verifier().verify(GOOD, collateral(), NOW) == verified()


def test_the_second_looks_at_the_windows_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """The door looks at them first; behind an open door the reference still refuses."""
    monkeypatch.setattr(admission, "require_current", lambda *_: None)
    second = ReferenceVerifier(verifier().anchor)
    documents = collateral()
    ends = ISSUED + timedelta(days=30)
    for now, codes in (
        (ISSUED - timedelta(seconds=1), {"crl.expired"}),
        (ends - timedelta(seconds=1), set()),
        (ends, {"crl.expired"}),
    ):
        if not codes:
            second.verify(GOOD, documents, now)
            continue
        with pytest.raises(Refused) as caught:
            second.verify(GOOD, documents, now)
        assert caught.value.code in codes


@pytest.mark.parametrize("name", ["tcb_info", "qe_identity"])
@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("issueDate", "2099-01-01T00:00:00Z", "collateral.not_yet_valid"),
        ("nextUpdate", "2001-01-01T00:00:00Z", "collateral.expired"),
    ],
)
def test_the_second_looks_at_the_documents_windows_itself(
    name: str, field: str, value: str, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "require_current", lambda *_: None)
    late = given(options=CollateralOptions(**{name: {field: value}}))  # type: ignore[arg-type]
    with pytest.raises(Refused) as caught:
        ReferenceVerifier(late.anchor).verify(
            late.quote, Collateral.from_json(late.collateral), NOW
        )
    assert caught.value.code == code


def test_a_panic_in_the_library_refuses_one_quote() -> None:
    panic = types.new_class("PanicException", (BaseException,))
    panic.__module__ = "pyo3_runtime"

    class Panicking:
        def verify_with_policy(self, *_: object) -> None:
            raise panic("index out of bounds")

    first = LibraryVerifier(verifier().anchor)
    first._library = Panicking()
    with pytest.raises(Refused) as caught:
        first.verify(GOOD, collateral(), NOW)
    assert caught.value.code == "quote.not_verified"


@pytest.mark.parametrize("claims", ["", "[]", "{}", '{"platform": {"pck": {"pce_id": [0, 0]}}}'])
def test_claims_that_are_not_as_they_were_are_our_own_trouble(claims: str) -> None:
    class Renamed:
        def verify_with_policy(self, *_: object) -> object:
            return types.SimpleNamespace(to_json=lambda: claims)

    first = LibraryVerifier(verifier().anchor)
    first._library = Renamed()
    with pytest.raises(InternalError) as caught:
        first.verify(GOOD, collateral(), NOW)
    assert caught.value.code == "internal.claims_unreadable"


def test_an_interrupt_is_no_panic() -> None:
    class Interrupted:
        def verify_with_policy(self, *_: object) -> None:
            raise KeyboardInterrupt

    first = LibraryVerifier(verifier().anchor)
    first._library = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        first.verify(GOOD, collateral(), NOW)


def test_threads_take_turns_and_a_refusal_ends_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Verifier(verifier().anchor)
    inside, most = [], []
    honest = LibraryVerifier.judge

    def judge(self: LibraryVerifier, evidence: admission.Evidence) -> VerifiedTd:
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.002)  # another thread would come in now, if it could
        try:
            return honest(self, evidence)
        finally:
            inside.pop()

    monkeypatch.setattr(LibraryVerifier, "judge", judge)
    forged = bytearray(GOOD)
    forged[700] ^= 1
    documents = collateral()

    def ask(number: int) -> str:
        try:
            return one.verify(bytes(forged) if number % 2 else GOOD, documents, NOW).tcb_status
        except SealserveError as error:
            return error.code

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, range(12)))
    assert answers == ["UpToDate", "qe.key_binding"] * 6
    assert most == [1] * 12


@pytest.mark.parametrize("kind", [LibraryVerifier, ReferenceVerifier, Verifier])
def test_evidence_of_one_platform_says_nothing_of_another(kind: type[Verifier]) -> None:
    stranger = SimulatedPlatform.new(NOW)
    with pytest.raises(SealserveError) as caught:
        kind(verifier().anchor).verify(stranger.quote(report()), collateral(), NOW)
    assert caught.value.code == "chain.not_verified"


def test_a_paravisor_excuses_one_attribute_and_no_other() -> None:
    second = ReferenceVerifier(verifier().anchor, paravisor=True)
    quote = platform().quote(report(td_attributes=bytes(8)))
    assert second.verify(quote, collateral(), NOW).report.td_attributes == bytes(8)
    with pytest.raises(Refused) as caught:
        ReferenceVerifier(verifier().anchor).verify(quote, collateral(), NOW)
    assert caught.value.code == "td.sept_ve_disable"
    for attributes, code in (
        ("01", "td.debug"),
        ("10", "td.profiling"),
        ("02", "td.reserved_bits"),
    ):
        quote = platform().quote(report(td_attributes=bytes.fromhex(attributes).ljust(8, b"\0")))
        with pytest.raises(Refused) as caught:
            second.verify(quote, collateral(), NOW)
        assert caught.value.code == code


def test_refusals_of_malformed_input_are_of_their_class() -> None:
    with pytest.raises(InputError):
        pair().verify(b"", collateral(), NOW)
