"""Schema, diff and appending: held against what appraisal and the YAML reader really do."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sealserve.attestation import policy_file
from sealserve.attestation.appraisal import appraise
from sealserve.attestation.policy import (
    AcceptedStatus,
    MaskedValue,
    PlatformFlags,
    Policy,
    Release,
    RequiredEvent,
    TcbStatus,
)
from sealserve.attestation.policy_append import append_release
from sealserve.attestation.policy_diff import diff
from sealserve.attestation.policy_schema import schema
from sealserve.errors import InputError
from sealserve.tdx.eventlog import RuntimeEvent, replay
from tests.attestation.test_policy_and_appraisal import FIELDS
from tests.simulated import NOW, fitting_policy, report, verified

ZERO, ONES = "00" * 48, "11" * 48
RELEASE = fitting_policy().releases[0]


# --- diff ---------------------------------------------------------------------


def kinds(old: Policy, new: Policy) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for change in diff(old, new):
        found.setdefault(change.rule, set()).add(change.kind)
    return found


@pytest.mark.parametrize(("field", "kept", "broken", "code"), FIELDS)
def test_a_change_that_denies_is_tightened_and_its_reverse_loosened(
    field: str, kept: object, broken: object, code: str
) -> None:
    good, bad = fitting_policy(**{field: kept}), fitting_policy(**{field: broken})
    assert any("tightened" in kind for kind in kinds(good, bad).values()), code
    assert any("loosened" in kind for kind in kinds(bad, good).values()), code
    assert all(rule.startswith(field) for rule in kinds(good, bad))


def test_the_same_has_no_changes_in_whatever_order() -> None:
    policy = fitting_policy(
        releases=(RELEASE, replace(RELEASE, label="b", mrtd=ZERO)),
        mrseam=(ZERO, ONES),
        required_events=(RequiredEvent(name="a"), RequiredEvent(name="b")),
    )
    turned = replace(
        policy,
        releases=policy.releases[::-1],
        mrseam=(ONES, ZERO),
        required_events=policy.required_events[::-1],
    )
    assert diff(policy, policy) == diff(policy, turned) == ()


@pytest.mark.parametrize(
    ("changes", "rule", "kind"),
    [
        ({"releases": (replace(RELEASE, label="new name"),)}, "releases", {"renamed"}),
        ({"releases": (replace(RELEASE, rtmr3=ZERO),)}, "releases", {"tightened"}),
        ({"releases": (RELEASE, replace(RELEASE, label="b", rtmr3=ZERO))}, "", set()),
        ({"mrseam": (ZERO,)}, "mrseam", {"tightened"}),
        ({"td_attributes": MaskedValue(mask="00" * 8, value="00" * 8)}, "", set()),
        ({"tcb_statuses": ()}, "tcb_statuses.UpToDate", {"tightened"}),
        (
            {"tcb_statuses": (AcceptedStatus(status="UpToDate", grace_days=0),)},
            "tcb_statuses.UpToDate",
            {"tightened"},
        ),
        (
            {"required_events": (RequiredEvent(name="sealed", payload=""),)},
            "required_events.sealed",
            {"tightened"},
        ),
        ({"simulation": "denied"}, "simulation", {"tightened"}),
    ],
)
def test_particular_changes(changes: dict[str, Any], rule: str, kind: set[str]) -> None:
    assert kinds(fitting_policy(), fitting_policy(**changes)).get(rule, set()) == kind


def test_another_payload_besides_one_is_both() -> None:
    """It must be there, and it may: before, it must not."""
    one = fitting_policy(required_events=(RequiredEvent(name="model", payload="aa"),))
    two = replace(
        one, required_events=(*one.required_events, RequiredEvent(name="model", payload="bb"))
    )
    assert kinds(one, two) == {"required_events.model": {"loosened", "tightened"}}


STATUSES = st.lists(
    st.builds(
        AcceptedStatus,
        status=st.sampled_from(["UpToDate", "OutOfDate"]),
        grace_days=st.sampled_from([None, 0, 99, 100]),
    ),
    max_size=2,
    unique_by=lambda entry: entry.status,
).map(tuple)
WORDS = st.sampled_from(
    [
        None,
        MaskedValue(mask="00" * 8, value="00" * 8),
        MaskedValue(mask="0000001000000000", value="0000001000000000"),
        MaskedValue(mask="0000001000000000", value="00" * 8),
        MaskedValue(mask="ff" * 8, value="0000001000000000"),
    ]
)
LISTS = st.sampled_from([None, (), (ZERO,), (ONES,), (ZERO, ONES)])
EVENTS = st.lists(
    st.builds(
        RequiredEvent,
        name=st.sampled_from(["model", "sealed"]),
        payload=st.sampled_from([None, "", "aa", "bb"]),
    ),
    max_size=3,
    unique=True,
).map(tuple)
POLICIES = st.builds(
    Policy,
    releases=st.lists(
        st.sampled_from(
            [
                RELEASE,
                replace(RELEASE, label="a", rtmr3=ZERO),
                replace(RELEASE, label="b", mrtd=ZERO),
            ]
        ),
        max_size=3,
        unique=True,
    ).map(tuple),
    mrconfigid=LISTS,
    td_attributes=WORDS,
    platform_flags=st.builds(PlatformFlags, smt=st.booleans(), cached_keys=st.just(True)),
    tcb_statuses=STATUSES,
    rejected_advisories=st.sampled_from([(), ("INTEL-SA-00001",), ("INTEL-SA-00002",)]),
    min_tcb_evaluation=st.integers(16, 18),
    required_events=EVENTS,
    simulation=st.sampled_from(["denied", "allowed"]),
)
LOGS = st.lists(
    st.sampled_from([RuntimeEvent("model", b"\xaa"), RuntimeEvent("model", b"\xbb")]), max_size=3
).map(lambda models: (*models, RuntimeEvent("sealed")))


@settings(deadline=None, max_examples=1500)
@given(POLICIES, POLICIES, LOGS | st.none(), st.data())
def test_no_loosening_goes_untold(
    old: Policy, new: Policy, log: tuple[RuntimeEvent, ...] | None, data: st.DataObject
) -> None:
    """Appraisal is the oracle: what only the new policy accepts, the diff must call loosened."""
    td = verified(
        report=report(
            rtmr3=bytes(48) if log is None else replay(log),
            mrconfigid=bytes.fromhex(data.draw(st.sampled_from([ZERO, ONES]))),
        ),
        smt=data.draw(st.sampled_from([True, False, None])),
        dynamic_platform=False,
        simulated=data.draw(st.booleans()),
        advisory_ids=data.draw(st.sampled_from([(), ("INTEL-SA-00001",)])),
        tcb_status=data.draw(st.sampled_from(["UpToDate", "OutOfDate"])),
        tcb_evaluation=data.draw(st.integers(16, 18)),
    )
    before, after = (appraise(p, td, log, now=NOW).trusted for p in (old, new))
    told = {change.kind for change in diff(old, new)}
    if after and not before:
        assert "loosened" in told
    if before and not after:
        assert "tightened" in told


# --- schema -------------------------------------------------------------------


def test_the_schema_has_every_field_with_its_meaning() -> None:
    found = schema()
    json.dumps(found)
    assert set(found["properties"]) == {field.name for field in fields(Policy)}
    assert found["additionalProperties"] is False
    classes = {"Release": Release, "MaskedValue": MaskedValue, "PlatformFlags": PlatformFlags}
    for name, of in classes.items():
        part = found["$defs"][name]
        assert set(part["properties"]) == {field.name for field in fields(of)}
        assert part["additionalProperties"] is False
    described = [p for p in found["properties"].values() if p.get("description")]
    assert len(described) == len(found["properties"])
    assert "null" not in json.dumps(found)
    statuses = found["$defs"]["AcceptedStatus"]["properties"]["status"]["enum"]
    assert tuple(statuses) == get_args(TcbStatus)


def fits(value: Any, part: dict[str, Any], whole: dict[str, Any]) -> bool:
    """As much of a JSON schema validator as this schema uses; it knows no other word."""
    if "$ref" in part:
        part = whole["$defs"][part["$ref"].rpartition("/")[2]]
    known = {
        "$schema", "$defs", "title", "description", "default", "type", "properties", "required",
        "additionalProperties", "items", "pattern", "enum", "$ref",
    }  # fmt: skip
    assert set(part) <= known, set(part) - known
    if "enum" in part and value not in part["enum"]:
        return False
    match part["type"]:
        case "object":
            return (
                isinstance(value, dict)
                and set(part.get("required", ())) <= set(value) <= set(part["properties"])
                and all(fits(v, part["properties"][k], whole) for k, v in value.items())
            )
        case "array":
            return isinstance(value, list) and all(fits(v, part["items"], whole) for v in value)
        case "string":
            return isinstance(value, str) and bool(re.search(part.get("pattern", ""), value))
        case "integer":
            return type(value) is int
        case "boolean":
            return isinstance(value, bool)
    raise AssertionError(part)


@settings(deadline=None, max_examples=100)
@given(POLICIES)
def test_the_schema_takes_what_the_reader_takes(policy: Policy) -> None:
    document = yaml.safe_load(policy_file.dump(policy))
    assert fits(document, schema(), schema())


@pytest.mark.parametrize(
    "text",
    [
        "unknown: 1",
        "mrseam: [aa]",
        "mrseam:",
        "releases: [{label: x}]",
        "platform_flags: {smt: 1}",
        "min_tcb_evaluation: '3'",
        "simulation: yes",
        "tcb_statuses: [{status: Revoked}]",
        "xfam: {mask: '00', value: '00'}",
    ],
)
def test_the_schema_refuses_what_the_reader_refuses(text: str) -> None:
    with pytest.raises(InputError):
        policy_file.parse(text.encode())
    assert not fits(yaml.safe_load(text), schema(), schema())


# --- a release more -----------------------------------------------------------

SECOND = Release(label="2026.12", mrtd=ONES, rtmr0=ONES, rtmr1=ZERO, rtmr2=ZERO)
FLOW = (
    f"releases: [{{label: a, mrtd: {ONES}, rtmr0: {ONES}, rtmr1: {ONES}, rtmr2: {ONES}}}]".replace(
        ONES, f"'{ONES}'"
    )
)
HAND_WRITTEN = f"""\
# Who may have the key.
simulation: denied   # never in production

