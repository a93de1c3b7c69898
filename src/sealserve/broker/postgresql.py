"""The engine on PostgreSQL; the driver is an extra, so only who uses it imports this.

Rules this module keeps: the server ends what takes too long (a statement, a wait
for a lock, a transaction that is left alone), and the client does not believe that
it will: it gives a connection up that is silent for longer, whatever the reason.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar

import psycopg
from psycopg.abc import PQGen
from sqlalchemy import Engine, create_engine, event

from sealserve.broker.config import StoreConfig

__all__ = ["connect"]

_GRACE_SECONDS: Final = 1.0
"""The server's own timeout comes first, if the server can still say so."""

_R = TypeVar("_R")


class _Impatient(psycopg.Connection[Any]):
    """A connection that waits only so long for an answer."""

    patience: float | None = None

    def wait(self, gen: PQGen[_R], interval: float = 0.1, timeout: float | None = None) -> _R:
        """As in psycopg, bounded; a connection that was given up is closed."""
        try:
            return super().wait(gen, interval, timeout or self.patience)
        except psycopg.errors._WaitTimeout:
            self.pgconn.finish()
            raise psycopg.OperationalError("the server does not answer") from None


def connect(config: StoreConfig) -> Engine:
    """An engine on the configured server; it has not been spoken to yet."""
    seconds = config.timeout_seconds
    milliseconds = seconds * 1000
    session = {
        "statement_timeout": milliseconds,
        "lock_timeout": milliseconds,
        "idle_in_transaction_session_timeout": 2 * milliseconds,
        # A release is told of only when it is on the disk, whatever the server's default is.
        "synchronous_commit": "on",
        "timezone": "UTC",
    }
    engine = create_engine(
        config.location.set(drivername="postgresql+psycopg"),
        hide_parameters=True,
        pool_size=config.connections,
        max_overflow=0,
        pool_timeout=seconds,
        # A server that was restarted costs nobody a failed request later.
        pool_pre_ping=True,
        connect_args={
            "application_name": "sealserve broker",
            "connect_timeout": max(2, seconds),  # libpq takes no less than two
            "options": " ".join(f"-c {name}={value}" for name, value in session.items()),
        },
    )

    @event.listens_for(engine, "do_connect")
    def _connect(_dialect: Any, _record: Any, args: Any, options: Any) -> _Impatient:
        connection = _Impatient.connect(*args, **options)
        connection.patience = seconds + _GRACE_SECONDS
        return connection

    return engine
