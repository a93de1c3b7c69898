"""Acts on who may administer: see `acts` for the rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from sealserve.broker.acts import Act, Agreement
from sealserve.broker.principals import (
    principal_name,
    read_certificate,
    read_role,
    spki_sha256,
)
from sealserve.broker.tables import PrincipalRow
from sealserve.errors import Refused
from sealserve.wire.broker.admin import v1_pb2

__all__ = ["add_principal", "add_principal_needs", "remove_principal", "remove_principal_needs"]

_MAX_PRINCIPALS: Final = 64


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
