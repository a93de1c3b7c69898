"""``sealserve volume read|extract``, as a person types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.test_owner import sealserve
from tests.cli.test_volume import Made, made
from tests.cli.test_volume_make import PHRASE, run

__all__ = ["made"]


def trusted(made: Made) -> list[object]:
    return ["--record", made.record, "--owner-pub", made.public]


def test_a_file_a_directory_and_all(made: Made, tmp_path: Path) -> None:
    name = "models/net/7/weights"
    done = run("read", made.volume, name, *trusted(made), "--key-fd", 0, secret=made.key)
    assert (done.returncode, done.stdout) == (0, b"the weights"), done.stderr
    done = run("read", made.volume, "models/net", *trusted(made), "--key-fd", 0, secret=made.key)
    assert json.loads(done.stdout)["names"] == ["7"]
    done = run(
        "extract", made.volume, tmp_path / "out", *trusted(made), "--key-fd", 0, secret=made.key
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / name).read_bytes() == b"the weights"


def test_with_the_phrase_alone(made: Made, tmp_path: Path) -> None:
    backup = tmp_path / "header"
    done = run(
        "backup-header", made.volume, "--out", backup, *trusted(made), "--key-fd", 0,
        "--phrase-fd", "PHRASE", secret=made.key, phrase=PHRASE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = run(
        "read", made.volume, "models/net/7/weights", *trusted(made), "--header-backup", backup,
        "--phrase-fd", "PHRASE", phrase=PHRASE,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, b"the weights"), done.stderr


@pytest.mark.parametrize(
    ("name", "key", "status", "code"),
    [
        ("none", None, 2, "volume.no_such_file"),
        ("models", b"x" * 32, 3, "volume.key_wrong"),
        ("models", b"", 2, "volume.key_size"),
    ],
)
def test_refusals(made: Made, name: str, key: bytes | None, status: int, code: str) -> None:
    secret = made.key if key is None else key
    done = run("read", made.volume, name, *trusted(made), "--key-fd", 0, secret=secret)
    assert done.returncode == status
    assert json.loads(done.stderr)["error"]["code"] == code


@pytest.mark.parametrize("name", ["read", "extract"])
def test_help_teaches(name: str) -> None:
    shown = sealserve("volume", name, "--help")
    assert shown.returncode == 0
    assert "Example:" in shown.stdout
