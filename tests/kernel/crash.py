"""The guest that loses its power: it writes to a writable volume until it is gone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO

from sealserve.volume.mount import mount_writable
from sealserve.volume.owner import load_owner_public
from sealserve.volume.record import open_record
from tests.volume.writer import write_for_ever

DATA = Path("/data")
VOLUME = DATA / "state.vol"


def write_until_off(key: bytes, seed: int, results: IO[str]) -> None:
    """One line of results, name and digest, for each file that is safe by now."""
    record = open_record(
        (DATA / "state.record").read_bytes(), load_owner_public(DATA / "owner.pub")
    )

    def report(name: str, digest: str) -> None:
        print(json.dumps([name, digest]), file=results, flush=True)

    with mount_writable(VOLUME, record, key, Path("/mnt"), driver="kernel") as mount:
        write_for_ever(mount.mountpoint, seed, report)
