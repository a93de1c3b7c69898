"""Header backups, recovery by a phrase, and new volume keys."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sealserve.errors import InputError, Refused, SealserveError, Unavailable
from sealserve.volume import process
from sealserve.volume.engine import SealedView, verify_file
from sealserve.volume.luks2 import parse_header
from sealserve.volume.mount import mount_sealed
from sealserve.volume.record import VolumeRecord, open_record
from sealserve.volume.recovery import backup_header, new_phrase, recover_key, restore_header
from sealserve.volume.rotate import rotate
from tests.volume.conftest import Sealed, flip, tool
from tests.volume.test_mount import sums
from tests.volume.test_writable import Writable, empty, mounted, state

__all__ = ["empty", "state"]

PHRASE = b"a phrase with \xff and blanks"
NEW = bytes(range(32))


@pytest.fixture(scope="module")
def backup(sealed: Sealed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("backup") / "models.header"
    backup_header(
        sealed.path, sealed.record, target, key=sealed.key, phrase=PHRASE, memory_kib=1 << 16
    )
    return target


def content(path: Path, record: VolumeRecord, key: bytes | bytearray) -> bytes:
    with path.open("rb") as file:
        view = SealedView(file.fileno(), record, key)
        try:
            return bytes(view.pread(0, view.size))
        finally:
            view.close()


def test_the_phrase_opens_the_volume(
    sealed: Sealed, backup: Path, plain: bytes, tmp_path: Path
) -> None:
    key = recover_key(sealed.record, backup, PHRASE)
    assert content(sealed.path, sealed.record, key) == plain
    with mount_sealed(sealed.path, sealed.record, key, tmp_path / "mnt", driver="fuse"):
        assert sums(tmp_path / "mnt") == sums(sealed.source)


def test_cryptsetup_takes_the_backup_too(sealed: Sealed, backup: Path, tmp_path: Path) -> None:
    phrase, key = tmp_path / "phrase", tmp_path / "key"
    phrase.write_bytes(PHRASE)
    key.write_bytes(sealed.key)
    test = ["open", "--test-passphrase", "--header", str(backup), "--key-file"]
    tool("cryptsetup", *test, str(phrase), str(sealed.path))
    with pytest.raises(AssertionError, match="No key available"):
        tool("cryptsetup", *test, str(key), str(sealed.path))
    dump = tool("cryptsetup", "luksDump", str(backup))
    assert "PBKDF:      argon2id" in dump
    assert f"UUID:          \t{sealed.record.uuid}" in dump


def test_the_recovery_slot_is_only_in_the_backup(sealed: Sealed, backup: Path) -> None:
    """The shipped file is as it was; the backup is for its owner's eyes."""
    assert backup.stat().st_mode & 0o077 == 0
    with sealed.path.open("rb") as file:
        verify_file(file.fileno(), sealed.record)
    assert "argon2id" not in tool("cryptsetup", "luksDump", str(sealed.path))


def test_the_default_cost_is_a_gibibyte(sealed: Sealed, tmp_path: Path) -> None:
    seen: list[str] = []

    def spy(command: Sequence[str], **kwargs: Any) -> str:
        seen.extend(command)
        raise Unavailable("volume.tool_failed", "seen enough")

    with pytest.raises(Unavailable):
        backup_header(
            sealed.path, sealed.record, tmp_path / "b", key=sealed.key, phrase=PHRASE, runner=spy
        )
    assert {"--pbkdf=argon2id", "--pbkdf-memory=1048576"} <= set(seen)
    assert not any(PHRASE.decode("latin1") in word for word in seen)
    assert not (tmp_path / "b").exists()


def test_a_wrong_phrase_or_backup_is_refused(sealed: Sealed, backup: Path, tmp_path: Path) -> None:
    for phrase, code in ((PHRASE + b"\n", "volume.key_wrong"), (b"short", "volume.phrase_size")):
        with pytest.raises(SealserveError) as caught:
            recover_key(sealed.record, backup, phrase)
        assert caught.value.code == code
    with pytest.raises(InputError) as caught:
        recover_key(sealed.record, sealed.path, PHRASE)
    assert caught.value.code == "volume.backup_malformed"
    other = sealed.record.model_copy(update={"uuid": "0" * 8 + sealed.record.uuid[8:]})
    with pytest.raises(Refused) as refused:
        recover_key(other, backup, PHRASE)
    assert refused.value.code == "volume.header_refused"


def test_another_volumes_recovered_key_opens_nothing(sealed: Sealed) -> None:
    with pytest.raises(Refused) as caught:
        content(sealed.path, sealed.record, bytes(64))
    assert caught.value.code == "volume.key_wrong"


@pytest.mark.parametrize("with_phrase", [True, False])
def test_a_damaged_header_is_put_back(
    sealed: Sealed, copy: Path, backup: Path, tmp_path: Path, with_phrase: bool
) -> None:
    if not with_phrase:
        backup = tmp_path / "plain backup"
        backup_header(sealed.path, sealed.record, backup)
        assert backup.stat().st_size == sealed.record.header.size
    with copy.open("r+b") as file:
        file.write(os.urandom(100_000))
    with pytest.raises(Refused), copy.open("rb") as file:
        verify_file(file.fileno(), sealed.record)
    restore_header(copy, sealed.record, backup)
    with copy.open("rb") as file:
        verify_file(file.fileno(), sealed.record)


