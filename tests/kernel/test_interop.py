"""The kernel's dm-crypt and our engine, each on what the other wrote."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from sealserve.volume.engine import WritableView
from sealserve.volume.luks2 import Layout
from tests.kernel import interop
from tests.kernel.conftest import LAYOUTS, Guest
from tests.soak import times
from tests.volume.conftest import Sealed, tool

pytestmark = pytest.mark.timeout(times(7200, 400))


def test_every_layout_is_the_same_to_both(guest: Guest) -> None:
    found = guest["every_layout"]["layouts"]
    assert [tuple(each["layout"]) for each in found] == LAYOUTS
    for each in found:
        assert each["we_read"] == each["kernel_wrote"], each
        assert each["kernel_read"] == each["we_wrote"], each
        assert each["kernel_wrote"] != each["we_wrote"]


def test_a_volume_that_the_kernel_made_is_read_here(
    guest: Guest, sealed: Sealed, tmp_path: Path
) -> None:
    """Out of the guest's disk, decrypted by the engine, its files taken out by debugfs."""
    wanted = guest["kernel_made"]["files"]
    volume, inside = tmp_path / "volume", tmp_path / "inside"
    tool("debugfs", "-R", f"dump /{interop.KERNEL_MADE.name} {volume}", str(guest.disk))
    with volume.open("rb") as file:
        view = WritableView(
            file.fileno(),
            uuid=interop.UUID,
            layout=Layout(interop.SEGMENT_OFFSET),
            size=interop.FILESYSTEM_SIZE,
            key=sealed.key,
        )
        inside.write_bytes(view.pread(0, view.size))
        view.close()
    tool("e2fsck", "-fn", str(inside))
    for name, digest in wanted.items():
        tool("debugfs", "-R", f'dump "/{name}" "{tmp_path / name}"', str(inside))
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest
