"""A writable volume through the kernel driver, on a machine that loses its power."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sealserve.volume.maker import create_writable
from sealserve.volume.record import open_record
from tests.kernel import crash
from tests.kernel.machine import DISK, power_off_guest
from tests.kernel.package import Kernel
from tests.soak import times
from tests.volume.conftest import KEY, need_tools, tool
from tests.volume.test_crash import assert_intact
from tests.volume.test_writable import Writable, decrypted

pytestmark = pytest.mark.timeout(times(7200, 400))


@pytest.mark.parametrize("seed", range(times(10, 1)))
def test_what_was_synced_survives(
    kernel: Kernel, owner: Ed25519PrivateKey, tmp_path: Path, seed: int
) -> None:
    need_tools()
    path = tmp_path / "state.vol"
    raw = create_writable(path, size=48 << 20, key=KEY, owner_key=owner, name="state")
    public = owner.public_key()
    files = {
        crash.VOLUME.name: path,
        "state.record": raw,
        "owner.pub": public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        "plan.json": json.dumps({"crash": seed}).encode(),
    }
    lines = random.Random(seed).randrange(3, 40)
    safe = dict(power_off_guest(kernel, KEY, files, tmp_path, lines))
    assert len(safe) >= lines
    # The volume's file stands in the guest's own filesystem, which lost its power with it.
    disk = tmp_path / DISK
    assert subprocess.run(["/sbin/e2fsck", "-fp", disk], check=False).returncode <= 1
    path.unlink()
    tool("debugfs", "-R", f"dump /{crash.VOLUME.name} {path}", str(disk))
    volume = Writable(path, open_record(raw, public), KEY)
    assert_intact(decrypted(volume, tmp_path), safe, tmp_path)
