"""Appraisal: is this genuine TD trusted under that policy? Every rule, with its reason.

Rules this module keeps:

* Every rule is examined, always: one refusal lists all that is wrong.
* A verdict without failures is the only yes, and needs at least one rule about
  the guest's measurements to have matched.
* Appraisal reads and compares; it does no cryptography beyond replaying the log.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sealserve.attestation.collateral import ending_soon
from sealserve.attestation.policy import MaskedValue, Policy, Release
from sealserve.attestation.verifier import VerifiedTd
from sealserve.errors import Refused
from sealserve.tdx.eventlog import RuntimeEvent, replay

__all__ = ["SEALED", "Finding", "Verdict", "appraise"]

SEALED = "sealed"
"""Name of the runtime event after which nothing may follow."""

_REGISTER_CODES = {
    "mrtd": "policy.mrtd_unknown",
    "rtmr0": "policy.rtmr0_unknown",
    "rtmr1": "policy.rtmr1_unknown",
    "rtmr2": "policy.rtmr2_unknown",
    "rtmr3": "policy.rtmr3_unknown",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One rule, held against the evidence.

    Attributes:
        code: stable code of this rule's failure (``"policy.mrtd_unknown"``).
        rule: the rule's name in the policy.
        passed: whether the evidence keeps the rule.
        expected: what the policy accepts.
        actual: what the evidence says.
    """

    code: str
    rule: str
    passed: bool
    expected: str
    actual: str

    def to_dict(self) -> dict[str, Any]:
        """The finding as a JSON object."""
        return {
            "code": self.code,
            "rule": self.rule,
            "passed": self.passed,
            "expected": self.expected,
            "actual": self.actual,
        }


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of an appraisal.

    Attributes:
        findings: every rule examined, in the policy's order.
        release: label of the matched release, if any.
        warnings: sentences about what will turn into a failure.
    """

    findings: tuple[Finding, ...]
    release: str | None
    warnings: tuple[str, ...]

    @property
    def failures(self) -> tuple[Finding, ...]:
        """The rules that are broken."""
        return tuple(finding for finding in self.findings if not finding.passed)

    @property
    def trusted(self) -> bool:
        """True only if a release matched and no rule is broken."""
        return self.release is not None and not self.failures

    def raise_if_denied(self) -> None:
        """Turn a denial into an error.

        Raises:
            Refused: with the code of the first failure; the message names all
                of them, with expected and actual values.
        """
        if self.trusted:
            return
        failures = self.failures
        reasons = "; ".join(
            f"{f.code}: expected {f.expected}, the evidence says {f.actual}" for f in failures
        )
        raise Refused(
            failures[0].code if failures else "policy.no_releases",
            f"the policy denies this guest for {len(failures)} reason(s): {reasons}",
            hint="`sealserve policy explain` shows every rule",
        )

    def to_dict(self) -> dict[str, Any]:
        """The verdict as a JSON object."""
        return {
            "trusted": self.trusted,
            "release": self.release,
            "findings": [finding.to_dict() for finding in self.findings],
            "failures": [finding.code for finding in self.failures],
            "warnings": list(self.warnings),
        }


def appraise(
    policy: Policy,
    td: VerifiedTd,
    events: Sequence[RuntimeEvent] | None = None,
    *,
    now: datetime,
    outlook: Sequence[str] = (),
) -> Verdict:
    """Hold a verified TD against a policy.

    Args:
        policy: what is demanded.
        td: a genuine TD, from :class:`~sealserve.attestation.verifier.Verifier`.
        events: its claimed runtime event log; if given, it must replay to
            RTMR3 and end with ``sealed``.
        now: the time of the decision, with a time zone.
        outlook: further warnings to go with the verdict, from
            :mod:`~sealserve.attestation.collateral_outlook`.

    Returns:
        The verdict: every rule with its outcome.
    """
    release, registers = _nearest_release(policy, td)
    findings = [*registers, *_platform_rules(policy, td, now), *_td_rules(policy, td)]
    findings += _event_rules(policy, td, events)
    matched = release is not None and all(finding.passed for finding in registers)
    return Verdict(
        findings=tuple(findings),
        release=release.label if release is not None and matched else None,
        warnings=(*_warnings(td, now), *outlook),
    )


def _nearest_release(policy: Policy, td: VerifiedTd) -> tuple[Release | None, list[Finding]]:
    """The release that differs in the fewest registers, and how each register compares with it."""
    if not policy.releases:
        nothing = Finding(
            "policy.no_releases",
            "releases",
            passed=False,
            expected="at least one release in the policy",
            actual="none: an empty policy accepts nothing",
        )
        return None, [nothing]
    compared = [(release, _compare(release, td)) for release in policy.releases]
    # Failures are counted, not matches: a release that says nothing about RTMR3 has fewer of both.
    return min(compared, key=lambda pair: sum(not finding.passed for finding in pair[1]))


def _compare(release: Release, td: VerifiedTd) -> list[Finding]:
    findings = []
    for register, code in _REGISTER_CODES.items():
        expected = getattr(release, register)
        if expected is None:
            continue
        actual = getattr(td.report, register).hex()
        findings.append(
            Finding(
                code,
                f"releases.{register}",
                passed=actual == expected,
                expected=f"{expected} (release {release.label})",
                actual=actual,
            )
        )
    return findings


def _platform_rules(policy: Policy, td: VerifiedTd, now: datetime) -> Iterator[Finding]:
    yield Finding(
        "policy.simulation_denied",
        "simulation",
        passed=not td.simulated or policy.simulation == "allowed",
        expected=policy.simulation,
        actual="SIMULATION" if td.simulated else "real hardware",
    )
    yield Finding(
        "policy.collateral_expired",
        "collateral",
        passed=now <= td.collateral_ends,
        expected=f"valid at {now.isoformat()}",
        actual=f"ends {td.collateral_ends.isoformat()}",
    )
    yield _status_rule(policy, td, now)
    rejected = sorted(set(td.advisory_ids) & set(policy.rejected_advisories))
    yield Finding(
        "policy.advisory_rejected",
        "rejected_advisories",
        passed=not rejected,
        expected="none of " + (", ".join(policy.rejected_advisories) or "(none listed)"),
        actual=", ".join(rejected or td.advisory_ids) or "no advisories",
    )
    yield Finding(
        "policy.tcb_evaluation_too_old",
        "min_tcb_evaluation",
        passed=td.tcb_evaluation >= policy.min_tcb_evaluation,
        expected=f"at least {policy.min_tcb_evaluation}",
        actual=str(td.tcb_evaluation),
    )
    flags = policy.platform_flags
    yield _flag_rule(
        "policy.dynamic_platform", "dynamic_platform", flags.dynamic_platform, td.dynamic_platform
    )
    yield _flag_rule("policy.cached_keys", "cached_keys", flags.cached_keys, td.cached_keys)
    yield _flag_rule("policy.smt", "smt", flags.smt, td.smt)
    if policy.platform_ids is not None:
        actual = "none" if td.piid is None else td.piid.hex()
        yield _one_of("policy.platform_unknown", "platform_ids", policy.platform_ids, actual)


def _status_rule(policy: Policy, td: VerifiedTd, now: datetime) -> Finding:
    accepted = {entry.status: entry for entry in policy.tcb_statuses}
    entry = accepted.get(td.tcb_status)  # type: ignore[call-overload]
    expected = ", ".join(
        name if e.grace_days is None else f"{name} (for {e.grace_days} days)"
        for name, e in accepted.items()
    )
    age = (now - td.tcb_date).days
    in_grace = entry is not None and (entry.grace_days is None or age <= entry.grace_days)
    return Finding(
        "policy.tcb_status",
        "tcb_statuses",
        passed=in_grace,
        expected=expected or "none",
        actual=f"{td.tcb_status}, TCB level of {td.tcb_date:%Y-%m-%d} ({age} days ago)",
    )


def _flag_rule(code: str, name: str, allowed: bool, actual: bool | None) -> Finding:
    # A certificate that does not state the flag has not said "no".
    return Finding(
        code,
        f"platform_flags.{name}",
        passed=allowed or actual is False,
        expected="allowed" if allowed else "off",
        actual={True: "on", False: "off", None: "not stated"}[actual],
    )


def _td_rules(policy: Policy, td: VerifiedTd) -> Iterator[Finding]:
    report = td.report
    for code, name, accepted in (
        ("policy.mrseam_unknown", "mrseam", policy.mrseam),
        ("policy.mrconfigid_unknown", "mrconfigid", policy.mrconfigid),
        ("policy.mrowner_unknown", "mrowner", policy.mrowner),
        ("policy.mrownerconfig_unknown", "mrownerconfig", policy.mrownerconfig),
    ):
        if accepted is not None:
            yield _one_of(code, name, accepted, getattr(report, name).hex())
    if policy.td_attributes is not None:
        yield _masked(
            "policy.td_attributes", "td_attributes", policy.td_attributes, report.td_attributes
        )
    if policy.xfam is not None:
        yield _masked("policy.xfam", "xfam", policy.xfam, report.xfam)


def _one_of(code: str, rule: str, accepted: tuple[str, ...], actual: str) -> Finding:
    expected = " or ".join(accepted) or "nothing (the list is empty)"
    return Finding(code, rule, passed=actual in accepted, expected=expected, actual=actual)


def _masked(code: str, rule: str, wanted: MaskedValue, word: bytes) -> Finding:
    mask = bytes.fromhex(wanted.mask)
    masked = bytes(bit & m for bit, m in zip(word, mask, strict=True))
    return Finding(
        code,
        rule,
        passed=masked.hex() == wanted.value,
        expected=f"{wanted.value} under mask {wanted.mask}",
        actual=word.hex(),
    )


def _event_rules(
    policy: Policy, td: VerifiedTd, events: Sequence[RuntimeEvent] | None
) -> Iterator[Finding]:
    if events is None:
        if policy.required_events:
            names = ", ".join(event.name for event in policy.required_events)
            yield Finding(
                "policy.events_missing",
                "required_events",
                passed=False,
                expected=names,
                actual="the evidence has no event log",
            )
        return
    replayed = replay(events)
    yield Finding(
        "eventlog.replay_mismatch",
        "event log replay",
        passed=replayed == td.report.rtmr3,
        expected=f"RTMR3 {td.report.rtmr3.hex()}",
        actual=replayed.hex(),
    )
    order = [event.name for event in events]
    yield Finding(
        "eventlog.not_sealed",
        "event log end",
        passed=order.count(SEALED) == 1 and order[-1] == SEALED,
        expected=f"exactly one event {SEALED!r}, as the last",
        actual=" > ".join(order) or "no events",
    )
    yield from _required_events(policy, events)


def _required_events(policy: Policy, events: Sequence[RuntimeEvent]) -> Iterator[Finding]:
    for required in policy.required_events:
        payloads = [event.payload.hex() for event in events if event.name == required.name]
        allowed = {r.payload for r in policy.required_events if r.name == required.name}
        strangers = [p for p in payloads if None not in allowed and p not in allowed]
        present = bool(payloads) if required.payload is None else required.payload in payloads
        yield Finding(
            "policy.event_mismatch",
            f"required_events.{required.name}",
            passed=present and not strangers,
            expected="any payload" if required.payload is None else _shown(required.payload),
            actual=", ".join(map(_shown, payloads)) or "no such event",
        )


def _shown(payload: str) -> str:
    return payload or "an empty payload"


def _warnings(td: VerifiedTd, now: datetime) -> Iterator[str]:
    ending = ending_soon(td.collateral_ends, now)
    if ending is not None:
        yield ending
    if td.simulated:
        yield "SIMULATION: this guest is not protected by hardware"
