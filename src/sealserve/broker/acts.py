"""What administrators change: each act is one function inside the caller's transaction.

Rules this module keeps:

* A function changes rows and writes the audit line that says so, in one
  transaction; who may, and who must agree, was decided before (`administration`).
* What needs a second person says so itself (the functions whose names end in
  ``_needs``), with what a person has to know to agree, and what it rests on: if
  that has changed by then, the agreement was to something else.
* A destroyed version keeps its row and loses its bytes, for good.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from sealserve.attestation import policy_file
from sealserve.attestation.policy_diff import Change, diff
from sealserve.broker import audit
from sealserve.broker.directory import Broker, Deposit, release_policy
from sealserve.broker.principals import (
    Caller,
    principal_name,
    read_certificate,
    read_role,
    spki_sha256,
)
from sealserve.broker.protocol import resource_name
from sealserve.broker.secrets import Previous
from sealserve.broker.tables import PrincipalRow, ResourceRow, SecretRow
from sealserve.errors import InputError, Refused
from sealserve.volume.record import key_id_of, open_record
from sealserve.wire.broker.admin import v1_pb2

__all__ = [
    "Act",
    "Agreement",
    "Kind",
    "add_principal",
    "add_principal_needs",
    "check_deposit",
    "check_rotation",
    "destroy_needs",
    "policy_changes",
    "policy_needs",
    "put_needs",
    "put_secret",
    "remove_principal",
    "remove_principal_needs",
    "remove_resource",
    "resource_unknown",
    "rotate_secret",
    "set_policy",
    "set_state",
]

Kind = Literal["destroy", "loosen", "principals"]
"""Why a second person is asked."""

_MAX_PRINCIPALS: Final = 64
_MAX_TOLD: Final = 50
_FROM: Final = {
    "disabled": ("live",),
    "live": ("disabled",),
    "retired": ("live", "disabled"),
    "destroyed": ("live", "disabled", "retired"),
}
_VERBS: Final = {
    "disabled": "disable", "live": "enable", "retired": "retire", "destroyed": "destroy",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Agreement:
    """What a second person has to agree to.

    Attributes:
        kind: why he is asked.
        summary: what the act does, for him to read.
        basis: what it rests on.
    """

    kind: Kind
    summary: tuple[str, ...]
    basis: str


@dataclass(frozen=True, slots=True)
class Act:
    """One act on its way.

    Attributes:
        broker: whose it is.
        session: the transaction.
        caller: who acts.
        now: when, by this machine's clock (UTC).
        approver: the second person, if there was one.
    """

    broker: Broker
    session: Session
    caller: Caller
    now: datetime
    approver: str | None = None

    def record(self, event: str, **facts: Any) -> None:
        """Write the act's audit line."""
        entry = {
            "event": event,
            "principal": self.caller.name,
            "approver": self.approver,
            "peer": self.caller.peer,
            **facts,
        }
        said = {name: value for name, value in entry.items() if value is not None}
        audit.append(self.session, said)


# --- secrets and resources ---------------------------------------------------------


def check_deposit(broker: Broker, request: v1_pb2.SecretPutRequest) -> Deposit:
    """Open a deposit, and see that key and record belong together.

    Raises:
        InputError: as `Broker.accept`; ``record.*``, ``resource.owner_key_invalid``.
        Refused: ``sealing.not_opened``, ``record.signature_invalid``,
            ``secret.key_mismatch``.
    """
    deposit = broker.accept(
        request.resource,
        request.sealed_key,
        record=request.record,
        owner_public_key=request.owner_public_key,
        policy=request.policy,
        lease_seconds=request.lease_seconds,
        kind=request.kind,
        expires=request.expires,
    )
    if deposit.record:
        try:
            owner = Ed25519PublicKey.from_public_bytes(deposit.owner_public_key)
        except ValueError:
            raise InputError(
                "resource.owner_key_invalid", "the owner's public key is no Ed25519 key"
            ) from None
        volume = open_record(deposit.record, owner)
        if key_id_of(deposit.secret) != volume.key_id:
            raise Refused(
                "secret.key_mismatch",
                f"the sealed key is not the key of the volume {volume.name!r}",
                hint="give the sealed key and the record that one `volume create` wrote",
            )
    return deposit


def put_needs(act: Act, request: v1_pb2.SecretPutRequest) -> Agreement | None:
    """A put over a resource that is there must not loosen its policy by the way."""
    name = resource_name(request.resource)
    row = act.session.get(ResourceRow, name, with_for_update=True)
    return None if row is None else _loosening(row, request.policy)


