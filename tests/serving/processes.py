"""The server as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["command", "process", "refused"]


def command(*flags: str) -> list[str]:
    return [sys.executable, "-m", "sealserve", "serve", *flags]


@contextmanager
def process(log: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, int]]]:
    """A server that is ready, with its ports; killed if the test leaves it running."""
    ready, write = os.pipe()
    with log.open("ab") as stderr:
        child = subprocess.Popen(
            command(f"--ready_fd={write}", "--bind_address=127.0.0.1", *flags),
            pass_fds=(write,),
            stderr=stderr,
        )
    os.close(write)
    try:
        with os.fdopen(ready) as line:
            yield child, json.loads(line.readline() or "{}")
    finally:
        child.kill()
        child.wait()


def refused(*flags: str) -> tuple[int, str]:
    done = subprocess.run(command(*flags), capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr
