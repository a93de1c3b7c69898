"""What administrators change: an act is one function inside the caller's transaction.

Rules that acts keep:

* A function changes rows and writes the audit line that says so, in one
  transaction; who may, and who must agree, was decided before (`administration`).
* What needs a second person says so itself (the functions whose names end in
  ``_needs``), with what a person has to know to agree, and what it rests on: if
  that has changed by then, the agreement was to something else.
* What may take its time (an HSM, Vault) is done before there is a transaction.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from sqlalchemy.orm import Session

from sealserve.broker import audit
from sealserve.broker.directory import Broker
from sealserve.broker.principals import Caller

__all__ = ["MAX_TOLD", "Act", "Agreement", "Kind"]

Kind = Literal["destroy", "loosen", "principals"]
"""Why a second person is asked."""

MAX_TOLD: Final = 50
"""How many changes of a policy an agreement, or an audit line, tells."""


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
