"""Runs ``sealserve`` commands as a person would, each in a process of its own.

Rules this module keeps:

* Every command is recorded, with its directory-relative arguments, so that the
  reader can repeat the demo by hand from ``commands.sh``.
* Long-running commands say that they are ready by one JSON line on stdout.
* Whatever happens, every process that was started is ended, last one first.
"""

from __future__ import annotations

import json
import os
import selectors
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from sealserve.errors import Unavailable
from sealserve.stopping import endings

__all__ = ["Outcome", "Runner", "Service"]

_STOP_SECONDS = 90.0
_START_SECONDS = 120.0
_COMMAND_SECONDS = 180.0
_LINE_BYTES = 64 * 1024

_SCRIPT_HEAD = (
    "#!/bin/sh",
    "# Every step of the demo, to be repeated by hand from this directory. The files are",
    "# here already: to look around, start the services (the lines that end with &) one by",
    "# one, then repeat any other line. Nothing is overwritten; remove a file to make it anew.",
)

# No process ends with this status: a service that ends before it is ready failed.
_NEVER = 1000


Excerpt = Callable[[list[str]], list[str]]


def _nothing(_lines: list[str]) -> list[str]:
    return []


@dataclass(frozen=True)
class Outcome:
    """What one command did.

    Attributes:
        title: what the step is about, for people.
        command: the arguments after ``sealserve``.
        seconds: wall time; for a service, until it was ready.
        status: exit status; 0 for a service that became ready.
        stdout, stderr: what it printed.
        shown: the part of that which tells a reader what happened.
    """

    title: str
    command: tuple[str, ...]
    seconds: float
    status: int
    stdout: str
    stderr: str
    shown: tuple[str, ...] = ()

    def result(self) -> dict[str, Any]:
        """The JSON object that the command printed with ``--json``."""
        parsed: dict[str, Any] = json.loads(self.stdout)
        return parsed


