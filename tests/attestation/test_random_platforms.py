"""Random statements by Intel about random platforms: both verifiers draw the same conclusion.

Everything is well signed here, so each case reaches the comparison of versions
and the merging of statuses, which no damaged byte ever would.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from sealserve.attestation.anchor import Anchor
from sealserve.attestation.collateral import Collateral
from sealserve.attestation.library import LibraryVerifier
from sealserve.attestation.reference import ReferenceVerifier
from sealserve.attestation.verified import VerifiedTd, differences
from sealserve.simulator.platform import CollateralOptions, QuotingEnclave
from tests.attestation.evidence import Given, components, given, module, svn
from tests.attestation.test_two_verifiers import judged, outcome
from tests.simulated import platform

SEED = 20261123
DRAWS = 800

PLATFORM = ("UpToDate", "SWHardeningNeeded", "ConfigurationNeeded", "OutOfDate",
            "ConfigurationAndSWHardeningNeeded", "OutOfDateConfigurationNeeded")  # fmt: skip
COMPONENT = ("UpToDate", "UpToDate", "OutOfDate")
MASK = "FB" + "FF" * 7 + "00" * 8  # Intel's own: leaves the provisioning bits open
ENCLAVE = (*COMPONENT, "ConfigurationNeeded", "OutOfDateConfigurationNeeded")


def drawn(chance: random.Random) -> Given:
    """A platform near the edge of what Intel's levels demand of it."""
    return given(
        body_type=chance.choice((None, 2, 3, 3, 4, 4)),
        options=CollateralOptions(
            tcb_info={
                "tcbLevels": [platform_level(chance) for _ in range(chance.randrange(1, 6))],
                "tdxModuleIdentities": [
                    module(*module_levels(chance), name=name)
                    for name in ("TDX_01", "tdx_02", "TDX_03")
                ],
                "tcbEvaluationDataNumber": chance.randrange(30),
            },
            qe_identity={
                "tcbLevels": [enclave_level(chance) for _ in range(chance.randrange(1, 4))],
                "tcbEvaluationDataNumber": chance.randrange(30),
                "attributesMask": chance.choice((*[MASK] * 9, "FF" * 16)),
            },
        ),
        enclave=QuotingEnclave(
            svn=chance.choice((3, 4, 5, 6, 6, 9)),
            attributes=chance.choice((b"\x11", b"\x15", b"\x15", b"\x15")) + bytes(15),
        ),
        tee_tcb_svn=module_svn(chance),
        tee_tcb_svn2=module_svn(chance),
    )


def module_svn(chance: random.Random) -> bytes:
    return svn(
        chance.choice((2, 4, 5, 6, 7)), chance.choice((0, 1, 1, 1, 3, 4)), chance.choice((2, 3, 3))
    )


def near(chance: random.Random, *versions: int) -> list[dict[str, int]]:
    """Least versions that are mostly reached, and sometimes just not."""
    steps = (-1, 0, 0, 0, 0, 0, 0, 0, 0, 1)
    return components(*(max(0, each + chance.choice(steps)) for each in versions))


def platform_level(chance: random.Random) -> dict[str, Any]:
    return {
        "tcb": {
            "sgxtcbcomponents": near(chance, 3, 3, 2, 2, 4, 1, 0, 5),
            "pcesvn": chance.choice((5, 10, 11, 11, 12)),
            "tdxtcbcomponents": near(chance, 5, 0, 2),
        },
        **verdict(chance, PLATFORM),
    }


def module_levels(chance: random.Random) -> list[tuple[int, str]]:
    versions = sorted(chance.sample(range(1, 9), chance.randrange(1, 4)), reverse=True)
    return [(each, chance.choice(COMPONENT)) for each in versions]


def enclave_level(chance: random.Random) -> dict[str, Any]:
    return {"tcb": {"isvsvn": chance.choice((3, 4, 5, 6, 7))}, **verdict(chance, ENCLAVE)}


def verdict(chance: random.Random, statuses: tuple[str, ...]) -> dict[str, Any]:
    revoked = chance.random() < 0.03
    return {
        "tcbDate": f"20{chance.randrange(20, 26)}-0{chance.randrange(1, 10)}-15T00:00:00Z",
        "tcbStatus": "Revoked" if revoked else chance.choice(statuses),
        "advisoryIDs": chance.sample(
            ["INTEL-SA-1", "INTEL-SA-2", "INTEL-SA-3"], chance.randrange(3)
        ),
    }


def test_both_verifiers_draw_the_same_conclusion() -> None:
    chance = random.Random(SEED)
    anchor = Anchor.simulation(platform().pki.root_der)
    first, second = LibraryVerifier(anchor), ReferenceVerifier(anchor)
    seen: Counter[str] = Counter()
    for number in range(DRAWS):
        case = drawn(chance)
        Collateral.from_json(case.collateral)  # well-formed, all of them
        one, other = judged(first, case), judged(second, case)
        assert outcome(one) == outcome(other), number
        if isinstance(one, VerifiedTd) and isinstance(other, VerifiedTd):
            assert differences(one, other) == (), number
        seen[outcome(one)] += 1
    # The draw reaches every conclusion there is.
    assert set(PLATFORM) | {"TDRelaunchAdvised", "TDRelaunchAdvisedConfigurationNeeded"} <= set(
        seen
    )
    assert {"tcb.no_matching_level", "tcb.module_mismatch", "tcb.revoked"} <= set(seen)
    assert {"qe.out_of_date", "qe.identity_mismatch"} <= set(seen)
