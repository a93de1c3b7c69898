"""The broker's collateral: one file, re-read when it changes.

Rules this module keeps: a change is noticed before the next decision; a new
file that cannot be read, or is older than the last one, leaves that in force (it
carries its own end of validity, which every decision checks) and says so in the
log.
"""

from __future__ import annotations

import threading
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from sealserve.attestation.collateral import Collateral
from sealserve.attestation.collateral_store import require_not_older
from sealserve.errors import SealserveError
from sealserve.files import stamp_of

__all__ = ["CollateralFile"]


class CollateralFile:
    """The collateral to decide by.

    Args:
        path: the file that `Collateral.load` reads; replace it by rename.
        log: where a bad new file is reported.

    Raises:
        Unavailable: ``file.unreadable``.
        InputError: ``collateral.malformed``, ``file.too_large``.
    """

    def __init__(self, path: Path, log: FilteringBoundLogger) -> None:
        self._path = path
        self._log = log
        self._lock = threading.Lock()
        self._stamp = stamp_of(self._path)
        self._collateral = Collateral.load(path)

    def current(self) -> Collateral:
        """The file's content as it is now, or the last content that could be read."""
        with self._lock:
            try:
                stamp = stamp_of(self._path)
                if stamp != self._stamp:
                    self._stamp = stamp
                    self._collateral = self._load_newer()
                    self._log.info(
                        "collateral read",
                        evaluation=self._collateral.evaluation_number,
                        ends=self._collateral.ends.isoformat(),
                    )
            except SealserveError as error:
                self._log.error("collateral not read, keeping the last one", **error.to_dict())
            return self._collateral

    def _load_newer(self) -> Collateral:
        """The file's content, unless it goes back behind what was in force here."""
        new, old = Collateral.load(self._path), self._collateral
        if new.fmspc == old.fmspc:
            require_not_older(new, old, same_ca=new.ca == old.ca)
        return new
