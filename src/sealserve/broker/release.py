"""The decision: does this peer get this secret? Free of any transport.

Rules this module keeps, beside those of `broker.judge`:

* Secret and lease are sealed, then audit line and lease are on the disk, then
  comes the answer. Without the line there is no answer; a line that says
  "released" is never about less.
* Nothing about resources is told before a genuine, fresh quote is shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from sealserve.attestation.binding import BOOT_ID_BYTES, NONCE_BYTES, release_transcript
from sealserve.attestation.sealing import PUBLIC_KEY_BYTES, seal
from sealserve.broker import leases
from sealserve.broker.judge import Case, Decision, Judge, check_sizes, version_withdrawn
from sealserve.broker.protocol import resource_name
from sealserve.broker.store import Resource
from sealserve.errors import Refused
from sealserve.wire.broker import v1_pb2

__all__ = ["KeyRelease", "ReleaseRequest"]


@dataclass(frozen=True, slots=True)
class ReleaseRequest:
    """What a peer asks, as it came: nothing of it is checked yet.

    Attributes:
        peer: the address it came from, for audit and fairness.
        resource: the name asked for.
        nonce: the challenge it answers.
        boot_id: the guest kernel's boot id.
        hpke_public_key: the key to seal to.
        quote: the evidence.
        secret_version: which version; 0 for the current one.
    """

    peer: str
    resource: str
    nonce: bytes
    boot_id: bytes
    hpke_public_key: bytes
    quote: bytes
    secret_version: int = 0


class KeyRelease:
    """Decides releases.

    Args:
        judge: the broker, its anchor and its limits.
    """

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self._broker = judge.broker

    def challenge(self, resource: str, peer: str) -> bytes:
        """Issue a nonce for one resource; whether there is such a resource is not told.

        Raises:
            InputError: ``resource.name_invalid``.
            Unavailable: ``release.too_many_challenges``, ``store.unavailable``.
        """
        with self.judge.observer.step("challenge"):
            return self.judge.challenges.issue(resource_name(resource), peer)

    def release(self, request: ReleaseRequest) -> Decision:
        """Decide one request and write its audit line; a yes is a sealed payload. Never raises."""
        return self.judge.decide("release", request.peer, partial(self._rules, request))

    def _rules(self, request: ReleaseRequest, case: Case) -> bytes:
        resource_name(request.resource)
        check_sizes(
            request.quote,
            nonce=(request.nonce, NONCE_BYTES),
            boot_id=(request.boot_id, BOOT_ID_BYTES),
            hpke_public_key=(request.hpke_public_key, PUBLIC_KEY_BYTES),
        )
        case.facts["resource"] = request.resource
        transcript = release_transcript(
            nonce=request.nonce,
            broker_spki_sha256=self._broker.identity.spki_sha256,
            hpke_public_key=request.hpke_public_key,
            resource=request.resource,
            boot_id=request.boot_id,
        )
        td = self.judge.fresh_td(
            case,
            quote=request.quote,
            nonce=request.nonce,
            resource=request.resource,
            transcript=transcript,
        )
        resource = self._broker.store.resource(request.resource, request.secret_version)
        if resource is None:
            raise Refused(
                "release.resource_unknown", "this broker has no such resource or version of it"
            )
        case.facts["policy_sha256"] = resource.policy_sha256
        case.facts["secret_version"] = resource.secret_version
        self.judge.appraise(case, td, self.judge.policy_of(case, resource).at_release())
        self.judge.take_resource(case, resource.name)
        lease = leases.Grant(
            id=leases.new_id(),
            resource=resource.name,
            secret_version=resource.secret_version,
            peer=request.peer,
            boot_id=request.boot_id,
            quote_sha256=case.facts["quote_sha256"],
            rtmr3=td.report.rtmr3,
            seconds=resource.lease_seconds,
        )
        payload = v1_pb2.Payload(
            secret=self._secret(resource),
            secret_version=resource.secret_version,
            volume_record=resource.record,
            lease_seconds=resource.lease_seconds,
            lease_id=lease.id,
        )
        with self.judge.observer.step("seal"):
            sealed = seal(request.hpke_public_key, payload.SerializeToString(), transcript)
        case.facts["lease"] = lease.id
        case.act = lambda session: leases.grant(session, self._broker.store, lease)
        return sealed

    def _secret(self, resource: Resource) -> bytes:
        try:
            return self._broker.store.secret(
                resource.secret_id, resource.secret_version, self._broker.kek
            )
        except Refused as error:
            if error.code != "store.secret_not_live":
                raise
            raise version_withdrawn() from None
