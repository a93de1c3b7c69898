"""How fast a volume is read and written, beside what bounds it and what it competes with.

The fuse driver with 4096-byte sectors: the engine alone, mounted sealed (verified on
read) and mounted writable; the raw file, OpenSSL's own XTS over 4096-byte sectors and
qemu-storage-daemon's LUKS export, all in one run. Each figure is the median of the
rounds, caches dropped before every read; each write ends with fsync. A figure with a
bar says whether it is met.

Ours and qemu-storage-daemon's are measured alike: ext4 on a loop device with direct I/O on
one FUSE file, the image in the page cache as far as it was read since it was dropped. Random
reads are taken in turn, a round of each, all of them mounted. On a machine that is busy the
speeds mean little, and only the ratios something.

Needs root (loop devices).

Example: .venv/bin/python -m bench.volume --mib 512 --rounds 3
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import re
import secrets
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path

from bench import qemu_export
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.volume.headers import CRAFTED

from sealserve import logs
from sealserve.errors import Refused
from sealserve.volume.cipher import XTS_KEY_SIZE, sector_cipher
from sealserve.volume.engine import SealedView, WritableView, verify_file
from sealserve.volume.maker import create_sealed, create_writable
from sealserve.volume.mount import Mount, mount_sealed, mount_writable
from sealserve.volume.record import BLOCK_SIZE, VolumeRecord, open_record

CHUNK = 1 << 20
IOPS_SECONDS = 2.0
IOPS_DEPTH = 8
RIVAL = "qemu-storage-daemon"
WRITE, READ, RANDOM = "mounted write", "mounted read", "4 KiB random reads"


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    name: str
    value: float
    unit: str
    bar: float | None = None
    at_most: bool = False

    @property
    def verdict(self) -> str:
        """Whether the bar is met."""
        if self.bar is None:
            return ""
        met = self.value <= self.bar if self.at_most else self.value >= self.bar
        return f"{'<=' if self.at_most else '>='} {self.bar:g}: {'met' if met else 'NOT MET'}"


@dataclass
class Bench:
    """Where it is measured, and what has been measured so far."""

    place: Path
    mib: int
    rounds: int
    key: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    owner: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    figures: list[Figure] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of the measured file."""
        return self.mib << 20

    def speed(
        self, name: str, work: Callable[[], int], *cached: Path, bar: float | None = None
    ) -> None:
        """Median speed of some work that returns its bytes; ``cached`` is dropped before each."""

        def once() -> float:
            drop_caches(*cached)
            started = time.perf_counter()
            return work() / (time.perf_counter() - started) / 1e6

        self.add(name, statistics.median(once() for _ in range(self.rounds)), "MB/s", bar)

    def add(
        self, name: str, value: float, unit: str, bar: float | None = None, *, at_most: bool = False
    ) -> None:
        """Note a figure."""
        self.figures.append(Figure(name, value, unit, bar, at_most))


