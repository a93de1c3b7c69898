"""The broker's collateral: one file, or a directory of them, re-read when they change.

Rules this module keeps:

* A change is noticed before the next decision. A new file that cannot be read, or is
  older than the last one, leaves that in force (it carries its own end of validity,
  which every decision checks) and says so in the log.
* In a directory, which is a store of `sealserve collateral`, a quote's own PCK
  certificate names the file that it is judged by: by platform model and CA. That is
  no reason to trust it: the verifier sees whether the two fit.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Protocol

from structlog.typing import FilteringBoundLogger

from sealserve.attestation.collateral import Collateral
from sealserve.attestation.collateral_fetch import platform_of_quote
from sealserve.attestation.collateral_store import (
    nothing_stored,
    require_not_older,
    stored_names,
)
from sealserve.errors import Refused, SealserveError
from sealserve.files import stamp_of

__all__ = ["CollateralDirectory", "CollateralFile", "CollateralSource", "open_collateral"]


class CollateralSource(Protocol):
    """What decisions are made by."""

    def for_quote(self, quote: bytes) -> Collateral:
        """The collateral to judge a quote by.

        Raises:
            Refused: ``collateral.platform_unknown``.
            InputError, Refused: as `platform_of_quote`.
        """
        ...

    def in_force(self) -> tuple[Collateral, ...]:
        """All there is, now."""
        ...


def open_collateral(path: Path, log: FilteringBoundLogger) -> CollateralSource:
    """What stands at a path.

    Raises:
        Unavailable: ``file.unreadable``, ``collateral.not_stored``,
            ``collateral.store_unusable``.
        InputError: ``collateral.malformed``, ``file.too_large``.
    """
    return CollateralDirectory(path, log) if path.is_dir() else CollateralFile(path, log)


class CollateralFile:
    """The collateral of one platform model.

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

    def for_quote(self, quote: bytes) -> Collateral:
        """As `CollateralSource.for_quote`: whatever the quote says, the verifier will see."""
        del quote
        return self.current()

    def in_force(self) -> tuple[Collateral, ...]:
        """As `CollateralSource.in_force`."""
        return (self.current(),)

    def _load_newer(self) -> Collateral:
        """The file's content, unless it goes back behind what was in force here."""
        new, old = Collateral.load(self._path), self._collateral
        if new.fmspc == old.fmspc:
            require_not_older(new, old, same_ca=new.ca == old.ca)
        return new


class CollateralDirectory:
    """The collateral of several platform models, each in a file of its own.

    Args:
        directory: a store of `sealserve collateral`; models may be added while it is used.
        log: where a bad new file is reported.

    Raises:
        Unavailable, InputError: as `open_collateral`; also of a single bad file.
    """

    def __init__(self, directory: Path, log: FilteringBoundLogger) -> None:
        self._directory = directory
        self._log = log
        self._lock = threading.Lock()
        self._files = {
            name: CollateralFile(directory / name, log) for name in stored_names(directory)
        }
        self._unread: dict[str, object] = {}
        if not self._files:
            raise nothing_stored(directory)

    def for_quote(self, quote: bytes) -> Collateral:
        """As `CollateralSource.for_quote`."""
        fmspc, ca = platform_of_quote(quote)
        file = self._file(f"{fmspc}.{ca}.json")
        if file is None:
            raise Refused(
                "collateral.platform_unknown",
                f"there is no collateral for platform model {fmspc} ({ca} CA)",
                hint=f"`sealserve collateral fetch --fmspc {fmspc} --ca {ca} --store"
                f" {self._directory}`, if guests on it shall be served",
            )
        return file.current()

    def in_force(self) -> tuple[Collateral, ...]:
        """As `CollateralSource.in_force`."""
        with self._lock:
            names = {*self._files}
        try:
            names |= {*stored_names(self._directory)}
        except SealserveError as error:
            self._log.error("collateral not listed", **error.to_dict())
        files = (self._file(name) for name in sorted(names))
        return tuple(file.current() for file in files if file is not None)

    def _file(self, name: str) -> CollateralFile | None:
        """A file that was there at the start, or has come since."""
        path = self._directory / name
        with self._lock:
            if name in self._files or not path.exists():
                return self._files.get(name)
            try:
                stamp = stamp_of(path)
                if self._unread.get(name) == stamp:
                    return None
                self._unread[name] = stamp
                self._files[name] = CollateralFile(path, self._log)
            except SealserveError as error:
                self._log.error("new collateral not read", **error.to_dict())
                return None
            self._log.info("collateral read", file=name)
            return self._files[name]
