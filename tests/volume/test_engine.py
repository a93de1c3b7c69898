"""The verified view: equal to what cryptsetup decrypts, and never a wrong byte."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealserve.errors import InputError, Refused
from sealserve.volume.engine import SealedView, WritableView, check_file, layout_of, verify_file
from sealserve.volume.maker import create_sealed
from sealserve.volume.record import HeaderPin, key_id_of, open_record
from tests.volume.conftest import MARKER, Sealed, flip
from tests.volume.headers import CRAFTED


@contextmanager
def view_of(path: Path, sealed: Sealed, key: bytes | None = None) -> Iterator[SealedView]:
    with path.open("rb") as file:
        view = SealedView(file.fileno(), sealed.record, key or sealed.key)
        try:
            yield view
        finally:
            view.close()


def test_the_view_is_what_cryptsetup_decrypts(sealed: Sealed, plain: bytes) -> None:
    assert MARKER in plain
    with view_of(sealed.path, sealed) as view:
        assert view.size == len(plain)
        assert b"".join(view.pread(at, 1 << 20) for at in range(0, view.size, 1 << 20)) == plain


@pytest.fixture(scope="module")
def opened(sealed: Sealed) -> Iterator[SealedView]:
    with view_of(sealed.path, sealed) as view:
        yield view


@settings(deadline=None)
@given(st.integers(0, 13 << 20), st.integers(0, 20_000))
def test_any_slice(opened: SealedView, plain: bytes, offset: int, size: int) -> None:
    assert opened.pread(offset, size) == plain[offset : offset + size]


def test_announcing_a_read_changes_nothing(opened: SealedView, plain: bytes) -> None:
    """Nor does one beyond the end, which a program may ask for."""
    for offset in (0, len(plain) - 4096, len(plain), (1 << 63) - 4096):
        opened.prepare(offset, 65536)
        assert opened.pread(offset, 65536) == plain[offset : offset + 65536]


def test_a_change_behind_an_announcement_is_noticed(copy: Path, sealed: Sealed) -> None:
    """What was fetched ahead is ciphertext, and verified when it is read, not before."""
    with view_of(copy, sealed) as view:
        view.prepare(8192, 4096)
        flip(copy, sealed.record.segment_offset + 8192)
        with pytest.raises(Refused):
            view.pread(8192, 4096)


def test_a_change_after_the_check_is_noticed(copy: Path, sealed: Sealed) -> None:
    with view_of(copy, sealed) as view:
        flip(copy, sealed.record.segment_offset + 8192)
        view.pread(0, 4096)
        with pytest.raises(Refused):
            view.pread(8192, 4096)
        os.truncate(copy, sealed.record.segment_offset + 4096)
        with pytest.raises(Refused):
            view.pread(1 << 20, 4096)


def test_a_changed_tree_does_not_help(copy: Path, sealed: Sealed) -> None:
    """The tree was read and checked once; the host's later version of it counts for nothing."""
    with view_of(copy, sealed) as view:
        offset = sealed.record.verity.hash_offset
        with copy.open("r+b") as file:
            file.seek(offset)
            file.write(bytes(sealed.record.file_size - offset))
        view.pread(0, view.size)


@pytest.mark.parametrize("change", [-4096, -1, 1, 4096])
def test_truncated_or_extended(copy: Path, sealed: Sealed, change: int) -> None:
    os.truncate(copy, sealed.record.file_size + change)
    with copy.open("rb") as file, pytest.raises(Refused) as caught:
        check_file(file.fileno(), sealed.record)
    assert caught.value.code == "volume.size_mismatch"


