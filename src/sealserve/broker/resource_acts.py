"""Acts on what guests may ask for: see `acts` for the rules."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from sqlalchemy.orm import Session

from sealserve.attestation import policy_file
from sealserve.attestation.policy_diff import Change, diff
from sealserve.broker.acts import MAX_TOLD, Act, Agreement
from sealserve.broker.directory import release_policy
from sealserve.broker.protocol import resource_name
from sealserve.broker.tables import ResourceRow
from sealserve.errors import InputError, Refused
from sealserve.wire.broker.admin import v1_pb2

__all__ = [
    "loosening",
    "policy_changes",
    "policy_needs",
    "remove_resource",
    "resource_row",
    "resource_unknown",
    "set_policy",
]


def remove_resource(
    act: Act, request: v1_pb2.ResourceRemoveRequest, prepared: object
) -> dict[str, Any]:
    """Guests can no longer ask for it; its secret stays until it is destroyed."""
    del prepared
    row = resource_row(act.session, request.resource)
    act.session.delete(row)
    act.session.flush()
    act.record("resource.remove", resource=row.name, policy_sha256=row.policy_sha256)
    return {"resource": row.name, "removed": True}


def policy_needs(act: Act, request: v1_pb2.PolicySetRequest) -> Agreement | None:
    """What lets more guests in needs a second person."""
    release_policy(request.policy)
    return loosening(resource_row(act.session, request.resource), request.policy)


def set_policy(act: Act, request: v1_pb2.PolicySetRequest, prepared: object) -> dict[str, Any]:
    """Put another policy over a resource; it holds from the next request on."""
    del prepared
    row = resource_row(act.session, request.resource)
    changes = policy_changes(row.policy, request.policy)
    before = row.policy_sha256
    row.policy = request.policy
    row.policy_sha256 = hashlib.sha256(request.policy).hexdigest()
    loosened = _loosened(changes)
    act.record(
        "policy.set",
        resource=row.name,
        policy_sha256=row.policy_sha256,
        policy_before_sha256=before,
        loosened=loosened[:MAX_TOLD],
    )
    return {
        "resource": row.name,
        "policy_sha256": row.policy_sha256,
        "loosened": bool(loosened),
        "changes": None if changes is None else [change.to_dict() for change in changes],
    }


def policy_changes(before: bytes, after: bytes) -> tuple[Change, ...] | None:
    """What a change of policy does; ``None`` if the old one cannot be read.

    Raises:
        InputError: ``policy.malformed``, ``resource.policy_needs_events``: the new one.
    """
    new = release_policy(after)
    try:
        old = policy_file.parse(before)
    except InputError:
        return None
    return diff(old.at_release(), new.at_release())


def resource_row(session: Session, name: str) -> ResourceRow:
    """The row of a resource, locked until the transaction ends.

    Raises:
        InputError: ``resource.name_invalid``.
        Refused: ``resource.unknown``.
    """
    row = session.get(ResourceRow, resource_name(name), with_for_update=True)
    if row is None:
        raise resource_unknown(name)
    return row


def resource_unknown(name: str) -> Refused:
    """The error for a name that no resource has."""
    return Refused(
        "resource.unknown",
        f"there is no resource {name!r}",
        hint="`sealserve resource list` shows them",
    )


def loosening(row: ResourceRow, policy: bytes) -> Agreement | None:
    """What to agree to if a policy lets in more than the one that is there."""
    told = _loosened(policy_changes(row.policy, policy))
    if not told:
        return None
    summary = (f"loosens the policy of {row.name}", *told)[:MAX_TOLD]
    return Agreement("loosen", summary, row.policy_sha256)


def _loosened(changes: Sequence[Change] | None) -> list[str]:
    if changes is None:
        return ["the policy there is cannot be read: nobody can say what it let in"]
    return [
        f"{change.rule}: {change.before} -> {change.after}"
        for change in changes
        if change.kind == "loosened"
    ]
