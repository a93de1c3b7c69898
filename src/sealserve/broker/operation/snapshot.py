"""One look at the broker's tables: everything an operator may see, and nothing secret.

Rules this module keeps: it only reads, in one session, so that what stands
beside each other was true together; wrapped secrets are never selected.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from sealserve.attestation import policy_file
from sealserve.attestation.policy import Policy
from sealserve.broker.store import Store
from sealserve.broker.tables import (
    AuditCheckpointRow,
    AuditHeadRow,
    AuditLineRow,
    LeaseRow,
    PrincipalRow,
    ProposalRow,
    ResourceRow,
    SecretRow,
)
from sealserve.errors import InputError

__all__ = [
    "AuditState",
    "Lease",
    "Proposal",
    "ResourceState",
    "SecretVersion",
    "Snapshot",
    "take",
]

MAX_LEASES: Final = 200
"""How many leases are shown whole; the number of all of them is always known."""


@dataclass(frozen=True, slots=True)
class SecretVersion:
    """One version of a secret; nothing of its bytes."""

    id: str
    version: int
    kind: str
    state: str
    created: datetime | None
    expires: datetime | None

    def usable(self, now: datetime) -> bool:
        """Whether it is released to who may have it."""
        return self.state == "live" and (self.expires is None or now < self.expires)


@dataclass(frozen=True, slots=True)
class ResourceState:
    """What guests ask for.

    Attributes:
        name: the resource.
        secret_version: its current version.
        versions: all versions of its secret.
        policy: who may have it; ``None`` if the stored policy cannot be read.
        policy_sha256: its digest, hex.
        lease_seconds: how long a guest may keep the secret.
        leases: how many are active.
    """

    name: str
    secret_version: int
    versions: tuple[SecretVersion, ...]
    policy: Policy | None
    policy_sha256: str
    lease_seconds: int
    leases: int

    @property
    def current(self) -> SecretVersion | None:
        """The version that a guest gets."""
        return next((v for v in self.versions if v.version == self.secret_version), None)

    @property
    def simulation(self) -> bool:
        """Whether SIMULATED guests are let in."""
        return self.policy is not None and self.policy.simulation == "allowed"


@dataclass(frozen=True, slots=True)
class Lease:
    """Who holds what, until when."""

    resource: str
    secret_version: int
    peer: str
    boot_id: str
    issued: datetime
    renewed: datetime
    expires: datetime


@dataclass(frozen=True, slots=True)
class Proposal:
    """An act that waits for a second person."""

    id: str
    action: str
    proposer: str
    expires: datetime


@dataclass(frozen=True, slots=True)
class AuditState:
    """The audit chain as the tables state it; whether it is whole is for a check to say.

    Attributes:
        lines: its length.
        sha256: hash of its last line.
        signed_lines: how many lines the last checkpoint covers.
        signed_at: when it was made.
        unsigned_since: the time of the oldest line that no checkpoint covers.
    """

    lines: int
    sha256: str
    signed_lines: int
    signed_at: datetime | None
    unsigned_since: datetime | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The tables at one moment.

    Attributes:
        taken: when.
        clock: the same moment by the database's clock.
        resources: by name.
        leases: active ones, the first to end first; at most `MAX_LEASES`.
        active_leases: how many there are.
        principals: name, role and end of each administrator's certificate.
        proposals: acts that wait for a second person.
        audit: the chain.
    """

    taken: datetime
    clock: datetime
    resources: tuple[ResourceState, ...]
    leases: tuple[Lease, ...]
    active_leases: int
    principals: tuple[tuple[str, str, datetime], ...]
    proposals: tuple[Proposal, ...]
    audit: AuditState


def take(store: Store, now: datetime, *, before: Snapshot | None = None) -> Snapshot:
    """Look at a store.

    Args:
        store: open.
        now: the wall clock's time.
        before: an earlier look, whose policies need not be read again.

    Raises:
        Unavailable: ``store.unavailable``.
    """
    policies = {each.policy_sha256: each.policy for each in before.resources} if before else {}
    with store.reading() as session:
        # Leases end by the database's clock, as the broker itself counts.
        clock = store.clock(session)
        active = _active_leases(session, clock)
        return Snapshot(
            taken=now,
            clock=datetime.fromtimestamp(clock, UTC),
            resources=_resources(session, active, policies),
            leases=_leases(session, clock),
            active_leases=sum(active.values()),
            principals=_principals(session),
            proposals=_proposals(session, now),
            audit=_audit(session),
        )


