"""Looks from time to time: for new versions, for a changed config file, for loads to retry.

Rules this module keeps:

* A config file that is broken changes nothing: it is told once, and what is served stays.
* Nothing that happens here ends the watching.
"""

from __future__ import annotations

import threading
import time

from sealserve.errors import SealserveError
from sealserve.files import Stamp, stamp_of
from sealserve.logs import Log
from sealserve.serving.catalog import Catalog
from sealserve.serving.config import LifeConfig, read_model_config

__all__ = ["Watcher"]


class Watcher:
    """A thread over a catalog that has been loaded."""

    def __init__(self, catalog: Catalog, life: LifeConfig, log: Log) -> None:
        self._catalog = catalog
        self._life = life
        self._log = log
        self._ending = threading.Event()
        self._stamp: Stamp = stamp_of(life.config_file) if life.config_file else None
        now = time.monotonic()
        self._files_at = now + life.file_poll_seconds if life.file_poll_seconds > 0 else None
        polls_config = life.config_file is not None and life.config_poll_seconds > 0
        self._config_at = now + life.config_poll_seconds if polls_config else None
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more; returns when a change under way is complete."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._ending.wait(self._pause()):
            try:
                self._look()
            except Exception as error:  # a bug must not end the watching
                self._log.error("unexpected", error=type(error).__name__, front="watcher")

    def _pause(self) -> float | None:
        times = [self._files_at, self._config_at, self._catalog.retry_due()]
        known = [each for each in times if each is not None]
        # A retry may become due by a reload request that this thread does not see.
        return min(60.0, max(0.01, min(known) - time.monotonic())) if known else 60.0

    def _look(self) -> None:
        now = time.monotonic()
        if self._config_at is not None and now >= self._config_at:
            self._config_at = now + self._life.config_poll_seconds
            self._read_config()
        due = self._catalog.retry_due()
        files_due = self._files_at is not None and now >= self._files_at
        if files_due or (due is not None and now >= due):
            self._catalog.refresh()
        if files_due:
            self._files_at = time.monotonic() + self._life.file_poll_seconds

    def _read_config(self) -> None:
        file = self._life.config_file
        if file is None:
            return
        stamp = stamp_of(file)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            models = read_model_config(file)
            self._log.info("config_reloaded", file=str(file), models=[m.name for m in models])
            self._catalog.reload(models)
        except SealserveError as error:
            self._log.error("config_reload_failed", **error.to_dict())
