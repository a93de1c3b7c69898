"""qemu-storage-daemon's LUKS export, mounted as the fuse driver mounts ours: the one to beat.

It knows LUKS1 only. Needs root, and the Debian package qemu-system-common.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

IMAGE = "luks1.img"

_START_TIMEOUT = 20.0


def why_not() -> str | None:
    """Why it cannot run here."""
    if not shutil.which("qemu-storage-daemon"):
        return "qemu-storage-daemon is not installed (qemu-system-common)"
    return None if os.geteuid() == 0 else "only root mounts"


@contextmanager
def mounted(place: Path, key: bytes, mib: int) -> Iterator[Path]:
    """A fresh LUKS1 volume with ext4 on it, writable; the mount point."""
    image, export, mountpoint = place / IMAGE, place / "luks1", place / "luks1.mnt"
    key_file = place / "luks1.key"
    key_file.write_text(key.hex())  # it wants text
    with image.open("wb") as file:
        file.truncate((mib + 64) << 20)
    _run(
        "cryptsetup", "luksFormat", "-q", "--type=luks1", "--key-size=512",
        "--cipher=aes-xts-plain64", "--pbkdf-force-iterations=1000", f"--key-file={key_file}",
        str(image),
    )  # fmt: skip
    export.touch()
    mountpoint.mkdir()
    with ExitStack() as undo:
        daemon = subprocess.Popen(
            [
                "qemu-storage-daemon",
                "--object", f"secret,id=s,file={key_file}",
                "--blockdev", f"driver=file,node-name=f,filename={image}",
                "--blockdev", "driver=luks,node-name=l,file=f,key-secret=s",
                "--export", f"type=fuse,id=e,node-name=l,mountpoint={export},writable=on",
            ],
            # As our process, and as every daemon: processor time is shared out by session.
            start_new_session=True,
        )  # fmt: skip
        undo.callback(daemon.wait)
        undo.callback(daemon.terminate)
        deadline = time.monotonic() + _START_TIMEOUT
        while export.stat().st_size == 0:
            if daemon.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("qemu-storage-daemon did not export the volume")
            time.sleep(0.05)
        device = _run("losetup", "--find", "--show", "--direct-io=on", str(export)).strip()
        undo.callback(_run, "losetup", "--detach", device)
        _run("mkfs.ext4", "-q", "-E", "nodiscard,lazy_itable_init=0", device)
        _run("mount", device, str(mountpoint))
        undo.callback(_run, "umount", str(mountpoint))
        yield mountpoint


def _run(*command: str) -> str:
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    program = shutil.which(command[0], path=path) or command[0]
    return subprocess.run(
        [program, *command[1:]], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