class Service:
    """A long-running command that has said it is ready.

    Attributes:
        ready: the JSON object that it printed then.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.ready: dict[str, Any] = {}
        self._process = process

    def wait_until_ready(self) -> str:
        """The first line of its stdout; empty if it ends or takes too long."""
        assert self._process.stdout is not None  # noqa: S101 - asked for when it was started
        line = b""
        deadline = time.monotonic() + _START_SECONDS
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n") and len(line) < _LINE_BYTES:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return ""
                # Byte by byte: what follows the line stays in the pipe for `stop`.
                chunk = os.read(self._process.stdout.fileno(), 1)
                if not chunk:
                    return ""
                line += chunk
        self.ready = json.loads(line)
        return line.decode()

    def stop(self) -> str:
        """End it by SIGTERM and wait; safe to call twice.

        Returns:
            What it printed after it was ready.
        """
        assert self._process.stdout is not None  # noqa: S101 - asked for when it was started
        if self._process.stdout.closed:
            return ""
        self._process.terminate()
        try:
            rest, _ = self._process.communicate(timeout=_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            rest, _ = self._process.communicate()
        return rest.decode(errors="replace")

    def exit_status(self) -> int:
        """How it ended; call it only after it did."""
        return self._process.wait(_STOP_SECONDS)


@dataclass
class Runner:
    """Runs commands in one working directory and keeps what they did.

    Attributes:
        directory: the commands' working directory; their paths are relative to it.
        on_start: told the title of each step as it begins.
        on_end: told the outcome of each step.
        outcomes: of every step so far.
    """

    directory: Path
    on_start: Callable[[str], None]
    on_end: Callable[[Outcome], None]
    outcomes: list[Outcome] = field(default_factory=list)
    _script: list[str] = field(default_factory=list)
    _running: ExitStack = field(default_factory=ExitStack)

    def run(
        self,
        title: str,
        *command: str,
        expect: int = 0,
        stdout_to: str | None = None,
        show: Excerpt = _nothing,
        show_errors: Excerpt = _nothing,
    ) -> Outcome:
        """Run one command to its end.

        Args:
            title: what the step is about.
            command: the arguments after ``sealserve``; relative paths.
            expect: the exit status that this step is meant to show.
            stdout_to: a file that gets what the command prints.
            show, show_errors: pick from the lines on stdout and stderr what a
                reader should see.

        Raises:
            Unavailable: ``demo.step_failed``.
        """
        self._note(title, command, f" > {stdout_to}" if stdout_to else "")
        self.on_start(title)
        begin = time.monotonic()
        try:
            done = subprocess.run(
                _program(command),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_COMMAND_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Unavailable(
                "demo.step_failed",
                f"'{title}' did not end in {_COMMAND_SECONDS:.0f} s",
                where=shlex.join(("sealserve", *command)),
            ) from None
        if stdout_to:
            (self.directory / stdout_to).write_text(done.stdout)
        return self._end(
            Outcome(
                title,
                command,
                time.monotonic() - begin,
                done.returncode,
                done.stdout,
                done.stderr,
                (*show(done.stdout.splitlines()), *show_errors(done.stderr.splitlines())),
            ),
            expect,
        )

    def start(self, title: str, name: str, *command: str) -> Service:
        """Start a long-running command and wait until it says that it is ready.

        Args:
            title: what the step is about.
            name: of its log file.
            command: the arguments after ``sealserve``; relative paths.

        Raises:
            Unavailable: ``demo.step_failed``.
        """
        self._note(title, command, " &")
        self.on_start(title)
        begin = time.monotonic()
        log = self.directory / "logs" / f"{name}.log"
        log.parent.mkdir(exist_ok=True)
        with log.open("wb") as log_file, _uninterrupted():
            service = Service(
                subprocess.Popen(
                    _program(command),
                    cwd=self.directory,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=log_file,
                    # Ctrl-C ends the demo, which then ends its services in order.
                    start_new_session=True,
                )
            )
            self._running.callback(service.stop)
        line = service.wait_until_ready()
        seconds = time.monotonic() - begin
        if line:
            self._end(Outcome(title, command, seconds, 0, line, ""), expect=0)
        else:
            service.stop()
            errors = log.read_text(errors="replace")
            status = service.exit_status()
            self._end(Outcome(title, command, seconds, status, line, errors), expect=_NEVER)
        return service

    def shell(self, comment: str, line: str) -> None:
        """Record something that the demo does itself as the shell line a person would type."""
        self._script += ["", f"# {comment}", line]

    def script(self) -> str:
        """The whole demo as a shell script of ``sealserve`` commands."""
        return "\n".join([*_SCRIPT_HEAD, *self._script, ""])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._running.close()

    def _note(self, title: str, command: tuple[str, ...], suffix: str) -> None:
        self.shell(title, shlex.join(("sealserve", *command)) + suffix)

    def _end(self, outcome: Outcome, expect: int) -> Outcome:
        if outcome.status != expect:
            tail = "\n".join(outcome.stderr.strip().splitlines()[-8:])
            raise Unavailable(
                "demo.step_failed",
                f"'{outcome.title}' ended with status {outcome.status}:\n{tail}",
                where=shlex.join(("sealserve", *outcome.command)),
                hint="with --keep DIR the files and logs stay for a look",
            )
        self.outcomes.append(outcome)
        self.on_end(outcome)
        return outcome


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold what would end this process back until a new process is known to whoever ends it.

    Swapped handlers, not a blocked mask: a mask would be the new process's as well.
    """
    came: list[int] = []
    numbers = endings()
    before = {
        number: signal.signal(number, lambda number, _frame: came.append(number))
        for number in numbers
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for late in came:
            signal.raise_signal(late)


def _program(command: tuple[str, ...]) -> list[str]:
    return [sys.executable, "-m", "sealserve", *command]