def test_older_and_foreign_files(sealed: Sealed, tmp_path: Path, source: Path, copy: Path) -> None:
    """The same owner, key and source, sealed once more: yet it is another volume."""
    other = tmp_path / "other.seal"
    raw = create_sealed(
        other, source, key=sealed.key, owner_key=sealed.owner, name="models", version=4
    )
    record = open_record(raw, sealed.owner.public_key())
    assert record.file_size == sealed.record.file_size
    for path, wanted in ((other, sealed.record), (sealed.path, record)):
        with path.open("rb") as file, pytest.raises(Refused) as caught:
            check_file(file.fileno(), wanted)
        assert caught.value.code == "volume.tree_mismatch"
    # The header of the one on the body of the other.
    with copy.open("r+b") as file, other.open("rb") as donor:
        file.write(donor.read(sealed.record.header.size))
    with copy.open("rb") as file, pytest.raises(Refused) as caught:
        check_file(file.fileno(), sealed.record)
    assert caught.value.code == "volume.header_mismatch"


@pytest.mark.parametrize("name", ["null segment cipher", "argon2 bomb", "null keyslot cipher"])
def test_a_hostile_header_meets_the_pin_first(copy: Path, sealed: Sealed, name: str) -> None:
    with copy.open("r+b") as file:
        hostile = CRAFTED[name](file.read(sealed.record.header.size))
        file.seek(0)
        file.write(hostile)
    with copy.open("rb") as file, pytest.raises(Refused) as caught:
        check_file(file.fileno(), sealed.record)
    assert caught.value.code == "volume.header_mismatch"


def test_header_pin_and_tree_must_both_hold(sealed: Sealed) -> None:
    """A record whose header digest is another one is refused although the tree is right."""
    pin = HeaderPin(sha256="0" * 64, size=sealed.record.header.size)
    record = sealed.record.model_copy(update={"header": pin})
    with sealed.path.open("rb") as file, pytest.raises(Refused) as caught:
        check_file(file.fileno(), record)
    assert caught.value.code == "volume.header_mismatch"


def test_wrong_keys(sealed: Sealed) -> None:
    wrong = bytes(32)
    with pytest.raises(Refused) as caught, view_of(sealed.path, sealed, wrong):
        pass
    assert caught.value.code == "volume.key_wrong"
    for size in (0, 31, 33):
        with sealed.path.open("rb") as file, pytest.raises(InputError) as refused:
            SealedView(file.fileno(), sealed.record, b"x" * size)
        assert refused.value.code == "volume.key_size"


def test_a_key_that_only_the_record_accepts(sealed: Sealed) -> None:
    """The keyslot has the last word."""
    wrong = bytes(32)
    record = sealed.record.model_copy(update={"key_id": key_id_of(wrong)})
    with sealed.path.open("rb") as file, pytest.raises(Refused) as caught:
        SealedView(file.fileno(), record, wrong)
    assert caught.value.code == "volume.key_wrong"


def test_writable_view_round_trip(copy: Path, sealed: Sealed, plain: bytes) -> None:
    record = sealed.record
    model = bytearray(plain)
    dice = random.Random(7)
    with copy.open("r+b") as file:
        view = WritableView(
            file.fileno(),
            uuid=record.uuid,
            layout=layout_of(record),
            size=record.data_size,
            key=sealed.key,
        )
        for _ in range(60):
            offset = dice.randrange(len(model))
            data = dice.randbytes(min(dice.choice((1, 100, 4096, 9000)), len(model) - offset))
            assert view.pwrite(offset, data) == len(data)
            model[offset : offset + len(data)] = data
        view.flush()
        assert view.pread(0, len(model)) == model
        for offset, size in ((len(model), 1), (len(model) - 1, 2), (-1, 1)):
            with pytest.raises(InputError):
                view.pwrite(offset, bytes(size))
        view.close()


def test_progress_of_verification(sealed: Sealed) -> None:
    seen: list[tuple[int, int]] = []
    with sealed.path.open("rb") as file:
        verify_file(file.fileno(), sealed.record, lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (sealed.record.verity.hash_offset,) * 2


def test_unreadable_is_not_unverified(sealed: Sealed, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    with empty.open("rb") as file, pytest.raises(Refused) as caught:
        check_file(file.fileno(), sealed.record)
    assert caught.value.code == "volume.size_mismatch"