def test_no_other_header_is_put_back(
    sealed: Sealed, copy: Path, backup: Path, tmp_path: Path
) -> None:
    spoilt = tmp_path / "spoilt"
    spoilt.write_bytes(backup.read_bytes())
    flip(spoilt, sealed.record.header.size + 5000)
    before = copy.read_bytes()
    with pytest.raises(Refused) as caught:
        restore_header(copy, sealed.record, spoilt)
    assert caught.value.code == "volume.header_mismatch"
    assert copy.read_bytes() == before
    spoilt.write_bytes(b"x")
    with pytest.raises(InputError) as malformed:
        restore_header(copy, sealed.record, spoilt)
    assert malformed.value.code == "volume.backup_malformed"


def test_phrases_differ_and_can_be_read_out() -> None:
    one, other = new_phrase(), new_phrase()
    assert one != other
    assert [len(group) for group in one.split(b"-")] == [4] * 8
    assert not set(one) & set(b"0oO1lI")


def test_a_rotated_volume_has_other_sectors_and_the_same_content(
    sealed: Sealed, copy: Path, plain: bytes
) -> None:
    old = copy.read_bytes()
    raw = rotate(copy, sealed.record, sealed.key, new_key=NEW, owner_key=sealed.owner)
    record = open_record(raw, sealed.owner.public_key())
    assert record.version == sealed.record.version + 1
    assert (record.name, record.models) == (sealed.record.name, sealed.record.models)
    assert record.uuid != sealed.record.uuid
    assert content(copy, record, NEW) == plain
    new = copy.read_bytes()
    begin, end = record.segment_offset, record.segment_end
    blocks = [{raw[at : at + 4096] for at in range(begin, end, 4096)} for raw in (old, new)]
    assert len(blocks[0]) > 700
    assert not blocks[0] & blocks[1]
    # The old key and the old record open the old file only.
    for opened, key in ((record, sealed.key), (sealed.record, sealed.key), (sealed.record, NEW)):
        with pytest.raises(Refused):
            content(copy, opened, key)


def test_a_recovered_key_rotates(
    sealed: Sealed, backup: Path, plain: bytes, tmp_path: Path
) -> None:
    """The way back for an owner whose broker is lost."""
    key, target = recover_key(sealed.record, backup, PHRASE), tmp_path / "new"
    raw = rotate(
        sealed.path, sealed.record, key, new_key=NEW, owner_key=sealed.owner, target=target
    )
    assert content(target, open_record(raw, sealed.owner.public_key()), NEW) == plain


def test_an_interrupted_rotation_leaves_the_old_volume(
    sealed: Sealed, copy: Path, plain: bytes, nothing_left: Callable[[], None]
) -> None:
    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    arguments: dict[str, Any] = {"new_key": NEW, "owner_key": sealed.owner}
    with pytest.raises(KeyboardInterrupt):
        rotate(copy, sealed.record, sealed.key, progress=stop, **arguments)
    assert content(copy, sealed.record, sealed.key) == plain
    assert not copy.with_name("copy.seal.partial").exists()
    rotate(copy, sealed.record, sealed.key, **arguments)
    nothing_left()


def test_a_changed_block_is_not_carried_over(sealed: Sealed, copy: Path) -> None:
    flip(copy, sealed.record.segment_offset + (2 << 20))
    with pytest.raises(Refused) as caught:
        rotate(copy, sealed.record, sealed.key, new_key=NEW, owner_key=sealed.owner)
    assert caught.value.code == "volume.block_mismatch"


def test_a_writable_volume_rotates(state: Writable, sealed: Sealed, tmp_path: Path) -> None:
    with mounted(state, tmp_path / "mnt"):
        (tmp_path / "mnt/f").write_bytes(b"state")
        with pytest.raises(InputError) as caught:
            rotate(state.path, state.record, state.key, new_key=NEW, owner_key=sealed.owner)
        assert caught.value.code == "volume.in_use"
    raw = rotate(state.path, state.record, state.key, new_key=NEW, owner_key=sealed.owner)
    record = open_record(raw, sealed.owner.public_key())
    with mounted(Writable(state.path, record, NEW), tmp_path / "mnt"):
        assert (tmp_path / "mnt/f").read_bytes() == b"state"


def test_a_failing_program_leaves_the_old_volume(
    sealed: Sealed, copy: Path, tmp_path: Path
) -> None:
    def failing(command: Sequence[str], **kwargs: Any) -> str:
        process.run(command, **kwargs)
        raise Unavailable("volume.tool_failed", "injected")

    before = copy.read_bytes()
    with pytest.raises(Unavailable, match="injected"):
        rotate(copy, sealed.record, sealed.key, new_key=NEW, owner_key=sealed.owner, runner=failing)
    assert copy.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_the_recovery_header_has_our_one_shape(sealed: Sealed, backup: Path) -> None:
    from sealserve.volume.engine import layout_of

    area = backup.read_bytes()[: sealed.record.header.size]
    header = parse_header(area, uuid=sealed.record.uuid, layout=layout_of(sealed.record))
    assert header.slot.kind == "argon2id"