def put_secret(act: Act, request: v1_pb2.SecretPutRequest, deposit: object) -> dict[str, Any]:
    """Keep a deposit as the next version of its secret."""
    assert isinstance(deposit, Deposit)  # noqa: S101 (what check_deposit returned)
    del request
    stored = act.broker.keep(act.session, deposit)
    act.record(
        "secret.put",
        resource=stored.name,
        secret_version=stored.secret_version,
        policy_sha256=stored.policy_sha256,
        kind=deposit.kind,
        expires=deposit.expires,
    )
    return {
        "resource": stored.name,
        "kind": deposit.kind,
        "secret_version": stored.secret_version,
        "policy_sha256": stored.policy_sha256,
    }


def check_rotation(broker: Broker, request: v1_pb2.SecretRotateRequest) -> Deposit:
    """Open what shall be the next version, under the policy that is there.

    Raises:
        Refused: ``resource.unknown``; others as `check_deposit`.
        InputError: as `check_deposit`.
    """
    now = broker.store.resource(resource_name(request.secret))
    if now is None:
        raise resource_unknown(request.secret)
    put = v1_pb2.SecretPutRequest(
        resource=now.name,
        sealed_key=request.sealed_key,
        record=request.record,
        owner_public_key=request.owner_public_key,
        policy=now.policy,
        lease_seconds=now.lease_seconds,
        kind=broker.store.kind(now.secret_id, now.secret_version),
        expires=request.expires,
    )
    return check_deposit(broker, put)


def rotate_secret(act: Act, request: v1_pb2.SecretRotateRequest, deposit: object) -> dict[str, Any]:
    """Keep a deposit as the next version; the one before it stays live, or until a day."""
    assert isinstance(deposit, Deposit)  # noqa: S101 (what check_rotation returned)
    row = _resource(act.session, deposit.resource)
    before = row.secret_version
    # The policy may have been set anew since the deposit was checked.
    deposit = replace(deposit, policy=row.policy, lease_seconds=row.lease_seconds)
    previous = Previous(retired=False, seconds=request.retire_after_seconds)
    stored = act.broker.keep(act.session, deposit, previous)
    act.record(
        "secret.rotate",
        resource=stored.name,
        secret_version=stored.secret_version,
        version_before=before,
        retire_after_seconds=request.retire_after_seconds,
        expires=deposit.expires,
    )
    return {
        "resource": stored.name,
        "secret_version": stored.secret_version,
        "version_before": before,
        "retire_after_seconds": request.retire_after_seconds,
        "expires": deposit.expires,
    }


def set_state(to: str) -> Callable[[Act, Any, object], dict[str, Any]]:
    """The act that brings one version of a secret into a state."""

    def change(act: Act, request: Any, prepared: object) -> dict[str, Any]:
        del prepared
        row = _version(act.session, request.secret, request.version)
        if row.state not in _FROM[to]:
            raise Refused(
                "secret.state_forbids",
                f"version {row.version} of {row.id!r} is {row.state}:"
                f" {_VERBS[to]} takes one that is {' or '.join(_FROM[to])}",
                hint="`sealserve secret show` lists the versions",
            )
        row.state = to
        if to == "destroyed":
            row.wrapped = None
        act.record(f"secret.{_VERBS[to]}", subject=row.id, secret_version=row.version)
        current = act.session.scalars(
            select(ResourceRow.name).where(
                ResourceRow.secret_id == row.id, ResourceRow.secret_version == row.version
            )
        ).all()
        return {
            "secret": row.id,
            "version": row.version,
            "state": to,
            "current_of": sorted(current),
        }

    return change


def destroy_needs(act: Act, request: v1_pb2.SecretDestroyRequest) -> Agreement | None:
    """Destroying cannot be undone."""
    row = _version(act.session, request.secret, request.version)
    told = f"destroys version {row.version} of the secret {row.id}, for good; it is {row.state} now"
    return Agreement("destroy", (told,), row.state)


def remove_resource(
    act: Act, request: v1_pb2.ResourceRemoveRequest, prepared: object
) -> dict[str, Any]:
    """Guests can no longer ask for it; its secret stays until it is destroyed."""
    del prepared
    row = _resource(act.session, request.resource)
    act.session.delete(row)
    act.session.flush()
    act.record("resource.remove", resource=row.name, policy_sha256=row.policy_sha256)
    return {"resource": row.name, "removed": True}


def policy_needs(act: Act, request: v1_pb2.PolicySetRequest) -> Agreement | None:
    """What lets more guests in needs a second person."""
    release_policy(request.policy)
    return _loosening(_resource(act.session, request.resource), request.policy)


def set_policy(act: Act, request: v1_pb2.PolicySetRequest, prepared: object) -> dict[str, Any]:
    """Put another policy over a resource; it holds from the next request on."""
    del prepared
    row = _resource(act.session, request.resource)
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
        loosened=loosened[:_MAX_TOLD],
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


# --- principals -----------------------------------------------------------------------


