"""`sealserve demo` as a newcomer runs it."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sealserve.demo import runner

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def test_the_demo_shows_the_flow_and_three_refusals(tmp_path: Path) -> None:
    look, results = tmp_path / "look", tmp_path / "results.json"
    command = ["demo", "--keep", str(look), "--json", str(results), "--loop", "3"]
    done = subprocess.run(
        [sys.executable, "-m", "sealserve", *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(results.read_text())
    assert result["label"] == "espresso"
    assert result["probability"] > 0.9
    assert result["bench"]["average_latency_ms"] > 0
    assert "loop_idx 0, latency(ms)" in done.stderr
    assert {name: why["code"] for name, why in result["refusals"].items()} == {
        "other measurement": "release.denied",
        "flipped bit": "volume.block_mismatch",
        "foreign quote": "binding.key_mismatch",
    }
    assert "policy.mrtd_unknown" in result["refusals"]["other measurement"]["message"]
    assert result["impostor"]["handshakes"] == 1
    assert result["impostor"]["application_bytes"] == 0
    assert "espresso" in done.stdout
    _check_script(look, result["steps"])
    assert str(look) not in Path("/proc/self/mountinfo").read_text()
    again = subprocess.run(
        [sys.executable, "-m", "sealserve", *command], capture_output=True, text=True, check=False
    )
    assert again.returncode == 2
    assert "[demo.directory_not_empty]" in again.stderr


def _check_script(look: Path, steps: list[dict[str, object]]) -> None:
    """commands.sh is a shell script with every command of the demo, in order."""
    script = look / "commands.sh"
    subprocess.run(["sh", "-n", script], check=True)
    lines = [line for line in script.read_text().splitlines() if line.startswith("sealserve ")]
    written = [shlex.split(line.removesuffix(" &").partition(" > ")[0]) for line in lines]
    assert written == [step["command"] for step in steps]


def test_an_interrupted_demo_ends_its_processes(tmp_path: Path) -> None:
    look = tmp_path / "look"
    process = subprocess.Popen(
        [sys.executable, "-m", "sealserve", "demo", "--keep", str(look)],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "Broker: listen" in line:
            break
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert str(look) not in Path("/proc/self/mountinfo").read_text()
    assert (look / "commands.sh").exists()
    for status in Path("/proc").glob("[0-9]*/cwd"):
        try:
            where = status.readlink()
        except OSError:
            continue
        assert where != look


def test_a_signal_while_a_service_is_started_leaves_no_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal used to come between the new process and the list of what must be ended."""
    started: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    def spawn(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(real(["sleep", "60"], **options))
        signal.raise_signal(signal.SIGTERM)
        return started[0]

    def stop(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner.subprocess, "Popen", spawn)
    before = signal.signal(signal.SIGTERM, stop)
    try:
        silent = runner.Runner(tmp_path, lambda _: None, lambda _: None)
        with pytest.raises(KeyboardInterrupt), silent as running:
            running.start("a service", "service", "serve")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert started[0].poll() == -signal.SIGTERM