def _active_leases(session: Session, clock: float) -> dict[str, int]:
    statement = select(LeaseRow.resource, func.count()).where(
        LeaseRow.state == "active", LeaseRow.expires > clock
    )
    rows = session.execute(statement.group_by(LeaseRow.resource))
    return {row[0]: row[1] for row in rows}


def _leases(session: Session, clock: float) -> tuple[Lease, ...]:
    statement = (
        select(LeaseRow)
        .where(LeaseRow.state == "active", LeaseRow.expires > clock)
        .order_by(LeaseRow.expires)
        .limit(MAX_LEASES)
    )
    return tuple(
        Lease(
            row.resource,
            row.secret_version,
            row.peer,
            row.boot_id,
            *(datetime.fromtimestamp(each, UTC) for each in (row.issued, row.renewed, row.expires)),
        )
        for row in session.scalars(statement)
    )


def _resources(
    session: Session, leases: dict[str, int], policies: dict[str, Policy | None]
) -> tuple[ResourceState, ...]:
    versions: dict[str, list[SecretVersion]] = {}
    columns = select(
        SecretRow.id,
        SecretRow.version,
        SecretRow.kind,
        SecretRow.state,
        SecretRow.created,
        SecretRow.expires,
    )
    for row in session.execute(columns.order_by(SecretRow.id, SecretRow.version)):
        found = SecretVersion(
            row.id, row.version, row.kind, row.state, _time(row.created), _time(row.expires)
        )
        versions.setdefault(row.id, []).append(found)
    return tuple(
        ResourceState(
            name=row.name,
            secret_version=row.secret_version,
            versions=tuple(versions.get(row.secret_id, ())),
            policy=policies.get(row.policy_sha256) or _policy(row.policy),
            policy_sha256=row.policy_sha256,
            lease_seconds=row.lease_seconds,
            leases=leases.get(row.name, 0),
        )
        for row in session.scalars(select(ResourceRow).order_by(ResourceRow.name))
    )


def _policy(raw: bytes) -> Policy | None:
    try:
        return policy_file.parse(raw)
    except InputError:
        return None


def _principals(session: Session) -> tuple[tuple[str, str, datetime], ...]:
    found = []
    for row in session.scalars(select(PrincipalRow).order_by(PrincipalRow.name)):
        with contextlib.suppress(ValueError):  # who cannot log in either way
            certificate = x509.load_pem_x509_certificate(row.certificate.encode())
            found.append((row.name, row.role, certificate.not_valid_after_utc))
    return tuple(found)


def _proposals(session: Session, now: datetime) -> tuple[Proposal, ...]:
    waiting = select(ProposalRow).where(ProposalRow.state == "open").order_by(ProposalRow.expires)
    found = (
        Proposal(row.id, row.action, row.proposer, datetime.fromisoformat(row.expires))
        for row in session.scalars(waiting)
    )
    return tuple(each for each in found if now < each.expires)


def _audit(session: Session) -> AuditState:
    head = session.scalar(select(AuditHeadRow))
    signed = session.scalar(
        select(AuditCheckpointRow).order_by(AuditCheckpointRow.sequence.desc()).limit(1)
    )
    covered = signed.sequence if signed else 0
    unsigned = session.scalar(
        select(AuditLineRow.line)
        .where(AuditLineRow.sequence > covered)
        .order_by(AuditLineRow.sequence)
        .limit(1)
    )
    return AuditState(
        lines=head.count if head else 0,
        sha256=head.sha256 if head else "",
        signed_lines=covered,
        signed_at=_time(signed.time) if signed else None,
        unsigned_since=_time_of_line(unsigned),
    )


def _time_of_line(line: str | None) -> datetime | None:
    try:
        return _time(json.loads(line)["time"]) if line else None
    except (ValueError, KeyError, TypeError):
        return None  # a changed line: the check of the chain says so


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text).astimezone(UTC)
