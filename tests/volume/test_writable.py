"""Writable volumes: what is written comes back, one writer at a time, no header but the owner's."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealserve.errors import InputError, Refused, SealserveError
from sealserve.volume import child
from sealserve.volume.engine import WritableView, check_writable
from sealserve.volume.kernel_driver import KernelDriver
from sealserve.volume.maker import create_writable
from sealserve.volume.mount import mount_sealed, mount_writable
from sealserve.volume.record import HeaderPin, VolumeRecord, open_record
from tests.volume.conftest import KEY, Sealed, need_tools, tool
from tests.volume.headers import CRAFTED
from tests.volume.test_mount import children

NothingLeft = Callable[[], None]
SIZE = 24 << 20


@dataclass(frozen=True)
class Writable:
    path: Path
    record: VolumeRecord
    key: bytes


@pytest.fixture(scope="module")
def empty(owner: Ed25519PrivateKey, tmp_path_factory: pytest.TempPathFactory) -> Writable:
    """Made once; tests take a copy."""
    need_tools()
    path = tmp_path_factory.mktemp("writable") / "state.vol"
    raw = create_writable(path, size=SIZE, key=KEY, owner_key=owner, name="state")
    return Writable(path, open_record(raw, owner.public_key()), KEY)


@pytest.fixture
def state(empty: Writable, tmp_path: Path) -> Writable:
    path = tmp_path / "state.vol"
    subprocess.run(["cp", "--sparse=always", empty.path, path], check=True)
    return Writable(path, empty.record, empty.key)


def mounted(volume: Writable, mountpoint: Path, **options: Any) -> Any:
    options = {"driver": "fuse", "development": True, **options}
    return mount_writable(volume.path, volume.record, volume.key, mountpoint, **options)


def decrypted(volume: Writable, directory: Path) -> Path:
    """The inside as cryptsetup decrypts it, not we."""
    target, key = directory / "decrypted", directory / "key"
    key.write_bytes(volume.key)
    target.write_bytes(volume.path.read_bytes())
    tool(
        "cryptsetup", "reencrypt", "--decrypt", "--force-offline-reencrypt", "-q",
        "--key-file", str(key), "--header", str(directory / "header"), str(target),
    )  # fmt: skip
    return target


def test_what_is_written_comes_back_and_cryptsetup_agrees(
    state: Writable, tmp_path: Path, nothing_left: NothingLeft
) -> None:
    mountpoint, content = tmp_path / "mnt", os.urandom(3_000_001)
    with mounted(state, mountpoint):
        (mountpoint / "log").write_bytes(content)
    with mounted(state, mountpoint):
        assert (mountpoint / "log").read_bytes() == content
        (mountpoint / "log").unlink()
        (mountpoint / "second").write_bytes(content[::-1])
    nothing_left()
    assert content[:64] not in state.path.read_bytes()
    inside = decrypted(state, tmp_path)
    tool("e2fsck", "-fn", str(inside))
    tool("debugfs", "-R", f"dump /second {tmp_path / 'second'}", str(inside))
    assert (tmp_path / "second").read_bytes() == content[::-1]


def test_the_first_content(owner: Ed25519PrivateKey, source: Path, tmp_path: Path) -> None:
    path = tmp_path / "v"
    raw = create_writable(path, size=SIZE, key=KEY, owner_key=owner, name="state", source=source)
    record = open_record(raw, owner.public_key())
    assert (record.kind, record.models, record.verity) == ("writable", (), None)
    with mounted(Writable(path, record, KEY), tmp_path / "mnt"):
        found = (tmp_path / "mnt/tls/server.key").read_bytes()
    assert found == (source / "tls" / "server.key").read_bytes()


def test_an_fsync_reaches_the_disk(state: Writable, tmp_path: Path) -> None:
    """What was synced is in the file while it is still mounted: no write-back in between."""
    mountpoint = tmp_path / "mnt"
    with mounted(state, mountpoint):
        with (mountpoint / "f").open("wb") as file:
            file.write(b"synced" * 1000)
            file.flush()
            os.fsync(file.fileno())
        snapshot = tmp_path / "snapshot"
        snapshot.write_bytes(state.path.read_bytes())
    with mounted(Writable(snapshot, state.record, state.key), mountpoint):
        assert (mountpoint / "f").read_bytes() == b"synced" * 1000


def test_fuse_writes_only_when_it_is_asked_to(state: Writable, tmp_path: Path) -> None:
    with pytest.raises(Refused) as caught:
        mounted(state, tmp_path / "mnt", development=False)
    assert caught.value.code == "volume.fuse_writable"
    assert not (tmp_path / "mnt").exists()


def test_kinds_are_not_mixed_up(state: Writable, sealed: Sealed, tmp_path: Path) -> None:
    with pytest.raises(Refused) as caught:
        mount_sealed(state.path, state.record, state.key, tmp_path / "mnt", driver="fuse")
    assert caught.value.code == "volume.not_sealed"
    with pytest.raises(Refused) as caught:
        mounted(Writable(sealed.path, sealed.record, sealed.key), tmp_path / "mnt")
    assert caught.value.code == "volume.not_writable"


def test_one_writer_at_a_time(state: Writable, tmp_path: Path, nothing_left: NothingLeft) -> None:
    with mounted(state, tmp_path / "mnt"):
        with pytest.raises(InputError) as caught:
            mounted(state, tmp_path / "other")
        assert caught.value.code == "volume.in_use"
        assert not (tmp_path / "other").exists()
    with mounted(state, tmp_path / "other"):
        pass
    nothing_left()


def test_a_forgotten_loop_device_is_noticed(state: Writable, tmp_path: Path) -> None:
    """A crashed kernel driver holds no lock, but its loop device still writes."""
    if os.geteuid() != 0:
        pytest.skip("only root attaches loop devices")
    device = tool("losetup", "--find", "--show", str(state.path)).strip()
    try:
        with pytest.raises(InputError, match=device) as caught:
            mounted(state, tmp_path / "mnt")
        assert caught.value.code == "volume.in_use"
    finally:
        tool("losetup", "--detach", device)


def test_readers_share_a_sealed_volume(
    sealed: Sealed, tmp_path: Path, nothing_left: NothingLeft
) -> None:
    arguments = (sealed.path, sealed.record, sealed.key)
    with (
        mount_sealed(*arguments, tmp_path / "a", driver="fuse"),
        mount_sealed(*arguments, tmp_path / "b", driver="fuse"),
    ):
        assert (tmp_path / "b/tls/server.key").read_bytes()
    nothing_left()


@pytest.mark.parametrize("driver", ["fuse", "kernel"])
@pytest.mark.parametrize("name", sorted(CRAFTED.keys() - {"cut off"}))
def test_no_header_but_the_owners(
    state: Writable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, driver: str
) -> None:
    """Refused by its digest; and where the digest is the hostile header's own, by its form."""
    area = state.path.read_bytes()[: state.record.header.size]
    hostile = CRAFTED[name](area).ljust(len(area), b"\0")
    with state.path.open("r+b") as file:
        file.write(hostile)

    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise AssertionError("started")

    monkeypatch.setattr(subprocess, "Popen", fail)
    monkeypatch.setattr(hashlib, "pbkdf2_hmac", fail)
    with pytest.raises(Refused) as caught:
        mounted(state, tmp_path / "mnt", driver=driver)
    assert caught.value.code == "volume.header_mismatch"
    pin = HeaderPin(sha256=hashlib.sha256(hostile).hexdigest(), size=len(area))
    believed = state.record.model_copy(update={"header": pin})
    with pytest.raises(Refused) as caught:
        mounted(Writable(state.path, believed, state.key), tmp_path / "mnt", driver=driver)
    assert caught.value.code == "volume.header_refused"


