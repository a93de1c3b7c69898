"""What a server does with its own packages alone: it starts, serves, and says what is missing.

A finder in front of all others hides each installed package that the lock file of that
installation does not have.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from http.client import HTTPConnection
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.serving.fakes import make_versions

_PROGRAM = """
import sys

HIDDEN = frozenset(sys.argv.pop(1).split())

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hide())
from sealserve.cli import main

main()
"""


def normal(name: str) -> str:
    """A distribution's name as indices compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installation(lock: str, *arguments: str) -> list[str]:
    """A command of sealserve, with only what a lock file names."""
    names = re.findall(r"^([A-Za-z0-9._-]+)==", (ROOT / "requirements" / lock).read_text(), re.M)
    there = {normal(name) for name in (*names, "sealserve")}
    hidden = [
        module
        for module, owners in packages_distributions().items()
        if not set(map(normal, owners)) & there
    ]
    assert "pytest" in hidden
    return [sys.executable, "-I", "-c", _PROGRAM, " ".join(hidden), *arguments]


@contextlib.contextmanager
def bare_server(log: Path, *flags: str) -> Iterator[int]:
    """The REST port of a server that has only the packages of the extra ``serve``."""
    ready, write = os.pipe()
    own = ("--insecure", "--bind_address=127.0.0.1", "--port=0", "--rest_api_port=0")
    command = installation("server.txt", "serve", f"--ready_fd={write}", *own, *flags)
    with log.open("wb") as stderr:
        child = subprocess.Popen(command, pass_fds=(write,), stderr=stderr)
    os.close(write)
    try:
        with os.fdopen(ready) as line:
            told = line.readline()
        assert told, log.read_text()
        yield json.loads(told)["rest"]
    finally:
        child.terminate()
        assert child.wait(60) == 0


def ask(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, object]:
    with contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def test_without_tensorflow_a_model_that_needs_it_says_so_and_the_others_serve(
    models: Path, tmp_path: Path
) -> None:
    entries = " ".join(
        f'config {{ name: "{name}" base_path: "{models / name}" }}'
        for name in ("affine", "trap_words")
    )
    (tmp_path / "models.config").write_text(f"model_config_list {{ {entries} }}")
    with bare_server(tmp_path / "log", f"--model_config_file={tmp_path / 'models.config'}") as port:
        assert ask(port, "POST", "/v1/models/affine:predict", b'{"instances": [1]}') == (
            200,
            {"predictions": [5.0]},
        )
        status, answer = ask(port, "GET", "/v1/models/trap_words")
    assert status == 200
    assert isinstance(answer, dict)
    (version,) = answer["model_version_status"]
    assert version["state"] == "END"
    message = version["status"]["error_message"]
    assert "TensorFlow is not installed (the extra [tensorflow])" in message


def test_without_the_packages_of_a_server_serve_names_the_extra(tmp_path: Path) -> None:
    base = make_versions(tmp_path / "m", 1)
    command = installation("client.txt", "serve", "--insecure", f"--model_base_path={base}")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 4, done.stderr
    assert "Traceback" not in done.stderr
    assert "sealserve[serve]" in done.stderr


@pytest.mark.parametrize("arguments", [["serve", "--help"], ["serve", "--version"], ["--help"]])
def test_without_any_extra_help_is_there(arguments: list[str]) -> None:
    done = subprocess.run(
        installation("client.txt", *arguments),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


@pytest.mark.parametrize("extra", ["serve", "broker", "pkcs11", "otel", "provenance", "demo"])
def test_each_package_of_an_extra_is_asked_for_by_that_extra(
    extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["sealserve", "broker" if extra == "broker" else "serve"])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {
        normal(re.split(r"[\[<>=~]", line)[0]) for line in project["optional-dependencies"][extra]
    }
    modules = {
        module
        for module, owners in packages_distributions().items()
        if module.isidentifier() and wanted & set(map(normal, owners))
    }
    assert modules or extra == "demo"
    advice = importlib.import_module("sealserve.cli.main")._advice_for
    named = {advice(module) for module in modules}
    assert named <= {f"pip install 'sealserve[{extra}]'"}, {m: advice(m) for m in modules}
