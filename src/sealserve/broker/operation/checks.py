"""The doctor's checks. Each looks at one thing and yields what it finds.

Rules this module keeps: checks are pure: the look is taken before. A check says
what *will* happen by the rules of `attestation.appraisal` and `broker.release`;
it has no rules of its own. All numbers are those of `thresholds`.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from sealserve.attestation.collateral import Collateral
from sealserve.attestation.policy import Policy
from sealserve.broker.operation.findings import Finding
from sealserve.broker.operation.look import Look
from sealserve.broker.operation.platform_checks import platforms_fall_behind
from sealserve.broker.operation.snapshot import ResourceState

__all__ = ["CHECKS"]

_FETCH = "run `sealserve collateral fetch`; the broker re-reads the file when it changes"


def collateral_ends(look: Look) -> Iterator[Finding]:
    """Each part of the collateral, and whether a policy wants newer ones."""
    if not look.collateral:
        yield Finding(
            code="collateral.not_examined",
            kind="notice",
            subject="collateral",
            message="no collateral was given, so its end and TCB changes were not examined",
            advice="give --collateral PATH: what the broker serves with",
        )
    for collateral in look.collateral:
        yield from _ends_of(look, collateral)


def _ends_of(look: Look, collateral: Collateral) -> Iterator[Finding]:
    for part, end in collateral.ends_by_part.items():
        passed = end < look.now
        yield Finding(
            code="collateral.ends",
            kind="lock-out",
            subject=f"{part} of {collateral.fmspc} ({collateral.ca} CA)",
            message="has ended: every guest on this platform model is denied"
            if passed
            else "ends, and with it every release to this platform model",
            advice=_FETCH,
            due=end,
            notice_days=look.thresholds.collateral_days,
        )
    for resource in look.snapshot.resources:
        wanted = resource.policy.min_tcb_evaluation if resource.policy else 0
        if wanted > collateral.evaluation_number:
            yield Finding(
                code="collateral.too_old_for_policy",
                kind="lock-out",
                subject=resource.name,
                message=f"its policy wants TCB evaluation {wanted}, and the collateral of "
                f"{collateral.fmspc} has {collateral.evaluation_number}",
                advice=_FETCH,
            )


def certificates_end(look: Look) -> Iterator[Finding]:
    """The broker's own certificate, and those of administrators."""
    yield Finding(
        code="certificate.broker_ends",
        kind="lock-out",
        subject="the broker's certificate",
        message="ends; guests pin it, and none connects after that",
        advice="make a new broker identity, and give its broker.json to owners and guests in time",
        due=look.certificate_ends,
        notice_days=look.thresholds.certificate_days,
    )
    for name, role, end in look.snapshot.principals:
        yield Finding(
            code="certificate.principal_ends",
            kind="risk",
            subject=f"{role} {name}",
            message="the client certificate ends",
            advice="register a new one before that: `sealserve broker principal add`",
            due=end,
            notice_days=look.thresholds.principal_days,
        )


def measurements_live(look: Look) -> Iterator[Finding]:
    """Policies that name no measurement a guest has, or some that none has any more."""
    for resource in look.snapshot.resources:
        if resource.policy is None:
            yield Finding(
                code="policy.unreadable",
                kind="lock-out",
                subject=resource.name,
                message="the stored policy cannot be read: every guest is denied",
                advice="`sealserve policy set` another, one that `sealserve policy check` accepts",
            )
        elif not resource.policy.releases:
            yield Finding(
                code="policy.no_releases",
                kind="lock-out",
                subject=resource.name,
                message="its policy names no release: every guest is denied",
                advice="add your guest image's measurements: `sealserve policy init --from-quote`",
            )
        else:
            yield from _releases_matched(look, resource, resource.policy)


def _releases_matched(look: Look, resource: ResourceState, policy: Policy) -> Iterator[Finding]:
    days = look.thresholds.live_days
    oldest = look.days_ago(days)
    matched = look.seen.last_release(resource.name)
    denied = look.seen.denied_by_policy.get(resource.name)
    if matched is None or matched < oldest:
        turned_away = denied is not None and denied >= oldest
        yield Finding(
            code="policy.no_live_measurement",
            kind="lock-out" if turned_away else "notice",
            subject=resource.name,
            message=f"no guest was let in for {days} days, and the last one that asked was denied"
            if turned_away
            else f"no guest was let in for {days} days, so none of its measurements is known to be "
            "alive",
            advice="compare the policy with the quote of a guest: `sealserve policy explain`; "
            "`sealserve audit show` has the reasons",
        )
        return
    for release in policy.releases:
        last = look.seen.matched.get((resource.name, release.label))
        if last is None or last < oldest:
            yield Finding(
                code="policy.release_unused",
                kind="notice",
                subject=resource.name,
                message=f"release {release.label!r} has matched no guest for {days} days",
                advice="take it out of the policy if it is retired: it could be abused",
            )


