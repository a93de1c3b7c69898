"""``sealserve volume rebuild|rotate|backup-header|restore-header``, and kinds of volumes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sealserve.volume.record import peek_record
from tests.cli.test_owner import sealserve
from tests.cli.test_volume import Made, _key_the_broker_gets, made
from tests.volume.conftest import flip

__all__ = ["made"]

PHRASE = b"correct horse battery staple"
# No program of an ordinary user may open what is below /proc of a process that leaves no core.
_AS_ANYBODY = ["setpriv", "--bounding-set=-sys_ptrace"] if os.geteuid() == 0 else []


def run(*arguments: object, secret: bytes = b"", phrase: bytes = b"") -> Any:
    """A command that reads a secret from standard input, and a phrase from descriptor PHRASE."""
    reader, writer = os.pipe()
    os.write(writer, phrase)
    os.close(writer)
    words = [str(reader) if word == "PHRASE" else str(word) for word in arguments]
    try:
        return subprocess.run(
            [*_AS_ANYBODY, sys.executable, "-m", "sealserve", "volume", *words, "--json"],
            input=secret, capture_output=True, check=False, pass_fds=[reader],
        )  # fmt: skip
    finally:
        os.close(reader)


def results(made: Made, directory: Path) -> list[object]:
    root = made.volume.parent
    return [
        "--owner-key", root / "owner" / "owner.key", "--record", directory / "new.record",
        "--broker", root / "broker" / "broker.json", "--sealed-key", directory / "new.key",
    ]  # fmt: skip


def test_rebuild_is_the_next_version(made: Made, tmp_path: Path) -> None:
    source = made.volume.parent / "source"
    done = run(
        "rebuild", tmp_path / "new.seal", "--from", source, "--previous", made.record,
        "--fs", "erofs", *results(made, tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = peek_record((tmp_path / "new.record").read_bytes())
    assert (record.name, record.version, record.filesystem) == ("models", 2, "erofs")


def test_another_owner_cannot_rebuild(made: Made, tmp_path: Path) -> None:
    sealserve("owner", "init", tmp_path / "other")
    arguments = results(made, tmp_path)
    arguments[1] = tmp_path / "other" / "owner.key"
    done = run(
        "rebuild", tmp_path / "new.seal", "--from", made.volume.parent / "source",
        "--previous", made.record, *arguments,
    )  # fmt: skip
    assert done.returncode == 3
    assert json.loads(done.stderr)["error"]["code"] == "record.signature_invalid"
    assert not (tmp_path / "new.seal").exists()


def test_backup_damage_restore_rotate(made: Made, tmp_path: Path) -> None:
    """An owner's bad day: a spoilt header, then a lost broker."""
    volume, backup = tmp_path / "v.seal", tmp_path / "v.header"
    volume.write_bytes(made.volume.read_bytes())
    trusted = ["--record", made.record, "--owner-pub", made.public]
    done = run(
        "backup-header", volume, "--out", backup, *trusted, "--key-fd", 0,
        "--phrase-fd", "PHRASE", secret=made.key, phrase=PHRASE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    flip(volume, 4096 + 17)
    assert run("verify", volume, *trusted).returncode == 3
    done = run("restore-header", volume, "--header-backup", backup, *trusted)
    assert done.returncode == 0, done.stderr
    assert run("verify", volume, *trusted).returncode == 0

    rotating = [
        "rotate", volume, "--out", tmp_path / "new.seal", "--previous", made.record,
        "--old-backup", backup, "--old-phrase-fd", "PHRASE", *results(made, tmp_path),
    ]  # fmt: skip
    done = run(*rotating, phrase=b"not the right phrase")
    assert done.returncode == 3
    assert json.loads(done.stderr)["error"]["code"] == "volume.key_wrong"
    done = run(*rotating, phrase=PHRASE)
    assert done.returncode == 0, done.stderr
    new = ["--record", tmp_path / "new.record", "--owner-pub", made.public]
    assert run("verify", tmp_path / "new.seal", *new).returncode == 0
    assert json.loads(done.stdout)["version"] == 2
    key = _key_the_broker_gets(made.volume.parent / "broker", tmp_path / "new.key")
    assert key != made.key


def test_a_writable_volume_with_its_backup(made: Made, tmp_path: Path) -> None:
    done = run(
        "create", tmp_path / "state.vol", "--kind", "writable", "--size", 16, "--name", "state",
        *results(made, tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kind"] == "writable"
    done = run("verify", tmp_path / "state.vol", "--record", tmp_path / "new.record",
               "--owner-pub", made.public)  # fmt: skip
    assert done.returncode == 3
    assert json.loads(done.stderr)["error"]["code"] == "volume.not_sealed"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--kind", "sealed"], "volume.source_missing"),
        (["--kind", "writable"], "volume.size"),
        (["--kind", "writable", "--size", "16", "--fs", "erofs"], "volume.size"),
        (["--kind", "writable", "--size", "16", "--header-backup", "b"], "volume.phrase_missing"),
    ],
)
def test_create_refuses(made: Made, tmp_path: Path, arguments: list[str], code: str) -> None:
    words = [str(tmp_path / "b") if word == "b" else word for word in arguments]
    done = run("create", tmp_path / "v", "--name", "v", *results(made, tmp_path), *words)
    assert done.returncode == 2
    assert json.loads(done.stderr)["error"]["code"] == code
    assert not list(tmp_path.iterdir())


def test_nothing_opens_without_a_secret(made: Made, tmp_path: Path) -> None:
    done = run(
        "rotate", made.volume, "--out", tmp_path / "new.seal", "--previous", made.record,
        *results(made, tmp_path),
    )  # fmt: skip
    assert done.returncode == 2
    assert json.loads(done.stderr)["error"]["code"] == "volume.key_missing"


@pytest.mark.parametrize("name", ["rebuild", "rotate", "backup-header", "restore-header"])
def test_help_teaches(name: str) -> None:
    shown = sealserve("volume", name, "--help")
    assert shown.returncode == 0
    assert "Example:" in shown.stdout
