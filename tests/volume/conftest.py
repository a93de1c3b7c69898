"""One small sealed volume, made once, and what is known about it."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealserve.volume.maker import create_sealed
from sealserve.volume.record import VolumeRecord, open_record
from tests.conftest import missing

# A key with all that shells, C strings and text modes stumble over.
KEY = b"\n\x00\xff line two\r\n\x00\x00\xff\xfe ends with\n"[:32].ljust(32, b"\n")
MARKER = b"MARKER-of-the-plaintext-4711"


@dataclass(frozen=True)
class Sealed:
    path: Path
    source: Path
    record: VolumeRecord
    raw: bytes
    key: bytes
    owner: Ed25519PrivateKey


def need_tools() -> None:
    for tool in ("cryptsetup", "veritysetup", "mkfs.ext4", "mkfs.erofs", "fuse2fs", "fusermount3"):
        if not shutil.which(tool, path=os.environ["PATH"] + ":/usr/sbin:/sbin"):
            missing(tool, "install cryptsetup-bin e2fsprogs erofs-utils fuse2fs fuse3")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        missing("/dev/fuse", "modprobe fuse, and let this user open it")


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What goes into the volume: two versions of a model, odd names, a link, odd sizes."""
    root = tmp_path_factory.mktemp("source")
    for version in ("1", "2"):
        model = root / "models" / "net" / version
        (model / "variables").mkdir(parents=True)
        (model / "saved_model.pb").write_bytes(MARKER * 50 + version.encode())
        (model / "variables" / "data").write_bytes(os.urandom(1_500_001) + MARKER)
    (root / "tls").mkdir()
    (root / "tls" / "server.key").write_bytes(MARKER)
    (root / "tls" / "server.key").chmod(0o600)
    (root / "tls" / "link to key").symlink_to("server.key")
    (root / "empty").mkdir()
    (root / "ünïcode 名").write_bytes(b"")
    if os.geteuid() == 0:
        os.chown(root / "tls" / "server.key", 12345, 54321)
    return root


@pytest.fixture(scope="session")
def owner() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


@pytest.fixture(scope="session")
def sealed(
    source: Path, owner: Ed25519PrivateKey, tmp_path_factory: pytest.TempPathFactory
) -> Sealed:
    """The volume; tests must not change its file (see `copy`)."""
    need_tools()
    path = tmp_path_factory.mktemp("volume") / "models.seal"
    raw = create_sealed(path, source, key=KEY, owner_key=owner, name="models", version=3)
    return Sealed(path, source, open_record(raw, owner.public_key()), raw, KEY, owner)


@pytest.fixture
def copy(sealed: Sealed, tmp_path: Path) -> Path:
    """A copy of the volume's file, to be spoilt."""
    target = tmp_path / "copy.seal"
    subprocess.run(["cp", "--sparse=always", sealed.path, target], check=True)
    return target


@pytest.fixture(scope="session")
def plain(sealed: Sealed, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The inside of the volume as cryptsetup decrypts it, not we."""
    directory = tmp_path_factory.mktemp("plain")
    target, key = directory / "decrypted", directory / "key"
    key.write_bytes(sealed.key)
    with sealed.path.open("rb") as file:
        target.write_bytes(file.read(sealed.record.verity.hash_offset))
    tool(
        "cryptsetup", "reencrypt", "--decrypt", "--force-offline-reencrypt", "-q",
        "--key-file", str(key), "--header", str(directory / "header"), str(target),
    )  # fmt: skip
    inside = target.read_bytes()[: sealed.record.data_size]
    assert len(inside) == sealed.record.data_size
    return inside


@pytest.fixture
def nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A check that this test left no loop device, mount, child or temporary directory."""
    temporary = tmp_path.parent / f"{tmp_path.name}-tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr("tempfile.tempdir", None)
    before = set(_children_of(os.getpid()))

    def left() -> list[str]:
        return [
            *(line for line in _lines("/proc/self/mountinfo") if str(tmp_path) in line),
            *(
                f"{path} on {line}"
                for path in _loops()
                for line in _lines(path)
                # The second is what a loop device shows when the FUSE mount under it is gone.
                if str(tmp_path) in line or line == "/volume"
            ),
            *(f"child {pid}" for pid in set(_children_of(os.getpid())) - before),
            *map(str, temporary.iterdir()),
        ]

    def check() -> None:
        for _ in range(50):
            if not left():
                return
            time.sleep(0.1)  # loop devices, and what a killed parent leaves, go a moment later
        assert left() == []

    return check


def _loops() -> list[str]:
    return [str(path) for path in Path("/sys/block").glob("loop*/loop/backing_file")]


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:  # a loop device of someone else went away
        return []


def _children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def tool(*command: str) -> str:
    """Run a system program as an oracle."""
    program = shutil.which(command[0], path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    if program is None:
        missing(command[0], "install cryptsetup-bin e2fsprogs fuse2fs fuse3")
        raise AssertionError
    done = subprocess.run(
        [program, *command[1:]], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


def flip(path: Path, offset: int, bit: int = 0) -> None:
    """Flip one bit of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))
