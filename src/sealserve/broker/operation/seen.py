"""What the audit log tells of guests: who was let in with what, and who was not.

Rules this module keeps: it is fed line by line and forgets lines; what it keeps
is bounded, whatever peers send. A line that cannot be read is no reason to stop:
whether the chain is whole is asked elsewhere.
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sealserve.attestation.collateral_outlook import PlatformTcb
from sealserve.errors import InputError

__all__ = ["RECENT", "Decided", "Platform", "Reason", "Seen"]

RECENT: Final = 25
"""How many of the last releases, and of the last denials, are kept."""

_MAX_PLATFORMS: Final = 1024
_DAY_MINUTES: Final = 24 * 60


@dataclass(frozen=True, slots=True)
class Reason:
    """A rule that failed: with what was expected and found, or with a sentence."""

    code: str
    expected: str
    actual: str
    message: str


@dataclass(frozen=True, slots=True)
class Decided:
    """One decision as its audit line tells it; what a line does not say is empty."""

    time: datetime
    verdict: str
    code: str
    resource: str
    peer: str
    secret_version: str
    image_release: str
    tcb_status: str
    tcb_date: str
    evaluation: str
    warnings: tuple[str, ...]
    reasons: tuple[Reason, ...]

    @classmethod
    def of(cls, entry: Mapping[str, Any], time: datetime) -> Decided:
        """Read a line's object. Raises TypeError or AttributeError if it is of another shape."""

        def text(name: str) -> str:
            value = entry.get(name)
            return "" if value is None else str(value)

        return cls(
            time=time,
            verdict=text("verdict"),
            code=text("code"),
            resource=text("resource"),
            peer=text("peer"),
            secret_version=text("secret_version"),
            image_release=text("image_release"),
            tcb_status=text("tcb_status"),
            tcb_date=text("tcb_date"),
            evaluation=text("collateral_evaluation"),
            warnings=tuple(map(str, entry.get("warnings", ()))),
            reasons=tuple(
                Reason(
                    *(str(each.get(name, "")) for name in ("code", "expected", "actual", "message"))
                )
                for each in entry.get("reasons", ())
            ),
        )


@dataclass(frozen=True, slots=True)
class Platform:
    """Guests on platforms with the same security versions.

    Attributes:
        last: when one was last let in.
        status, level_date: what the verifier said of its TCB then.
        resources: what they were given.
    """

    last: datetime
    status: str
    level_date: datetime
    resources: frozenset[str]


class Seen:
    """The sum of the audit lines fed so far.

    Attributes:
        lines: how many there were.
        first: the time of the first one.
        releases, denials: the newest ones, newest first.
        matched: when a guest last matched a (resource, release label), by a release or a renewal.
        denied_by_policy: when a genuine guest was last turned away from a resource.
        failed: when the broker last failed for a reason of its own, by its code.
        platforms: those that were let in.
        anchor: of the newest decision.
    """

    def __init__(self) -> None:
        self.lines = 0
        self.first: datetime | None = None
        self.releases: deque[Decided] = deque(maxlen=RECENT)
        self.denials: deque[Decided] = deque(maxlen=RECENT)
        self.matched: dict[tuple[str, str], datetime] = {}
        self.denied_by_policy: dict[str, datetime] = {}
        self.failed: dict[str, datetime] = {}
        self.platforms: dict[PlatformTcb, Platform] = {}
        self.anchor: str | None = None
        self._denied_in_minute: Counter[int] = Counter()

    def feed(self, line: str) -> None:
        """Take note of one line, as `AuditLog.lines` gives it."""
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            entry = json.loads(line)
            self._take(entry, datetime.fromisoformat(entry["time"]).astimezone(UTC))

    def copy(self) -> Seen:
        """The sum as it is now, for another thread to read."""
        made = Seen()
        for name, value in vars(self).items():
            setattr(made, name, copy.copy(value))
        return made

    def denials_since(self, start: datetime) -> int:
        """How many requests were not granted, to the minute; at most a day back."""
        first = _minute(start)
        return sum(count for minute, count in self._denied_in_minute.items() if minute >= first)

    def last_release(self, resource: str) -> datetime | None:
        """When a guest last got this resource."""
        times = [time for (name, _label), time in self.matched.items() if name == resource]
        return max(times, default=None)

    def _take(self, entry: Mapping[str, Any], time: datetime) -> None:
        self.lines += 1
        self.first = self.first or time
        if entry.get("event") not in ("release", "renewal"):
            return
        decided = Decided.of(entry, time)
        self.anchor = str(entry.get("anchor", ""))
        if decided.verdict in ("released", "renewed"):
            if decided.verdict == "released":
                self.releases.appendleft(decided)
            self.matched[decided.resource, decided.image_release] = time
            self._platform(entry.get("platform", {}), decided)
        else:
            self._denied(decided)

    def _platform(self, stated: Mapping[str, Any], decided: Decided) -> None:
        with contextlib.suppress(InputError, ValueError):  # an earlier version did not state it
            tcb = PlatformTcb.from_dict(stated)
            level_date = datetime.fromisoformat(decided.tcb_date).replace(tzinfo=UTC)
            known = self.platforms.pop(tcb, None)
            resources = frozenset({decided.resource}) | (known.resources if known else frozenset())
            # The last one seen comes last, so that the first is the one to forget.
            self.platforms[tcb] = Platform(decided.time, decided.tcb_status, level_date, resources)
            if len(self.platforms) > _MAX_PLATFORMS:
                del self.platforms[next(iter(self.platforms))]

    def _denied(self, decided: Decided) -> None:
        self.denials.appendleft(decided)
        self._denied_in_minute[_minute(decided.time)] += 1
        if len(self._denied_in_minute) > 2 * _DAY_MINUTES:
            oldest = _minute(decided.time - timedelta(days=1))
            self._denied_in_minute = Counter(
                {minute: n for minute, n in self._denied_in_minute.items() if minute >= oldest}
            )
        if decided.verdict == "failed":
            self.failed |= {reason.code: decided.time for reason in decided.reasons}
        # Only a resource that exists has a policy to fail: these names are the operator's.
        if any(reason.code.startswith("policy.") for reason in decided.reasons):
            self.denied_by_policy[decided.resource] = decided.time


def _minute(time: datetime) -> int:
    return int(time.timestamp()) // 60
