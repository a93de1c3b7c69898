"""One guest for all tests: booted first of all, it works beside the tests of other rooms."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sealserve.volume.importing import adopt
from sealserve.volume.maker import create_sealed, create_writable
from sealserve.volume.record import VolumeRecord, open_record
from tests.conftest import missing
from tests.kernel.machine import DISK, running_guest, why_not
from tests.kernel.package import Kernel, NoKernelError, cached_kernel
from tests.soak import SOAK, times
from tests.volume.conftest import Sealed, owner, plain, sealed, source
from tests.volume.foreign import MIB, encrypted, filesystem
from tests.volume.headers import CRAFTED

__all__ = ["State", "guest", "owner", "plain", "sealed", "source", "state"]

VICTIM = "models/net/1/variables/data"
# Those that cryptsetup opens with the right key when nothing below it objects, and the
# one that it opens with any.
HOSTILE = ("null segment cipher", "segment offset", "another uuid", "attacker's volume key")
ANY_KEY = HOSTILE[-1]
# Metadata sizes in KiB with sector sizes in bytes: all of LUKS2's under soak, else the ends.
LAYOUTS = (
    [(16 << power, sector) for power in range(9) for sector in (512, 4096)]
    if SOAK
    else [(16, 512), (512, 4096), (4096, 512), (4096, 4096)]
)


@dataclass(frozen=True)
class Guest:
    """What was planned for the guest, and what it found, by scenario."""

    plan: dict[str, Any]
    found: dict[str, Any]
    disk: Path

    def __getitem__(self, scenario: str) -> dict[str, Any]:
        """What a scenario found; fails where it failed."""
        finding: dict[str, Any] = self.found[scenario]
        assert "failed" not in finding, finding["failed"]
        return finding


@pytest.fixture(scope="session")
def kernel() -> Kernel:
    """What is booted."""
    if reason := why_not():
        missing("a machine to boot a kernel in", reason)
    try:
        return cached_kernel()
    except NoKernelError as error:
        missing("a kernel to boot", str(error))
        raise AssertionError from None


@dataclass(frozen=True)
class State:
    """A writable volume, as it was before the guest had it."""

    path: Path
    raw: bytes
    record: VolumeRecord
    key: bytes


@pytest.fixture(scope="session")
def state(sealed: Sealed, tmp_path_factory: pytest.TempPathFactory) -> State:
    """A writable volume of the same owner, under the same key."""
    path = tmp_path_factory.mktemp("state") / "state.vol"
    raw = create_writable(path, size=24 << 20, key=sealed.key, owner_key=sealed.owner, name="state")
    return State(path, raw, open_record(raw, sealed.owner.public_key()), sealed.key)


@dataclass(frozen=True)
class Booted:
    """A guest that may still be running; `findings` waits for its end."""

    plan: dict[str, Any]
    findings: Callable[[], dict[str, Any]]
    disk: Path


@pytest.fixture(scope="session")
def booted(
    kernel: Kernel, sealed: Sealed, state: State, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Booted]:
    """A guest that tries everything in `tests.kernel.scenarios`, beside the tests that follow."""
    plan = _plan(sealed)
    files = _files(sealed, state, plan, tmp_path_factory)
    work = tmp_path_factory.mktemp("guest")
    with running_guest(kernel, sealed.key, files, work) as findings:
        yield Booted(plan, findings, work / DISK)


@pytest.fixture(scope="session")
def guest(booted: Booted) -> Guest:
    """The findings of that guest."""
    return Guest(booted.plan, booted.findings(), booted.disk)


def _files(
    sealed: Sealed, state: State, plan: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path | bytes]:
    """What stands in the guest's ``/data``."""
    public = sealed.owner.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    files: dict[str, Path | bytes] = {
        "models.seal": sealed.path,
        "models.record": sealed.raw,
        "owner.pub": public,
        "plan.json": json.dumps(plan).encode(),
    }
    erofs = tmp_path_factory.mktemp("erofs") / "erofs.seal"
    files["erofs.record"] = create_sealed(
        erofs, sealed.source, key=sealed.key, owner_key=sealed.owner, name="e", filesystem="erofs"
    )
    files |= _adopted(sealed, tmp_path_factory.mktemp("adopted"))
    files |= {"erofs.seal": erofs, "state.vol": state.path, "state.record": state.raw}
    with sealed.path.open("rb") as file:
        area = file.read(sealed.record.header.size)
    # Metadata and keyslot.
    files |= {f"{name}.header": CRAFTED[name](area)[: 1 << 19] for name in HOSTILE}
    return files


def _adopted(sealed: Sealed, work: Path) -> dict[str, Path | bytes]:
    """A volume of cryptsetup's, with 512-byte sectors, and our record of it."""
    inside = filesystem(work / "inside", sealed.source, 12 * MIB, "-b4096")
    old = encrypted(inside, work / "old", passphrase=sealed.key)
    raw = adopt(old, work / "new", key=sealed.key, owner_key=sealed.owner, name="adopted")
    return {"adopted.seal": work / "new", "adopted.record": raw}


def _plan(sealed: Sealed) -> dict[str, Any]:
    record = sealed.record
    segment = range(record.segment_offset * 8, record.verity.hash_offset * 8)
    return {
        "data": random.sample(segment, 24),
        "header": [5000 * 8 + 3],
        "leaf": [(record.file_size - 4096) * 8 + 5],  # the first digest in the last block
        "victim": VICTIM,
        "layouts": LAYOUTS,
        "swaps": times(100, 8),
        "cycles": times(200, 16),
        "seconds": times(3600, 120),
    }
