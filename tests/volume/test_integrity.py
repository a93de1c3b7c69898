"""Flipped bits: 1000 of them over the whole file, each refused or EIO, never a wrong byte."""

from __future__ import annotations

import errno
import mmap
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from sealserve.errors import Refused
from sealserve.volume.engine import SealedView, verify_file
from sealserve.volume.fuse_driver import FuseDriver
from sealserve.volume.record import BLOCK_SIZE
from tests.volume.conftest import Sealed, flip

NothingLeft = Callable[[], None]
FLIPS = 1000


@dataclass(frozen=True)
class Flips:
    """Places in bits, drawn anew in each run; ``seed`` is shown when a test fails."""

    seed: int
    header: list[int]
    data: list[int]
    tree: list[int]


@pytest.fixture(scope="module")
def flips(sealed: Sealed) -> Flips:
    record, seed = sealed.record, random.randrange(1 << 32)
    bits = sorted(random.Random(seed).sample(range(record.file_size * 8), FLIPS))
    begin, end = record.segment_offset * 8, record.verity.hash_offset * 8
    return Flips(
        seed,
        header=[bit for bit in bits if bit < begin],
        data=[bit for bit in bits if begin <= bit < end],
        tree=[bit for bit in bits if bit >= end],
    )


@pytest.fixture(scope="module")
def damaged(
    sealed: Sealed, flips: Flips, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, set[int]]:
    """A copy with every flip of the data in it, and the numbers of the blocks they hit."""
    path = tmp_path_factory.mktemp("damaged") / "models.seal"
    shutil.copyfile(sealed.path, path)
    for bit in flips.data:
        flip(path, bit // 8, bit % 8)
    begin = sealed.record.segment_offset
    return path, {(bit // 8 - begin) // BLOCK_SIZE for bit in flips.data}


def test_a_flip_in_header_or_tree_lets_nothing_open(
    copy: Path, sealed: Sealed, flips: Flips
) -> None:
    for place in flips.header + flips.tree:
        flip(copy, place // 8, place % 8)
        with copy.open("rb") as file, pytest.raises(Refused) as caught:
            SealedView(file.fileno(), sealed.record, sealed.key)
        code = "header" if place in flips.header else "tree"
        assert caught.value.code == f"volume.{code}_mismatch", (flips.seed, place)
        flip(copy, place // 8, place % 8)
    with copy.open("rb") as file:
        verify_file(file.fileno(), sealed.record)


def test_a_flip_in_the_data_spoils_its_block_and_no_other(
    damaged: tuple[Path, set[int]], sealed: Sealed, flips: Flips, plain: bytes
) -> None:
    """Block by block through the engine; `plain` is what cryptsetup made of it."""
    path, hit = damaged
    with path.open("rb") as file:
        view = SealedView(file.fileno(), sealed.record, sealed.key)
        refused = set()
        for number in range(sealed.record.data_size // BLOCK_SIZE):
            at = number * BLOCK_SIZE
            try:
                found = view.pread(at, BLOCK_SIZE)
            except Refused:
                refused.add(number)
            else:
                assert found == plain[at : at + BLOCK_SIZE], (flips.seed, number)
        view.close()
    assert refused == hit, flips.seed


def test_larger_reads_give_nothing_of_a_damaged_block(
    damaged: tuple[Path, set[int]], sealed: Sealed, flips: Flips, plain: bytes
) -> None:
    path, hit = damaged
    dice = random.Random(flips.seed)
    with path.open("rb") as file:
        view = SealedView(file.fileno(), sealed.record, sealed.key)
        for _ in range(500):
            at = dice.randrange(view.size)
            size = min(dice.randrange(1, 20 * BLOCK_SIZE), view.size - at)
            blocks = range(at // BLOCK_SIZE, (at + size - 1) // BLOCK_SIZE + 1)
            if hit.isdisjoint(blocks):
                assert view.pread(at, size) == plain[at : at + size], flips.seed
            else:
                with pytest.raises(Refused) as caught:
                    view.pread(at, size)
                assert caught.value.code == "volume.block_mismatch"
        view.close()


@pytest.mark.parametrize("place", ["first", "last"])
@pytest.mark.parametrize("part", ["header", "data", "tree"])
def test_the_edges_count(copy: Path, sealed: Sealed, part: str, place: str) -> None:
    record = sealed.record
    begin, end = {
        "header": (0, record.header.size),
        "data": (record.segment_offset, record.verity.hash_offset),
        "tree": (record.verity.hash_offset, record.file_size),
    }[part]
    flip(copy, begin if place == "first" else end - 1, 0 if place == "first" else 7)
    with copy.open("rb") as file, pytest.raises(Refused) as caught:
        verify_file(file.fileno(), record)
    assert caught.value.code == f"volume.{'block' if part == 'data' else part}_mismatch"


def test_through_the_driver_it_is_eio(
    damaged: tuple[Path, set[int]],
    sealed: Sealed,
    flips: Flips,
    plain: bytes,
    tmp_path: Path,
    nothing_left: NothingLeft,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Every block of the FUSE file, past the page cache: right, or EIO exactly where it was hit."""
    path, hit = damaged
    mapping = FuseDriver().open(path, sealed.record, sealed.key, tmp_path / "mnt")
    try:
        failed = set()
        descriptor = os.open(mapping.device, os.O_RDONLY | os.O_DIRECT)
        with mmap.mmap(-1, BLOCK_SIZE) as buffer:
            for number in range(sealed.record.data_size // BLOCK_SIZE):
                at = number * BLOCK_SIZE
                try:
                    assert os.preadv(descriptor, [buffer], at) == BLOCK_SIZE
                except OSError as error:
                    if error.errno != errno.EIO:
                        raise
                    failed.add(number)
                else:
                    assert buffer[:] == plain[at : at + BLOCK_SIZE], (flips.seed, number)
        os.close(descriptor)
    finally:
        mapping.close()
    assert failed == hit, flips.seed
    assert "[volume.block_mismatch]" in capfd.readouterr().err
    nothing_left()
