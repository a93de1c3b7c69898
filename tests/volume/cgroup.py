"""A memory cgroup of our own, version 1 or 2, whichever this machine has."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_ROOT = Path("/sys/fs/cgroup")


@contextmanager
def memory_limit(mib: int) -> Iterator[list[str]]:
    """What to put before a command so that it runs with so much memory; skips where it cannot.

    Whatever of it is still alive when the block ends is killed.
    """
    if os.geteuid() != 0:
        pytest.skip("only root makes cgroups")
    if (_ROOT / "memory/memory.limit_in_bytes").exists():
        place, limit = _ROOT / "memory", "memory.limit_in_bytes"
    elif "memory" in _words(_ROOT / "cgroup.subtree_control"):
        place, limit = _ROOT, "memory.max"
    else:
        pytest.skip("no memory controller in reach: neither cgroup v1 nor v2 has one here")
    group = place / f"sealserve-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / limit).write_text(str(mib << 20))
    except OSError as error:
        pytest.skip(f"cgroups cannot be made here: {error}")
    try:
        yield ["/bin/sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"]
    finally:
        for _ in range(100):
            for pid in _words(group / "cgroup.procs"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            with contextlib.suppress(OSError):
                group.rmdir()
                break
            time.sleep(0.1)


def _words(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []
