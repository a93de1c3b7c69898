"""Volumes of others: made by a real kernel and imported here; adopted here and opened there."""

from __future__ import annotations

from pathlib import Path

import pytest

from sealserve.volume.importing import import_volume
from sealserve.volume.reader import SealedReader
from sealserve.volume.record import open_record
from tests.kernel.conftest import Guest
from tests.kernel.originals import PASSPHRASE, VERSIONS, volume_of
from tests.volume.conftest import Sealed, tool
from tests.volume.test_mount import sums

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("version", VERSIONS)
def test_what_the_originals_steps_make_is_imported(
    version: int, guest: Guest, sealed: Sealed, tmp_path: Path
) -> None:
    wanted = guest["originals"][f"luks{version}"]
    old, new = tmp_path / "old", tmp_path / "new"
    tool("debugfs", "-R", f"dump /{volume_of(version).name} {old}", str(guest.disk))
    signed = import_volume(
        old, new, passphrase=PASSPHRASE, key=sealed.key, owner_key=sealed.owner, name="models"
    )
    record = open_record(signed, sealed.owner.public_key())
    with SealedReader(new, record, sealed.key) as volume:
        volume.extract(tmp_path / "out")
    assert len(wanted) == 2
    assert sums(tmp_path / "out") == wanted


def test_an_adopted_volume_of_512_byte_sectors_by_the_kernel(guest: Guest, sealed: Sealed) -> None:
    found = guest["adopted"]
    assert found["files"] == sums(sealed.source)
    assert set(found["options"]) >= {"ro", "nodev", "nosuid", "noexec"}
