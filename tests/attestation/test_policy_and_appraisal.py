"""Policies are read strictly; each rule passes and fails; every failure is told."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, replace
from datetime import timedelta
from pathlib import Path

import dcap_qvl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealserve.attestation import policy_file
from sealserve.attestation.appraisal import appraise
from sealserve.attestation.policy import (
    TCB_STATUSES,
    AcceptedStatus,
    MaskedValue,
    PlatformFlags,
    Policy,
    Release,
    RequiredEvent,
)
from sealserve.errors import InputError, Refused, Unavailable
from sealserve.tdx.eventlog import RuntimeEvent, replay
from tests.simulated import EVENTS, NOW, fitting_policy, report, verified

ZERO = "00" * 48
HEX48 = st.binary(min_size=48, max_size=48).map(bytes.hex)
REPORT = report()


def codes(
    policy: Policy, events: tuple[RuntimeEvent, ...] | None = EVENTS, **td: object
) -> list[str]:
    verdict = appraise(policy, verified(**td), events, now=NOW)
    assert verdict.trusted == (not verdict.failures)
    return [failure.code for failure in verdict.failures]


def release(**changes: str | None) -> Release:
    return replace(fitting_policy().releases[0], **changes)  # type: ignore[arg-type]


def test_the_fitting_policy_fits() -> None:
    verdict = appraise(fitting_policy(), verified(), EVENTS, now=NOW)
    assert verdict.trusted
    assert verdict.release == "good"
    verdict.raise_if_denied()


def test_an_empty_policy_denies() -> None:
    assert "policy.no_releases" in codes(Policy())
    only_that = replace(fitting_policy(), releases=())
    assert codes(only_that) == ["policy.no_releases"]
    with pytest.raises(Refused) as caught:
        appraise(only_that, verified(), EVENTS, now=NOW).raise_if_denied()
    assert caught.value.code == "policy.no_releases"


# Each field of a policy: a value that the good TD keeps, one that it breaks,
# and the code that says so. A test below holds this table complete.
PIID = verified().piid
FIELDS: list[tuple[str, object, object, str]] = [
    ("releases", (release(),), (release(mrtd=ZERO),), "policy.mrtd_unknown"),
    ("releases", (release(),), (release(rtmr0=ZERO),), "policy.rtmr0_unknown"),
    ("releases", (release(),), (release(rtmr1=ZERO),), "policy.rtmr1_unknown"),
    ("releases", (release(),), (release(rtmr2=ZERO),), "policy.rtmr2_unknown"),
    (
        "releases",
        (release(rtmr3=REPORT.rtmr3.hex()),),
        (release(rtmr3=ZERO),),
        "policy.rtmr3_unknown",
    ),
    ("mrseam", (REPORT.mrseam.hex(), ZERO), (ZERO,), "policy.mrseam_unknown"),
    ("mrseam", None, (), "policy.mrseam_unknown"),
    ("mrconfigid", (ZERO,), ("11" * 48,), "policy.mrconfigid_unknown"),
    ("mrowner", (ZERO,), ("11" * 48,), "policy.mrowner_unknown"),
    ("mrownerconfig", (ZERO,), ("11" * 48,), "policy.mrownerconfig_unknown"),
    (
        "td_attributes",
        MaskedValue(mask="ffffffffffffffff", value="0000001000000000"),
        MaskedValue(mask="0000004000000000", value="0000004000000000"),
        "policy.td_attributes",
    ),
    (
        "xfam",
        MaskedValue(mask="0300000000000000", value="0300000000000000"),
        MaskedValue(mask="ffffffffffffffff", value="0300000000000000"),
        "policy.xfam",
    ),
    ("platform_ids", ((PIID or b"").hex(),), ("00" * 16,), "policy.platform_unknown"),
    (
        "platform_flags",
        PlatformFlags(dynamic_platform=True, cached_keys=True, smt=True),
        PlatformFlags(dynamic_platform=False, cached_keys=True, smt=True),
        "policy.dynamic_platform",
    ),
    (
        "platform_flags",
        PlatformFlags(dynamic_platform=True, cached_keys=True, smt=True),
        PlatformFlags(dynamic_platform=True, cached_keys=False, smt=True),
        "policy.cached_keys",
    ),
    (
        "platform_flags",
        PlatformFlags(dynamic_platform=True, cached_keys=True, smt=True),
        PlatformFlags(dynamic_platform=True, cached_keys=True, smt=False),
        "policy.smt",
    ),
    (
        "tcb_statuses",
        (AcceptedStatus(status="OutOfDate"), AcceptedStatus(status="UpToDate")),
        (AcceptedStatus(status="OutOfDate"),),
        "policy.tcb_status",
    ),
    (
        "tcb_statuses",
        (AcceptedStatus(status="UpToDate", grace_days=100),),
        (AcceptedStatus(status="UpToDate", grace_days=99),),
        "policy.tcb_status",
    ),
    ("min_tcb_evaluation", 17, 18, "policy.tcb_evaluation_too_old"),
    (
        "required_events",
        (RequiredEvent(name="broker", payload="00" * 32), RequiredEvent(name="sealed")),
        (RequiredEvent(name="broker", payload="11" * 32),),
        "policy.event_mismatch",
    ),
    (
        "required_events",
        (),
        (RequiredEvent(name="volume"),),
        "policy.event_mismatch",
    ),
    ("simulation", "allowed", "denied", "policy.simulation_denied"),
]


@pytest.mark.parametrize(("field", "kept", "broken", "code"), FIELDS)
def test_each_rule_passes_and_fails(field: str, kept: object, broken: object, code: str) -> None:
    assert codes(fitting_policy(**{field: kept})) == []
    assert codes(fitting_policy(**{field: broken})) == [code]


@pytest.mark.parametrize("status", TCB_STATUSES)
def test_each_of_intels_statuses_can_be_accepted_and_is_not_unless_named(status: str) -> None:
    # The library is the oracle for the names: it refuses an unknown one.
    dcap_qvl.QuotePolicy.strict(0).allow_status(status)
    accepted = (AcceptedStatus(status=status),)  # type: ignore[arg-type]
    assert codes(fitting_policy(tcb_statuses=accepted), tcb_status=status) == []
    others = tuple(AcceptedStatus(status=other) for other in TCB_STATUSES if other != status)
    assert codes(fitting_policy(tcb_statuses=others), tcb_status=status) == ["policy.tcb_status"]


def test_an_advisory_can_be_rejected() -> None:
    policy = fitting_policy(rejected_advisories=("INTEL-SA-00001",))
    assert codes(policy, advisory_ids=("INTEL-SA-00002",)) == []
    affected = codes(policy, advisory_ids=("INTEL-SA-00001", "INTEL-SA-00002"))
    assert affected == ["policy.advisory_rejected"]


def test_every_field_of_a_policy_is_in_the_tests() -> None:
    tested = {field for field, *_ in FIELDS} | {"rejected_advisories"}
    assert tested == {field.name for field in fields(Policy)}


def test_all_failures_are_reported() -> None:
    policy = fitting_policy(releases=(release(mrtd=ZERO),), simulation="denied")
    assert codes(policy) == ["policy.mrtd_unknown", "policy.simulation_denied"]
    with pytest.raises(Refused) as caught:
        appraise(policy, verified(), EVENTS, now=NOW).raise_if_denied()
    assert "policy.mrtd_unknown" in str(caught.value)
    assert "policy.simulation_denied" in str(caught.value)
    assert REPORT.mrtd.hex() in str(caught.value)


def test_one_of_several_releases_is_enough_but_not_halves_of_two() -> None:
    other = Release(label="other", mrtd=ZERO, rtmr0=ZERO, rtmr1=ZERO, rtmr2=ZERO)
    both = appraise(fitting_policy(releases=(other, release())), verified(), EVENTS, now=NOW)
    assert both.release == "good"
    halves = (release(label="a", mrtd=ZERO), release(label="b", rtmr2=ZERO))
    assert codes(fitting_policy(releases=halves)) in (
        ["policy.mrtd_unknown"],
        ["policy.rtmr2_unknown"],
    )


def test_a_release_that_nearly_fits_does_not_hide_one_that_fits() -> None:
    """Both agree in four registers, but one of them says nothing about the fifth."""
    nearly = release(label="nearly", rtmr3=ZERO)
    policy = fitting_policy(releases=(nearly, release()))
    assert codes(policy) == []
    assert appraise(policy, verified(), EVENTS, now=NOW).release == "good"


def test_the_nearest_release_explains_the_denial() -> None:
    far = Release(label="far", mrtd=ZERO, rtmr0=ZERO, rtmr1=ZERO, rtmr2=ZERO)
    near = release(label="near", rtmr2=ZERO)
    (failure,) = appraise(
        fitting_policy(releases=(far, near)), verified(), EVENTS, now=NOW
    ).failures
    assert failure.code == "policy.rtmr2_unknown"
    assert "near" in failure.expected
    assert failure.actual == REPORT.rtmr2.hex()


def test_flags_that_a_certificate_does_not_state_are_not_off() -> None:
    policy = fitting_policy(platform_flags=PlatformFlags(dynamic_platform=True, cached_keys=True))
    assert codes(policy, smt=None) == ["policy.smt"]
    assert codes(policy, smt=False) == []


def test_a_platform_without_id_is_in_no_list() -> None:
    policy = fitting_policy(platform_ids=("00" * 16,))
    assert codes(policy, piid=None) == ["policy.platform_unknown"]


def test_collateral_that_ended_is_refused_and_the_end_is_announced() -> None:
    assert codes(fitting_policy(), collateral_ends=NOW - timedelta(seconds=1)) == [
        "policy.collateral_expired"
    ]
    soon = verified(collateral_ends=NOW + timedelta(days=3))
    warnings = appraise(fitting_policy(), soon, EVENTS, now=NOW).warnings
    assert any("3 day" in warning for warning in warnings)
    later = verified(collateral_ends=NOW + timedelta(days=15))
    assert not any("ends in" in w for w in appraise(fitting_policy(), later, now=NOW).warnings)


def test_simulation_is_loud() -> None:
    assert any("SIMULATION" in w for w in appraise(fitting_policy(), verified(), now=NOW).warnings)


def sealed(*events: RuntimeEvent) -> dict[str, object]:
    return {"report": report(rtmr3=replay(events))}


@pytest.mark.parametrize(
    "log",
    [
        EVENTS[:-1],  # the last one dropped
        EVENTS[1:],  # the first one dropped
        (EVENTS[1], EVENTS[0], EVENTS[2]),  # order
        (RuntimeEvent("broker", b"x"), *EVENTS[1:]),  # another payload
        (*EVENTS, RuntimeEvent("late")),
        (),
    ],
)
def test_a_log_that_does_not_replay_is_refused(log: tuple[RuntimeEvent, ...]) -> None:
    assert "eventlog.replay_mismatch" in codes(fitting_policy(required_events=()), log)


@pytest.mark.parametrize(
    "log",
    [
        (),
        EVENTS[:-1],
        (*EVENTS, RuntimeEvent("shell")),  # after the seal
        (*EVENTS, RuntimeEvent("sealed")),  # sealed twice
    ],
)
def test_nothing_follows_the_seal(log: tuple[RuntimeEvent, ...]) -> None:
    found = codes(fitting_policy(required_events=()), log, **sealed(*log))
    assert found == ["eventlog.not_sealed"]


def test_required_events_need_a_log() -> None:
    assert codes(fitting_policy(), None) == ["policy.events_missing"]
    assert codes(fitting_policy(required_events=()), None) == []


def test_a_second_event_of_a_fixed_name_is_refused() -> None:
    policy = fitting_policy(required_events=(RequiredEvent(name="broker", payload="00" * 32),))
    log = (EVENTS[0], RuntimeEvent("broker", b"evil"), EVENTS[2])
    assert codes(policy, log, **sealed(*log)) == ["policy.event_mismatch"]


def test_an_event_without_payload_is_shown_as_there() -> None:
    policy = fitting_policy(required_events=(RequiredEvent(name="sealed", payload=""),))
    findings = appraise(policy, verified(), EVENTS, now=NOW).findings
    (found,) = (f for f in findings if f.rule == "required_events.sealed")
    assert found.passed
    assert found.expected == found.actual == "an empty payload"


def test_a_verdict_can_be_printed_as_json() -> None:
    import json

    verdict = appraise(fitting_policy(simulation="denied"), verified(), EVENTS, now=NOW)
    document = json.loads(json.dumps(verdict.to_dict()))
    assert document["trusted"] is False
    assert document["failures"] == ["policy.simulation_denied"]


RELEASES = st.builds(
    Release,
    label=st.text("abc", min_size=1, max_size=8),
    mrtd=HEX48,
    rtmr0=HEX48,
    rtmr1=HEX48,
    rtmr2=HEX48,
    rtmr3=st.none() | HEX48,
)
POLICIES = st.builds(
    Policy,
    releases=st.lists(RELEASES, max_size=3, unique_by=lambda r: r.label).map(tuple),
    mrseam=st.none() | st.lists(HEX48, max_size=2).map(tuple),
    td_attributes=st.none() | st.just(MaskedValue(mask="ff" * 8, value="0000001000000000")),
    platform_ids=st.none() | st.just(("00" * 16,)),
    platform_flags=st.builds(
        PlatformFlags, dynamic_platform=st.booleans(), cached_keys=st.booleans(), smt=st.booleans()
    ),
    tcb_statuses=st.sampled_from(
        [(), (AcceptedStatus(status="OutOfDate", grace_days=3), AcceptedStatus(status="UpToDate"))]
    ),
    rejected_advisories=st.sampled_from([(), ("INTEL-SA-00001",)]),
    min_tcb_evaluation=st.integers(0, 100),
    required_events=st.sampled_from([(), (RequiredEvent(name="sealed", payload=""),)]),
    simulation=st.sampled_from(["denied", "allowed"]),
)


@settings(deadline=None, max_examples=60)
@given(POLICIES)
def test_policies_survive_yaml(policy: Policy) -> None:
    assert policy_file.parse(policy_file.dump(policy).encode()) == policy


@settings(deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_a_policy_or_a_typed_error(raw: bytes) -> None:
    try:
        policy_file.parse(raw)
    except InputError as error:
        raised = error.code
    else:
        raised = "policy.malformed"
    assert raised == "policy.malformed"


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", None),
        ("[]", None),
        ("\0", None),
        ("a: [", None),
        ("mrseam: [aa]", "mrseam"),
        ("mrseam:", "mrseam"),
        ("platform_ids: [null]", "platform_ids.0"),
        ("unknown: 1", "unknown"),
        ("releases: [{label: x}]", "releases.0.mrtd"),
        ("platform_flags: {smt: 1}", "platform_flags.smt"),
        ("platform_flags: {htt: true}", "platform_flags.htt"),
        ("min_tcb_evaluation: '3'", "min_tcb_evaluation"),
        ("min_tcb_evaluation: -3", "min_tcb_evaluation"),
        ("min_tcb_evaluation: 3\nmin_tcb_evaluation: 4", None),
        ("simulation: yes", "simulation"),
        ("simulation: Allowed", "simulation"),
        ("tcb_statuses: [{status: Revoked}]", "tcb_statuses.0.status"),
        ("tcb_statuses: [{status: UpToDate}, {status: UpToDate}]", "tcb_statuses"),
        ("tcb_statuses: [{status: UpToDate, grace_days: 4000}]", "tcb_statuses.grace_days"),
        ("rejected_advisories: [SA-1]", "rejected_advisories"),
        ("required_events: [{name: Sealed}]", "required_events.name"),
        ("required_events: [{name: sealed, payload: 0x}]", "required_events.payload"),
        ("xfam: {mask: '0000000000000000', value: '0000000000000001'}", "value"),
        ("td_attributes: {mask: ffffffffffffffff, value: 1000001000000000}", "td_attributes.value"),
        ("min_tcb_evaluation: 017", "min_tcb_evaluation"),  # 15 in YAML 1.1
        ("min_tcb_evaluation: 1:30", "min_tcb_evaluation"),  # 90
        ("min_tcb_evaluation: 1_7", "min_tcb_evaluation"),
        ("min_tcb_evaluation: 0x" + "f" * 5000, "min_tcb_evaluation"),
        ("platform_flags: {smt: yes}", "platform_flags.smt"),
        ("platform_flags: {smt: on}", "platform_flags.smt"),
        ("min_tcb_evaluation: !!int '0x11'", None),
        ("simulation: !!str denied", None),
        ("<<: {simulation: allowed}", "<<"),
        ("? []\n: 1\n? []\n: 2", None),
        ("? {a: b}\n: 1", None),
        ("mrseam: [" + "[]," * 40000 + "]", None),
        ("a: &a [*a]", None),
        ("mrseam: !!binary aaaa", None),
        ("x: !!python/object/apply:os.system [id]", None),
        ("a: " + "[" * 5000, None),
    ],
)
def test_malformed_policies_name_the_field(text: str, where: str | None) -> None:
    with pytest.raises(InputError) as caught:
        policy_file.parse(text.encode())
    assert caught.value.code == "policy.malformed"
    assert caught.value.where == where


def test_hexadecimal_digits_need_no_quotes_where_nothing_else_is_meant() -> None:
    text = b"td_attributes: {mask: ffffffffffffffff, value: 0000001000000000}"
    expected = MaskedValue(mask="ff" * 8, value="0000001000000000")
    assert policy_file.parse(text).td_attributes == expected


def test_other_encodings_than_utf_8_are_refused() -> None:
    """They were read, and then could not be added to."""
    with pytest.raises(InputError) as caught:
        policy_file.parse("simulation: denied\n".encode("utf-16"))
    assert caught.value.code == "policy.malformed"
    assert policy_file.parse("\ufeffsimulation: denied\n".encode()) == Policy()


def test_many_keys_are_read_in_bounded_time() -> None:
    """They were compared each with each: a minute for a file that the size limit lets pass."""
    keys = b"".join(b"k%d: 1\n" % number for number in range(100_000))
    with pytest.raises(InputError, match="more than 32768 values"):
        policy_file.parse(keys)


def test_the_largest_policy_fits() -> None:
    registers = dict.fromkeys(("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3"), "ab" * 48)
    releases = tuple(Release(label=f"{n:x}", **registers) for n in range(1024))
    raw = policy_file.dump(Policy(releases=releases)).encode()
    assert len(policy_file.parse(raw).releases) == 1024


def test_files_are_written_once_and_read(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    policy_file.write(fitting_policy(), path)
    assert policy_file.load(path) == fitting_policy()
    with pytest.raises(InputError) as exists:
        policy_file.write(Policy(), path)
    assert exists.value.code == "file.exists"
    assert policy_file.load(path) == fitting_policy()
    assert [entry.name for entry in tmp_path.iterdir()] == ["policy.yaml"]
    with pytest.raises(Unavailable) as absent:
        policy_file.load(tmp_path / "none")
    assert absent.value.code == "file.unreadable"
    with pytest.raises(Unavailable) as unwritable:
        policy_file.write(Policy(), tmp_path / "none" / "policy.yaml")
    assert unwritable.value.code == "file.unwritable"
    path.write_text("nonsense: 1")
    with pytest.raises(InputError, match=r"policy\.yaml: nonsense"):
        policy_file.load(path)


def test_policies_need_no_pydantic() -> None:
    script = (
        "import sys; import sealserve.attestation.ratls, sealserve.attestation.policy; "
        "heavy = {'pydantic', 'yaml', 'typer', 'structlog', 'cbor2'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
