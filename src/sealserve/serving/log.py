"""The server's log: one JSON object a line on standard error.

No logger is global: the server makes one and hands it down. No event carries a
tensor, a key or a request's body.
"""

from __future__ import annotations

import sys
from typing import Any, TextIO

import structlog

__all__ = ["Log", "make_log"]

Log = Any  # structlog's bound loggers are typed by their wrapper class only


def make_log(stream: TextIO | None = None) -> Log:
    """A logger that writes JSON lines to ``stream`` (standard error)."""
    return structlog.wrap_logger(
        structlog.WriteLogger(stream or sys.stderr),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.EventRenamer("event"),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.BoundLogger,
    ).bind(program="sealserve serve")
