"""The key-encryption key: the file's modes, and what wrapping binds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from sealserve.broker.kek_file import KEK_BYTES, FileKek
from sealserve.errors import Refused, SealserveError, Unavailable

_KEK = FileKek(bytes(range(32)))


def test_a_new_key_file_is_private_and_opens(tmp_path: Path) -> None:
    path = tmp_path / "kek"
    wrapped = FileKek.create(path).wrap(b"secret", name="a", version=1)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_size == KEK_BYTES
    assert FileKek.load(path).unwrap(wrapped, name="a", version=1) == b"secret"


def test_an_existing_key_file_is_never_replaced(tmp_path: Path) -> None:
    FileKek.create(tmp_path / "kek")
    with pytest.raises(FileExistsError):
        FileKek.create(tmp_path / "kek")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o601, 0o610, 0o700, 0o777])
def test_a_mode_wider_than_0600_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "kek"
    FileKek.create(path)
    path.chmod(mode)
    with pytest.raises(Refused) as caught:
        FileKek.load(path)
    assert caught.value.code == "kek.mode_too_wide"


def test_a_key_of_another_user_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "kek"
    FileKek.create(path)
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(path, 12345, -1)
    with pytest.raises(Refused) as caught:
        FileKek.load(path)
    assert caught.value.code == "kek.wrong_owner"


@pytest.mark.parametrize(
    ("size", "code"), [(0, "wrong_size"), (31, "wrong_size"), (33, "wrong_size")]
)
def test_a_key_of_another_size_is_refused(tmp_path: Path, size: int, code: str) -> None:
    path = tmp_path / "kek"
    path.touch(mode=0o600)
    path.write_bytes(bytes(size))
    with pytest.raises(Refused) as caught:
        FileKek.load(path)
    assert caught.value.code == f"kek.{code}"


def test_links_directories_and_pipes_are_no_keys(tmp_path: Path) -> None:
    FileKek.create(tmp_path / "kek")
    (tmp_path / "link").symlink_to(tmp_path / "kek")
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "directory").mkdir()
    codes = []
    for name in ("link", "pipe", "directory", "absent"):
        with pytest.raises((Refused, Unavailable)) as caught:
            FileKek.load(tmp_path / name)
        codes.append(caught.value.code)
    assert codes == ["kek.unreadable", "kek.not_a_file", "kek.not_a_file", "kek.unreadable"]


def test_the_wrapping_is_aes_256_gcm_as_documented() -> None:
    wrapped = _KEK.wrap(b"secret", name="models/demo", version=7)
    label, name = b"sealserve broker wrap v1", b"models/demo"
    fields = (label, name, (7).to_bytes(4, "big"))
    bound = b"".join(len(field).to_bytes(4, "big") + field for field in fields)
    assert AESGCM(bytes(range(32))).decrypt(wrapped[:12], wrapped[12:], bound) == b"secret"


@given(st.binary(max_size=200), st.text(max_size=20), st.integers(0, 2**32 - 1))
def test_what_is_wrapped_opens_again(plaintext: bytes, name: str, version: int) -> None:
    wrapped = _KEK.wrap(plaintext, name=name, version=version)
    assert _KEK.unwrap(wrapped, name=name, version=version) == plaintext


@given(st.data())
def test_any_change_is_refused_and_shows_nothing(data: st.DataObject) -> None:
    secret = b"planted secret bytes"
    wrapped = _KEK.wrap(secret, name="a", version=1)
    position = data.draw(st.integers(0, len(wrapped) * 8 - 1))
    changed = bytearray(wrapped)
    changed[position // 8] ^= 1 << position % 8
    for attempt in (
        lambda: _KEK.unwrap(bytes(changed), name="a", version=1),
        lambda: _KEK.unwrap(wrapped, name="b", version=1),
        lambda: _KEK.unwrap(wrapped, name="a", version=2),
        lambda: _KEK.unwrap(wrapped[:10], name="a", version=1),
        lambda: FileKek(bytes(32)).unwrap(wrapped, name="a", version=1),
    ):
        with pytest.raises(SealserveError) as caught:
            attempt()
        assert caught.value.code == "kek.unwrap_failed"
        assert "planted" not in str(caught.value)


def test_the_key_is_in_no_repr() -> None:
    assert repr(_KEK).startswith("<sealserve.broker.kek_file.FileKek object")
