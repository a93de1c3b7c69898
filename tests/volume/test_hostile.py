"""Whatever header the host writes into the file: refused before anything is derived or started.

Two lines stand one behind the other, and each is tested without the other: the pin
in the signed record, and the whitelist, should an owner ever have signed such a header.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

from sealserve.errors import Refused
from sealserve.volume import engine, luks2
from sealserve.volume.engine import SealedView, layout_of
from sealserve.volume.fuse_driver import FuseDriver, FuseMapping
from sealserve.volume.kernel_driver import KernelDriver
from sealserve.volume.luks2 import parse_header
from sealserve.volume.mount import mount_sealed
from sealserve.volume.record import HeaderPin, VolumeRecord
from sealserve.volume.verity import append_tree
from tests.soak import times
from tests.volume.conftest import Sealed, tool
from tests.volume.headers import CRAFTED
from tests.volume.test_kernel_driver import Kernel, steps

NothingLeft = Callable[[], None]
DRIVERS = ("fuse", "kernel")
# One of them differs from ours by its length only, which a file cannot show.
ON_DISK = [name for name in CRAFTED if name != "cut off"]


@pytest.fixture(scope="module")
def head(sealed: Sealed) -> bytes:
    """Metadata and keyslot; the rest of the header area is never used."""
    with sealed.path.open("rb") as file:
        return file.read(1 << 19)


@pytest.fixture(scope="module")
def victim(sealed: Sealed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file in the host's hands."""
    path = tmp_path_factory.mktemp("host") / "models.seal"
    shutil.copyfile(sealed.path, path)
    return path


