"""Volumes made in the guest as the original's scripts make them, for import outside.

The steps of ``create_encrypted_vfs.sh`` and ``mount_encrypted_vfs.sh``: loop device,
``luksFormat``, ``luksOpen`` with ``echo``'s line break, ``mkfs.ext4``, files, and all of it undone.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path
from typing import Any

from sealserve.volume.process import find_tool, run

PASSPHRASE = b"the original's password"
VERSIONS = (1, 2)

_DATA = Path("/data")
_SIZE = 28 << 20
_MAPPER = "1234567890"
_MOUNTPOINT = Path("/luks_fs")


def volume_of(version: int) -> Path:
    """Where the volume of a LUKS version is."""
    return _DATA / f"original-luks{version}.vol"


def originals(key: bytes) -> dict[str, Any]:
    """The digests of the files in each volume."""
    del key
    return {f"luks{version}": _made(version) for version in VERSIONS}


def _made(version: int) -> dict[str, str]:
    path = volume_of(version)
    with path.open("wb") as file:
        file.truncate(_SIZE)
    loop = run(["losetup", "--find", "--show", str(path)]).strip()
    try:
        # But a quick derivation: this processor is an emulated one.
        quick = ["--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000"]
        cipher = ["-s", "512", "-c", "aes-xts-plain64"]
        _typed(["luksFormat", f"--type=luks{version}", "-q", *quick, *cipher, loop])
        _typed(["luksOpen", loop, _MAPPER])
        try:
            return _filled()
        finally:
            run(["cryptsetup", "luksClose", _MAPPER])
    finally:
        run(["losetup", "-d", loop])


def _typed(command: list[str]) -> None:
    done = subprocess.run(
        [find_tool("cryptsetup"), *command], input=PASSPHRASE + b"\n", capture_output=True,
        check=False, timeout=100,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError((command, done.stderr))


def _filled() -> dict[str, str]:
    device = f"/dev/mapper/{_MAPPER}"
    run(["mkfs.ext4", "-q", device])
    _MOUNTPOINT.mkdir()
    run(["mount", "-t", "ext4", device, str(_MOUNTPOINT)])
    sums = {}
    try:
        for number, name in enumerate(("model/net/1/saved_model.pb", "ssl_configure/ssl.cfg")):
            content = os.urandom(300_000 * number + 777)
            (_MOUNTPOINT / name).parent.mkdir(parents=True)
            (_MOUNTPOINT / name).write_bytes(content)
            sums[name] = hashlib.sha256(content).hexdigest()
    finally:
        run(["umount", str(_MOUNTPOINT)])
        _MOUNTPOINT.rmdir()
    return sums
