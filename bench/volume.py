"""How fast a sealed volume is read, beside what bounds it, all in one run.

raw file, OpenSSL's own XTS over 4096-byte sectors, the engine without and with
verification, and the mounted file (fuse driver, loop device, ext4). Each figure
is the median of the rounds, page caches dropped before every cold read. For the
mounted read two processes share the cores; dropping caches needs root.

Example: .venv/bin/python bench/volume.py --mib 512 --rounds 3
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import secrets
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealserve import logs
from sealserve.volume.cipher import XTS_KEY_SIZE, sector_cipher
from sealserve.volume.engine import SealedView, verify_file
from sealserve.volume.maker import create_sealed
from sealserve.volume.mount import mount_sealed
from sealserve.volume.record import BLOCK_SIZE, VolumeRecord, open_record

CHUNK = 1 << 20


def main() -> None:
    """Make a volume, read it in every way, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--directory", type=Path, help="where the volume is made")
    options = parser.parse_args()
    logs.configure()
    with tempfile.TemporaryDirectory(dir=options.directory) as scratch:
        figures = measure(Path(scratch), options.mib, options.rounds)
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    raw = figures["raw file, cold"]
    for name, speed in figures.items():
        print(f"{name:42} {speed:8.0f} MB/s   {speed / raw:5.2f} x raw")


def measure(place: Path, mib: int, rounds: int) -> dict[str, float]:
    """Every figure in MB/s."""
    source = place / "source"
    source.mkdir()
    with (source / "weights").open("wb") as file:
        for _ in range(mib):
            file.write(os.urandom(CHUNK))
    key, owner = secrets.token_bytes(32), Ed25519PrivateKey.generate()
    path = place / "volume.seal"
    size = mib << 20
    started = time.perf_counter()
    signed = create_sealed(path, source, key=key, owner_key=owner, name="bench")
    figures = {"make (format, fill, hash, fsync)": size / (time.perf_counter() - started) / 1e6}
    record = open_record(signed, owner.public_key())

    def median(work: Callable[[], int]) -> float:
        return statistics.median(_speed(work, path) for _ in range(rounds))

    figures["raw file, cold"] = median(lambda: _read_file(path))
    figures["OpenSSL XTS, its own loop (openssl speed)"] = _openssl_speed()
    figures["our XTS in memory, decrypt"] = median(lambda: _cipher_alone(mib))
    figures["whole-file verification, cold"] = median(lambda: _verify(path, record))
    figures["engine, verified and decrypted, cold"] = median(lambda: _engine(path, record, key))
    figures["mounted file (fuse driver), cold"] = statistics.median(
        _mounted(path, record, key, place / "mnt") for _ in range(rounds)
    )
    return figures


def _speed(work: Callable[[], int], path: Path) -> float:
    _drop_caches(path)
    started = time.perf_counter()
    return work() / (time.perf_counter() - started) / 1e6


def _drop_caches(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read_file(path: Path) -> int:
    buffer, total = bytearray(CHUNK), 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            total += count
    return total


def _openssl_speed() -> float:
    command = ["openssl", "speed", "-mr", "-seconds", "1", "-bytes", str(BLOCK_SIZE)]
    done = subprocess.run(
        [*command, "-evp", "aes-256-xts"], capture_output=True, text=True, check=True
    )
    found = re.search(r"\+F:\d+:[^:]+:([0-9.]+)", done.stdout)
    assert found, done.stdout
    return float(found[1]) / 1e6


def _cipher_alone(mib: int) -> int:
    cipher = sector_cipher(secrets.token_bytes(XTS_KEY_SIZE), BLOCK_SIZE)
    buffer = bytearray(CHUNK)
    for number in range(mib):
        cipher.decrypt(buffer, number * CHUNK)
    cipher.close()
    return mib * CHUNK


def _verify(path: Path, record: VolumeRecord) -> int:
    with path.open("rb") as file:
        verify_file(file.fileno(), record)
    return record.verity.hash_offset


def _engine(path: Path, record: VolumeRecord, key: bytes) -> int:
    with path.open("rb") as file:
        view = SealedView(file.fileno(), record, key)
        for offset in range(0, view.size, CHUNK):
            view.pread(offset, CHUNK)
        view.close()
    return record.data_size


def _mounted(path: Path, record: VolumeRecord, key: bytes, mountpoint: Path) -> float:
    with mount_sealed(path, record, key, mountpoint, driver="fuse"):
        with contextlib.suppress(PermissionError):
            Path("/proc/sys/vm/drop_caches").write_text("1")
        return _speed(lambda: _read_file(mountpoint / "weights"), path)


if __name__ == "__main__":
    main()