def main() -> None:
    """Measure everything, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--directory", type=Path, help="where the volumes are made")
    options = parser.parse_args()
    logs.configure()
    with tempfile.TemporaryDirectory(dir=options.directory) as scratch, ExitStack() as mounts:
        bench = Bench(Path(scratch), options.mib, options.rounds)
        bounds(bench)
        shown = [sealed(bench, mounts), writable(bench, mounts), rival(bench, mounts)]
        random_reads(bench, [each for each in shown if each])
        memory(bench)
        if shown[-1]:
            compare(bench)
    if options.json:
        print(json.dumps([asdict(figure) for figure in bench.figures], indent=2))
        return
    for figure in bench.figures:
        print(f"{figure.name:60} {figure.value:10.6g} {figure.unit:6} {figure.verdict}")


def bounds(bench: Bench) -> None:
    """What no volume on this machine can pass."""
    raw = bench.place / "raw"
    bench.speed("raw file, write", lambda: write_file(raw, bench.size), raw)
    bench.speed("raw file, read", lambda: read_file(raw), raw)
    bench.add("OpenSSL's own AES-256-XTS, 4096-byte blocks", openssl_speed(), "MB/s")
    raw.unlink()
    cipher = sector_cipher(secrets.token_bytes(XTS_KEY_SIZE), BLOCK_SIZE)
    buffer = bytearray(CHUNK)

    def decrypt() -> int:
        for number in range(bench.mib):
            cipher.decrypt(buffer, number * CHUNK)
        return bench.size

    bench.speed("our AES-256-XTS, in memory", decrypt)


@dataclass(frozen=True)
class Shown:
    """A mounted volume: a file in it, and the file that it stands on."""

    name: str
    target: Path
    below: Path


def sealed(bench: Bench, mounts: ExitStack) -> Shown:
    """The default kind of volume: every read is verified."""
    source, path = bench.place / "source", bench.place / "sealed.vol"
    source.mkdir()
    write_file(source / "weights", bench.size)
    started = time.perf_counter()
    raw = create_sealed(path, source, key=bench.key, owner_key=bench.owner, name="bench")
    made = bench.size / (time.perf_counter() - started) / 1e6
    bench.add("sealed: make (format, fill, hash, fsync)", made, "MB/s")
    (source / "weights").unlink()
    record = open_record(raw, bench.owner.public_key())
    with path.open("rb") as file:
        descriptor = file.fileno()

        def verify() -> int:
            verify_file(descriptor, record)
            return record.segment_end

        bench.speed("sealed: check the whole file, no key", verify, path)
        view = SealedView(descriptor, record, bench.key)
        bench.speed("sealed: engine read, verified", lambda: read_view(view), path)
        view.close()

    def mount() -> Mount:
        return mount_sealed(path, record, bench.key, bench.place / "sealed", driver="fuse")

    bomb(bench, path, record)
    bench.add("sealed: mount", median_time(bench, mount, path), "s", 1, at_most=True)
    target = mounts.enter_context(mount()).mountpoint / "weights"
    bench.speed(f"sealed: {READ}", lambda: read_file(target), target, path, bar=300)
    return Shown("sealed", target, path)


def bomb(bench: Bench, path: Path, record: VolumeRecord) -> None:
    """How long a header with an endless key derivation occupies us."""

    def refuse() -> float:
        started = time.perf_counter()
        try:
            mount_sealed(path, record, bench.key, bench.place / "sealed", driver="fuse")
        except Refused:
            return time.perf_counter() - started
        raise AssertionError("it was mounted")

    with path.open("r+b", buffering=0) as file:
        honest = file.read(record.header.size)
        os.pwrite(file.fileno(), CRAFTED["argon2 bomb"](honest), 0)
        elapsed = statistics.median(refuse() for _ in range(bench.rounds))
        os.pwrite(file.fileno(), honest, 0)
    bench.add("sealed: refuse a header with a KDF bomb", elapsed, "s", 0.2, at_most=True)


def writable(bench: Bench, mounts: ExitStack) -> Shown:
    """State: read and written, without a tree."""
    path = bench.place / "writable.vol"

    def make() -> VolumeRecord:
        size = bench.size + (64 << 20)
        raw = create_writable(
            path, size=size, key=bench.key, owner_key=bench.owner, name="bench", force=True
        )
        return open_record(raw, bench.owner.public_key())

    record = make()
    with path.open("r+b") as file:
        view = WritableView.of_record(file.fileno(), record, bench.key)
        bench.speed("writable: engine write", lambda: write_view(view, bench.size))
        bench.speed("writable: engine read", lambda: read_view(view), path, bar=1000)
        view.close()
    record = make()  # what was written over the first one is no filesystem

    def mount() -> Mount:
        arguments = (path, record, bench.key, bench.place / "writable")
        return mount_writable(*arguments, driver="fuse", development=True)

    bench.add("writable: mount", median_time(bench, mount, path), "s", 1, at_most=True)
    target = mounts.enter_context(mount()).mountpoint / "weights"
    bench.speed(f"writable: {WRITE}", lambda: write_file(target, bench.size), bar=350)
    bench.speed(f"writable: {READ}", lambda: read_file(target), target, path, bar=500)
    return Shown("writable", target, path)


def rival(bench: Bench, mounts: ExitStack) -> Shown | None:
    """The same through qemu-storage-daemon."""
    if reason := qemu_export.why_not():
        print(f"not compared with qemu-storage-daemon: {reason}", file=sys.stderr)
        return None
    mountpoint = mounts.enter_context(qemu_export.mounted(bench.place, bench.key, bench.mib))
    target, image = mountpoint / "weights", bench.place / qemu_export.IMAGE
    bench.speed(f"{RIVAL}: {WRITE}", lambda: write_file(target, bench.size))
    bench.speed(f"{RIVAL}: {READ}", lambda: read_file(target), target, image)
    return Shown(RIVAL, target, image)


def random_reads(bench: Bench, shown: list[Shown]) -> None:
    """4 KiB at a time, in turn."""
    found: dict[str, list[float]] = {each.name: [] for each in shown}
    for _ in range(bench.rounds):
        for each in shown:
            found[each.name].append(iops(each.target, each.below))
    for name, values in found.items():
        bar = None if name == RIVAL else 10_000
        bench.add(f"{name}: {RANDOM}", statistics.median(values), "IOPS", bar)


def memory(bench: Bench) -> None:
    """The most that the serving processes had, after all of it."""
    limit = 80 + 8 * bench.mib / 1024
    bench.add("sealed: memory of the daemon", daemon_memory("read"), "MB", limit, at_most=True)
    bench.add("writable: memory of the daemon", daemon_memory("write"), "MB", 80, at_most=True)


def compare(bench: Bench) -> None:
    """Ours in parts of the rival's."""
    values = {figure.name: figure.value for figure in bench.figures}
    for kind, work in product(("sealed", "writable"), (WRITE, READ, RANDOM)):
        if (ours := values.get(f"{kind}: {work}")) is not None:
            ratio = ours / values[f"{RIVAL}: {work}"]
            bench.add(f"{kind}, against {RIVAL}: {work}", ratio, "times", 1)


