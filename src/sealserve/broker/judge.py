"""What every decision about a guest has in common, whether it asks for a key or renews.

Rules this module keeps:

* The order is fixed: challenge used up, quote verified, report data compared,
  policy appraised, audit line on disk together with what it speaks of, answer.
* Every request that is decided ends in exactly one audit line, also a malformed
  one. One that the rate limits turn away is not decided: it is counted.
* The peer gets codes. What was expected and what was found stays in the audit
  log and the broker's own log.
"""

from __future__ import annotations

import hmac
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from sqlalchemy.orm import Session
from structlog.typing import FilteringBoundLogger

from sealserve.attestation import policy_file
from sealserve.attestation.appraisal import appraise
from sealserve.attestation.binding import report_data_of
from sealserve.attestation.collateral_outlook import PlatformTcb
from sealserve.attestation.policy import Policy
from sealserve.attestation.verifier import VerifiedTd, Verifier
from sealserve.broker import audit
from sealserve.broker.challenges import Challenges
from sealserve.broker.collateral_source import CollateralSource
from sealserve.broker.directory import Broker
from sealserve.broker.limits import Limits, limits_for, peer_limited, resource_limited
from sealserve.broker.observer import NOBODY, Observer, Outcome
from sealserve.broker.store import Resource
from sealserve.errors import InputError, InternalError, Refused, SealserveError, Unavailable
from sealserve.tdx.quote import MAX_QUOTE_BYTES, parse_quote

__all__ = ["Case", "Decision", "Judge", "check_sizes", "unavailable", "version_withdrawn"]

_YES: Final = {"release": "released", "renewal": "renewed"}


@dataclass(frozen=True, slots=True)
class Decision:
    """Yes with the answer's bytes, or no with an error.

    Attributes:
        answer: what the peer gets; ``None`` if the answer is no.
        error: why not; the peer may see its class and code.
        reasons: codes of the failed rules, which the peer may see too.
        retry_seconds: when the peer may ask again, if that is known; else 0.
    """

    answer: bytes | None
    error: SealserveError | None = None
    reasons: tuple[str, ...] = ()
    retry_seconds: float = 0.0


@dataclass(slots=True)
class Case:
    """One request on its way through the rules, collecting its audit line.

    Attributes:
        event: what is asked.
        peer: the address it came from.
        now: when.
        facts: goes into the audit line.
        reasons: what speaks against it; goes there too.
        cause: the code of what really happened.
        act: what is written together with the audit line if the answer is yes.
        retry_seconds: when to ask again, if a limit was met.
    """

    event: Literal["release", "renewal"]
    peer: str
    now: datetime
    facts: dict[str, Any] = field(default_factory=dict)
    reasons: list[dict[str, Any]] = field(default_factory=list)
    cause: str = ""
    act: Callable[[Session], None] = lambda _session: None
    retry_seconds: float = 0.0

    def deny(self, message: str) -> Refused:
        """The refusal whose reasons stand in `reasons`."""
        return Refused("release.denied", message)


