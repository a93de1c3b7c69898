"""Warnings before a lock-out: on Intel's real documents and on simulated ones."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from sealserve.attestation.appraisal import appraise
from sealserve.attestation.collateral import Collateral
from sealserve.attestation.collateral_outlook import (
    PlatformTcb,
    forecast,
    newer_level,
    shortfalls,
    status_under,
)
from sealserve.errors import InputError, Refused
from sealserve.simulator.platform import CollateralOptions
from tests.simulated import (
    EVENTS,
    ISSUED,
    NOW,
    fitting_policy,
    platform,
    report,
    verified,
    verifier,
)
from tests.vectors import read_vector


def real(name: str) -> Collateral:
    return Collateral.from_json(read_vector(f"dcap-qvl/{name}_collateral.json"))


@functools.cache
def quote() -> bytes:
    return platform().quote(report())


def with_level(**options: Any) -> Collateral:
    return Collateral.from_json(platform().collateral(ISSUED, CollateralOptions(**options)))


def newer_tcb_info(**components: int) -> dict[str, Any]:
    """The simulated platform's own level, and one of today above it."""
    document = json.loads(with_level().parts["tcb_info"])
    (level,) = document["tcbLevels"]
    above = json.loads(json.dumps(level))
    above["tcbDate"] = NOW.strftime("%Y-%m-%dT%H:%M:%SZ")
    above["tcb"]["pcesvn"] += components.get("pce", 0)
    above["tcb"]["sgxtcbcomponents"][0] |= {"type": "Early Microcode Update", "category": "BIOS"}
    above["tcb"]["sgxtcbcomponents"][0]["svn"] += components.get("bios", 0)
    above["tcb"]["tdxtcbcomponents"][2]["svn"] += components.get("tdx", 0)
    level["tcbStatus"] = "OutOfDate"
    return {"tcbLevels": [above, level]}


def test_intels_verdict_on_a_real_platform_is_explained() -> None:
    """The quote that no level of 2026-02 matches: its SEAM loader has version 3 of 5."""
    warning = newer_level(read_vector("dcap-qvl/tdx_quote_outdated"), real("tdx_quote_outdated"))
    assert warning is not None
    assert "SEAMLDR ACM (OS/VMM) has 3, needs 5" in warning
    assert "2024-11-13" in warning


@pytest.mark.parametrize("name", ["tdx_quote", "tdx_quote_td15ex"])
def test_a_real_platform_that_is_up_to_date_has_no_warning(name: str) -> None:
    assert newer_level(read_vector(f"dcap-qvl/{name}"), real(name)) is None


def test_a_year_later_the_same_platform_is_behind() -> None:
    platform_of = PlatformTcb.of_quote(read_vector("dcap-qvl/tdx_quote"))
    date, behind = shortfalls(platform_of, real("tdx_quote_td15ex"))
    assert date == datetime(2025, 8, 13, tzinfo=UTC)
    assert {str(each) for each in behind} == {
        "Early Microcode Update (BIOS) has 3, needs 4",
        "SGX Late Microcode Update (OS/VMM) has 3, needs 4",
        "TDX Late Microcode Update (OS/VMM) has 3, needs 4",
        "TDX module TDX_01 has 6, needs 11",
    }


@pytest.mark.parametrize(
    ("components", "told"),
    [
        ({}, None),
        ({"pce": 1}, "PCE has 11, needs 12"),
        ({"bios": 2}, "Early Microcode Update (BIOS) has 3, needs 5"),
        ({"tdx": 9}, "has 3, needs 11"),
    ],
)
def test_each_component_is_compared(components: dict[str, int], told: str | None) -> None:
    warning = newer_level(quote(), with_level(tcb_info=newer_tcb_info(**components)))
    assert (warning is None) == (told is None)
    assert told is None or told in (warning or "")