def secrets_end(look: Look) -> Iterator[Finding]:
    """Secrets that expire, that cannot be released, and rotations nobody finished."""
    for resource in look.snapshot.resources:
        current = resource.current
        if current is None or not current.usable(look.now):
            state = "missing" if current is None else current.state
            yield Finding(
                code="secret.not_live",
                kind="lock-out",
                subject=resource.name,
                message=f"version {resource.secret_version}, which guests get, is "
                f"{'expired' if state == 'live' else state}",
                advice="`sealserve secret rotate` to a new version, or `secret enable` this one",
            )
        for version in resource.versions:
            if version.usable(look.now) and version.expires is not None:
                is_current = version.version == resource.secret_version
                yield Finding(
                    code="secret.expires",
                    kind="lock-out" if is_current else "notice",
                    subject=resource.name,
                    message=f"version {version.version} of its secret expires",
                    advice="rotate the secret before that"
                    if is_current
                    else "volumes of this older version do not open after that",
                    due=version.expires,
                    notice_days=look.thresholds.secret_days,
                )
        yield from _rotation(look, resource)


def _rotation(look: Look, resource: ResourceState) -> Iterator[Finding]:
    live = [version for version in resource.versions if version.usable(look.now)]
    born = [version.created for version in live if version.created is not None]
    if len(live) < 2 or not born or max(born) > look.days_ago(look.thresholds.rotation_days):
        return
    numbers = " and ".join(str(version.version) for version in live)
    yield Finding(
        code="secret.rotation_forgotten",
        kind="risk",
        subject=resource.name,
        message=f"versions {numbers} are live together since {max(born):%Y-%m-%d}",
        advice="retire the older one once no volume needs it: `sealserve secret retire`",
    )


def keys_and_disk(look: Look) -> Iterator[Finding]:
    """The key-encryption key, the directory and its disk."""
    if look.kek_problem is not None:
        yield Finding(
            code="kek.unusable",
            kind="lock-out",
            subject="key-encryption key",
            message=look.kek_problem,
            advice="without it no secret opens, and the broker does not start",
        )
    if look.open_directory:
        yield Finding(
            code="directory.open",
            kind="risk",
            subject="the broker's directory",
            message="others than its owner may write into it",
            advice="run `chmod go-w` on it",
        )
    if look.free_bytes < look.thresholds.free_bytes:
        yield Finding(
            code="disk.low",
            kind="lock-out",
            subject="disk",
            message=f"{look.free_bytes >> 20} MiB are free; when it is full nothing is released, "
            "because the audit line cannot be written",
            advice="make room, or export and archive",
        )


def service(look: Look) -> Iterator[Finding]:
    """What went wrong inside the broker lately, its clock, and what waits for people."""
    for code, last in look.seen.failed.items():
        if last >= look.now - timedelta(hours=1):
            yield Finding(
                code="release.failing",
                kind="lock-out",
                subject="the broker",
                message=f"guests that may have a secret did not get it, last at {last:%H:%M} UTC: "
                f"{code}",
                advice="`sealserve audit show` has the whole reason",
            )
    apart = abs((look.snapshot.clock - look.snapshot.taken).total_seconds())
    if apart > look.thresholds.clock_seconds:
        yield Finding(
            code="clock.differs",
            kind="risk",
            subject="clocks",
            message=f"this machine and the database are {apart:.0f} seconds apart",
            advice="keep both by NTP: validity is judged by one, leases and nonces by the other",
        )
    for proposal in look.snapshot.proposals:
        yield Finding(
            code="proposal.waiting",
            kind="notice",
            subject=f"{proposal.action}, proposed by {proposal.proposer}",
            message="waits for a second person, and is void after this day",
            advice=f"`sealserve proposal approve {proposal.id}`, or withdraw it",
            due=proposal.expires,
        )


def audit_chain(look: Look) -> Iterator[Finding]:
    """Whether the chain is whole and signed, and whether many were denied."""
    if look.audit_problem is not None:
        yield Finding(
            code="audit.broken",
            kind="risk",
            subject="audit chain",
            message=look.audit_problem,
            advice="keep the database as it is, and compare it with your last export",
        )
    days = look.thresholds.checkpoint_days
    unsigned = look.snapshot.audit.unsigned_since
    if unsigned is not None and unsigned < look.days_ago(days):
        yield Finding(
            code="audit.checkpoint_old",
            kind="risk",
            subject="audit chain",
            message=f"lines since {unsigned:%Y-%m-%d} have no signed checkpoint",
            advice="a running broker makes checkpoints; export one to another machine regularly",
        )
    denied = look.seen.denials_since(look.now - timedelta(hours=1))
    if denied >= look.thresholds.denials_an_hour:
        yield Finding(
            code="release.many_denials",
            kind="notice",
            subject="guest port",
            message=f"{denied} requests were denied in the last hour",
            advice="`sealserve audit show` says by whom and why",
        )


def simulation(look: Look) -> Iterator[Finding]:
    """Simulated guests where real ones are expected, and the other way round."""
    for resource in look.snapshot.resources:
        if resource.simulation and look.simulated is False:
            yield Finding(
                code="policy.simulation_allowed",
                kind="risk",
                subject=resource.name,
                message="its policy allows SIMULATION, in a broker for real platforms",
                advice="take `simulation: allowed` out of the policy",
            )
        if resource.policy is not None and not resource.simulation and look.simulated:
            yield Finding(
                code="policy.simulation_denied",
                kind="lock-out",
                subject=resource.name,
                message="its policy denies SIMULATION, and this broker knows no other platforms",
                advice="serve without --simulation-anchor, or put a policy for simulated guests",
            )


CHECKS = (
    collateral_ends,
    certificates_end,
    platforms_fall_behind,
    measurements_live,
    secrets_end,
    keys_and_disk,
    service,
    audit_chain,
    simulation,
)
"""All of them, in the order of the documentation."""
