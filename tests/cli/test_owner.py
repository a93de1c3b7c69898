"""``sealserve owner``, as a person types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def sealserve(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sealserve", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_init_and_tls(tmp_path: Path) -> None:
    made = sealserve("owner", "init", tmp_path / "owner", "--json")
    assert made.returncode == 0, made.stderr
    result = json.loads(made.stdout)
    assert "BEGIN PUBLIC KEY" in Path(result["owner_pub"]).read_text()
    assert "PRIVATE" not in made.stdout + made.stderr
    again = sealserve("owner", "init", tmp_path / "owner", "--json")
    assert again.returncode == 2
    assert json.loads(again.stderr)["error"]["code"] == "file.exists"

    made = sealserve("owner", "tls", "grpc.example.com", "--out", tmp_path / "tls")
    assert made.returncode == 0, made.stderr
    assert "ssl.cfg" in made.stdout
    assert (tmp_path / "tls" / "ssl.cfg").read_text().startswith("server_key:")
    bad = sealserve("owner", "tls", "not a name", "--out", tmp_path / "other")
    assert bad.returncode == 2
    assert "tls.hostname" in bad.stderr


def test_help_teaches() -> None:
    for command in ([], ["init"], ["tls"]):
        shown = sealserve("owner", *command, "--help")
        assert shown.returncode == 0
        assert not command or "Example: sealserve owner" in " ".join(shown.stdout.split())