def test_what_runs_now_counts_not_what_was_launched() -> None:
    """A TD of version 5 states both: its module may have been updated under it."""
    launched = report(tee_tcb_svn=bytes([6, 1, 0]) + bytes(13))
    now_running = bytes([6, 1, 3]) + bytes(13)
    updated = platform().quote(replace(launched, tee_tcb_svn2=now_running), body_type=3)
    assert newer_level(platform().quote(launched), with_level()) is not None
    assert newer_level(updated, with_level()) is None


def test_shapes_that_no_verifier_accepts_give_no_warning() -> None:
    for odd in ({"tcbLevels": []}, {"tcbLevels": [{}]}, {"tcbLevels": 5}):
        try:
            collateral = with_level(tcb_info=odd)
        except Exception:  # noqa: S112 (the reader refuses it: so much the better)
            continue
        assert newer_level(quote(), collateral) is None


def test_a_coming_lock_out_is_foretold() -> None:
    policy = fitting_policy()
    assert appraise(policy, verified(), EVENTS, now=NOW).trusted
    assert forecast(policy, quote(), with_level(), verifier(), NOW, EVENTS) is None
    early = with_level(evaluation_number=18, tcb_info=newer_tcb_info(bios=1))
    warning = forecast(policy, quote(), early, verifier(), NOW, EVENTS) or ""
    assert "LOCK-OUT AHEAD" in warning
    assert "evaluation 18" in warning
    assert "policy.tcb_status" in warning
    assert "BIOS" in warning


def test_a_coming_refusal_is_foretold() -> None:
    early = with_level(revoked=frozenset({"pck"}))
    warning = forecast(fitting_policy(), quote(), early, verifier(), NOW, EVENTS) or ""
    assert "LOCK-OUT AHEAD" in warning
    assert "chain.revoked" in warning


def test_warnings_go_with_the_verdict_and_deny_nothing() -> None:
    verdict = appraise(fitting_policy(), verified(), EVENTS, now=NOW, outlook=["clouds ahead"])
    assert verdict.trusted
    assert "clouds ahead" in verdict.warnings


@pytest.mark.parametrize("name", ["tdx_quote", "tdx_quote_td15ex"])
def test_the_status_of_a_real_platform_is_the_verifiers(name: str) -> None:
    found = PlatformTcb.of_quote(read_vector(f"dcap-qvl/{name}"))
    assert status_under(found, real(name)).status == "UpToDate"


def test_the_status_under_other_collateral_is_the_verifiers() -> None:
    """What the warning computes from the audit log's few numbers is what the verifier will say."""
    found = PlatformTcb.of_quote(quote())
    for options in (
        {},
        {"tcb_status": "ConfigurationNeeded"},
        {"module_status": "OutOfDate"},
        {"tcb_status": "ConfigurationNeeded", "module_status": "OutOfDate"},
        {"tcb_info": newer_tcb_info(bios=1)},
    ):
        collateral = with_level(**options)
        td = verifier().verify(quote(), collateral, NOW)
        level = status_under(found, collateral)
        assert (level.status, level.date) == (td.tcb_status, td.tcb_date)


def test_a_revoked_or_unknown_platform_is_told_apart() -> None:
    found = PlatformTcb.of_quote(quote())
    assert status_under(found, with_level(module_status="Revoked")).status == "Revoked"
    with pytest.raises(Refused) as other:
        status_under(replace(found, fmspc=bytes(6)), with_level())
    assert other.value.code == "tcb.platform_mismatch"


def test_security_versions_survive_the_audit_log() -> None:
    found = PlatformTcb.of_quote(quote())
    stated = json.loads(json.dumps(found.to_dict()))
    assert PlatformTcb.from_dict(stated) == found
    for broken in (
        {},
        stated | {"fmspc": 5},
        stated | {"cpu_svn": "00"},
        stated | {"pce_svn": "x"},
    ):
        with pytest.raises(InputError):
            PlatformTcb.from_dict(broken)
