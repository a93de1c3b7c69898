"""A volume's life by the kernel driver, in a real kernel."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from sealserve.volume.mount import mount_writable
from tests.kernel.conftest import Guest, State
from tests.kernel.life import GROWN, _content
from tests.volume.conftest import Sealed, tool
from tests.volume.test_mount import sums

# Whichever test comes first boots the guest, on a machine that may be busy.
pytestmark = pytest.mark.timeout(300)


def test_a_killed_holder_takes_its_mount_along(guest: Guest) -> None:
    """Nothing of it is left: see `test_nothing_is_left_behind` for the devices."""
    assert guest["killed_holder"]["mounted"] is False


def test_unmount_needs_nothing_but_the_mount_point(guest: Guest) -> None:
    found = guest["unmounted_from_outside"]
    assert found["listed"] == [["/mnt", "mounted"]]
    assert found["was_mounted"] == [True, False]
    assert found["status"] == 0


def test_the_doctor_takes_away_what_a_crash_left(guest: Guest, sealed: Sealed) -> None:
    found = guest["crashed_half_way"]
    assert found["before"] is True
    assert json.loads(found["seen"])["leftovers"][0]["name"] == "/mnt"
    assert [(item["what"], item["outcome"]) for item in found["fixed"]] == [("mount", "removed")]
    assert found["after"] is False


def test_a_writable_volume_is_written_grown_and_pinned(guest: Guest) -> None:
    found = guest["writable"]
    assert set(found["options"]) >= {"rw", "nodev", "nosuid", "noexec"}
    assert "[volume.in_use]" in found["second"]
    assert found["grown_from"] < GROWN
    assert found["size"] > 0.8 * GROWN
    expected = {
        name: hashlib.sha256(_content(n)).hexdigest() for n, name in ((1, "first"), (2, "second"))
    }
    assert found["files"] == expected
    # The swapped header had no effect while the owner's copy was used, and is refused now.
    assert "[volume.header_mismatch]" in found["after_swap"]


def test_what_the_kernel_wrote_we_read(guest: Guest, state: State, tmp_path: Path) -> None:
    """The volume as it lies on the guest's disk, grown and written to, by our own engine."""
    copy = tmp_path / "state.vol"
    tool("debugfs", "-R", f"dump /state.vol {copy}", str(guest.disk))
    with mount_writable(
        copy, state.record, state.key, tmp_path / "mnt", driver="fuse", development=True
    ):
        found = sums(tmp_path / "mnt")
    assert found == guest["writable"]["files"]


def test_erofs_by_the_kernel(guest: Guest, sealed: Sealed) -> None:
    found = guest["erofs"]
    assert found["files"] == sums(sealed.source)
    assert set(found["options"]) >= {"ro", "nodev", "nosuid", "noexec"}