class Judge:
    """Decides for one broker under one anchor.

    Args:
        broker: its secrets, resources and audit chain.
        verifier: holds the broker's one anchor.
        collateral: Intel's statements to verify by.
        challenges: the table of nonces.
        log: the broker's own log.
        limits: rate limits; those of the broker's configuration if not given.
        now: the wall clock, with a time zone.
        observer: is told of steps and outcomes.
    """

    def __init__(
        self,
        broker: Broker,
        verifier: Verifier,
        collateral: CollateralSource,
        challenges: Challenges,
        log: FilteringBoundLogger,
        *,
        limits: Limits | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        observer: Observer = NOBODY,
    ) -> None:
        self.broker = broker
        self.challenges = challenges
        self.observer = observer
        self._verifier = verifier
        self.collateral = collateral
        self._limits = limits_for(broker.config.limits, broker.store) if limits is None else limits
        self._log = log
        self._now = now
        self._policies: dict[str, tuple[str, Policy]] = {}

    def admit(self, peer: str) -> Decision | None:
        """Whether a call of this peer is worked on at all; if not, the answer.

        Raises:
            Unavailable: ``store.unavailable``.
        """
        wait = self._limits.take("peer", peer)
        if not wait:
            return None
        error = peer_limited()
        self.observer.decided(Outcome("limited", error.code, error.code))
        return Decision(None, error, retry_seconds=wait)

    def decide(
        self, event: Literal["release", "renewal"], peer: str, rules: Callable[[Case], bytes]
    ) -> Decision:
        """Apply rules to one request and write its audit line. Never raises.

        Args:
            event: what is asked.
            peer: who asks.
            rules: answers or raises; notes what it finds in the case.
        """
        case = Case(event, peer, self._now())
        with self.observer.step(event):
            try:
                decision = Decision(rules(case))
            except SealserveError as error:
                decision = _refusal(case, error)
            except Exception as error:
                decision = _refusal(case, _unexpected(error))
            return self._recorded(case, decision)

    def fresh_td(
        self, case: Case, *, quote: bytes, nonce: bytes, resource: str, transcript: bytes
    ) -> VerifiedTd:
        """Use the challenge up, verify the quote, and check what it was made for.

        Raises:
            Refused: ``release.nonce_*``, ``release.denied``, ``release.binding_mismatch``.
        """
        self.challenges.consume(nonce, resource)
        td = self._verified(case, quote)
        if not hmac.compare_digest(td.report.report_data, report_data_of(transcript)):
            raise Refused(
                "release.binding_mismatch",
                "the quote was not made for this challenge, broker, key, resource and boot",
            )
        return td

    def policy_of(self, case: Case, resource: Resource) -> Policy:
        """The resource's policy, as its owner wrote it.

        Raises:
            Refused: ``release.denied``: it cannot be read.
        """
        digest, policy = self._policies.get(resource.name, ("", None))
        if policy is None or digest != resource.policy_sha256:
            try:
                policy = policy_file.parse(resource.policy)
            except InputError as error:
                case.reasons.append(error.to_dict())
                raise case.deny("the resource's policy cannot be read") from None
            self._policies[resource.name] = (resource.policy_sha256, policy)
        return policy

    def appraise(self, case: Case, td: VerifiedTd, policy: Policy) -> None:
        """Hold the guest to a policy.

        Raises:
            Refused: ``release.denied``.
        """
        with self.observer.step("appraise"):
            verdict = appraise(policy, td, now=case.now)
        case.facts["image_release"] = verdict.release
        case.facts["warnings"] = list(verdict.warnings)
        if not verdict.trusted:
            case.reasons += [finding.to_dict() for finding in verdict.failures]
            raise case.deny("the policy denies this guest")

    def take_resource(self, case: Case, resource: str) -> None:
        """Count a release of a resource to a guest that may have it.

        Raises:
            Unavailable: ``release.resource_limited``, ``store.unavailable``.
        """
        case.retry_seconds = self._limits.take("resource", resource)
        if case.retry_seconds:
            raise resource_limited()

    def _verified(self, case: Case, raw: bytes) -> VerifiedTd:
        try:
            quote = parse_quote(raw)
            case.facts["quote_sha256"] = quote.signed_digest.hex()
            collateral = self.collateral.for_quote(raw)
            case.facts["collateral_evaluation"] = collateral.evaluation_number
            case.facts["collateral_qe_evaluation"] = collateral.qe_evaluation_number
            with self.observer.step("verify"):
                td = self._verifier.verify(raw, collateral, case.now)
        except (InputError, Refused) as error:
            case.reasons.append(error.to_dict())
            raise case.deny("the quote is not genuine") from None
        case.facts["tcb_status"] = td.tcb_status
        case.facts["tcb_date"] = f"{td.tcb_date:%Y-%m-%d}"
        # What a doctor needs to say later what new collateral will do to this platform.
        case.facts["platform"] = PlatformTcb.of_quote(raw).to_dict()
        return td

    def _recorded(self, case: Case, decision: Decision) -> Decision:
        try:
            entry = self._write(case, decision)
        except Refused as error:  # what was to be written with the line can no longer be
            decision = _refusal(case, error)
            try:
                entry = self._write(case, decision)
            except SealserveError as unwritten:
                return self._unrecorded(unwritten)
        except SealserveError as error:
            return self._unrecorded(error)
        codes = tuple(reason["code"] for reason in case.reasons)
        cause = case.cause or entry["code"]
        self.observer.decided(Outcome(entry["verdict"], entry["code"], cause, codes))
        say = self._log.info if decision.error is None else self._log.warning
        say(entry.pop("event"), **entry)
        return decision

    def _write(self, case: Case, decision: Decision) -> dict[str, Any]:
        entry = {
            "event": case.event,
            "verdict": _verdict_of(case, decision),
            "code": decision.error.code if decision.error else _YES[case.event],
            "peer": case.peer,
            "anchor": self._verifier.anchor.name,
            "verifiers": list(self._verifier.names),
            "reasons": case.reasons,
            **case.facts,
        }
        with self.observer.step("audit"), self.broker.store.writing() as session:
            if decision.error is None:
                case.act(session)
            audit.append(session, entry)
        return entry

    def _unrecorded(self, error: SealserveError) -> Decision:
        self._log.error("audit line not written, nothing released", **error.to_dict())
        unwritten = Unavailable(
            "release.not_recorded", "the audit line could not be written: nothing is released"
        )
        self.observer.decided(Outcome("failed", unwritten.code, error.code))
        return Decision(None, unwritten)


def check_sizes(quote: bytes, **parts: tuple[bytes, int]) -> None:
    """Check a request's parts before anything is computed from them.

    Args:
        quote: the evidence, whose size is bounded.
        parts: by name, the bytes and how many they must be.

    Raises:
        InputError: ``release.request_malformed``.
    """
    for name, (value, size) in parts.items():
        if len(value) != size:
            raise InputError(
                "release.request_malformed", f"{name} has {len(value)} bytes instead of {size}"
            )
    if not 1 <= len(quote) <= MAX_QUOTE_BYTES:
        raise InputError(
            "release.request_malformed",
            f"quote has {len(quote)} bytes instead of 1 to {MAX_QUOTE_BYTES}",
        )


def unavailable() -> Unavailable:
    """What a peer is told of whatever is wrong inside this broker."""
    return Unavailable("release.unavailable", "the broker cannot release at present")


def version_withdrawn() -> Refused:
    """The version that is asked for, or leased, was replaced, disabled or destroyed."""
    return Refused("release.version_withdrawn", "this version of the secret is not given to guests")


def _refusal(case: Case, error: SealserveError) -> Decision:
    codes = tuple(reason["code"] for reason in case.reasons)
    case.cause = error.code
    if not case.reasons:
        case.reasons.append(error.to_dict())
    if isinstance(error, InputError) or error.code.startswith("release."):
        # Without the frames it passed, one of which will hold this decision: a cycle, and gRPC
        # counts a call until it is collected, and refuses new ones beside too many.
        error.__traceback__ = error.__context__ = None
        return Decision(None, error, codes, case.retry_seconds)
    # What is wrong inside this broker is for its operator, not for the peer.
    return Decision(None, unavailable())


def _verdict_of(case: Case, decision: Decision) -> str:
    match decision.error:
        case None:
            return _YES[case.event]
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
