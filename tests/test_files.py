"""Small files: limits, hints, and nothing half-written."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from sealserve.errors import InputError, Unavailable
from sealserve.files import (
    atomic_file,
    make_directory,
    read_limited,
    require_absent,
    require_writable_place,
    stamp_of,
    write_atomically,
)


def test_what_is_written_is_read_back_up_to_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"12345", mode=0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_limited(path, 5) == b"12345"
    with pytest.raises(InputError) as large:
        read_limited(path, 4, hint="find it", hint_if_large="cut it")
    assert (large.value.code, large.value.hint) == ("file.too_large", "cut it")
    with pytest.raises(Unavailable) as missing:
        read_limited(tmp_path / "none", 4, hint="find it", hint_if_large="cut it")
    assert (missing.value.code, missing.value.hint) == ("file.unreadable", "find it")
    assert missing.value.where == str(tmp_path / "none")


def test_a_file_is_replaced_only_where_that_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old", replace=False)
    for refused in (
        lambda: write_atomically(path, b"new", replace=False),
        lambda: require_absent(path),
    ):
        with pytest.raises(InputError) as caught:
            refused()
        assert caught.value.code == "file.exists"
    with pytest.raises(InputError) as advised:
        require_absent(path, hint="elsewhere")
    assert advised.value.hint == "elsewhere"
    assert path.read_bytes() == b"old"
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_dangling_link_is_something_too(tmp_path: Path) -> None:
    path = tmp_path / "link"
    path.symlink_to(tmp_path / "none")
    with pytest.raises(InputError, match=r"file\.exists"):
        require_absent(path)
    with pytest.raises(InputError, match=r"file\.exists"):
        write_atomically(path, b"", replace=False)


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt(), OSError(28, "full")])
def test_a_failure_half_way_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: BaseException
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    expected = Unavailable if isinstance(error, OSError) else type(error)

    def write_half() -> None:
        with atomic_file(path, hint="make room") as file:
            file.write(b"half")
            raise error

    with pytest.raises(expected) as caught:
        write_half()
    if isinstance(caught.value, Unavailable):
        assert (caught.value.code, caught.value.hint) == ("file.unwritable", "make room")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_places_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for attempt in (
        lambda: write_atomically(tmp_path / "none" / "file", b""),
        lambda: write_atomically(tmp_path / "file" / "below", b""),
        lambda: make_directory(tmp_path / "file" / "below"),
        lambda: require_writable_place(tmp_path / "none" / "file"),
        lambda: require_writable_place(tmp_path),
    ):
        with pytest.raises(Unavailable) as caught:
            attempt()
        assert caught.value.code == "file.unwritable"


def test_a_stamp_changes_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert stamp_of(path) is None
    write_atomically(path, b"1")
    first = stamp_of(path)
    assert first == stamp_of(path)
    assert first is not None
    write_atomically(path, b"2")  # of the same size
    assert stamp_of(path) not in (None, first)
