"""Verity trees against veritysetup, and against flipped bits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sealserve.errors import Refused
from sealserve.volume.record import BLOCK_SIZE, VerityParameters, tree_blocks
from sealserve.volume.verity import VerityTree, append_tree, read_exactly
from tests.volume.conftest import flip, tool

SALT = bytes(range(32))


def make(path: Path, blocks: int) -> VerityParameters:
    path.write_bytes(os.urandom(blocks * BLOCK_SIZE))
    descriptor = os.open(path, os.O_RDWR)
    root = append_tree(descriptor, blocks, SALT)
    os.close(descriptor)
    return VerityParameters(
        data_blocks=blocks,
        hash_offset=blocks * BLOCK_SIZE,
        salt=SALT.hex(),
        root_hash=root.hex(),
    )


# Around the places where a level is full, and a new one begins.
@pytest.mark.parametrize("blocks", [2, 127, 128, 129, 300, 128 * 128, 128 * 128 + 1])
def test_veritysetup_agrees(tmp_path: Path, blocks: int) -> None:
    path = tmp_path / "data"
    parameters = make(path, blocks)
    assert path.stat().st_size == (blocks + tree_blocks(blocks)) * BLOCK_SIZE
    geometry = [
        "--no-superblock", "--format=1", "--hash=sha256", f"--salt={SALT.hex()}",
        f"--data-blocks={blocks}", f"--hash-offset={parameters.hash_offset}",
        "--data-block-size=4096", "--hash-block-size=4096",
    ]  # fmt: skip
    tool("veritysetup", "verify", *geometry, str(path), str(path), parameters.root_hash)
    theirs = tmp_path / "theirs"
    with path.open("rb") as file:
        theirs.write_bytes(file.read(parameters.hash_offset))
    made = tool("veritysetup", "format", *geometry, str(theirs), str(theirs))
    assert parameters.root_hash in made
    assert theirs.read_bytes() == path.read_bytes()


def test_every_block_of_the_tree_counts(tmp_path: Path) -> None:
    path = tmp_path / "data"
    parameters = make(path, 300)
    for block in range(tree_blocks(300)):
        for within in (0, 31, 4095):  # the last one is padding: it counts too
            offset = parameters.hash_offset + block * BLOCK_SIZE + within
            flip(path, offset)
            with path.open("rb") as file, pytest.raises(Refused) as caught:
                VerityTree.load(file.fileno(), parameters)
            assert caught.value.code == "volume.tree_mismatch"
            flip(path, offset)
    with path.open("rb") as file:
        VerityTree.load(file.fileno(), parameters)


def test_a_wrong_block_is_named(tmp_path: Path) -> None:
    path = tmp_path / "data"
    parameters = make(path, 300)
    flip(path, 257 * BLOCK_SIZE + 77)
    with path.open("rb") as file:
        tree = VerityTree.load(file.fileno(), parameters)
        tree.check(read_exactly(file.fileno(), 257 * BLOCK_SIZE, 0), 0)
        chunk = read_exactly(file.fileno(), 3 * BLOCK_SIZE, 256 * BLOCK_SIZE)
        with pytest.raises(Refused, match="block 257") as caught:
            tree.check(chunk, 256 * BLOCK_SIZE)
    assert caught.value.code == "volume.block_mismatch"


def test_blocks_cannot_change_places(tmp_path: Path) -> None:
    path = tmp_path / "data"
    parameters = make(path, 10)
    with path.open("rb") as file:
        tree = VerityTree.load(file.fileno(), parameters)
        block = read_exactly(file.fileno(), BLOCK_SIZE, 0)
    tree.check(block, 0)
    with pytest.raises(Refused):
        tree.check(block, BLOCK_SIZE)


def test_a_file_that_ends_early_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data"
    parameters = make(path, 300)
    os.truncate(path, parameters.hash_offset + BLOCK_SIZE)
    with path.open("rb") as file, pytest.raises(Refused) as caught:
        VerityTree.load(file.fileno(), parameters)
    assert caught.value.code == "volume.size_mismatch"
