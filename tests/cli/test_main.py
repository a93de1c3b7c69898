"""The program as a whole: help, versions, errors, signals."""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sealserve import __version__

# The package exports the function of this name, which hides the module.
program = importlib.import_module("sealserve.cli.main")


def run(*command: str, code: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the program, or a piece of code that calls it, in a process of its own."""
    call = ["-c", code] if code else ["-m", "sealserve"]
    return subprocess.run(
        [sys.executable, *call, *command], capture_output=True, text=True, check=False
    )


def test_help_shows_the_whole_product() -> None:
    shown = run("--help")
    assert shown.returncode == 0
    for name in program._COMMANDS:
        assert f" {name} " in shown.stdout


@pytest.mark.parametrize("name", sorted(program._COMMANDS))
def test_every_command_explains_itself(name: str) -> None:
    shown = run(name, "--help")
    assert shown.returncode == 0, shown.stderr
    assert len(shown.stdout.splitlines()) > 8


def test_the_version() -> None:
    assert run("--version").stdout == f"sealserve {__version__}\n"


def test_an_unknown_command_is_a_usage_error() -> None:
    wrong = run("nonsense")
    assert wrong.returncode == 2
    assert "nonsense" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_an_error_is_one_message_with_its_code(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("surprise: 1\n")
    wrong = run("policy", "check", str(policy))
    assert wrong.returncode == 2
    assert "[policy.malformed]" in wrong.stderr
    assert "surprise" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_an_error_is_json_when_json_was_asked_for(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("surprise: 1\n")
    wrong = run("policy", "check", str(policy), "--json")
    error = json.loads(wrong.stderr)["error"]
    assert error["code"] == "policy.malformed"
    assert wrong.stdout == ""


def _failing(statement: str) -> str:
    """Code that runs the program with ``statement`` in place of its commands."""
    return (
        "import sys, sealserve.cli\n"
        f"def fail(*a, **k):\n    {statement}\n"
        "sys.modules['sealserve.cli.main'].app = fail\n"
        "sealserve.cli.main()\n"
    )


def test_a_missing_extra_says_what_to_install() -> None:
    wrong = run(code=_failing("raise ModuleNotFoundError('no', name='openvino.runtime')"))
    assert wrong.returncode == 4
    assert "pip install 'sealserve[serve]'" in wrong.stderr


def test_a_bug_is_reported_without_its_values() -> None:
    wrong = run(code=_failing("raise ValueError('the secret value')"))
    assert wrong.returncode == 70
    assert "[internal.unexpected]" in wrong.stderr
    assert "ValueError" in wrong.stderr
    assert "secret" not in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_what_ends_a_program_has_the_shells_status() -> None:
    assert run(code=_failing("raise KeyboardInterrupt")).returncode == 128 + signal.SIGINT
    for number in (signal.SIGTERM, signal.SIGHUP):
        ended = run(code=_failing(f"import os; os.kill(os.getpid(), {number:d})"))
        assert ended.returncode == 128 + number


def test_a_reader_that_goes_away_is_no_error() -> None:
    shell = f"{sys.executable} -m sealserve --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1, 128 + signal.SIGPIPE)  # 1 is rich's
    assert done.stderr == ""
