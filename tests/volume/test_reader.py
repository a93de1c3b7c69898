"""Reading without a mount: the source's bytes, or a typed refusal."""

from __future__ import annotations

import os
import random
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from sealserve.errors import InputError, Refused, SealserveError
from sealserve.volume.filesystems import open_tree, read_node
from sealserve.volume.maker import create_sealed
from sealserve.volume.reader import SealedReader
from sealserve.volume.record import Filesystem, open_record
from sealserve.volume.tree import tree_digest
from tests.volume.conftest import KEY, Sealed, flip, need_tools

BOTH: tuple[Filesystem, ...] = ("ext4", "erofs")


@dataclass(frozen=True)
class Volume:
    sealed: Sealed
    filesystem: Filesystem
    inside: bytes


@pytest.fixture(scope="module", params=BOTH)
def volume(
    request: pytest.FixtureRequest,
    owner: Ed25519PrivateKey,
    source: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Volume:
    """The usual source, and beside it what makes a filesystem's structures large."""
    need_tools()
    root = tmp_path_factory.mktemp("reader")
    tree = root / "source"
    shutil.copytree(source, tree, symlinks=True)
    many = tree / "many"
    many.mkdir()
    for number in range(700):  # more than one block of names
        (many / f"a rather long name of a file, number {number}").write_bytes(b"%d" % number)
    (tree / "long link").symlink_to("many/" + "x" * 200)
    (tree / "a/b/c/d").mkdir(parents=True)
    for size in (1, 4095, 4096, 4097, 70_000):
        (tree / "a/b/c/d" / str(size)).write_bytes(random.Random(size).randbytes(size))
    path = root / "v.seal"
    raw = create_sealed(path, tree, key=KEY, owner_key=owner, name="v", filesystem=request.param)
    record = open_record(raw, owner.public_key())
    sealed = Sealed(path, tree, record, raw, KEY, owner)
    with SealedReader(path, record, KEY) as reader:
        view = reader._view
        inside = bytes(view.pread(0, view.size))
    return Volume(sealed, request.param, inside)


@pytest.fixture
def reader(volume: Volume) -> Iterator[SealedReader]:
    with SealedReader(volume.sealed.path, volume.sealed.record, KEY) as opened:
        yield opened


def test_all_that_is_extracted_is_the_source(
    reader: SealedReader, volume: Volume, tmp_path: Path
) -> None:
    target, source = tmp_path / "out", volume.sealed.source
    count = reader.extract(target)
    assert count == sum(path.is_file() and not path.is_symlink() for path in source.rglob("*"))
    assert tree_digest(target) == tree_digest(source)
    assert target.stat().st_mode & 0o077 == 0
    modes = {str(p.relative_to(target)): p.stat().st_mode for p in target.rglob("*") if p.is_file()}
    for name, mode in modes.items():
        assert mode & 0o777 == (source / name).stat().st_mode & 0o777 & ~0o022, name


def test_names_and_files(reader: SealedReader, volume: Volume) -> None:
    source = volume.sealed.source
    assert set(reader.names()) - {"lost+found"} == {path.name for path in source.iterdir()}
    assert reader.names("many") == sorted(path.name for path in (source / "many").iterdir())
    name = "models/net/1/variables/data"
    content = (source / name).read_bytes()
    assert reader.read(name) == content
    with reader.open(name) as file:
        assert file.read(10) == content[:10]
        file.seek(-100, os.SEEK_END)
        assert file.read() == content[-100:]
        file.seek(4090)
        assert file.tell() == 4090
        assert file.read(20) == content[4090:4110]
    reader.close()
    reader.close()


def test_any_piece_of_a_file(volume: Volume) -> None:
    name = "models/net/1/variables/data"
    content = (volume.sealed.source / name).read_bytes()
    with SealedReader(volume.sealed.path, volume.sealed.record, KEY) as reader:
        node = reader._find(name, lambda _: True)
        dice = random.Random(5)
        for _ in range(50):
            offset, size = dice.randrange(len(content) + 10), dice.randrange(10_000)
            found = read_node(reader._view, node, offset, size)
            assert found == content[offset : offset + size]


@pytest.mark.parametrize(
    "name", ["none", "models/net/none", "tls/server.key/x", "models", "long link"]
)
def test_what_is_no_file(reader: SealedReader, name: str) -> None:
    with pytest.raises(InputError) as caught:
        reader.read(name)
    assert caught.value.code == "volume.no_such_file"


def test_nothing_is_written_over(reader: SealedReader, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        reader.extract(tmp_path)
    assert caught.value.code == "volume.target_exists"


def test_a_changed_block_is_a_refusal(sealed: Sealed, copy: Path, plain: bytes) -> None:
    name = "models/net/1/variables/data"
    content = (sealed.source / name).read_bytes()
    flip(copy, sealed.record.segment_offset + plain.index(content[8192:12288]) + 9)
    with SealedReader(copy, sealed.record, sealed.key) as reader:
        with pytest.raises(Refused) as caught:
            reader.read(name)
        assert caught.value.code == "volume.block_mismatch"
        assert reader.read("tls/server.key")


class Memory:
    """A filesystem in memory, spoilt on purpose: nothing verifies it."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.size = len(content)

    def pread(self, offset: int, size: int) -> bytes:
        return self.content[offset : offset + size] if offset >= 0 else b""


def read_all(view: Memory, filesystem: Filesystem) -> None:
    tree = open_tree(view, filesystem)
    left = [tree.root()]
    for _ in range(300):
        if not left:
            return
        node = left.pop()
        if node.mode >> 12 == 4:
            left += [child for _, child in zip(range(100), _nodes(tree, node), strict=False)]
        else:
            read_node(view, node, 0, min(node.size, 100_000))


def _nodes(tree: object, node: object) -> object:
    return (child for _, child in tree.entries(node))  # type: ignore[attr-defined]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_spoilt_filesystem_raises_only_our_errors(volume: Volume, data: st.DataObject) -> None:
    """Bytes changed where structures are: superblock, descriptors, inodes, directories."""
    spoilt = bytearray(volume.inside)
    used = [at for at in range(0, min(len(spoilt), 1 << 20), 256) if any(spoilt[at : at + 256])]
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.sampled_from(used)) + data.draw(st.integers(0, 255))
        value = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
        spoilt[at] = value
    try:
        read_all(Memory(bytes(spoilt)), volume.filesystem)
    except SealserveError as error:
        assert error.code == "volume.filesystem_refused"  # noqa: PT017


@pytest.mark.parametrize("size", [0, 100, 1024, 2048, 4096])
@pytest.mark.parametrize("filesystem", BOTH)
def test_a_cut_off_filesystem_is_refused(volume: Volume, filesystem: Filesystem, size: int) -> None:
    with pytest.raises(Refused):
        read_all(Memory(volume.inside[:size]), filesystem)


def test_unknown_features_are_refused(volume: Volume) -> None:
    spoilt = bytearray(volume.inside)
    at = 1024 + (96 if volume.filesystem == "ext4" else 80)
    (features,) = struct.unpack_from("<I", spoilt, at)
    struct.pack_into("<I", spoilt, at, features | 0x8000)
    with pytest.raises(Refused, match="features") as caught:
        open_tree(Memory(bytes(spoilt)), volume.filesystem)
    assert caught.value.code == "volume.filesystem_refused"
