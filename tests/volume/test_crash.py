"""What was synced is there, whatever is killed: here the process that serves the volume.

A whole machine that loses its power is in tests/kernel.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.children import Child
from tests.soak import times
from tests.volume import writer
from tests.volume.conftest import tool
from tests.volume.test_mount import children
from tests.volume.test_writable import Writable, cmdline, decrypted, empty, mounted, state

__all__ = ["empty", "state"]  # fixtures

NothingLeft = Callable[[], None]


def assert_intact(inside: Path, safe: dict[str, str], directory: Path) -> None:
    """fsck finds nothing that it cannot mend, and every file that was called safe is whole."""
    checked = subprocess.run(
        ["/sbin/e2fsck", "-fp", inside], capture_output=True, text=True, check=False
    )
    assert checked.returncode <= 1, checked.stdout
    for name, digest in safe.items():
        tool("debugfs", "-R", f"dump /{name} {directory / name}", str(inside))
        assert hashlib.sha256((directory / name).read_bytes()).hexdigest() == digest, name


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", range(times(20, 2)))
def test_the_daemon_is_killed_while_files_are_written(
    state: Writable, tmp_path: Path, nothing_left: NothingLeft, seed: int
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root mounts by loop device")
    dice = random.Random(seed)
    mountpoint, safe = tmp_path / "mnt", {}
    mount = mounted(state, mountpoint)
    try:
        (serving,) = [pid for pid in children() if b"volume.fuse" in cmdline(pid)]
        with Child(
            [sys.executable, writer.__file__, mountpoint, str(seed)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as writing:
            assert writing.stdout
            for _ in range(dice.randrange(3, 30)):
                name, digest = writing.stdout.readline().split()
                safe[name] = digest
            time.sleep(dice.random() / 20)
            os.kill(serving, signal.SIGKILL)
            # What it could still say had been synced before.
            for line in writing.stdout:
                name, digest = line.split()
                safe[name] = digest
    finally:
        mount.close()
    nothing_left()
    assert_intact(decrypted(state, tmp_path), safe, tmp_path)
    with mounted(state, mountpoint):  # and the volume is as usable as before
        assert {path.name for path in mountpoint.iterdir()} >= safe.keys()
    nothing_left()
