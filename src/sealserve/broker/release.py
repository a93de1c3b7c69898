"""The decision: does this peer get this secret? Free of any transport.

Rules this module keeps:

* The order is fixed: challenge used up, quote verified, report data compared,
  policy appraised, secret sealed, audit line on disk, answer. Without the line
  there is no answer; a line that says "released" is never about less.
* Every request ends in exactly one audit line, also a malformed one.
* The peer gets codes. What was expected and what was found stays in the audit
  log and the broker's own log.
* Nothing about resources is told before a genuine, fresh quote is shown.
"""

from __future__ import annotations

import hmac
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from structlog.typing import FilteringBoundLogger

from sealserve.attestation import policy_file
from sealserve.attestation.appraisal import appraise
from sealserve.attestation.binding import (
    BOOT_ID_BYTES,
    NONCE_BYTES,
    release_transcript,
    report_data_of,
)
from sealserve.attestation.collateral_outlook import PlatformTcb
from sealserve.attestation.policy import Policy
from sealserve.attestation.sealing import PUBLIC_KEY_BYTES, seal
from sealserve.attestation.verifier import VerifiedTd, Verifier
from sealserve.broker.challenges import Challenges
from sealserve.broker.collateral_file import CollateralFile
from sealserve.broker.directory import Broker
from sealserve.broker.observer import NOBODY, Observer, Outcome
from sealserve.broker.protocol import resource_name
from sealserve.broker.store import Resource
from sealserve.errors import InputError, InternalError, Refused, SealserveError, Unavailable
from sealserve.tdx.quote import MAX_QUOTE_BYTES, parse_quote
from sealserve.wire.broker import v1_pb2

__all__ = ["Decision", "KeyRelease", "ReleaseRequest"]