@pytest.fixture(scope="module")
def signed(sealed: Sealed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file in the hands of an owner who signs whatever there is."""
    path = tmp_path_factory.mktemp("fooled") / "models.seal"
    shutil.copyfile(sealed.path, path)
    return path


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: Any, **_kwargs: Any) -> NoReturn:
        raise AssertionError("a process or a key derivation was started")

    monkeypatch.setattr(subprocess, "Popen", fail)
    monkeypatch.setattr(os, "posix_spawn", fail)
    monkeypatch.setattr(os, "fork", fail)
    monkeypatch.setattr(hashlib, "pbkdf2_hmac", fail)
    monkeypatch.setattr(luks2, "Argon2id", fail)


def forbidden(command: Sequence[str], **_: Any) -> NoReturn:
    raise AssertionError(f"{command} was started")


def put(path: Path, head: bytes) -> None:
    with path.open("r+b", buffering=0) as file:
        file.write(head)


def signed_all_the_same(path: Path, record: VolumeRecord) -> VolumeRecord:
    """What an owner would have signed who was handed this file: pin and tree are right."""
    verity = record.verity
    with path.open("r+b") as file:
        root = append_tree(file.fileno(), verity.data_blocks, bytes.fromhex(verity.salt))
        file.seek(0)
        pin = hashlib.sha256(file.read(record.header.size)).hexdigest()
    return record.model_copy(
        update={
            "header": HeaderPin(sha256=pin, size=record.header.size),
            "verity": verity.model_copy(update={"root_hash": root.hex()}),
        }
    )


def refusals_of_the_drivers(path: Path, record: VolumeRecord, key: bytes, work: Path) -> set[str]:
    """The codes of what each driver itself looks at, once the mount's own check was passed."""
    kernel = Kernel(work, path)
    with path.open("rb") as file, pytest.raises(Refused) as by_fuse:
        SealedView(file.fileno(), record, key)
    with pytest.raises(Refused) as by_kernel:
        KernelDriver(kernel, mapper_directory=work).open(path, record, key, work)
    assert "cryptsetup open" not in steps(kernel.commands)
    assert kernel.up == []
    return {by_fuse.value.code, by_kernel.value.code}


@pytest.mark.parametrize("name", ON_DISK)
def test_the_pin_refuses_it(
    name: str, head: bytes, victim: Path, sealed: Sealed, tmp_path: Path, nothing_starts: None
) -> None:
    put(victim, CRAFTED[name](head))
    for driver in DRIVERS:
        with pytest.raises(Refused) as caught:
            mount_sealed(
                victim, sealed.record, sealed.key, tmp_path / "mnt", driver=driver, runner=forbidden
            )
        assert caught.value.code == "volume.header_mismatch"
    assert not (tmp_path / "mnt").exists()


@pytest.mark.parametrize("name", ON_DISK)
def test_the_whitelist_refuses_it_even_when_signed(
    name: str, head: bytes, signed: Path, sealed: Sealed, tmp_path: Path, nothing_starts: None
) -> None:
    put(signed, CRAFTED[name](head))
    record = signed_all_the_same(signed, sealed.record)
    codes = refusals_of_the_drivers(signed, record, sealed.key, tmp_path)
    assert codes == {"volume.header_refused"}


def test_the_drivers_keep_the_pin_too(
    head: bytes, victim: Path, sealed: Sealed, tmp_path: Path, nothing_starts: None
) -> None:
    put(victim, CRAFTED["attacker's volume key"](head))
    codes = refusals_of_the_drivers(victim, sealed.record, sealed.key, tmp_path)
    assert codes == {"volume.header_mismatch"}


def test_an_older_header_of_the_same_shape(
    head: bytes, victim: Path, sealed: Sealed, tmp_path: Path
) -> None:
    """One that cryptsetup made, with the same UUID, for the same key: only the pin tells."""
    old, key = tmp_path / "old", tmp_path / "key"
    key.write_bytes(sealed.key)
    with old.open("wb") as file:
        file.truncate(17 << 20)
    tool(
        "cryptsetup", "luksFormat", "-q", "--type=luks2", "--key-size=512", "--sector-size=4096",
        f"--uuid={sealed.record.uuid}", "--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000",
        "--key-file", str(key), str(old),
    )  # fmt: skip
    older = old.read_bytes()[: sealed.record.header.size]
    parse_header(older, uuid=sealed.record.uuid, layout=layout_of(sealed.record))
    put(victim, older[: len(head)])
    for driver in DRIVERS:
        with pytest.raises(Refused) as caught:
            mount_sealed(
                victim, sealed.record, sealed.key, tmp_path / "mnt", driver=driver, runner=forbidden
            )
        assert caught.value.code == "volume.header_mismatch"


class Swapping(FuseDriver):
    """The host acts between the mount's check and the driver's opening."""

    def __init__(self, head: bytes, *, rename: bool) -> None:
        self._head = head
        self._rename = rename

    def open(
        self,
        path: Path,
        record: VolumeRecord,
        key: bytes | bytearray,
        mountpoint: Path,
        token: str | None = None,
    ) -> FuseMapping:
        if self._rename:
            other = path.with_suffix(".other")
            shutil.copyfile(path, other)
            put(other, self._head)
            other.replace(path)
        else:
            put(path, self._head)
        return super().open(path, record, key, mountpoint, token)


@pytest.mark.timeout(600)
def test_a_header_swapped_between_check_and_open_is_refused(
    head: bytes, victim: Path, sealed: Sealed, tmp_path: Path, nothing_left: NothingLeft
) -> None:
    """The kernel driver's part of this is in tests/kernel, with a kernel."""
    put(victim, head)
    hostile = itertools.cycle(ON_DISK)
    for number in range(times(100, 10)):
        driver = Swapping(CRAFTED[next(hostile)](head), rename=bool(number % 2))
        with pytest.raises(Refused) as caught:
            mount_sealed(victim, sealed.record, sealed.key, tmp_path / "mnt", driver=driver)
        assert caught.value.code == "volume.header_mismatch"
        put(victim, head)
    with mount_sealed(victim, sealed.record, sealed.key, tmp_path / "mnt", driver="fuse"):
        assert (tmp_path / "mnt/models").is_dir()
    nothing_left()


def test_a_header_swapped_after_the_check_is_not_the_one_used(
    head: bytes, victim: Path, sealed: Sealed, plain: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was checked is what is used: one snapshot in our own memory."""
    put(victim, head)

    def swap_and_parse(*args: Any, **kwargs: Any) -> luks2.Header:
        put(victim, CRAFTED["attacker's volume key"](head))
        return parse_header(*args, **kwargs)

    monkeypatch.setattr(engine, "parse_header", swap_and_parse)
    with victim.open("rb") as file:
        view = SealedView(file.fileno(), sealed.record, sealed.key)
        assert view.pread(0, len(plain)) == plain
        view.close()


def test_a_header_that_changes_all_the_time(
    head: bytes, victim: Path, sealed: Sealed, plain: bytes
) -> None:
    """A race instead of a plan: every opening is refused or right."""
    put(victim, head)
    with _alternating(victim, head, CRAFTED["attacker's volume key"](head)), victim.open("rb") as f:
        for _ in range(times(1000, 50)):
            refusal = ""
            try:
                view = SealedView(f.fileno(), sealed.record, sealed.key)
            except Refused as refused:
                refusal = refused.code
            if refusal:
                assert refusal == "volume.header_mismatch"
            else:
                assert view.pread(0, 1 << 20) == plain[: 1 << 20]
                view.close()


@contextmanager
def _alternating(path: Path, *heads: bytes) -> Iterator[None]:
    done = threading.Event()

    def swap() -> None:
        with path.open("r+b", buffering=0) as file:
            for head in itertools.cycle(heads):
                os.pwrite(file.fileno(), head, 0)
                if done.wait(0.01):
                    return

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
