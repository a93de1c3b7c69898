"""Daemon and application together in a cgroup of 160 MiB, with a volume larger than that.

The kernel writes back what an application wrote through a process that needs memory to
take it: this can hang for ever. Reading cannot, so sealed volumes must never hang; a
writable one may, and then has to be freed by its watchdog.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealserve.volume.maker import create_sealed, create_writable
from sealserve.volume.process import is_mounted
from tests.soak import times
from tests.volume.cgroup import memory_limit
from tests.volume.conftest import KEY, need_tools

NothingLeft = Callable[[], None]
LIMIT_MIB = 160
CONTENT_MIB = 192
# Patience of the watchdog, what it takes to look, and to unmount what was aborted.
LONGEST_HANG = 30.0

_PROGRAM = """
import errno, hashlib, os, sys, time
from pathlib import Path
from sealserve import logs
from sealserve.volume.mount import mount_sealed, mount_writable
from sealserve.volume.record import peek_record
logs.configure()
how, path, record, mountpoint, mib = sys.argv[1:]
arguments = (Path(path), peek_record(Path(record).read_bytes()), sys.stdin.buffer.read())
last = time.monotonic()
longest = 0.0
def alive():
    global last, longest
    now = time.monotonic()
    last, longest = now, max(longest, now - last)
if how == "read":
    with mount_sealed(*arguments, Path(mountpoint), driver="fuse") as mount:
        for _ in range(2):
            digest = hashlib.sha256()
            with (mount.mountpoint / "weights").open("rb", buffering=0) as file:
                while piece := file.read(1 << 20):
                    digest.update(piece)
                    alive()
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            print(digest.hexdigest(), flush=True)
else:
    with mount_writable(
        *arguments, Path(mountpoint), driver="fuse", development=True
    ) as mount:
        try:
            with (mount.mountpoint / "state").open("wb", buffering=0) as file:
                for _ in range(int(mib)):
                    file.write(os.urandom(1 << 20))
                    alive()
                os.fsync(file.fileno())
            print("written", flush=True)
        except OSError as error:
            print("aborted", errno.errorcode[error.errno], flush=True)
        alive()
print(longest, flush=True)
"""


def run_limited(how: str, path: Path, record: Path, mountpoint: Path) -> list[str]:
    with memory_limit(LIMIT_MIB) as prefix:
        done = subprocess.run(
            [
                *prefix, sys.executable, "-c", _PROGRAM,
                how, path, record, mountpoint, str(CONTENT_MIB),
            ],
            input=KEY,
            capture_output=True,
            timeout=300,
            check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().splitlines()


@pytest.mark.timeout(times(7200, 300))
def test_a_sealed_volume_never_hangs(
    owner: Ed25519PrivateKey, tmp_path: Path, nothing_left: NothingLeft
) -> None:
    need_tools()
    source, path, record = tmp_path / "source", tmp_path / "v", tmp_path / "record"
    source.mkdir()
    content = os.urandom(1 << 20) * CONTENT_MIB
    (source / "weights").write_bytes(content)
    record.write_bytes(create_sealed(path, source, key=KEY, owner_key=owner, name="models"))
    for _ in range(times(20, 1)):
        *digests, longest = run_limited("read", path, record, tmp_path / "mnt")
        assert digests == [hashlib.sha256(content).hexdigest()] * 2
        assert float(longest) < LONGEST_HANG
    nothing_left()


@pytest.mark.timeout(times(7200, 300))
def test_a_writable_one_that_hangs_is_freed(
    owner: Ed25519PrivateKey, tmp_path: Path, nothing_left: NothingLeft
) -> None:
    """It hangs rarely; whether it did or not, it has come to an end in time."""
    need_tools()
    path, record = tmp_path / "v", tmp_path / "record"
    size = (CONTENT_MIB + 32) << 20
    record.write_bytes(create_writable(path, size=size, key=KEY, owner_key=owner, name="state"))
    for _ in range(times(20, 1)):
        outcome, longest = run_limited("write", path, record, tmp_path / "mnt")
        print(outcome, longest)  # how often it hangs is seen with -s
        assert outcome in ("written", "aborted EIO", "aborted ENOTCONN", "aborted EROFS")
        assert float(longest) < LONGEST_HANG
        assert not is_mounted(tmp_path / "mnt")
    nothing_left()
