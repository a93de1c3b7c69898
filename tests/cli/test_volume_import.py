"""``sealserve volume import|adopt``."""

from __future__ import annotations

import getpass
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from sealserve.cli.volume_common import read_passphrase
from sealserve.volume.reader import SealedReader
from sealserve.volume.record import peek_record
from tests.cli.test_owner import sealserve
from tests.cli.test_volume import Made, _key_the_broker_gets, made
from tests.cli.test_volume_make import results, run
from tests.volume.conftest import KEY
from tests.volume.foreign import MIB, PASSPHRASE, encrypted, filesystem, original_tree

__all__ = ["made"]


@pytest.fixture(scope="module")
def inside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("inside")
    (directory / "tree").mkdir()
    return filesystem(directory / "image", original_tree(directory / "tree"), 12 * MIB, "-b4096")


def test_coming_from_the_originals_scripts(made: Made, inside: Path, tmp_path: Path) -> None:
    """A volume, its passphrase by a pipe; out comes what a broker and a guest take."""
    old, volume = encrypted(inside, tmp_path / "vfs", version=1), tmp_path / "new.seal"
    command = [
        "import", old, "--out", volume, "--name", "models", "--passphrase-fd", 0, "--rearrange",
        *results(made, tmp_path),
    ]  # fmt: skip
    refused = run(*command, secret=b"wrong")
    assert refused.returncode == 3
    assert json.loads(refused.stderr)["error"]["code"] == "volume.foreign_passphrase"
    assert not volume.exists()
    done = run(*command, secret=PASSPHRASE)
    assert done.returncode == 0, done.stderr
    assert [model["name"] for model in json.loads(done.stdout)["models"]] == ["resnet"]
    key = _key_the_broker_gets(made.volume.parent / "broker", tmp_path / "new.key")
    record = peek_record((tmp_path / "new.record").read_bytes())
    with SealedReader(volume, record, key) as reader:
        assert {"models", "models.config", "tls", "run me.sh"} < set(reader.names())
    again = run(*command, secret=PASSPHRASE)
    assert again.returncode == 2
    assert json.loads(again.stderr)["error"]["code"] == "file.exists"


def test_a_volume_made_elsewhere_gets_a_record(made: Made, inside: Path, tmp_path: Path) -> None:
    old, volume = encrypted(inside, tmp_path / "disk", passphrase=KEY), tmp_path / "new.seal"
    command = ["adopt", old, "--out", volume, "--name", "m", "--key-fd", 0]
    done = run(*command, *results(made, tmp_path), secret=KEY)
    assert done.returncode == 0, done.stderr
    trusted = ["--record", tmp_path / "new.record", "--owner-pub", made.public]
    assert run("verify", volume, *trusted).returncode == 0
    assert _key_the_broker_gets(made.volume.parent / "broker", tmp_path / "new.key") == KEY
    assert peek_record((tmp_path / "new.record").read_bytes()).sector_size == 512


@pytest.mark.parametrize(
    ("command", "secret", "code"),
    [
        (["import", "--passphrase-fd", 0], b"", "volume.passphrase_size"),
        (["import", "--passphrase-fd", 0], b"secret", "volume.foreign_refused"),
        (["import"], b"secret", "volume.phrase_missing"),
        (["import", "--passphrase-fd", 99], b"", "volume.key_unreadable"),
        (["adopt", "--key-fd", 0], b"x" * 33, "volume.key_size"),
        (["adopt", "--key-fd", 0], KEY, "volume.foreign_refused"),
    ],
)
def test_bad_input_has_one_message(
    command: list[object], secret: bytes, code: str, made: Made, tmp_path: Path
) -> None:
    (tmp_path / "old").write_bytes(b"no LUKS header at all")
    name, *options = command
    done = run(
        name, tmp_path / "old", "--out", tmp_path / "new.seal", "--name", "m", *options,
        *results(made, tmp_path), secret=secret,
    )  # fmt: skip
    assert done.returncode in (2, 3)
    assert json.loads(done.stderr)["error"]["code"] == code
    assert {path.name for path in tmp_path.iterdir()} == {"old"}


def test_the_passphrase_can_be_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As cryptsetup took it when it was set: without the line's end, as UTF-8."""
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(getpass, "getpass", lambda _prompt: PASSPHRASE.decode())
    assert read_passphrase(None) == PASSPHRASE


def test_help_teaches() -> None:
    for name in ("import", "adopt"):
        shown = sealserve("volume", name, "--help").stdout
        assert f"sealserve volume {name}" in shown
        assert "Example:" in shown
