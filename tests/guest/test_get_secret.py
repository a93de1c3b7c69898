"""`sealserve get-secret` in a simulated TD, as a script calls it."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sealserve.attestation.verifier import Anchor, Verifier
from sealserve.broker.deposit import seal_for
from sealserve.broker.directory import Broker, create, open_broker
from sealserve.simulator.platform import ANCHOR_FILE, COLLATERAL_FILE, SimulatedPlatform
from sealserve.simulator.td import SoftwareTd
from tests.broker.conftest import policy_for, serve
from tests.children import Child
from tests.conftest import missing
from tests.cores import HARDENED, UNHARDENED, crash, files_with, where_cores_fall

SECRET = b"PLANTED secret \x00\xff without a newline"


@pytest.fixture
def platform(tmp_path: Path) -> SimulatedPlatform:
    SimulatedPlatform.create(tmp_path / "platform", datetime.now(UTC))
    return SimulatedPlatform.load(tmp_path / "platform")


@pytest.fixture
def sysfs(tmp_path: Path, platform: SimulatedPlatform) -> Iterator[Path]:
    del platform
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        missing("/dev/fuse", "load the fuse module, and be root or in the right group")
    mount = tmp_path / "sys"
    mount.mkdir()
    command = [sys.executable, "-m", "sealserve", "simulate", "td"]
    command += ["--platform", str(tmp_path / "platform"), "--mount", str(mount)]
    with Child(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["simulation"]
        yield mount
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


@pytest.fixture
def asked(tmp_path: Path, platform: SimulatedPlatform, sysfs: Path) -> Iterator[list[str]]:
    """The command that asks a broker for the secret."""
    root = tmp_path / "broker"
    create(root, name="test broker")
    with open_broker(root) as broker:
        _put(broker, platform)
        verifier = Verifier(Anchor.load(tmp_path / "platform" / ANCHOR_FILE))
        served = serve(broker, verifier, tmp_path / "platform" / COLLATERAL_FILE)
        yield [
            sys.executable, "-m", "sealserve", "get-secret", "legacy/db",
            "--broker", str(served.server.address), "--broker-identity", str(root / "broker.json"),
            "--simulation", "--sysfs", str(sysfs),
        ]  # fmt: skip
        served.server.stop()


def _put(broker: Broker, platform: SimulatedPlatform) -> None:
    broker.put_secret(
        "legacy/db", seal_for(broker.identity, SECRET),
        record=b"", owner_public_key=b"", policy=policy_for(SoftwareTd(platform)),
    )  # fmt: skip


def test_the_pipe_gets_the_secret_and_nothing_else(asked: list[str]) -> None:
    done = subprocess.run(asked, capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, SECRET)
    assert b"PLANTED" not in done.stderr
    unknown = [*asked[:4], "legacy/none", *asked[5:]]
    done = subprocess.run(unknown, capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (3, b"")
    assert b"[release.resource_unknown]" in done.stderr
    real = [each for each in asked if each != "--simulation"]
    done = subprocess.run(real, capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (3, b"")


def test_a_terminal_gets_it_only_if_told(asked: list[str]) -> None:
    main, terminal = pty.openpty()
    done = subprocess.run(asked, stdout=terminal, stderr=subprocess.PIPE, check=False, timeout=60)
    assert done.returncode == 2
    assert b"[secret.to_terminal]" in done.stderr
    os.set_blocking(main, False)
    with pytest.raises(BlockingIOError):
        os.read(main, 1)
    told = [*asked, "--terminal"]
    assert subprocess.run(told, stdout=terminal, check=False, timeout=60).returncode == 0
    assert os.read(main, 100).startswith(b"PLANTED")
    os.close(main)
    os.close(terminal)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root sees what a hardened process waits for")
@pytest.mark.parametrize("program", [UNHARDENED, HARDENED], ids=["the control", "hardened"])
def test_a_crash_with_the_secret_in_memory_leaves_no_core(
    asked: list[str], tmp_path: Path, program: tuple[str, ...]
) -> None:
    """It holds the secret as long as nobody takes it from the pipe: there it is killed."""
    command = where_cores_fall(tmp_path / "cores", (*program, *asked[3:]))
    reading, writing = os.pipe()
    os.write(writing, bytes(fcntl.fcntl(writing, fcntl.F_GETPIPE_SZ)))
    with Child(command, stdout=writing) as guest:
        os.close(writing)
        waits_for = Path(f"/proc/{guest.pid}/wchan")
        deadline = time.monotonic() + 60
        while "pipe_write" not in waits_for.read_text():
            assert time.monotonic() < deadline, waits_for.read_text()
            time.sleep(0.02)
        assert crash(guest, signal.SIGABRT) is (program is UNHARDENED)
    os.close(reading)
    cores = list((tmp_path / "cores").iterdir())
    assert len(cores) == (program is UNHARDENED)
    assert list(files_with(SECRET, tmp_path / "cores", tmp_path / "broker")) == cores