def drop_caches(*paths: Path) -> None:
    """Make the next read of a file, and of what lies below it, come from the disk."""
    for path in paths:
        if path.exists():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_file(path: Path) -> int:
    """Read a file from its start to its end."""
    buffer, total = bytearray(CHUNK), 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            total += count
    return total


def write_file(path: Path, size: int) -> int:
    """Write random bytes over a file; they are on the disk when this returns."""
    chunk = os.urandom(CHUNK)
    with path.open("r+b" if path.exists() else "wb", buffering=0) as file:
        for _ in range(size // CHUNK):
            file.write(chunk)
        os.fsync(file.fileno())
    return size


def read_view(view: SealedView | WritableView) -> int:
    """Read all of a view."""
    for offset in range(0, view.size, CHUNK):
        view.pread(offset, CHUNK)
    return view.size


def write_view(view: WritableView, size: int) -> int:
    """Write over a view; on the disk when this returns."""
    chunk = os.urandom(CHUNK)
    for offset in range(0, size, CHUNK):
        view.pwrite(offset, chunk)
    view.flush()
    return size


def iops(path: Path, below: Path) -> float:
    """Random reads of one block, past the page cache, several at a time."""
    drop_caches(path, below)
    blocks = path.stat().st_size // BLOCK_SIZE
    counts: list[int] = []
    end = time.perf_counter() + IOPS_SECONDS

    def read(seed: int) -> None:
        dice, count = random.Random(seed), 0
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
        with mmap.mmap(-1, BLOCK_SIZE) as buffer:
            while time.perf_counter() < end:
                os.preadv(descriptor, [buffer], dice.randrange(blocks) * BLOCK_SIZE)
                count += 1
        os.close(descriptor)
        counts.append(count)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(IOPS_DEPTH)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / IOPS_SECONDS


def median_time(bench: Bench, mount: Callable[[], Mount], path: Path) -> float:
    """Seconds from the call to files that can be read; our own keys need no stretching."""

    def once() -> float:
        drop_caches(path)
        started = time.perf_counter()
        with mount():
            return time.perf_counter() - started

    return statistics.median(once() for _ in range(bench.rounds))


def daemon_memory(mode: str) -> float:
    """The most that the FUSE process of that mode had in memory, in MB."""
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    for pid in children:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"sealserve.volume.fuse" in command and mode.encode() in command:
            found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
            assert found
            return int(found[1]) * 1024 / 1e6
    raise AssertionError("there is no FUSE process")


def openssl_speed() -> float:
    """What OpenSSL's own C loop reaches."""
    command = ["openssl", "speed", "-mr", "-seconds", "1", "-bytes", str(BLOCK_SIZE)]
    done = subprocess.run(
        [*command, "-evp", "aes-256-xts"], capture_output=True, text=True, check=True
    )
    found = re.search(r"\+F:\d+:[^:]+:([0-9.]+)", done.stdout)
    assert found, done.stdout
    return float(found[1]) / 1e6


if __name__ == "__main__":
    main()
