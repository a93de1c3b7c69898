"""Signals as something to wait for, whichever thread the kernel hands them to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from sealserve.stopping import StopSignals


def test_nothing_comes_by_itself() -> None:
    with StopSignals() as stop:
        assert not stop.wait(0.01)
        assert not stop.is_set()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_wait_and_stays(number: signal.Signals) -> None:
    with StopSignals() as stop:
        threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
        assert stop.wait(10)
        assert stop.is_set()
        assert stop.wait()


def test_another_signal_with_a_handler_does_not_end_it() -> None:
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert not stop.wait(0.1)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_what_was_there_before_is_there_after() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals(signal.SIGHUP):
        assert signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


def test_a_signal_that_another_thread_gets_wakes_the_main_one() -> None:
    """With `threading.Event` this waits for ever: the handler runs in the main thread only."""
    code = (
        "import signal, sys, threading, time\n"
        "from sealserve.stopping import StopSignals\n"
        "with StopSignals() as stop:\n"
        "    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\n"
        "    print('ready', flush=True)\n"
        "    sys.exit(0 if stop.wait(20) else 1)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        begin = time.monotonic()
        process.terminate()
        assert process.wait(30) == 0
        assert time.monotonic() - begin < 15