releases:
    # the image of November
    - mrtd: '{ZERO}'
      rtmr0: '{ZERO}'
      label: "2026.11"
      rtmr1: '{ZERO}'   # same kernel
      rtmr2: '{ZERO}'
# No other module.
mrseam: ['{ONES}']
"""


def test_a_release_is_added_and_the_rest_stays(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(HAND_WRITTEN)
    old = policy_file.load(path)
    new = append_release(path, SECOND)
    assert new == policy_file.load(path) == replace(old, releases=(*old.releases, SECOND))
    lines, before = path.read_text().splitlines(), HAND_WRITTEN.splitlines()
    at = lines.index("    - label: '2026.12'")
    assert lines[:at] + lines[at + 5 :] == before


@settings(deadline=None, max_examples=60)
@given(policy=POLICIES)
def test_a_release_is_added_to_whatever_we_wrote(
    tmp_path_factory: pytest.TempPathFactory, policy: Policy
) -> None:
    path = tmp_path_factory.mktemp("p") / "policy.yaml"
    path.write_text(policy_file.dump(policy))
    if not policy.releases and "releases: []" in path.read_text():
        with pytest.raises(InputError):
            append_release(path, SECOND)
    else:
        assert append_release(path, SECOND).releases == (*policy.releases, SECOND)


@pytest.mark.parametrize(
    "text",
    [
        FLOW,
        "releases: []",
        "{simulation: denied}",
        HAND_WRITTEN.replace("2026.11", "2026.12"),
    ],
)
def test_what_cannot_be_added_to_is_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        append_release(path, SECOND)
    assert caught.value.code == "policy.cannot_append"
    assert path.read_text() == text


@pytest.mark.parametrize("text", ["simulation: denied", "simulation: denied\n"])
def test_the_first_release_is_added_too(tmp_path: Path, text: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    assert append_release(path, SECOND).releases == (SECOND,)


# --- at a release --------------------------------------------------------------


def test_a_key_goes_only_to_an_untouched_guest() -> None:
    policy = fitting_policy(required_events=())
    fresh, measured = verified(report=report(rtmr3=bytes(48))), verified()
    for td, at_release, failures in (
        (fresh, True, []),
        (measured, True, ["policy.rtmr3_unknown"]),
        (measured, False, []),
    ):
        rules = policy.at_release() if at_release else policy
        assert [f.code for f in appraise(rules, td, now=NOW).failures] == failures
    named = replace(policy, releases=(replace(RELEASE, rtmr3=ONES),))
    assert named.at_release() == named
