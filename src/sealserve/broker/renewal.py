"""The decision: may this guest keep what it was given?

Rules this module keeps, beside those of `broker.judge`:

* Only the boot that was given the secret renews its lease, and only while the
  lease is active and the secret's version live.
* By now the guest has opened its volume, and RTMR3 says so. The broker knows what
  must stand there: the value at the release, extended by the events that follow
  from its own key and the volume's record. Any other value is refused, so a guest
  that ran anything else since is not renewed.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from functools import partial

from sqlalchemy.orm import Session

from sealserve.attestation.binding import BOOT_ID_BYTES, NONCE_BYTES, renewal_transcript
from sealserve.broker import leases
from sealserve.broker.guest_events import guest_events
from sealserve.broker.judge import Case, Decision, Judge, check_sizes, version_withdrawn
from sealserve.broker.leases import Lease, Leases
from sealserve.broker.protocol import lease_id_bytes, resource_name
from sealserve.broker.store import Resource
from sealserve.errors import InputError, Refused
from sealserve.tdx.eventlog import replay
from sealserve.volume.record import peek_record
from sealserve.wire.broker import v1_pb2

__all__ = ["LeaseRenewal", "RenewalRequest"]


@dataclass(frozen=True, slots=True)
class RenewalRequest:
    """What a peer asks, as it came: nothing of it is checked yet.

    Attributes:
        peer: the address it came from.
        lease_id: the lease to renew.
        resource: what it is a lease of.
        nonce: the challenge it answers.
        boot_id: the guest kernel's boot id.
        quote: the evidence.
    """

    peer: str
    lease_id: str
    resource: str
    nonce: bytes
    boot_id: bytes
    quote: bytes


class LeaseRenewal:
    """Decides renewals.

    Args:
        judge: the broker, its anchor and its limits.
    """

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._broker = judge.broker
        self._leases = Leases(judge.broker.store)

    def renew(self, request: RenewalRequest) -> Decision:
        """Decide one request and write its audit line; a yes is a `RenewResponse`. Never raises."""
        return self._judge.decide("renewal", request.peer, partial(self._rules, request))

    def _rules(self, request: RenewalRequest, case: Case) -> bytes:
        resource_name(request.resource)
        lease_id = lease_id_bytes(request.lease_id)
        check_sizes(
            request.quote,
            nonce=(request.nonce, NONCE_BYTES),
            boot_id=(request.boot_id, BOOT_ID_BYTES),
        )
        case.facts["resource"] = request.resource
        case.facts["lease"] = request.lease_id
        transcript = renewal_transcript(
            nonce=request.nonce,
            broker_spki_sha256=self._broker.identity.spki_sha256,
            lease_id=lease_id,
            resource=request.resource,
            boot_id=request.boot_id,
        )
        td = self._judge.fresh_td(
            case,
            quote=request.quote,
            nonce=request.nonce,
            resource=request.resource,
            transcript=transcript,
        )
        lease = self._own_lease(request)
        case.facts["secret_version"] = lease.secret_version
        resource = self._broker.store.resource(lease.resource, lease.secret_version)
        if resource is None or not self._broker.store.is_live(
            resource.secret_id, resource.secret_version
        ):
            raise version_withdrawn()
        case.facts["policy_sha256"] = resource.policy_sha256
        expected = self._measured(case, lease, resource)
        policy = self._judge.policy_of(case, resource)
        self._judge.appraise(case, td, policy.at_renewal(expected))
        case.act = partial(self._lengthen, lease, resource.lease_seconds)
        return v1_pb2.RenewResponse(lease_seconds=resource.lease_seconds).SerializeToString()

    def _own_lease(self, request: RenewalRequest) -> Lease:
        lease = self._leases.get(request.lease_id)
        if lease is None or lease.resource != request.resource:
            raise Refused("release.lease_unknown", "this broker knows no such lease")
        if not hmac.compare_digest(lease.boot_id, request.boot_id):
            raise Refused("release.lease_other_boot", "the lease was given to another boot")
        if lease.state == "revoked":
            raise _revoked()
        if lease.state == "ended":
            raise Refused("release.lease_ended", "the lease has ended")
        return lease

    def _measured(self, case: Case, lease: Lease, resource: Resource) -> bytes:
        """What RTMR3 must be by now."""
        if not resource.record:
            return lease.rtmr3  # a secret that opens no volume leaves no trace there
        try:
            record = peek_record(resource.record)  # its signature was checked at the deposit
        except InputError as error:
            case.reasons.append(error.to_dict())
            raise case.deny("the volume's record cannot be read") from None
        events = guest_events(self._broker.identity.spki_sha256, resource.record, record)
        return replay(events, start=lease.rtmr3)

    def _lengthen(self, lease: Lease, seconds: int, session: Session) -> None:
        if not leases.renew(session, self._broker.store, lease.id, seconds):
            raise _revoked()  # while the quote was being looked at


def _revoked() -> Refused:
    return Refused("release.lease_revoked", "the lease was revoked")
