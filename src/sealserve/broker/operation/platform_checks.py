"""TCB recovery: which platforms that were let in will be turned away, and from when.

Rules this module keeps: a status and its grace mean what `attestation.appraisal`
makes of them. The quoting enclave's level is left out, as in `collateral_outlook`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sealserve.attestation.collateral import Collateral
from sealserve.attestation.collateral_outlook import PlatformTcb, shortfalls, status_under
from sealserve.attestation.policy import Policy
from sealserve.broker.operation.findings import Finding
from sealserve.broker.operation.look import Look
from sealserve.broker.operation.seen import Platform
from sealserve.errors import InputError, Refused

__all__ = ["platforms_fall_behind"]


def platforms_fall_behind(look: Look) -> Iterator[Finding]:
    """TCB recovery: platforms that were let in, under the collateral of today and tomorrow."""
    oldest = look.days_ago(look.thresholds.live_days)
    policies = {each.name: each.policy for each in look.snapshot.resources}
    models = {each.fmspc for each in look.collateral}
    for tcb, platform in look.seen.platforms.items():
        if platform.last < oldest:
            continue
        if models and tcb.fmspc.hex() not in models:
            yield _no_collateral(tcb, platform)
            continue
        for name in sorted(platform.resources):
            policy = policies.get(name)
            if policy is not None:
                yield from _platform_outlook(look, tcb, platform, name, policy)


def _no_collateral(tcb: PlatformTcb, platform: Platform) -> Finding:
    fmspc = tcb.fmspc.hex()
    return Finding(
        code="collateral.platform_missing",
        kind="lock-out",
        subject=f"platforms {fmspc} with CPUSVN {tcb.components.hex()}",
        message=f"a guest was let in on {platform.last:%Y-%m-%d}, and none is any more: the broker"
        " has no collateral of this platform model",
        advice=f"`sealserve collateral fetch --fmspc {fmspc}` into the directory that it serves"
        " with",
    )


def _platform_outlook(
    look: Look, tcb: PlatformTcb, platform: Platform, resource: str, policy: Policy
) -> Iterator[Finding]:
    about = f"{resource} on platforms {tcb.fmspc.hex()} with CPUSVN {tcb.components.hex()}"
    now = _Standing.under(tcb, look.collateral) or _Standing(platform.status, platform.level_date)
    ends = now.accepted_until(policy)
    if ends is None or ends <= look.now:
        yield Finding(
            code="tcb.denied",
            kind="lock-out",
            subject=about,
            message=f"{now} is not accepted by the policy{_behind(tcb, look.collateral)}",
            advice="update the platform, or accept this status with grace_days in the policy",
        )
        return
    if ends < datetime.max.replace(tzinfo=ends.tzinfo):
        yield Finding(
            code="tcb.grace_ends",
            kind="lock-out",
            subject=about,
            message=f"{now}: the grace that the policy gives ends{_behind(tcb, look.collateral)}",
            advice="update the platform before that",
            due=ends,
            notice_days=look.thresholds.grace_days,
        )
    elif behind := _behind(tcb, look.collateral):
        yield Finding(
            code="tcb.newer_level",
            kind="notice",
            subject=about,
            message=f"{now} is accepted{behind}",
            advice="plan the platform's update: what is behind today is out of date tomorrow",
        )
    yield from _early_outlook(look, tcb, about, policy)


def _early_outlook(look: Look, tcb: PlatformTcb, about: str, policy: Policy) -> Iterator[Finding]:
    early, today = _of_model(tcb, look.early), _of_model(tcb, look.collateral)
    then = _Standing.under(tcb, look.early)
    if early is None or then is None:
        return
    ends = then.accepted_until(policy)
    if ends is None or ends <= look.now:
        # Today's collateral ends some day, and what is fetched then will be this.
        yield Finding(
            code="tcb.denied_by_next_evaluation",
            kind="lock-out",
            subject=about,
            message=f"Intel's next TCB information (evaluation {early.evaluation_number}) makes it "
            f"{then}, which the policy does not accept{_behind(tcb, look.early)}",
            advice="update the platform before you fetch that collateral; this one ends then",
            due=today.ends if today else early.ends,
            notice_days=look.thresholds.grace_days,
        )


@dataclass(frozen=True, slots=True)
class _Standing:
    """What Intel says of a platform."""

    status: str
    date: datetime

    @classmethod
    def under(cls, tcb: PlatformTcb, given: Sequence[Collateral]) -> _Standing | None:
        collateral = _of_model(tcb, given)
        if collateral is None:
            return None
        try:
            level = status_under(tcb, collateral)
        except Refused:
            return cls("below every TCB level", collateral.begins)
        except InputError:
            return None  # no verifier accepts it, and the broker's log says so
        return cls(level.status, level.date)

    def accepted_until(self, policy: Policy) -> datetime | None:
        """The first moment at which the policy denies it: never is far; ``None`` is already."""
        entry = next((each for each in policy.tcb_statuses if each.status == self.status), None)
        if entry is None:
            return None
        if entry.grace_days is None:
            return datetime.max.replace(tzinfo=self.date.tzinfo)
        return self.date + timedelta(days=entry.grace_days + 1)

    def __str__(self) -> str:
        return f"{self.status} (TCB level of {self.date:%Y-%m-%d})"


def _of_model(tcb: PlatformTcb, given: Sequence[Collateral]) -> Collateral | None:
    # What the CA is does not matter: the TCB information is of the model.
    return next((each for each in given if each.fmspc == tcb.fmspc.hex()), None)


def _behind(tcb: PlatformTcb, given: Sequence[Collateral]) -> str:
    collateral = _of_model(tcb, given)
    if collateral is None:
        return ""
    try:
        date, found = shortfalls(tcb, collateral)
    except (ValueError, KeyError, TypeError, IndexError):
        return ""
    told = "; ".join(map(str, found))
    return f"; behind the newest level ({date:%Y-%m-%d}): {told}" if found else ""