def test_truncated_is_refused_and_grown_is_not(state: Writable) -> None:
    os.truncate(state.path, state.record.file_size - 4096)
    with state.path.open("rb") as file, pytest.raises(Refused) as caught:
        check_writable(file.fileno(), state.record)
    assert caught.value.code == "volume.size_mismatch"
    os.truncate(state.path, state.record.file_size + (8 << 20) + 7)
    with state.path.open("r+b") as file:
        view = WritableView.of_record(file.fileno(), state.record, state.key)
        assert view.size == SIZE + (8 << 20)
        view.close()


def test_the_kernel_driver_gives_cryptsetup_its_own_copy(state: Writable, tmp_path: Path) -> None:
    """Not the file: between our check and its reading the host could have changed that."""
    seen: list[list[str]] = []
    area = state.path.read_bytes()[: state.record.header.size]

    def runner(command: Sequence[str], *, pass_fds: Sequence[int] = (), timeout: float = 60) -> str:
        seen.append(list(command))
        if command[0] == "cryptsetup" and command[1] == "open":
            (header,) = [word for word in command if word.startswith("--header=")]
            assert Path(header.partition("=")[2]).read_bytes() == area
            with state.path.open("r+b") as file:
                file.write(b"swapped")
        return "/dev/loop77\n"

    mapping = KernelDriver(runner, mapper_directory=tmp_path).open(
        state.path, state.record, state.key, tmp_path / "mnt"
    )
    attach, crypt, detach = seen
    assert "--read-only" not in attach
    assert "--readonly" not in crypt
    assert crypt[-2:] == ["/dev/loop77", mapping.device.name]
    assert detach == ["losetup", "--detach", "/dev/loop77"]
    mapping.close()
    assert seen[3:] == [["cryptsetup", "close", mapping.device.name]]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"size": 0}, "volume.size"),
        ({"size": 4097 << 10 | 1}, "volume.size"),
        ({"key": b"short"}, "volume.key_size"),
        ({"name": "a/b"}, "volume.name"),
        ({"source": Path("/nonexistent")}, "volume.source_missing"),
    ],
)
def test_bad_arguments(
    changes: dict[str, Any], code: str, owner: Ed25519PrivateKey, tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {"size": SIZE, "key": KEY, "owner_key": owner, "name": "v"}
    with pytest.raises(SealserveError) as caught:
        create_writable(tmp_path / "v", **{**arguments, **changes})
    assert caught.value.code == code
    assert not list(tmp_path.iterdir())


def test_a_hung_mount_is_freed(
    state: Writable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    nothing_left: NothingLeft,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The serving process answers no more (here: it is stopped); its writers get errors."""
    monkeypatch.setattr(child, "PATIENCE", 1.0)
    mount = mounted(state, tmp_path / "mnt")
    (serving,) = [pid for pid in children() if b"volume.fuse" in cmdline(pid)]
    (watching,) = [pid for pid in children() if b"volume.watchdog" in cmdline(pid)]
    with (tmp_path / "mnt/f").open("wb") as file:
        file.write(b"lost" * 1000)
        file.flush()
        os.kill(serving, signal.SIGSTOP)
        started = time.monotonic()
        with pytest.raises(OSError, match="Input/output error"):
            os.fsync(file.fileno())  # hung for ever, before
        assert time.monotonic() - started < 30
    assert os.waitstatus_to_exitcode(os.waitpid(watching, 0)[1]) == 1
    os.kill(serving, signal.SIGCONT)
    mount.close()
    assert "volume_hung" in capfd.readouterr().err
    nothing_left()
    with mounted(state, tmp_path / "mnt"):  # the journal is replayed
        pass


def test_a_busy_mount_is_left_alone(
    state: Writable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_left: NothingLeft
) -> None:
    """Idle for longer than the watchdog's patience, and then at work."""
    monkeypatch.setattr(child, "PATIENCE", 0.5)
    with mounted(state, tmp_path / "mnt"):
        time.sleep(2.5)
        with (tmp_path / "mnt/f").open("wb") as file:
            for _ in range(20):
                file.write(bytes(300_000))
                os.fsync(file.fileno())
        assert (tmp_path / "mnt/f").stat().st_size == 6_000_000
    nothing_left()


def cmdline(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()
