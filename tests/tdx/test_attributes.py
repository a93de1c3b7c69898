"""Attribute files are read whole, up to a limit, and written in one go."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from sealserve.tdx.attributes import read_attribute, write_attribute


def test_a_file_is_read_to_its_end_or_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "attribute"
    path.write_bytes(bytes(5000))
    assert len(read_attribute(path)) == 4096
    assert len(read_attribute(path, 10000)) == 5000


def test_many_short_reads_make_one_content(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "attribute"
    path.write_bytes(b"abcdefgh")
    read = os.read
    monkeypatch.setattr(os, "read", lambda file, limit: read(file, min(limit, 3)))
    assert read_attribute(path) == b"abcdefgh"
    assert read_attribute(path, 4) == b"abcd"


def test_data_are_written_in_one_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "attribute"
    path.write_bytes(b"old")
    write_attribute(path, b"new")
    assert path.read_bytes() == b"new"
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:1]))
    with pytest.raises(OSError, match="short write") as caught:
        write_attribute(path, b"new")
    assert caught.value.errno == errno.EIO


def test_what_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_attribute(tmp_path / "none", b"x")
    assert not (tmp_path / "none").exists()
