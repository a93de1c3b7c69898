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
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sealserve.attestation.collateral_outlook import PlatformTcb
from sealserve.errors import InputError

__all__ = ["RECENT", "Platform", "Seen"]

RECENT: Final = 25
"""How many of the last releases, and of the last denials, are kept whole."""

_MAX_PLATFORMS: Final = 1024
_DAY_MINUTES: Final = 24 * 60


@dataclass(slots=True)
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
    resources: set[str] = field(default_factory=set)


class Seen:
    """The sum of the audit lines fed so far.

    Attributes:
        lines: how many there were.
        first: the time of the first one.
        releases, denials: the newest whole entries, newest first.
        matched: when a guest last matched a (resource, release label).
        denied_by_policy: when a genuine guest was last turned away from a resource.
        platforms: those that were let in.
        anchor: of the newest decision.
        warnings: of the newest release.
    """

    def __init__(self) -> None:
        self.lines = 0
        self.first: datetime | None = None
        self.releases: deque[Mapping[str, Any]] = deque(maxlen=RECENT)
        self.denials: deque[Mapping[str, Any]] = deque(maxlen=RECENT)
        self.matched: dict[tuple[str, str], datetime] = {}
        self.denied_by_policy: dict[str, datetime] = {}
        self.platforms: dict[PlatformTcb, Platform] = {}
        self.anchor: str | None = None
        self.warnings: tuple[str, ...] = ()
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
        if entry.get("event") != "release":
            return
        self.anchor = str(entry.get("anchor", ""))
        if entry.get("verdict") == "released":
            self._released(entry, time)
        else:
            self._denied(entry, time)

    def _released(self, entry: Mapping[str, Any], time: datetime) -> None:
        self.releases.appendleft(entry)
        self.warnings = tuple(map(str, entry.get("warnings", ())))
        resource = str(entry.get("resource"))
        self.matched[resource, str(entry.get("image_release"))] = time
        try:
            tcb = PlatformTcb.from_dict(entry.get("platform", {}))
            level_date = datetime.fromisoformat(entry["tcb_date"]).replace(tzinfo=UTC)
        except (InputError, KeyError, TypeError, ValueError):
            return  # written by an earlier release, which did not state it
        known = self.platforms.pop(tcb, None)
        resources = {*(known.resources if known else ()), resource}
        # Last seen comes last, so that the one that goes is the one seen longest ago.
        self.platforms[tcb] = Platform(time, str(entry.get("tcb_status")), level_date, resources)
        if len(self.platforms) > _MAX_PLATFORMS:
            del self.platforms[next(iter(self.platforms))]

    def _denied(self, entry: Mapping[str, Any], time: datetime) -> None:
        self.denials.appendleft(entry)
        self._denied_in_minute[_minute(time)] += 1
        if len(self._denied_in_minute) > 2 * _DAY_MINUTES:
            oldest = _minute(time - timedelta(days=1))
            self._denied_in_minute = Counter(
                {minute: n for minute, n in self._denied_in_minute.items() if minute >= oldest}
            )
        # Only a resource that exists has a policy to fail: these names are the operator's.
        reasons = entry.get("reasons", ())
        if any(str(reason.get("code", "")).startswith("policy.") for reason in reasons):
            self.denied_by_policy[str(entry.get("resource"))] = time


def _minute(time: datetime) -> int:
    return int(time.timestamp()) // 60
