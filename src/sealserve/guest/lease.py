"""A lease kept alive in the background, and what ends it.

Rules this module keeps:

* What the broker gave is kept until the lease's end by this machine's own clock,
  which counts from before it was asked for, and through a suspension: never longer
  than the broker means.
* A renewal begins at half of the lease and is tried again until it succeeds or
  the lease ends: a broker that is down, or collateral that nobody renewed, stops
  a guest only then. A lease that the broker says is revoked or over ends at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, Self

from sealserve.errors import Refused, SealserveError
from sealserve.logs import Log

__all__ = ["LeaseKeeper", "now"]

_OVER: Final = ("release.lease_revoked", "release.lease_ended")
_MIN_PAUSE_SECONDS: Final = 0.5
_MAX_PAUSE_SECONDS: Final = 60.0


def now() -> float:
    """Seconds since this machine booted, those asleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class LeaseKeeper:
    """Renews one lease from entering to leaving; a context manager.

    Args:
        seconds: how long the lease lasts, as the broker said.
        asked: `now` from before the release was asked for.
        renew: asks the broker; returns the new length.
        log: where renewals and failures are noted.
    """

    def __init__(self, seconds: float, asked: float, renew: Callable[[], float], log: Log) -> None:
        self._seconds = seconds
        self._ends = asked + seconds
        self._renew = renew
        self._log = log
        self._over: SealserveError | None = None
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        # A quote that is being made is not waited for: it renews nothing any more.
        self._leaving.set()

    def require(self) -> None:
        """Go on only while the lease holds.

        Raises:
            Refused: ``guest.lease_revoked``, ``guest.lease_ended``.
        """
        over = self._over
        if over is not None:
            raise Refused(
                "guest.lease_revoked",
                f"the broker ended this guest's lease ({over.code})",
                hint="the broker's operator knows why; reboot the TD to ask for a new one",
            )
        if now() >= self._ends:
            raise Refused(
                "guest.lease_ended",
                "the lease has ended and could not be renewed",
                hint="the log above says why; reboot the TD to ask for a new one",
            )

    def _run(self) -> None:
        wait = self._seconds / 2 - (now() - (self._ends - self._seconds))
        pause = _MIN_PAUSE_SECONDS
        while not self._leaving.wait(max(0.0, wait)):
            if now() >= self._ends:
                return
            asked = now()
            try:
                seconds = self._renew()
            except SealserveError as error:
                self._log.warning("lease not renewed", **error.to_dict())
                if error.code in _OVER:
                    self._over = error
                    return
                wait, pause = pause, min(2 * pause, _MAX_PAUSE_SECONDS)
                continue
            except Exception as error:
                # The place of a bug is not worth a served model; its end is the lease's.
                self._log.error("lease not renewed", type=type(error).__name__)
                wait, pause = pause, min(2 * pause, _MAX_PAUSE_SECONDS)
                continue
            self._seconds, self._ends = seconds, asked + seconds
            wait, pause = asked + seconds / 2 - now(), _MIN_PAUSE_SECONDS
            self._log.info("lease renewed", seconds=seconds)
