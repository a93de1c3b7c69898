"""Two verifiers, written by different people in different languages, say the same."""

from __future__ import annotations

import pytest

from sealserve.attestation.collateral import Collateral
from sealserve.attestation.library import LibraryVerifier
from sealserve.attestation.reference import ReferenceVerifier
from sealserve.attestation.verified import VerifiedTd, differences
from sealserve.attestation.verifier import Verifier
from sealserve.errors import SealserveError
from tests.attestation.cases import CASES, Case
from tests.attestation.evidence import Given


def judged(verifier: object, given: Given) -> VerifiedTd | str:
    """The facts, or the code of the refusal."""
    try:
        collateral = Collateral.from_json(given.collateral)
        return verifier.verify(given.quote, collateral, given.now)  # type: ignore[attr-defined,no-any-return]
    except SealserveError as error:
        return error.code


def outcome(answer: VerifiedTd | str) -> str:
    return answer if isinstance(answer, str) else answer.tcb_status


def test_the_table_is_as_long_as_it_must_be_and_each_row_is_one_of_its_kind() -> None:
    assert len(CASES) >= 70
    assert len({case.name for case in CASES}) == len(CASES)
    assert all(case.why for case in CASES if case.second is not None)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_both_verifiers_agree(case: Case) -> None:
    given = case.make()
    first = judged(LibraryVerifier(given.anchor), given)
    second = judged(ReferenceVerifier(given.anchor), given)
    assert (outcome(first), outcome(second)) == (case.outcome, case.second or case.outcome)
    if isinstance(first, VerifiedTd) and isinstance(second, VerifiedTd):
        assert differences(first, second) == ()
    both = judged(Verifier(given.anchor, require_both=True), given)
    expected = "quote.verifiers_disagree" if case.second is not None else outcome(first)
    assert outcome(both) == expected
