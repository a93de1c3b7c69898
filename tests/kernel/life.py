"""Scenarios of a volume's life by the kernel driver: written, killed, taken down, grown, others."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sealserve.errors import SealserveError
from sealserve.volume.grow import grow
from sealserve.volume.mount import mount_sealed, mount_writable
from sealserve.volume.owner import load_owner_public
from sealserve.volume.process import is_mounted, run
from sealserve.volume.record import VolumeRecord, open_record

DATA = Path("/data")
MOUNTPOINT = Path("/mnt")
STATE = DATA / "state.vol"
GROWN = 40 << 20


def killed_holder(key: bytes) -> dict[str, Any]:
    """Whoever holds the mount is killed: its keeper closes all of it."""
    with _holder(key) as process:
        process.kill()
        process.wait()
        deadline = time.monotonic() + 30
        while is_mounted(MOUNTPOINT) and time.monotonic() < deadline:
            time.sleep(0.1)
        return {"mounted": is_mounted(MOUNTPOINT)}


def unmounted_from_outside(key: bytes) -> dict[str, Any]:
    """``sealserve volume unmount`` knows only the mount point; the holder notices and ends."""
    with _holder(key) as process:
        listed = json.loads(_sealserve("list", "--json"))["mounts"]
        first = json.loads(_sealserve("unmount", str(MOUNTPOINT), "--json"))["was_mounted"]
        second = json.loads(_sealserve("unmount", str(MOUNTPOINT), "--json"))["was_mounted"]
        return {
            "listed": [(mount["mountpoint"], mount["status"]) for mount in listed],
            "was_mounted": [first, second],
            "status": process.wait(30),
        }


def crashed_half_way(key: bytes) -> dict[str, Any]:
    """Killed together with its keeper: the doctor finds what is left, and removes it."""
    with _holder(key) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for pid in [*map(int, children), process.pid]:
            os.kill(pid, signal.SIGKILL)
        process.wait()
        before = is_mounted(MOUNTPOINT)
        try:
            _sealserve("doctor", "--json")
            seen = "nothing"
        except subprocess.CalledProcessError as error:
            seen = error.stdout.decode()
        fixed = json.loads(_sealserve("doctor", "--fix", "--json"))["leftovers"]
        return {"before": before, "seen": seen, "fixed": fixed, "after": is_mounted(MOUNTPOINT)}


def writable(key: bytes) -> dict[str, Any]:
    """Written, opened once more, refused to a second writer, grown; and a header swapped in."""
    record = _record("state")
    with mount_writable(STATE, record, key, MOUNTPOINT, driver="kernel"):
        (MOUNTPOINT / "first").write_bytes(_content(1))
        options = _options()
        second = _attempt(
            lambda: mount_writable(STATE, record, key, Path("/mnt2"), driver="kernel").close()
        )
    before = grow(STATE, record, key, GROWN, driver="kernel")
    swapped = []

    def swapping(command: Sequence[str], **options: Any) -> str:
        if list(command[:2]) == ["cryptsetup", "open"]:
            swapped.append(_swap_header(bytes(8192)))
        return run(command, **options)

    with mount_writable(STATE, record, key, MOUNTPOINT, driver="kernel", runner=swapping):
        (MOUNTPOINT / "second").write_bytes(_content(2))
        size = os.statvfs(MOUNTPOINT)
        found = {path.name: _sum(path) for path in MOUNTPOINT.iterdir() if path.is_file()}
    after_swap = _attempt(
        lambda: mount_writable(STATE, record, key, MOUNTPOINT, driver="kernel").close()
    )
    _swap_header(swapped[0])
    return {
        "options": options,
        "second": second,
        "grown_from": before,
        "size": size.f_blocks * size.f_frsize,
        "files": found,
        "after_swap": after_swap,
    }


def erofs(key: bytes) -> dict[str, Any]:
    """The other filesystem, through verity and dm-crypt."""
    return _read("erofs", key)


def adopted(key: bytes) -> dict[str, Any]:
    """A volume of 512-byte sectors that cryptsetup made, with a record and a tree."""
    return _read("adopted", key)


def _read(name: str, key: bytes) -> dict[str, Any]:
    volume = DATA / f"{name}.seal"
    with mount_sealed(volume, _record(name), key, MOUNTPOINT, driver="kernel"):
        files = {
            str(path.relative_to(MOUNTPOINT)): _sum(path)
            for path in MOUNTPOINT.rglob("*")
            if path.is_file()
        }
        return {"files": files, "options": _options()}


@contextmanager
def _holder(key: bytes) -> Iterator[subprocess.Popen[bytes]]:
    command = [
        sys.executable, "-P", "-m", "sealserve", "volume", "mount", str(DATA / "models.seal"),
        str(MOUNTPOINT), "--record", str(DATA / "models.record"),
        "--owner-pub", str(DATA / "owner.pub"), "--driver", "kernel", "--key-fd", "0",
    ]  # fmt: skip
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(key)
        process.stdin.close()
        assert process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


def _sealserve(*words: str) -> bytes:
    command = [sys.executable, "-P", "-m", "sealserve", "volume", *words]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout


def _swap_header(content: bytes) -> bytes:
    """Write over the beginning of the volume; returns what stood there."""
    with STATE.open("r+b", buffering=0) as file:
        before = file.read(len(content))
        file.seek(0)
        file.write(content)
        os.fsync(file.fileno())
    return before


def _record(name: str) -> VolumeRecord:
    return open_record(
        (DATA / f"{name}.record").read_bytes(), load_owner_public(DATA / "owner.pub")
    )


def _content(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest() * 50_000


def _sum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _options() -> list[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[4] == str(MOUNTPOINT):
            return fields[5].split(",")
    raise AssertionError("nothing is mounted")


def _attempt(action: Any) -> str:
    try:
        action()
    except SealserveError as error:
        return str(error)
    return "opened"
