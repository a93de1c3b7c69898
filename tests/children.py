"""Processes of tests that do not outlive a failure."""

from __future__ import annotations

import subprocess
from types import TracebackType
from typing import AnyStr

__all__ = ["Child"]


class Child(subprocess.Popen[AnyStr]):
    """A process that is killed when its block is left by an error.

    `subprocess.Popen` waits for it there, and so for ever if it was still to be told to
    end: then a failed assertion is only seen as a test's time limit.
    """

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Kill it if there is an error, then wait for it."""
        if kind is not None:
            self.kill()
        super().__exit__(kind, error, trace)
