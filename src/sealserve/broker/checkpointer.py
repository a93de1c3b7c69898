"""Makes checkpoints while a broker serves: after so many lines, or so long.

Rules this module keeps: it waits and never hurries, so that releases do not wait
for it; what goes wrong is said in the log and tried again; the last act of a
broker that is stopped is a checkpoint.
"""

from __future__ import annotations

import threading
import time
from typing import Final

from sealserve.broker.audit import AuditLog
from sealserve.broker.checkpoints import Signer
from sealserve.broker.config import AuditConfig
from sealserve.errors import SealserveError
from sealserve.logs import Log

__all__ = ["Checkpointer"]

_LOOK_SECONDS: Final = 1.0
_RETRY_SECONDS: Final = 60.0


class Checkpointer:
    """A thread that signs where the chain stands; a context manager.

    Args:
        audit: the chain.
        signer: of the broker.
        config: how often.
        log: the broker's own log.
    """

    def __init__(self, audit: AuditLog, signer: Signer, config: AuditConfig, log: Log) -> None:
        self._audit = audit
        self._signer = signer
        self._config = config
        self._log = log
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)

    def __enter__(self) -> Checkpointer:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._sign()

    def _run(self) -> None:
        signed = time.monotonic()
        wait = _LOOK_SECONDS
        while not self._stopping.wait(wait):
            wait = _LOOK_SECONDS
            late = time.monotonic() - signed >= self._config.checkpoint_seconds
            if not late and not self._many():
                continue
            if self._sign():
                signed = time.monotonic()
            else:
                wait = _RETRY_SECONDS

    def _many(self) -> bool:
        try:
            return self._audit.unsigned() >= self._config.checkpoint_lines
        except SealserveError as error:
            self._log.error("audit chain not read", **error.to_dict())
            return False

    def _sign(self) -> bool:
        try:
            self._audit.checkpoint(self._signer)
        except SealserveError as error:
            self._log.error("audit chain not signed", **error.to_dict())
            return False
        except Exception as error:
            # The thread must live: the next attempt may find things in order.
            self._log.error("audit chain not signed", type=type(error).__name__)
            return False
        return True
