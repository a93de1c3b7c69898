"""Acts on secrets and their versions: see `acts` for the rules.

Rules this module keeps besides: a destroyed version keeps its row and loses its
bytes, for good.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy import select
from sqlalchemy.orm import Session

from sealserve.broker.acts import Act, Agreement
from sealserve.broker.directory import Broker, WrappedDeposit
from sealserve.broker.protocol import resource_name
from sealserve.broker.resource_acts import loosening, resource_row, resource_unknown
from sealserve.broker.secrets import Previous
from sealserve.broker.tables import ResourceRow, SecretRow
from sealserve.errors import InputError, Refused
from sealserve.volume.record import key_id_of, open_record
from sealserve.wire.broker.admin import v1_pb2

__all__ = [
    "check_deposit",
    "check_rotation",
    "destroy_needs",
    "put_needs",
    "put_secret",
    "rotate_secret",
    "set_state",
]

_FROM: Final = {
    "disabled": ("live",),
    "live": ("disabled",),
    "retired": ("live", "disabled"),
    "destroyed": ("live", "disabled", "retired"),
}
_VERBS: Final = {
    "disabled": "disable", "live": "enable", "retired": "retire", "destroyed": "destroy",
}  # fmt: skip


def check_deposit(broker: Broker, request: v1_pb2.SecretPutRequest) -> WrappedDeposit:
    """Open a deposit, see that key and record belong together, and wrap it for the store.

    Raises:
        InputError: as `Broker.accept`; ``record.*``, ``resource.owner_key_invalid``.
        Refused: ``sealing.not_opened``, ``record.signature_invalid``,
            ``secret.key_mismatch``.
        Unavailable, Refused: ``kek.*``.
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
    return broker.wrap(deposit)


def put_needs(act: Act, request: v1_pb2.SecretPutRequest) -> Agreement | None:
    """A put over a resource that is there must not loosen its policy by the way.

    Raises:
        Refused: ``secret.exists``, ``resource.unknown``: not what ``replace`` says.
    """
    name = resource_name(request.resource)
    row = act.session.get(ResourceRow, name, with_for_update=True)
    if row is None and request.replace:
        raise resource_unknown(name)
    if row is not None and not request.replace:
        raise Refused(
            "secret.exists",
            f"there is a secret {name!r} already, at version {row.secret_version}",
            hint="`sealserve secret rotate` gives it the next version and keeps this one live;"
            " `secret put --replace` retires it at once",
        )
    return None if row is None else loosening(row, request.policy)


def put_secret(act: Act, request: v1_pb2.SecretPutRequest, wrapped: object) -> dict[str, Any]:
    """Keep a deposit as the next version of its secret."""
    assert isinstance(wrapped, WrappedDeposit)  # noqa: S101 (what check_deposit returned)
    del request
    deposit = wrapped.deposit
    stored = act.broker.keep(act.session, wrapped)
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


def check_rotation(broker: Broker, request: v1_pb2.SecretRotateRequest) -> WrappedDeposit:
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


def rotate_secret(act: Act, request: v1_pb2.SecretRotateRequest, wrapped: object) -> dict[str, Any]:
    """Keep a deposit as the next version; the one before it stays live, or until a day."""
    assert isinstance(wrapped, WrappedDeposit)  # noqa: S101 (what check_rotation returned)
    row = resource_row(act.session, wrapped.deposit.resource)
    before = row.secret_version
    # The policy may have been set anew since the deposit was checked.
    deposit = replace(wrapped.deposit, policy=row.policy, lease_seconds=row.lease_seconds)
    previous = Previous(retired=False, seconds=request.retire_after_seconds)
    stored = act.broker.keep(act.session, replace(wrapped, deposit=deposit), previous)
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
