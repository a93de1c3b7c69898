"""Leases: who may keep which version of a secret, and until when.

Rules this module keeps:

* A lease is written in the same transaction as the audit line of the release that
  it belongs to, and lengthened in that of the renewal: neither is without the other.
* A lease that was revoked or has ended never becomes active again.
* Times are those of the database's clock.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from sealserve.attestation.binding import LEASE_ID_BYTES
from sealserve.broker import audit
from sealserve.broker.protocol import lease_id_bytes
from sealserve.broker.store import Store
from sealserve.broker.tables import LeaseRow
from sealserve.errors import Refused

__all__ = ["Grant", "Lease", "Leases", "grant", "new_id", "renew", "revoke"]

State = Literal["active", "revoked", "ended"]

_ACTIVE: Final = "active"
_REVOKED: Final = "revoked"
_KEPT_SECONDS: Final = 30 * 24 * 3600.0
"""How long a lease that is over stays, for whoever looks; the audit line stays for ever."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a new lease says; `grant` adds the times."""

    id: str
    resource: str
    secret_version: int
    peer: str
    boot_id: bytes
    quote_sha256: str
    rtmr3: bytes
    seconds: int


@dataclass(frozen=True, slots=True)
class Lease:
    """One lease as it stands.

    Attributes:
        id: 32 hexadecimal digits.
        resource: what it is a lease of.
        secret_version: the version that was released.
        peer: the address it was released to.
        boot_id: the boot of the guest's kernel; 16 bytes.
        rtmr3: that register's value at the release; 48 bytes.
        state: ``active``, ``revoked`` or ``ended``.
        issued, renewed, expires: when.
    """

    id: str
    resource: str
    secret_version: int
    peer: str
    boot_id: bytes
    rtmr3: bytes
    state: State
    issued: datetime
    renewed: datetime
    expires: datetime

    def to_dict(self) -> dict[str, Any]:
        """The lease as a JSON object."""
        return {
            "id": self.id,
            "resource": self.resource,
            "secret_version": self.secret_version,
            "peer": self.peer,
            "boot_id": self.boot_id.hex(),
            "state": self.state,
            "issued": self.issued.isoformat(timespec="seconds"),
            "renewed": self.renewed.isoformat(timespec="seconds"),
            "expires": self.expires.isoformat(timespec="seconds"),
        }


class Leases:
    """The leases of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def get(self, lease_id: str) -> Lease | None:
        """One lease, if there is such a one."""
        with self._store.reading() as session:
            row = session.get(LeaseRow, lease_id)
            return None if row is None else _lease(row, self._store.clock(session))

    def list(
        self, *, resource: str | None = None, active_only: bool = True, limit: int = 1000
    ) -> list[Lease]:
        """Leases, the newest first.

        Args:
            resource: only those of this one.
            active_only: leave out what was revoked or has ended.
            limit: at most so many.
        """
        with self._store.reading() as session:
            now = self._store.clock(session)
            chosen = select(LeaseRow).order_by(LeaseRow.issued.desc(), LeaseRow.id).limit(limit)
            if resource is not None:
                chosen = chosen.where(LeaseRow.resource == resource)
            if active_only:
                chosen = chosen.where(LeaseRow.state == _ACTIVE, LeaseRow.expires > now)
            return [_lease(row, now) for row in session.scalars(chosen)]

    def revoke(self, lease_id: str, *, by: str) -> Lease:
        """End a lease before its time; the guest learns it when it next renews.

        Args:
            lease_id: which one.
            by: who does so, for the audit line.

        Returns:
            The lease as it is now. Revoking a second time changes nothing.

        Raises:
            InputError: ``lease.id_invalid``.
            Refused: ``lease.unknown``, ``lease.ended``.
            Unavailable: ``store.*``.
        """
        with self._store.writing() as session:
            lease, ended = revoke(session, self._store, lease_id)
            if ended:
                entry = {
                    "event": "lease.revoke",
                    "lease": lease_id,
                    "resource": lease.resource,
                    "secret_version": lease.secret_version,
                    "by": by,
                }
                audit.append(session, entry)
            return lease


def revoke(session: Session, store: Store, lease_id: str) -> tuple[Lease, bool]:
    """End a lease before its time, as a part of the caller's transaction.

    Returns:
        The lease as it is now, and whether it was this that ended it.

    Raises:
        InputError: ``lease.id_invalid``.
        Refused: ``lease.unknown``, ``lease.ended``.
    """
    lease_id_bytes(lease_id)
    row = session.get(LeaseRow, lease_id, with_for_update=True)
    if row is None:
        raise Refused(
            "lease.unknown",
            "there is no such lease",
            where=lease_id,
            hint="`sealserve lease list` shows them",
        )
    lease = _lease(row, store.clock(session))
    if lease.state == "ended":
        raise Refused("lease.ended", "the lease has ended by itself", where=lease_id)
    if lease.state == _ACTIVE:
        row.state = _REVOKED
        return _lease(row, store.clock(session)), True
    return lease, False


def new_id() -> str:
    """A name for a lease that nobody guesses."""
    return os.urandom(LEASE_ID_BYTES).hex()


def grant(session: Session, store: Store, new: Grant) -> None:
    """Write a lease, as a part of the release's transaction."""
    now = store.clock(session)
    session.execute(delete(LeaseRow).where(LeaseRow.expires < now - _KEPT_SECONDS))
    session.add(
        LeaseRow(
            id=new.id,
            resource=new.resource,
            secret_version=new.secret_version,
            peer=new.peer,
            boot_id=new.boot_id.hex(),
            quote_sha256=new.quote_sha256,
            rtmr3=new.rtmr3.hex(),
            state=_ACTIVE,
            issued=now,
            renewed=now,
            expires=now + new.seconds,
        )
    )


def renew(session: Session, store: Store, lease_id: str, seconds: int) -> bool:
    """Let a lease run from now on, as a part of the renewal's transaction.

    Returns:
        Whether it was still active; if not, nothing is changed.
    """
    now = store.clock(session)
    lengthened = session.execute(
        update(LeaseRow)
        .where(LeaseRow.id == lease_id, LeaseRow.state == _ACTIVE, LeaseRow.expires > now)
        .values(renewed=now, expires=now + seconds)
        .returning(LeaseRow.id)
    )
    return lengthened.one_or_none() is not None


def _lease(row: LeaseRow, now: float) -> Lease:
    state: State = "revoked" if row.state == _REVOKED else "active"
    if state == "active" and row.expires <= now:
        state = "ended"
    return Lease(
        id=row.id,
        resource=row.resource,
        secret_version=row.secret_version,
        peer=row.peer,
        boot_id=bytes.fromhex(row.boot_id),
        rtmr3=bytes.fromhex(row.rtmr3),
        state=state,
        issued=datetime.fromtimestamp(row.issued, UTC),
        renewed=datetime.fromtimestamp(row.renewed, UTC),
        expires=datetime.fromtimestamp(row.expires, UTC),
    )
