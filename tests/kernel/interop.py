"""Volumes that this kernel makes and our engine opens, and the other way round.

Each layout of LUKS2 once: the kernel writes, we read; we write, the kernel reads.
What is compared are digests over the whole segment.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sealserve.volume.engine import WritableView
from sealserve.volume.kernel_driver import loop_device
from sealserve.volume.luks2 import Layout
from sealserve.volume.process import run, secret_pipe

DATA = Path("/data")
SEGMENT_OFFSET = 16 << 20
SEGMENT_SIZE = 1 << 20
FILESYSTEM_SIZE = 16 << 20
UUID = "11111111-2222-3333-4444-555555555555"
KERNEL_MADE = DATA / "kernel-made.vol"

_NAME = "interop"
_DEVICE = Path("/dev/mapper", _NAME)
_MOUNTPOINT = Path("/mnt")


def every_layout(key: bytes) -> dict[str, Any]:
    """Digests of what one side wrote and the other read, for each planned layout."""
    layouts = json.loads((DATA / "plan.json").read_bytes())["layouts"]
    return {"layouts": [_both_ways(key, *layout) for layout in layouts]}


def kernel_made(key: bytes) -> dict[str, Any]:
    """A filesystem on a volume of the kernel's; the file is looked at outside."""
    layout = Layout(SEGMENT_OFFSET)
    _format(KERNEL_MADE, key, layout, FILESYSTEM_SIZE)
    with _opened(KERNEL_MADE, key):
        run(["mkfs.ext4", "-q", str(_DEVICE)])
        _MOUNTPOINT.mkdir()
        run(["mount", "-t", "ext4", str(_DEVICE), str(_MOUNTPOINT)])
        sums = {}
        for number in range(5):
            content = os.urandom(100_000 * number + 1)
            (_MOUNTPOINT / f"file {number}").write_bytes(content)
            sums[f"file {number}"] = hashlib.sha256(content).hexdigest()
        run(["umount", str(_MOUNTPOINT)])
        _MOUNTPOINT.rmdir()
    return {"files": sums}


def _both_ways(key: bytes, metadata_kib: int, sector_size: int) -> dict[str, Any]:
    path = DATA / "layout.vol"
    layout = Layout(SEGMENT_OFFSET, sector_size, metadata_kib << 10)
    _format(path, key, layout, SEGMENT_SIZE)
    theirs, ours = os.urandom(SEGMENT_SIZE), os.urandom(SEGMENT_SIZE)
    with _opened(path, key):
        _write(_DEVICE, theirs)
    with path.open("r+b") as file:
        view = WritableView(file.fileno(), uuid=UUID, layout=layout, size=SEGMENT_SIZE, key=key)
        read_by_us = view.pread(0, SEGMENT_SIZE)
        view.pwrite(0, ours)
        view.flush()
        view.close()
    with _opened(path, key):
        read_by_kernel = _DEVICE.read_bytes()
    path.unlink()
    return {
        "layout": [metadata_kib, sector_size],
        "kernel_wrote": hashlib.sha256(theirs).hexdigest(),
        "we_read": hashlib.sha256(read_by_us).hexdigest(),
        "we_wrote": hashlib.sha256(ours).hexdigest(),
        "kernel_read": hashlib.sha256(read_by_kernel).hexdigest(),
    }


def _format(path: Path, key: bytes, layout: Layout, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(layout.segment_offset + size)
    with secret_pipe(key) as reader:
        command = [
            "cryptsetup", "luksFormat", "--type=luks2", "--batch-mode", "--key-size=512",
            "--cipher=aes-xts-plain64", f"--sector-size={layout.sector_size}",
            f"--luks2-metadata-size={layout.metadata_size >> 10}k",
            f"--luks2-keyslots-size={layout.keyslots_size >> 10}k",
            f"--offset={layout.segment_offset // 512}", f"--uuid={UUID}",
            "--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000",
            f"--key-file=/proc/self/fd/{reader}", str(path),
        ]  # fmt: skip
        run(command, pass_fds=[reader])


@contextmanager
def _opened(path: Path, key: bytes) -> Iterator[None]:
    """The kernel's own opening of a volume, without any of our checks."""
    with loop_device(path, run, read_only=False) as loop, secret_pipe(key) as reader:
        key_file = f"--key-file=/proc/self/fd/{reader}"
        run(["cryptsetup", "open", "--type=luks2", key_file, loop, _NAME], pass_fds=[reader])
    try:
        yield
    finally:
        run(["cryptsetup", "close", _NAME])


def _write(device: Path, content: bytes) -> None:
    with device.open("r+b", buffering=0) as file:
        done = 0
        while done < len(content):
            done += file.write(content[done:])
        os.fsync(file.fileno())
