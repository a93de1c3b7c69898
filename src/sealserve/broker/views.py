"""What administrators and auditors look at: each view is one function that only reads.

Rules this module keeps: wrapped secrets are never selected; what can be long is
given in pages, each of which fits into one message.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import select

from sealserve.broker import proposals
from sealserve.broker.checkpoints import END
from sealserve.broker.directory import Broker
from sealserve.broker.leases import Leases
from sealserve.broker.protocol import resource_name
from sealserve.broker.resource_acts import policy_changes, resource_unknown
from sealserve.broker.store import Resource
from sealserve.broker.tables import PrincipalRow, ResourceVersionRow, SecretRow
from sealserve.errors import Refused
from sealserve.wire.broker.admin import v1_pb2

__all__ = [
    "MAX_PAGE_LINES",
    "audit_lines",
    "audit_seal",
    "leases",
    "policy_diff",
    "principals",
    "proposal_list",
    "resource",
    "resources",
    "secret",
    "secrets",
]

MAX_PAGE_LINES: Final = 1000
_MAX_PAGE_CHARS: Final = 1 << 20
_SECRET_COLUMNS: Final = (
    SecretRow.id, SecretRow.version, SecretRow.kind, SecretRow.state, SecretRow.created,
    SecretRow.expires, SecretRow.kek_id,
)  # fmt: skip


def secrets(broker: Broker, request: v1_pb2.SecretListRequest) -> dict[str, Any]:
    """Every version of every secret."""
    del request
    return {"secrets": _versions(broker, None)}


def secret(broker: Broker, request: v1_pb2.SecretShowRequest) -> dict[str, Any]:
    """One secret's versions, and the resources that stand for it."""
    name = resource_name(request.secret)
    versions = _versions(broker, name)
    if not versions:
        raise Refused(
            "secret.unknown",
            f"there is no secret {name!r}",
            hint="`sealserve secret list` shows them",
        )
    users = [each for each in broker.store.resources() if each.secret_id == name]
    return {"secret": name, "versions": versions, "resources": [_brief(each) for each in users]}


def resources(broker: Broker, request: v1_pb2.ResourceListRequest) -> dict[str, Any]:
    """What guests may ask for."""
    del request
    return {"resources": [_brief(each) for each in broker.store.resources()]}


def resource(broker: Broker, request: v1_pb2.ResourceShowRequest) -> dict[str, Any]:
    """One resource with its policy and the records of its versions."""
    found = _resource(broker, request.resource)
    wanted = select(ResourceVersionRow).where(ResourceVersionRow.resource == found.name)
    with broker.store.reading() as session:
        rows = session.scalars(wanted.order_by(ResourceVersionRow.secret_version)).all()
        records = [
            {
                "secret_version": row.secret_version,
                "record_sha256": hashlib.sha256(row.record).hexdigest() if row.record else None,
                "owner_public_key": row.owner_public_key.hex(),
            }
            for row in rows
        ]
    return {
        **_brief(found),
        "records": records,
        "policy": found.policy.decode(errors="replace"),
    }


def policy_diff(broker: Broker, request: v1_pb2.PolicyDiffRequest) -> dict[str, Any]:
    """What a policy would change."""
    found = _resource(broker, request.resource)
    changes = policy_changes(found.policy, request.policy)
    return {
        "resource": found.name,
        "same": changes == (),
        "loosened": changes is None or any(change.kind == "loosened" for change in changes),
        "changes": None if changes is None else [change.to_dict() for change in changes],
    }


def audit_lines(broker: Broker, request: v1_pb2.AuditReadRequest) -> dict[str, Any]:
    """A page of the chain, as it was written, with the checkpoints over it."""
    length = broker.audit.length()
    limit = min(request.limit or MAX_PAGE_LINES, MAX_PAGE_LINES)
    after = max(length - limit, 0) if request.from_end else min(request.after, length)
    lines: list[str] = []
    room = _MAX_PAGE_CHARS
    for line in broker.audit.page(after, limit=limit):
        room -= len(line)
        if lines and room < 0:
            break
        lines.append(line)
    until = after + len(lines)
    marks = broker.audit.checkpoints(after=after, until=until) if lines else []
    return {
        "after": after,
        "lines": lines,
        "checkpoints": [mark.to_dict() for mark in marks],
        "length": length,
    }


def audit_seal(broker: Broker, request: v1_pb2.AuditSealRequest) -> dict[str, Any]:
    """The broker's signed word on where its chain ends now."""
    del request
    signer = broker.audit_signer()
    return {"end": signer.sign(END, broker.audit.checkpoint(signer)).to_dict()}


def leases(broker: Broker, request: v1_pb2.LeaseListRequest) -> dict[str, Any]:
    """Who holds which version of what; the newest first."""
    resource = resource_name(request.resource) if request.resource else None
    found = Leases(broker.store).list(resource=resource, active_only=not request.all)
    return {"leases": [lease.to_dict() for lease in found]}


def principals(broker: Broker, request: v1_pb2.PrincipalListRequest) -> dict[str, Any]:
    """Who may call."""
    del request
    with broker.store.reading() as session:
        rows = session.scalars(select(PrincipalRow).order_by(PrincipalRow.name))
        return {
            "principals": [
                {
                    "name": row.name,
                    "role": row.role,
                    "spki_sha256": row.spki_sha256,
                    "added": row.added,
                }
                for row in rows
            ]
        }


def proposal_list(broker: Broker, request: v1_pb2.ProposalListRequest) -> dict[str, Any]:
    """What waits for a second person, and what became of the rest."""
    del request
    with broker.store.reading() as session:
        found = proposals.listed(session, datetime.now(UTC))
        return {"proposals": [each.to_dict() for each in found]}


def _versions(broker: Broker, name: str | None) -> list[dict[str, Any]]:
    chosen = select(*_SECRET_COLUMNS).order_by(SecretRow.id, SecretRow.version)
    if name is not None:
        chosen = chosen.where(SecretRow.id == name)
    with broker.store.reading() as session:
        return [dict(row) for row in session.execute(chosen).mappings()]


def _resource(broker: Broker, name: str) -> Resource:
    found = broker.store.resource(resource_name(name))
    if found is None:
        raise resource_unknown(name)
    return found


def _brief(found: Resource) -> dict[str, Any]:
    return {
        "name": found.name,
        "secret": found.secret_id,
        "secret_version": found.secret_version,
        "policy_sha256": found.policy_sha256,
        "lease_seconds": found.lease_seconds,
    }