_RELEASED: Final = "released"


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
    """

    peer: str
    resource: str
    nonce: bytes
    boot_id: bytes
    hpke_public_key: bytes
    quote: bytes


@dataclass(frozen=True, slots=True)
class Decision:
    """Yes with the sealed payload, or no with an error.

    Attributes:
        sealed: the payload sealed to the peer's key; ``None`` if the answer is no.
        error: why not; the peer may see its class and code.
        reasons: codes of the failed rules, which the peer may see too.
    """

    sealed: bytes | None
    error: SealserveError | None = None
    reasons: tuple[str, ...] = ()


@dataclass(slots=True)
class _Case:
    """One request on its way through the rules, collecting its audit line."""

    request: ReleaseRequest
    now: datetime
    facts: dict[str, Any] = field(default_factory=dict)
    reasons: list[dict[str, Any]] = field(default_factory=list)
    cause: str = _RELEASED

    def deny(self, message: str) -> Refused:
        return Refused("release.denied", message)


class KeyRelease:
    """Decides releases for one broker under one anchor.

    Args:
        broker: its secrets, resources and audit chain.
        verifier: holds the broker's one anchor.
        collateral: Intel's statements to verify by.
        challenges: the table of nonces.
        log: the broker's own log.
        now: the wall clock, with a time zone.
        observer: is told of steps and outcomes.
    """

    def __init__(
        self,
        broker: Broker,
        verifier: Verifier,
        collateral: CollateralFile,
        challenges: Challenges,
        log: FilteringBoundLogger,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        observer: Observer = NOBODY,
    ) -> None:
        self._broker = broker
        self._audit = broker.audit
        self._verifier = verifier
        self._collateral = collateral
        self._challenges = challenges
        self._log = log
        self._now = now
        self._observer = observer
        self._policies: dict[str, tuple[str, Policy]] = {}

    def challenge(self, resource: str, peer: str) -> bytes:
        """Issue a nonce for one resource; whether there is such a resource is not told.

        Raises:
            InputError: ``resource.name_invalid``.
            Unavailable: ``release.too_many_challenges``.
        """
        with self._observer.step("challenge"):
            return self._challenges.issue(resource_name(resource), peer)

    def release(self, request: ReleaseRequest) -> Decision:
        """Decide one request and write its audit line. Never raises."""
        case = _Case(request, self._now())
        with self._observer.step("release"):
            try:
                decision = Decision(self._decide(case))
            except SealserveError as error:
                decision = self._refusal(case, error)
            except Exception as error:
                decision = self._refusal(case, _unexpected(error))
            return self._recorded(case, decision)

    def _decide(self, case: _Case) -> bytes:
        request = case.request
        _check_shape(request)
        case.facts["resource"] = request.resource
        self._challenges.consume(request.nonce, request.resource)
        td = self._verified(case)
        transcript = release_transcript(
            nonce=request.nonce,
            broker_spki_sha256=self._broker.identity.spki_sha256,
            hpke_public_key=request.hpke_public_key,
            resource=request.resource,
            boot_id=request.boot_id,
        )
        if not hmac.compare_digest(td.report.report_data, report_data_of(transcript)):
            raise Refused(
                "release.binding_mismatch",
                "the quote was not made for this challenge, broker, key, resource and boot",
            )
        resource = self._broker.store.resource(request.resource)
        if resource is None:
            raise Refused("release.resource_unknown", "this broker has no such resource")
        case.facts["policy_sha256"] = resource.policy_sha256
        case.facts["secret_version"] = resource.secret_version
        self._appraise(case, td, resource)
        payload = v1_pb2.Payload(
            secret=self._broker.store.secret(
                resource.secret_id, resource.secret_version, self._broker.kek
            ),
            secret_version=resource.secret_version,
            volume_record=resource.record,
            lease_seconds=resource.lease_seconds,
        )
        with self._observer.step("seal"):
            return seal(request.hpke_public_key, payload.SerializeToString(), transcript)

    def _verified(self, case: _Case) -> VerifiedTd:
        try:
            quote = parse_quote(case.request.quote)
            case.facts["quote_sha256"] = quote.signed_digest.hex()
            collateral = self._collateral.current()
            case.facts["collateral_evaluation"] = collateral.evaluation_number
            case.facts["collateral_qe_evaluation"] = collateral.qe_evaluation_number
            with self._observer.step("verify"):
                td = self._verifier.verify(case.request.quote, collateral, case.now)
        except (InputError, Refused) as error:
            case.reasons.append(error.to_dict())
            raise case.deny("the quote is not genuine") from None
        case.facts["tcb_status"] = td.tcb_status
        case.facts["tcb_date"] = f"{td.tcb_date:%Y-%m-%d}"
        # What a doctor needs to say later what new collateral will do to this platform.
        case.facts["platform"] = PlatformTcb.of_quote(case.request.quote).to_dict()
        return td

    def _appraise(self, case: _Case, td: VerifiedTd, resource: Resource) -> None:
        try:
            policy = self._policy(resource)
        except InputError as error:
            case.reasons.append(error.to_dict())
            raise case.deny("the resource's policy cannot be read") from None
        with self._observer.step("appraise"):
            verdict = appraise(policy, td, now=case.now)
        case.facts["image_release"] = verdict.release
        case.facts["warnings"] = list(verdict.warnings)
        if not verdict.trusted:
            case.reasons += [finding.to_dict() for finding in verdict.failures]
            raise case.deny("the policy denies this guest")

    def _policy(self, resource: Resource) -> Policy:
        digest, policy = self._policies.get(resource.name, ("", None))
        if policy is None or digest != resource.policy_sha256:
            policy = policy_file.parse(resource.policy).at_release()
            self._policies[resource.name] = (resource.policy_sha256, policy)
        return policy

    def _refusal(self, case: _Case, error: SealserveError) -> Decision:
        codes = tuple(reason["code"] for reason in case.reasons)
        case.cause = error.code
        if not case.reasons:
            case.reasons.append(error.to_dict())
        if isinstance(error, InputError) or error.code.startswith("release."):
            return Decision(None, error, codes)
        # What is wrong inside this broker is for its operator, not for the peer.
        inside = Unavailable("release.unavailable", "the broker cannot release at present")
        return Decision(None, inside)

    def _recorded(self, case: _Case, decision: Decision) -> Decision:
        entry = {
            "event": "release",
            "verdict": _verdict_of(decision),
            "code": decision.error.code if decision.error else _RELEASED,
            "peer": case.request.peer,
            "anchor": self._verifier.anchor.name,
            "verifiers": list(self._verifier.names),
            "reasons": case.reasons,
            **case.facts,
        }
        verdict, code = entry["verdict"], entry["code"]
        codes = tuple(reason["code"] for reason in case.reasons)
        try:
            with self._observer.step("audit"):
                self._audit.append(entry)
        except SealserveError as error:
            self._log.error("audit line not written, nothing released", **error.to_dict())
            unwritten = Unavailable(
                "release.not_recorded", "the audit line could not be written: nothing is released"
            )
            self._observer.decided(Outcome("failed", unwritten.code, error.code))
            return Decision(None, unwritten)
        self._observer.decided(Outcome(verdict, code, case.cause, codes))
        say = self._log.info if decision.error is None else self._log.warning
        say(entry.pop("event"), **entry)
        return decision


def _check_shape(request: ReleaseRequest) -> None:
    resource_name(request.resource)
    for name, value, size in (
        ("nonce", request.nonce, NONCE_BYTES),
        ("boot_id", request.boot_id, BOOT_ID_BYTES),
        ("hpke_public_key", request.hpke_public_key, PUBLIC_KEY_BYTES),
    ):
        if len(value) != size:
            raise InputError(
                "release.request_malformed", f"{name} has {len(value)} bytes instead of {size}"
            )
    if not 1 <= len(request.quote) <= MAX_QUOTE_BYTES:
        raise InputError(
            "release.request_malformed",
            f"quote has {len(request.quote)} bytes instead of 1 to {MAX_QUOTE_BYTES}",
        )


def _verdict_of(decision: Decision) -> str:
    match decision.error:
        case None:
            return _RELEASED
        case Refused():
            return "denied"
        case InputError():
            return "malformed"
        case _:
            return "failed"


def _unexpected(error: Exception) -> InternalError:
    # The place, never the text: an exception's text could hold a secret.
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return InternalError(
        "internal.unexpected",
        f"unexpected {type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}",
    )
