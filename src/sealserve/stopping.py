"""SIGTERM and SIGINT as something to wait for.

Setting a `threading.Event` in a signal handler can hang: the handler may run
while the main thread holds that event's lock, and a signal that the kernel
hands to another thread wakes nobody. Here the interpreter itself writes the
signal's number into a pipe, from whichever thread got it, and the main thread
waits for that pipe.
"""

from __future__ import annotations

import os
import select
import signal
import time
from types import FrameType
from typing import Self

__all__ = ["StopSignals", "endings"]


def endings() -> set[signal.Signals]:
    """The signals that ask this process to end: SIGTERM, Ctrl-C and the end of its terminal.

    Not those that are ignored: ``nohup`` and a shell's ``&`` begin a program so.
    """
    asked = (signal.SIGINT, signal.SIGHUP)
    heard = (number for number in asked if signal.getsignal(number) != signal.SIG_IGN)
    return {signal.SIGTERM, *heard}


class StopSignals:
    """From entering to leaving, `endings` end the wait and not the process.

    A context manager for the main thread.
    """

    def __init__(self) -> None:
        """Watch `endings`."""
        self._numbers = endings()
        self._stopped = False

    def __enter__(self) -> Self:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._before = {number: signal.signal(number, _do_nothing) for number in self._numbers}
        self._wakeup_before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        return self

    def __exit__(self, *exception: object) -> None:
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._reader)
        os.close(self._writer)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for one of the signals.

        Args:
            timeout: seconds; None for ever.

        Returns:
            Whether one has come, now or before.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._stopped:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([self._reader], [], [], left)
            if not ready:
                return False
            try:
                numbers = os.read(self._reader, 4096)
            except BlockingIOError:  # another thread asked too, and was first
                continue
            # Other signals with a handler write here as well.
            if not self._numbers.isdisjoint(numbers):
                self._stopped = True
        return True

    def is_set(self) -> bool:
        """Whether one of the signals has come."""
        return self.wait(0)


def _do_nothing(number: int, frame: FrameType | None) -> None:
    """What counts is the byte in the pipe."""
    del number, frame
