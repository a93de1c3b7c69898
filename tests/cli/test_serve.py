"""``sealserve serve`` as a person types it."""

from __future__ import annotations

import subprocess
import sys

from sealserve import __version__
from sealserve.serving.flags import FLAGS


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sealserve", "serve", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_teaches_every_flag_and_shows_an_example() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert "sealserve serve --model_name=resnet50" in done.stdout
    assert all(f"--{flag.name}=" in done.stdout for flag in FLAGS)


def test_version() -> None:
    assert run("--version").stdout == f"sealserve {__version__}\n"


def test_an_unknown_flag_is_an_error_with_advice() -> None:
    done = run("--prot=8500")
    assert done.returncode == 2
    assert "unknown flag '--prot'" in done.stderr
    assert "--help" in done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_to_serve_is_an_error() -> None:
    done = run("--port=8500")
    assert done.returncode == 2
    assert "flag.missing" in done.stderr
