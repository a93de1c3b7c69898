"""Signals as something to wait for, whichever thread the kernel hands them to.

Each case is a process of its own: signals are a whole process's affair, and the
test runner's has threads and handlers that are not ours.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from tests.children import Child

_HEAD = (
    "import os, signal, sys, threading, time\n"
    "from sealserve.stopping import StopSignals\n"
    "def later(number):\n"
    "    threading.Timer(0.05, os.kill, (os.getpid(), number)).start()\n"
)


def run(body: str) -> None:
    """Run a piece of code; its assertions are the test's."""
    done = subprocess.run(
        [sys.executable, "-c", _HEAD + body],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_nothing_comes_by_itself() -> None:
    run(
        "with StopSignals() as stop:\n"
        "    assert not stop.wait(0.01)\n"
        "    assert not stop.is_set()\n"
    )


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_ends_the_wait_and_stays(name: str) -> None:
    run(
        "with StopSignals() as stop:\n"
        f"    later(signal.{name})\n"
        "    assert stop.wait(20)\n"
        "    assert stop.is_set()\n"
        "    assert stop.wait()\n"
    )


def test_another_signal_with_a_handler_does_not_end_it() -> None:
    run(
        "signal.signal(signal.SIGUSR1, lambda *_: None)\n"
        "with StopSignals() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGUSR1)\n"
        "    assert not stop.wait(0.1)\n"
    )


def test_what_was_there_before_is_there_after() -> None:
    run(
        "before = signal.getsignal(signal.SIGINT)\n"
        "with StopSignals():\n"
        "    assert signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL\n"
        "assert signal.getsignal(signal.SIGINT) is before\n"
        "assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL\n"
        "assert signal.set_wakeup_fd(-1) == -1\n"
    )


def test_what_is_ignored_stays_ignored_but_for_sigterm() -> None:
    """As below ``nohup`` or a shell's ``&``: a closed terminal, Ctrl-C for another program."""
    run(
        "for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):\n"
        "    signal.signal(number, signal.SIG_IGN)\n"
        "with StopSignals() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    assert not stop.wait(0.1)\n"
        "    later(signal.SIGTERM)\n"
        "    assert stop.wait(20)\n"
    )


def test_a_signal_that_another_thread_gets_wakes_the_main_one() -> None:
    """With `threading.Event` this waits for ever: the handler runs in the main thread only."""
    code = (
        "with StopSignals() as stop:\n"
        "    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\n"
        "    print('ready', flush=True)\n"
        "    sys.exit(0 if stop.wait(20) else 1)\n"
    )
    with Child([sys.executable, "-c", _HEAD + code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        begin = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert time.monotonic() - begin < 15
