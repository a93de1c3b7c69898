"""What is noted of each call: its id, how it ended, how long it took. Never what it carried.

Rules this module keeps:

* An id that the caller chose is taken over if it is short and plain; it comes back with
  the answer and stands in the log, so that both sides speak of the same call.
* Failures are logged; successes only with ``--log_requests``. A log line holds names,
  versions, codes and times, and no text that was made from a request's values.
"""

from __future__ import annotations

import re
import secrets
import time
from dataclasses import dataclass, field

from sealserve.errors import SealserveError
from sealserve.logs import Log
from sealserve.serving.access import Peer
from sealserve.serving.metrics import Metrics
from sealserve.serving.status import Status

__all__ = ["REQUEST_ID", "Call", "Calls"]

REQUEST_ID = "x-request-id"
_PLAIN = re.compile(r"[A-Za-z0-9._:/+=-]{1,100}")
_MAX_NAME = 100


@dataclass
class Call:
    """One call, while it is answered.

    Attributes:
        api: the method (``Predict``).
        entrypoint: ``GRPC`` or ``REST``.
        peer: who calls.
        id: the caller's id for it, or one of ours.
        model: what was asked for, once that is known.
        version: what answered, once that is known.
        is_named: the id is the caller's.
    """

    api: str
    entrypoint: str
    peer: Peer
    id: str = ""
    model: str = ""
    version: int | None = None
    begun: float = field(default_factory=time.perf_counter)
    is_named: bool = field(init=False)

    def __post_init__(self) -> None:
        self.is_named = _PLAIN.fullmatch(self.id) is not None
        if not self.is_named:
            self.id = secrets.token_hex(8)


class Calls:
    """Notes how calls end."""

    def __init__(self, metrics: Metrics, log: Log, *, log_all: bool = False) -> None:
        self.metrics = metrics
        self._log = log
        self._log_all = log_all
        self._latest = float("-inf")

    def quiet(self) -> float:
        """Seconds since a call was answered."""
        return time.monotonic() - self._latest

    def is_spoken_of(self, call: Call) -> bool:
        """Whether one that succeeds is known by its id to somebody: to its caller or in the log."""
        return call.is_named or self._log_all

    def ended(self, call: Call, status: Status, error: SealserveError | None = None) -> None:
        """The call has been answered."""
        self._latest = time.monotonic()
        seconds = time.perf_counter() - call.begun
        self.metrics.request(
            call.model, call.version, call.api, call.entrypoint, status.name, seconds
        )
        if status is Status.OK and not self._log_all:
            return
        fields: dict[str, object] = {
            "id": call.id,
            "api": call.api,
            "front": call.entrypoint,
            "model": call.model[:_MAX_NAME],
            "status": status.name,
            "ms": round(seconds * 1000, 3),
        }
        if call.version is not None:
            fields["version"] = call.version
        if error is not None:
            fields["code"] = error.code
        self._log.info("request", **fields)
