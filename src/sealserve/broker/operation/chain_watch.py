"""The audit chain as a broker that runs knows it: followed, not re-read.

Rules this module keeps:

* Each look checks and reads the lines that are new. The first one begins at most
  `FIRST_LINES` from the end. What is before that, and what is changed in lines that
  were checked already, `audit verify` finds; a look says how far it goes.
* A chain that was once found broken does not become whole again.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sealserve.broker.audit import AuditLog
from sealserve.broker.audit_chain import START, ChainHead
from sealserve.broker.operation.seen import Seen
from sealserve.errors import Refused

__all__ = ["FIRST_LINES", "ChainView", "ChainWatch"]

FIRST_LINES: Final = 20_000


@dataclass(frozen=True, slots=True)
class ChainView:
    """One look at the chain.

    Attributes:
        first: the number of the first line that was ever checked.
        last: of the last one; less than ``first`` if there was none.
        time: when the look was taken.
        problem: what is wrong with the chain; ``None`` if what was checked is whole.
        seen: what the checked lines tell of guests.
    """

    first: int
    last: int
    time: datetime
    problem: str | None
    seen: Seen

    def to_dict(self) -> dict[str, Any]:
        """The check as a JSON object."""
        return {
            "problem": self.problem,
            "checked": {
                "first": self.first,
                "last": self.last,
                "time": self.time.isoformat(timespec="seconds"),
            },
        }


class ChainWatch:
    """Follows one chain; from any thread.

    Args:
        log: the chain.
    """

    def __init__(self, log: AuditLog) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._seen = Seen()
        self._end: ChainHead | None = None
        self._first = 1
        self._problem: str | None = None

    def look(self, now: datetime) -> ChainView:
        """Check what is new.

        Args:
            now: the wall clock's time.

        Raises:
            Unavailable: ``store.unavailable``.
        """
        with self._lock:
            end = self._start() if self._end is None else self._end
            if self._problem is None:
                try:
                    end = self._log.follow(end, self._seen.feed)
                except Refused as error:
                    self._problem = str(error)
            self._end = end
            return ChainView(self._first, end.count, now, self._problem, self._seen.copy())

    def _start(self) -> ChainHead:
        before = max(0, self._log.length() - FIRST_LINES)
        start = (before and self._log.end_at(before)) or START
        self._first = start.count + 1
        return start
