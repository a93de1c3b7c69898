"""The log of every long-running command: one JSON object a line, on standard error.

No event carries a key, a tensor, a request's body or the text of an exception
that is not ours.
"""

from __future__ import annotations

import sys
from typing import TextIO

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

__all__ = ["Log", "configure", "make_log"]

Log = FilteringBoundLogger


def make_log(stream: TextIO | None = None, /, **always: object) -> Log:
    """A logger of its own.

    Args:
        stream: where the lines go; standard error by default.
        always: fields that stand in every line.
    """
    logger: Log = structlog.wrap_logger(
        structlog.WriteLogger(stream or sys.stderr),
        processors=_processors(always),
        wrapper_class=structlog.make_filtering_bound_logger("info"),
    )
    return logger


def configure(**always: object) -> Log:
    """Set up logging for the whole process; called once, where a process begins.

    Args:
        always: fields that stand in every line, such as ``simulation``.
    """
    structlog.configure(
        processors=_processors(always),
        wrapper_class=structlog.make_filtering_bound_logger("info"),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )
    logger: Log = structlog.get_logger()
    return logger


def _processors(always: dict[str, object]) -> list[Processor]:
    def add_always(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        return {**always, **event}

    return [
        add_always,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.JSONRenderer(),
    ]
