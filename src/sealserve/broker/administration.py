"""Who may do what to a broker: the one place that decides, for every way in.

Rules this module keeps:

* The command line on the broker's directory and the administration port both come
  through `Administration.perform`; neither touches what it changes.
* An act is looked at in the transaction that does it: the caller's role, and
  whether a second person must agree. With its audit line it is done, or nothing is.
* Every refusal is an audit line too.
* Looking writes no line: who follows the log must not make it grow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.message import Message
from sqlalchemy import select

from sealserve.broker import principal_acts, proposals, resource_acts, secret_acts, views
from sealserve.broker.acts import Act, Agreement
from sealserve.broker.directory import Broker
from sealserve.broker.leases import revoke
from sealserve.broker.operation.chain_watch import ChainWatch
from sealserve.broker.principals import Caller, is_local, read_role
from sealserve.broker.proposals import Proposal
from sealserve.broker.status import status_of_broker
from sealserve.broker.tables import PrincipalRow
from sealserve.errors import InternalError, Refused, SealserveError
from sealserve.wire.broker.admin import v1_pb2

__all__ = ["OPERATIONS", "OWN", "Administration", "Look", "Operation"]

_MAX_TOLD: Final = 512


def _nothing(broker: Broker, request: Any) -> None:
    del broker, request


def _alone(act: Act, request: Any) -> None:
    del act, request


@dataclass(frozen=True, slots=True)
class Look:
    """A view: any role may have it."""

    name: str
    run: Callable[[Broker, Any], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Operation:
    """An act: an admin's.

    Attributes:
        name: as it stands in audit lines and proposals.
        run: does it, given what ``prepare`` returned.
        prepare: what can be checked before there is a transaction.
        needs: whether a second person must agree, and to what.
    """

    name: str
    run: Callable[[Act, Any, object], dict[str, Any]]
    prepare: Callable[[Broker, Any], object] = _nothing
    needs: Callable[[Act, Any], Agreement | None] = _alone


def _revoke_lease(act: Act, request: v1_pb2.LeaseRevokeRequest, prepared: object) -> dict[str, Any]:
    del prepared
    lease, ended = revoke(act.session, act.broker.store, request.lease)
    if ended:
        act.record(
            "lease.revoke",
            lease=lease.id,
            resource=lease.resource,
            secret_version=lease.secret_version,
        )
    return lease.to_dict()


def _withdraw(
    act: Act, request: v1_pb2.ProposalWithdrawRequest, prepared: object
) -> dict[str, Any]:
    del prepared
    return {"proposal": proposals.withdraw(act, request.id).to_dict()}


OPERATIONS: Final[Mapping[type[Message], Operation | Look]] = {
    v1_pb2.SecretPutRequest: Operation(
        "secret.put", secret_acts.put_secret, secret_acts.check_deposit, secret_acts.put_needs
    ),
    v1_pb2.SecretRotateRequest: Operation(
        "secret.rotate", secret_acts.rotate_secret, secret_acts.check_rotation
    ),
    v1_pb2.SecretListRequest: Look("secret.list", views.secrets),
    v1_pb2.SecretShowRequest: Look("secret.show", views.secret),
    v1_pb2.SecretDisableRequest: Operation("secret.disable", secret_acts.set_state("disabled")),
    v1_pb2.SecretEnableRequest: Operation("secret.enable", secret_acts.set_state("live")),
    v1_pb2.SecretRetireRequest: Operation("secret.retire", secret_acts.set_state("retired")),
    v1_pb2.SecretDestroyRequest: Operation(
        "secret.destroy", secret_acts.set_state("destroyed"), needs=secret_acts.destroy_needs
    ),
    v1_pb2.ResourceListRequest: Look("resource.list", views.resources),
    v1_pb2.ResourceShowRequest: Look("resource.show", views.resource),
    v1_pb2.ResourceRemoveRequest: Operation("resource.remove", resource_acts.remove_resource),
    v1_pb2.PolicySetRequest: Operation(
        "policy.set", resource_acts.set_policy, needs=resource_acts.policy_needs
    ),
    v1_pb2.PolicyDiffRequest: Look("policy.diff", views.policy_diff),
    v1_pb2.AuditReadRequest: Look("audit.read", views.audit_lines),
    v1_pb2.AuditSealRequest: Look("audit.seal", views.audit_seal),
    v1_pb2.LeaseListRequest: Look("lease.list", views.leases),
    v1_pb2.LeaseRevokeRequest: Operation("lease.revoke", _revoke_lease),
    v1_pb2.PrincipalAddRequest: Operation(
        "principal.add", principal_acts.add_principal, needs=principal_acts.add_principal_needs
    ),
    v1_pb2.PrincipalListRequest: Look("principal.list", views.principals),
    v1_pb2.PrincipalRemoveRequest: Operation(
        "principal.remove",
        principal_acts.remove_principal,
        needs=principal_acts.remove_principal_needs,
    ),
    v1_pb2.ProposalListRequest: Look("proposal.list", views.proposal_list),
    v1_pb2.ProposalWithdrawRequest: Operation("proposal.withdraw", _withdraw),
}
"""All there is to ask, but for `OWN`."""

OWN: Final[Mapping[type[Message], str]] = {
    v1_pb2.ProposalApproveRequest: "proposal.approve",
    v1_pb2.StatusRequest: "status",
}
"""What `Administration` itself answers, by the names in audit lines."""

_BY_NAME: Final = {
    operation.name: (kind, operation)
    for kind, operation in OPERATIONS.items()
    if isinstance(operation, Operation)
}


class Administration:
    """Performs what callers ask of one broker.

    Args:
        broker: open.
        chain: follows its audit chain, if something does already.
        now: this machine's clock (UTC).
    """

    def __init__(
        self,
        broker: Broker,
        chain: ChainWatch | None = None,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._broker = broker
        self._chain = chain or ChainWatch(broker.audit)
        self._now = now

    def caller(self, spki_sha256: str, peer: str) -> Caller:
        """The principal with this key.

        Args:
            spki_sha256: of the client certificate that TLS has checked, hex.
            peer: the address of the connection.

        Raises:
            Refused: ``admin.principal_unknown``, with its audit line.
        """
        with self._broker.store.reading() as session:
            row = session.scalar(
                select(PrincipalRow).where(PrincipalRow.spki_sha256 == spki_sha256)
            )
            if row is not None:
                return Caller(row.name, read_role(row.role), peer)
        raise self.refused(
            Caller(f"key {spki_sha256}", "auditor", peer),
            "connect",
            Refused("admin.principal_unknown", "this key is no principal's of this broker"),
        )

    def perform(self, caller: Caller, request: Message) -> dict[str, Any]:
        """Do what is asked, propose it, or refuse.

        Args:
            caller: who asks.
            request: of one of the kinds in `OPERATIONS` and `OWN`.

        Returns:
            The result as a JSON object; ``{"proposal": ...}`` of state ``open`` if a second
            person must agree first.

        Raises:
            SealserveError: why not, with its audit line.
        """
        name = _name_of(request)
        try:
            if isinstance(request, v1_pb2.ProposalApproveRequest):
                return self._approve(caller, request.id)
            if isinstance(request, v1_pb2.StatusRequest):
                return status_of_broker(self._broker, self._chain.look(self._now())).to_dict()
            asked = OPERATIONS[type(request)]
            if isinstance(asked, Look):
                return asked.run(self._broker, request)
            return self._act(caller, asked, request)
        except SealserveError as error:
            self.refused(caller, name, error)
            raise
        except Exception as error:
            kind = type(error).__name__
            self.refused(caller, name, InternalError("internal.unexpected", f"unexpected {kind}"))
            raise

    def refused(self, caller: Caller, action: str, error: SealserveError) -> SealserveError:
        """Write the audit line of a refusal.

        Returns:
            The error, to be raised where it stands: who keeps it in a variable keeps the call.

        Raises:
            Unavailable: ``store.*``: then the caller hears that instead.
        """
        reason = {name: text[:_MAX_TOLD] for name, text in error.to_dict().items()}
        entry = {
            "event": "admin.refused",
            "action": action,
            "principal": caller.name,
            "code": error.code,
            "reasons": [reason],
        }
        if caller.peer is not None:
            entry["peer"] = caller.peer
        self._broker.audit.append(entry)
        return error

    def _act(self, caller: Caller, operation: Operation, request: Message) -> dict[str, Any]:
        _require_admin(caller)
        prepared = operation.prepare(self._broker, request)
        with self._broker.store.writing() as session:
            act = Act(self._broker, session, caller, self._now())
            _require_still_admin(act, caller)
            agreement = operation.needs(act, request)
            if agreement is not None and self._held(agreement):
                proposal = proposals.propose(act, operation.name, request, agreement)
                return {"proposal": proposal.to_dict()}
            return operation.run(act, request, prepared)

    def _approve(self, caller: Caller, proposal_id: str) -> dict[str, Any]:
        _require_admin(caller)
        with self._broker.store.reading() as session:
            waiting = proposals.read(session, proposal_id, self._now())
        operation, request = _asked_by(waiting)
        prepared = operation.prepare(self._broker, request) if waiting.state == "open" else None
        with self._broker.store.writing() as session:
            now = self._now()
            own = Act(self._broker, session, caller, now)
            _require_still_admin(own, caller)
            taken = proposals.take(own, proposal_id, caller.name)
            proposer = Caller(taken.proposer, "admin")
            act = Act(self._broker, session, proposer, now, approver=caller.name)
            agreement = operation.needs(act, request)
            if agreement is None or agreement.basis != taken.basis:
                raise Refused(
                    "proposal.outdated",
                    "what the proposal rests on has changed since",
                    where=taken.id,
                    hint="withdraw it and propose the act again",
                )
            own.record(
                "proposal.approve", subject=taken.id, action=taken.action, proposer=taken.proposer
            )
            return {"approved": taken.id, **operation.run(act, request, prepared)}

    def _held(self, agreement: Agreement) -> bool:
        two_person = self._broker.config.admin.two_person
        return bool(two_person) and (agreement.kind == "principals" or agreement.kind in two_person)


def _name_of(request: Message) -> str:
    asked = OPERATIONS.get(type(request))
    name = OWN.get(type(request)) if asked is None else asked.name
    if name is None:
        raise InternalError("admin.operation_unknown", "there is no such operation")
    return name


def _asked_by(waiting: Proposal) -> tuple[Operation, Message]:
    kind, operation = _BY_NAME[waiting.action]
    request = kind()
    if waiting.request is not None:
        json_format.ParseDict(waiting.request, request)
    return operation, request


def _require_admin(caller: Caller) -> None:
    if caller.role != "admin":
        raise Refused(
            "admin.role_insufficient",
            f"{caller.name!r} is an {caller.role}, and only an admin may do this",
            hint="ask an administrator",
        )


def _require_still_admin(act: Act, caller: Caller) -> None:
    # The caller was looked up before; he may have been removed in between.
    if is_local(caller.name):
        return
    row = act.session.get(PrincipalRow, caller.name)
    if row is None or row.role != "admin":
        raise Refused("admin.principal_unknown", f"{caller.name!r} is no administrator any more")
