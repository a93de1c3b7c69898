"""Processes that crash, and the cores that they leave: what a hardened one must not.

A test of the hardening has a control: the same command without it, killed the same
way, must leave a core in which the secret is found. Otherwise it would prove nothing.
"""

from __future__ import annotations

import mmap
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.conftest import missing

__all__ = [
    "DUMPABLE_ONLY",
    "HARDENED",
    "UNHARDENED",
    "crash",
    "files_with",
    "where_cores_fall",
    "without_limit",
]

HARDENED = (sys.executable, "-m", "sealserve")


def _without(statement: str) -> tuple[str, ...]:
    """The same program, some of whose hardening a statement has taken away."""
    code = f"from sealserve import hardening; {statement}; from sealserve.cli import main; main()"
    return (sys.executable, "-c", code)


UNHARDENED = _without("hardening.forbid_core_dumps = lambda: None")
"""Says nothing to the kernel about cores."""
DUMPABLE_ONLY = _without("hardening.resource.setrlimit = lambda *_: None")

_PATTERN = Path("/proc/sys/kernel/core_pattern")


def where_cores_fall(directory: Path, program: Sequence[str]) -> list[str]:
    """The command that runs a program where its core would be found, with no limit on it."""
    pattern = _PATTERN.read_text().strip()
    if pattern[:1] in ("|", "/") or resource.getrlimit(resource.RLIMIT_CORE)[1] == 0:
        missing("a core in the working directory", "sysctl kernel.core_pattern=core")
    directory.mkdir(exist_ok=True)
    return ["sh", "-c", 'cd "$0" && exec "$@"', str(directory), *without_limit(program)]


def without_limit(program: Sequence[str]) -> list[str]:
    """The command that runs a program which may leave cores as large as is allowed here."""
    return ["sh", "-c", 'ulimit -c "$(ulimit -H -c)" && exec "$@"', "sh", *program]


def crash(process: subprocess.Popen[bytes], number: signal.Signals) -> bool:
    """Kill a process by a signal that leaves a core; whether the kernel says that it did."""
    process.send_signal(number)
    _, status = os.waitpid(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == -number
    return os.WCOREDUMP(status)


def files_with(planted: bytes, *directories: Path) -> Iterator[Path]:
    """The files below some directories that hold these bytes."""
    for directory in directories:
        for path in directory.rglob("*"):
            if not path.is_file() or not path.stat().st_size:
                continue
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
                if view.find(planted) >= 0:
                    yield path
