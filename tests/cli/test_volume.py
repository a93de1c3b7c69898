"""``sealserve volume``, as a person types it: made for a real broker, checked, mounted."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from sealserve.broker.deposit import open_deposit
from sealserve.broker.directory import open_broker
from sealserve.volume.process import is_mounted
from sealserve.volume.record import key_id_of, peek_record
from tests.children import Child
from tests.cli.test_owner import sealserve
from tests.volume.conftest import flip, need_tools


@dataclass(frozen=True)
class Made:
    volume: Path
    record: Path
    public: Path
    arguments: list[object]
    result: dict[str, object]
    key: bytes


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    need_tools()
    root = tmp_path_factory.mktemp("cli")
    for command in (
        ("owner", "init", root / "owner"),
        ("broker", "init", root / "broker", "--name", "test", "--host", "localhost"),
    ):
        done = sealserve(*command)
        assert done.returncode == 0, done.stderr
    model = root / "source" / "models" / "net" / "7"
    model.mkdir(parents=True)
    (model / "weights").write_bytes(b"the weights")
    volume, record, sealed_key = root / "v.seal", root / "v.record", root / "v.key"
    arguments: list[object] = [
        "volume", "create", volume, "--from", root / "source", "--name", "models",
        "--owner-key", root / "owner" / "owner.key", "--record", record,
        "--broker", root / "broker" / "broker.json", "--sealed-key", sealed_key, "--json",
    ]  # fmt: skip
    done = sealserve(*arguments)
    assert done.returncode == 0, done.stderr
    key = _key_the_broker_gets(root / "broker", sealed_key)
    return Made(
        volume, record, root / "owner" / "owner.pub", arguments, json.loads(done.stdout), key
    )


def _key_the_broker_gets(directory: Path, sealed_key: Path) -> bytes:
    with open_broker(directory) as broker:
        return open_deposit(broker._deposit_key(), broker.identity, sealed_key.read_bytes())


def test_create_says_what_it_made(made: Made) -> None:
    record = peek_record(made.record.read_bytes())
    assert made.result["root_hash"] == record.verity.root_hash
    assert made.result["size"] == made.volume.stat().st_size == record.file_size
    assert made.result["models"] == [model.model_dump() for model in record.models]


def test_the_key_is_nowhere_but_sealed(made: Made) -> None:
    assert len(made.key) == 32
    assert key_id_of(made.key) == made.result["key_id"]
    for path in made.volume.parent.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert made.key not in content
            assert made.key.hex().encode() not in content.lower()


def test_nothing_is_overwritten_unasked(made: Made) -> None:
    before = [path.read_bytes() for path in (made.volume, made.record)]
    done = sealserve(*made.arguments)
    assert done.returncode == 2
    assert json.loads(done.stderr)["error"]["code"] == "file.exists"
    assert before == [path.read_bytes() for path in (made.volume, made.record)]


@pytest.mark.parametrize("option", ["--record", "--sealed-key"])
def test_no_volume_without_its_companions(made: Made, tmp_path: Path, option: str) -> None:
    """Where record or key cannot be written, there is no volume either."""
    arguments = list(made.arguments)
    arguments[2] = tmp_path / "v.seal"
    for name in ("--record", "--sealed-key"):
        place = Path("/proc/none") if name == option else tmp_path
        arguments[arguments.index(name) + 1] = place / "file"
    done = sealserve(*arguments)
    assert done.returncode == 4
    assert json.loads(done.stderr)["error"]["code"] == "file.unwritable"
    assert not list(tmp_path.iterdir())


def test_verify_and_record(made: Made, tmp_path: Path) -> None:
    trusted = ["--record", made.record, "--owner-pub", made.public]
    done = sealserve("volume", "verify", made.volume, *trusted, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verified"] is True
    shown = sealserve("volume", "record", "show", made.record)
    assert "NOT checked" in shown.stdout
    shown = sealserve("volume", "record", "verify", made.record, "--owner-pub", made.public)
    assert shown.returncode == 0
    assert "good" in shown.stdout
    assert "net 7" in shown.stdout

    spoilt = tmp_path / "spoilt"
    spoilt.write_bytes(made.volume.read_bytes())
    flip(spoilt, (16 << 20) + 12345)
    done = sealserve("volume", "verify", spoilt, *trusted)
    assert done.returncode == 3
    assert "volume.block_mismatch" in done.stderr
    sealserve("owner", "init", tmp_path / "other")
    other = ["--owner-pub", tmp_path / "other" / "owner.pub"]
    done = sealserve("volume", "record", "verify", made.record, *other)
    assert done.returncode == 3
    assert "record.signature_invalid" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_mount_until_told_to_stop(made: Made, tmp_path: Path, number: signal.Signals) -> None:
    mountpoint = tmp_path / "mnt"
    command = [
        sys.executable, "-m", "sealserve", "volume", "mount", made.volume, mountpoint,
        "--record", made.record, "--owner-pub", made.public, "--driver", "fuse",
        "--key-fd", "0", "--json",
    ]  # fmt: skip
    with Child(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as mounting:
        assert mounting.stdin is not None
        mounting.stdin.write(made.key)
        mounting.stdin.close()
        mounting.stdin = None
        deadline = time.monotonic() + 30
        weights = mountpoint / "models" / "net" / "7" / "weights"
        while not weights.exists() and mounting.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        content = weights.read_bytes() if weights.exists() else b""
        mounting.send_signal(number)
        out, errors = mounting.communicate(timeout=30)
    assert content == b"the weights", errors
    assert mounting.returncode == 0, errors
    assert json.loads(out)["driver"] == "fuse"
    assert not is_mounted(mountpoint)
    assert not mountpoint.exists()


def test_a_mount_answers_through_a_pipe_while_it_lasts(made: Made, tmp_path: Path) -> None:
    """The JSON was once kept in a buffer until the mount had ended."""
    command = [
        sys.executable, "-m", "sealserve", "volume", "mount", made.volume, tmp_path / "mnt",
        "--record", made.record, "--owner-pub", made.public, "--driver", "fuse",
        "--key-fd", "0", "--json",
    ]  # fmt: skip
    with Child(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as mounting:
        assert mounting.stdin is not None
        assert mounting.stdout is not None
        mounting.stdin.write(made.key)
        mounting.stdin.close()
        answer = b""
        for line in mounting.stdout:
            answer += line
            if line == b"}\n":
                break
        mounted = is_mounted(tmp_path / "mnt")
        mounting.terminate()
    assert json.loads(answer)["driver"] == "fuse"
    assert mounted


def test_mount_refuses(made: Made, tmp_path: Path) -> None:
    common = ["volume", "mount", made.volume, tmp_path / "mnt", "--record", made.record]
    common += ["--owner-pub", made.public, "--json"]
    for driver, fd, status, code in (
        ("fuse", 99, 2, "volume.key_unreadable"),
        ("fuse", 0, 2, "volume.key_size"),
        ("auto", 0, 2, "volume.driver_unknown"),
    ):
        done = sealserve(*common, "--driver", driver, "--key-fd", fd)
        assert done.returncode == status
        assert json.loads(done.stderr)["error"]["code"] == code
    assert not (tmp_path / "mnt").exists()
    assert not list(tmp_path.iterdir())


def test_help_teaches() -> None:
    for command in (["create"], ["verify"], ["mount"], ["record", "show"], ["record", "verify"]):
        shown = sealserve("volume", *command, "--help")
        assert shown.returncode == 0
        assert "Example:" in shown.stdout
