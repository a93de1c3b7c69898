"""Acts that wait for a second person.

Rules this module keeps:

* The person who proposed an act cannot approve it, under whichever of his names.
* One approval wins: the row is locked while it is decided on.
* What was proposed is kept only as long as it waits: what is done, withdrawn or
  void loses its request, and with it any sealed key.
* What the act rests on is kept beside it and compared again at the approval.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.message import Message
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from sealserve.broker.acts import Act, Agreement
from sealserve.broker.principals import is_local, person_of
from sealserve.broker.tables import PrincipalRow, ProposalRow
from sealserve.errors import Refused

__all__ = ["Proposal", "listed", "propose", "read", "take", "withdraw"]

_OPEN: Final = "open"
_MAX_OPEN: Final = 100
_MAX_LISTED: Final = 200
_ID = re.compile(r"[0-9a-f]{16}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Proposal:
    """One proposal as it stands.

    Attributes:
        id: 16 hexadecimal digits.
        action: the operation's name.
        kind: why a second person is asked.
        summary: what the act does.
        basis: what it rests on.
        request: the act's request, as JSON of its message; ``None`` once it does not wait.
        proposer, approver: who.
        state: ``open``, ``void`` (its time is over), ``done`` or ``withdrawn``.
        created, expires: ISO 8601 in UTC.
    """

    id: str
    action: str
    kind: str
    summary: tuple[str, ...]
    basis: str
    request: dict[str, Any] | None
    proposer: str
    approver: str | None
    state: str
    created: str
    expires: str

    def to_dict(self) -> dict[str, Any]:
        """The proposal as a JSON object, without the request."""
        return {
            "id": self.id,
            "action": self.action,
            "needs": self.kind,
            "summary": list(self.summary),
            "proposer": self.proposer,
            "approver": self.approver,
            "state": self.state,
            "created": self.created,
            "expires": self.expires,
        }


def propose(act: Act, action: str, request: Message, agreement: Agreement) -> Proposal:
    """Keep an act until a second person agrees, with the audit line that says so.

    Raises:
        Refused: ``proposal.too_many``.
    """
    _sweep(act.session, act.now)
    waiting = select(func.count()).select_from(ProposalRow).where(ProposalRow.state == _OPEN)
    if (act.session.scalar(waiting) or 0) >= _MAX_OPEN:
        raise Refused(
            "proposal.too_many",
            f"{_MAX_OPEN} proposals wait already",
            hint="approve or withdraw some: `sealserve proposal list`",
        )
    expires = act.now + timedelta(hours=act.broker.config.admin.proposal_hours)
    row = ProposalRow(
        id=secrets.token_hex(8),
        action=action,
        arguments=json.dumps(
            {
                "kind": agreement.kind,
                "summary": agreement.summary,
                "basis": agreement.basis,
                "request": json_format.MessageToDict(request, preserving_proto_field_name=True),
            }
        ),
        proposer=act.caller.name,
        approver=None,
        state=_OPEN,
        created=act.now.isoformat(timespec="seconds"),
        expires=expires.isoformat(timespec="seconds"),
    )
    act.session.add(row)
    act.record(
        "proposal.made",
        subject=row.id,
        action=action,
        needs=agreement.kind,
        summary=list(agreement.summary),
    )
    return _proposal(row, act.now)


def read(session: Session, proposal_id: str, now: datetime) -> Proposal:
    """One proposal.

    Raises:
        Refused: ``proposal.unknown``.
    """
    return _proposal(_row(session, proposal_id, lock=False), now)


def listed(session: Session, now: datetime) -> Iterator[Proposal]:
    """The newest proposals, those that wait first."""
    waiting = (ProposalRow.state == _OPEN).desc()
    chosen = select(ProposalRow).order_by(waiting, ProposalRow.created.desc(), ProposalRow.id)
    for row in session.scalars(chosen.limit(_MAX_LISTED)):
        yield _proposal(row, now)


def take(act: Act, proposal_id: str, approver: str) -> Proposal:
    """Agree to a proposal: it is done when the caller's transaction ends.

    Args:
        act: the transaction; whose caller is looked at is the approver.
        proposal_id: which one.
        approver: the second person's name.

    Raises:
        Refused: ``proposal.unknown``, ``proposal.not_open``, ``proposal.expired``,
            ``proposal.own``, ``proposal.proposer_gone``.
    """
    row = _row(act.session, proposal_id, lock=True)
    _require_open(row, act.now)
    if person_of(row.proposer) == person_of(approver):
        raise Refused(
            "proposal.own",
            "who proposed something cannot approve it",
            where=row.id,
            hint="ask another administrator",
        )
    known = None if is_local(row.proposer) else act.session.get(PrincipalRow, row.proposer)
    if not is_local(row.proposer) and (known is None or known.role != "admin"):
        raise Refused(
            "proposal.proposer_gone",
            f"{row.proposer!r} is no administrator any more",
            where=row.id,
            hint="withdraw it, and propose it yourself if it is still right",
        )
    found = _proposal(row, act.now)
    _close(row, "done")
    row.approver = approver
    return found


def withdraw(act: Act, proposal_id: str) -> Proposal:
    """Take a proposal back, or turn somebody else's down.

    Raises:
        Refused: ``proposal.unknown``, ``proposal.not_open``, ``proposal.expired``.
    """
    row = _row(act.session, proposal_id, lock=True)
    _require_open(row, act.now)
    _close(row, "withdrawn")
    act.record("proposal.withdraw", subject=row.id, action=row.action, proposer=row.proposer)
    return _proposal(row, act.now)


def _row(session: Session, proposal_id: str, *, lock: bool) -> ProposalRow:
    row = None
    if _ID.fullmatch(proposal_id):
        row = session.get(ProposalRow, proposal_id, with_for_update=lock)
    if row is None:
        raise Refused(
            "proposal.unknown",
            f"there is no proposal {proposal_id[:32]!r}",
            hint="`sealserve proposal list` shows them",
        )
    return row


def _require_open(row: ProposalRow, now: datetime) -> None:
    if row.state != _OPEN:
        raise Refused("proposal.not_open", f"the proposal is {row.state}", where=row.id)
    if _is_over(row, now):
        raise Refused(
            "proposal.expired",
            f"the proposal waited until {row.expires}",
            where=row.id,
            hint="propose it again",
        )


def _is_over(row: ProposalRow, now: datetime) -> bool:
    return datetime.fromisoformat(row.expires) <= now


def _close(row: ProposalRow, state: str) -> None:
    row.state = state
    row.arguments = json.dumps({**json.loads(row.arguments), "request": None})


def _sweep(session: Session, now: datetime) -> None:
    waiting = select(ProposalRow).where(ProposalRow.state == _OPEN).with_for_update()
    for row in session.scalars(waiting):
        if _is_over(row, now):
            _close(row, "void")


def _proposal(row: ProposalRow, now: datetime) -> Proposal:
    arguments = json.loads(row.arguments)
    return Proposal(
        id=row.id,
        action=row.action,
        kind=arguments["kind"],
        summary=tuple(arguments["summary"]),
        basis=arguments["basis"],
        request=arguments["request"],
        proposer=row.proposer,
        approver=row.approver,
        state="void" if row.state == _OPEN and _is_over(row, now) else row.state,
        created=row.created,
        expires=row.expires,
    )
