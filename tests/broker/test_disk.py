"""A full, read-only or failing disk: nothing is released or lost, and the broker recovers."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sealserve.errors import Unavailable
from sealserve.volume.child import lazy_unmount
from sealserve.volume.process import is_mounted
from tests.broker.test_process import KEY, Process
from tests.broker.test_process import process as process  # the fixture
from tests.conftest import missing


@pytest.fixture
def fault(process: Process, tmp_path: Path) -> Iterator[Path]:
    """The broker's directory behind a faulty disk; the file that says which fault it has."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        missing("/dev/fuse", "modprobe fuse")
    fault, mountpoint = tmp_path / "fault", tmp_path / "mounted"
    fault.write_text("")
    mountpoint.mkdir()
    disk = subprocess.Popen(
        [sys.executable, "-m", "tests.broker.faulty_disk", process.root, mountpoint, fault],
        env={**os.environ, "FUSE_LIBRARY_NAME": "fuse3"},
    )
    deadline = time.monotonic() + 20
    while not is_mounted(mountpoint):
        assert disk.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.arguments[process.arguments.index(str(process.root))] = str(mountpoint)
    process.root = mountpoint
    yield fault
    fault.write_text("")
    if process.running is not None and process.running.poll() is None:
        with contextlib.suppress(AssertionError):
            process.stop()
    lazy_unmount(mountpoint)
    assert disk.wait(20) == 0


@pytest.mark.parametrize("name", ["ENOSPC", "EROFS", "EIO"])
def test_a_failing_disk_releases_nothing_and_loses_nothing(
    process: Process, fault: Path, name: str
) -> None:
    process.start()
    assert process.ask() == KEY
    fault.write_text(name)
    for _ in range(3):
        with pytest.raises(Unavailable) as caught:
            process.ask()
        assert caught.value.code in ("release.not_recorded", "release.unavailable")
    fault.write_text("")
    assert process.ask() == KEY  # the same process: nobody restarted it
    process.stop()
    verdicts = [line["verdict"] for line in process.audit() if line["event"] == "release"]
    assert verdicts == ["released", "released"]


def _ask_on(process: Process) -> None:
    for _ in range(40):  # the write-ahead log may have room for a few lines yet
        process.ask()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small tmpfs")
def test_a_really_full_disk(process: Process, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", small], check=True)
    try:
        subprocess.run(["cp", "-a", process.root, small], check=True)
        process.arguments[process.arguments.index(str(process.root))] = str(small / "broker")
        process.root = small / "broker"
        process.start()
        assert process.ask() == KEY
        ballast = small / "ballast"
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        with pytest.raises(Unavailable) as caught:
            _ask_on(process)
        assert caught.value.code == "release.not_recorded"
        ballast.unlink()
        assert process.ask() == KEY
        process.stop()
        assert process.audit()[-1]["verdict"] == "released"
    finally:
        if process.running is not None and process.running.poll() is None:
            process.running.kill()
            process.running.wait()
        subprocess.run(["umount", small], check=True)