def add_principal_needs(act: Act, request: v1_pb2.PrincipalAddRequest) -> Agreement | None:
    """Whoever could add an administrator alone could approve his own proposals."""
    name = principal_name(request.name)
    there = act.session.get(PrincipalRow, name, with_for_update=True)
    was_admin = there is not None and there.role == "admin"
    if not _admins(act.session) or (request.role != "admin" and not was_admin):
        return None
    verb = "replaces" if there is not None else "adds"
    told = f"{verb} the principal {name}: {read_role(request.role)}, key {_key_of(request)}"
    return Agreement("principals", (told,), there.spki_sha256 if there is not None else "")


def add_principal(
    act: Act, request: v1_pb2.PrincipalAddRequest, prepared: object
) -> dict[str, Any]:
    """Let a person administer or look; or give one who may already another key."""
    del prepared
    name, role = principal_name(request.name), read_role(request.role)
    key = _key_of(request)
    known = act.session.scalars(select(PrincipalRow).with_for_update()).all()
    there = next((row for row in known if row.name == name), None)
    _require_room(known, there, key, request)
    if there is None:
        there = PrincipalRow(name=name)
        act.session.add(there)
    there.role = role
    there.certificate = request.certificate
    there.spki_sha256 = key
    there.added = act.now.isoformat(timespec="seconds")
    event = "principal.replace" if request.replace else "principal.add"
    act.record(event, subject=name, role=role, spki_sha256=key)
    return {"name": name, "role": role, "spki_sha256": key}


def _require_room(
    known: Sequence[PrincipalRow],
    there: PrincipalRow | None,
    key: str,
    request: v1_pb2.PrincipalAddRequest,
) -> None:
    if there is not None and not request.replace:
        raise Refused(
            "principal.exists",
            f"there is a principal {there.name!r} already",
            hint="give --replace for another key or role, or take another name",
        )
    if there is None and request.replace:
        raise _no_principal(request.name)
    if there is None and len(known) >= _MAX_PRINCIPALS:
        raise Refused("principal.too_many", f"there are {len(known)} principals already")
    for other in known:
        if other is not there and other.spki_sha256 == key:
            raise Refused("principal.key_known", f"this key is {other.name!r}'s already")


def remove_principal_needs(act: Act, request: v1_pb2.PrincipalRemoveRequest) -> Agreement | None:
    """Whoever could remove the other administrators alone would be the only one."""
    row = _principal(act.session, request.name)
    if row.role != "admin":
        return None
    return Agreement("principals", (f"removes the administrator {row.name}",), row.spki_sha256)


def remove_principal(
    act: Act, request: v1_pb2.PrincipalRemoveRequest, prepared: object
) -> dict[str, Any]:
    """A person who may no longer call, from the next call on."""
    del prepared
    row = _principal(act.session, request.name)
    act.session.delete(row)
    act.session.flush()
    act.record("principal.remove", subject=row.name, role=row.role, spki_sha256=row.spki_sha256)
    return {"name": row.name, "removed": True}


def _key_of(request: v1_pb2.PrincipalAddRequest) -> str:
    return spki_sha256(read_certificate(request.certificate.encode()))


def _admins(session: Session) -> int:
    counted = select(func.count()).select_from(PrincipalRow).where(PrincipalRow.role == "admin")
    return session.scalar(counted) or 0


def _principal(session: Session, name: str) -> PrincipalRow:
    row = session.get(PrincipalRow, principal_name(name), with_for_update=True)
    if row is None:
        raise _no_principal(name)
    return row


def _no_principal(name: str) -> Refused:
    return Refused(
        "principal.unknown",
        f"there is no principal {name!r}",
        hint="`sealserve broker principal list` shows them",
    )


def _version(session: Session, secret: str, version: int) -> SecretRow:
    resource_name(secret)
    if not 1 <= version < 2**31:
        raise InputError("secret.version_invalid", f"{version} is no version of a secret")
    row = session.get(SecretRow, (secret, version), with_for_update=True)
    if row is None:
        raise Refused(
            "secret.unknown",
            f"there is no version {version} of a secret {secret!r}",
            hint="`sealserve secret list` shows them",
        )
    return row


def _resource(session: Session, name: str) -> ResourceRow:
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


def _loosening(row: ResourceRow, policy: bytes) -> Agreement | None:
    told = _loosened(policy_changes(row.policy, policy))
    if not told:
        return None
    summary = (f"loosens the policy of {row.name}", *told)[:_MAX_TOLD]
    return Agreement("loosen", summary, row.policy_sha256)


def _loosened(changes: Sequence[Change] | None) -> list[str]:
    if changes is None:
        return ["the policy there is cannot be read: nobody can say what it let in"]
    return [
        f"{change.rule}: {change.before} -> {change.after}"
        for change in changes
        if change.kind == "loosened"
    ]
