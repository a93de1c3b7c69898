"""The header backup that the owner keeps, and the way back in by it.

A backup file holds, one behind the other, each as large as the volume's header area:

1. a recovery header: the volume's own key in a keyslot that a phrase opens (Argon2id,
   1 GiB). ``cryptsetup open --header BACKUP VOLUME NAME`` takes it too, should
   sealserve be lost. A backup made without a phrase has none.
2. the volume's header area as its record pins it, to be put back.

Rules this module keeps:

* The recovery keyslot is never in the volume's file: the host has that, and all the
  time in the world to try phrases.
* What is put back is compared with the record first.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sealserve.errors import InputError, Unavailable
from sealserve.files import require_absent, sync_path
from sealserve.volume.cipher import XTS_KEY_SIZE, wipe
from sealserve.volume.engine import check_file, check_header, check_key, check_writable, layout_of
from sealserve.volume.filling import format_header
from sealserve.volume.luks2 import parse_header, unlock
from sealserve.volume.mapper import locked_volume_file, open_volume_file
from sealserve.volume.process import Runner, run
from sealserve.volume.record import VolumeRecord
from sealserve.volume.verity import read_exactly

__all__ = ["MAX_PHRASE", "backup_header", "new_phrase", "recover_key", "restore_header"]

MAX_PHRASE: Final = 512
"""Bytes of the longest phrase."""

_SHORTEST: Final = 16
_MEMORY_KIB: Final = 1 << 20
_ALPHABET: Final = "abcdefghjkmnpqrstvwxyz23456789"  # nothing that looks like something else
_GROUPS: Final = 8
_GROUP: Final = 4


def new_phrase() -> bytes:
    """A phrase of 157 random bits, in groups that can be read out and typed."""
    groups = ("".join(secrets.choice(_ALPHABET) for _ in range(_GROUP)) for _ in range(_GROUPS))
    return "-".join(groups).encode()


def backup_header(
    path: Path,
    record: VolumeRecord,
    target: Path,
    *,
    key: bytes | bytearray | None = None,
    phrase: bytes | bytearray | None = None,
    memory_kib: int = _MEMORY_KIB,
    runner: Runner = run,
) -> None:
    """Write a header backup.

    Args:
        path: the volume.
        record: its record.
        target: the file to make.
        key: the volume key; needed for a recovery header.
        phrase: opens the recovery header, `_SHORTEST` to `MAX_PHRASE` bytes.
        memory_kib: of the phrase's key derivation.
        runner: runs the system's programs.

    Raises:
        InputError: ``file.exists``, ``volume.phrase_size``, ``volume.key_size``.
        Refused: the file or the key is not what the record says.
        Unavailable: ``file.unwritable``, ``volume.tool_failed``.
    """
    require_absent(target)
    area = _checked_area(path, record)
    if phrase is None:
        with _new_file(target) as descriptor:
            _write(descriptor, area, 0)
        return
    _check_phrase(phrase)
    if key is None:
        raise InputError("volume.key_size", "a recovery header needs the volume's key")
    volume_key = _volume_key(record, area, key)
    try:
        with _new_file(target) as descriptor:
            _write(descriptor, area, record.header.size)
            derivation = (
                "--pbkdf=argon2id", f"--pbkdf-memory={memory_kib}", "--pbkdf-parallel=4",
                "--pbkdf-force-iterations=4",
            )  # fmt: skip
            format_header(
                Path(f"/proc/self/fd/{descriptor}"), record.uuid, phrase, runner,
                derivation=derivation, volume_key=volume_key, layout=layout_of(record),
                inherited=[descriptor],
            )  # fmt: skip
    finally:
        wipe(volume_key)


def recover_key(record: VolumeRecord, backup: Path, phrase: bytes | bytearray) -> bytearray:
    """The LUKS volume key from a header backup.

    Args:
        record: the volume's record.
        backup: a backup with a recovery header.
        phrase: opens it.

    Returns:
        64 bytes, which all that opens volumes takes in the place of a key. The caller wipes them.

    Raises:
        InputError: ``volume.backup_malformed``, ``volume.phrase_size``.
        Refused: ``volume.header_refused``, ``volume.key_wrong``.
    """
    _check_phrase(phrase)
    with open_volume_file(backup) as descriptor:
        if os.fstat(descriptor).st_size != 2 * record.header.size:
            raise InputError(
                "volume.backup_malformed",
                "not a header backup with a recovery header for this volume",
                where=str(backup),
                hint="`volume backup-header --phrase-fd` makes one",
            )
        area = read_exactly(descriptor, record.header.size, 0)
    header = parse_header(area, uuid=record.uuid, layout=layout_of(record))
    return unlock(header, area, phrase)


def restore_header(path: Path, record: VolumeRecord, backup: Path) -> None:
    """Put a damaged header back, as the record pins it.

    Raises:
        InputError: ``volume.backup_malformed``, ``volume.in_use``.
        Refused: ``volume.header_mismatch`` when the backup is another volume's.
        Unavailable: ``volume.unreadable``.
    """
    size = record.header.size
    with open_volume_file(backup) as descriptor:
        there = os.fstat(descriptor).st_size
        if there not in (size, 2 * size):
            raise InputError(
                "volume.backup_malformed", "not a header backup of this volume", where=str(backup)
            )
        area = read_exactly(descriptor, size, there - size)
    check_header(area, record)
    parse_header(area, uuid=record.uuid, layout=layout_of(record))
    with locked_volume_file(path, write=True) as descriptor:
        _write(descriptor, area, 0)
        os.fsync(descriptor)


def _checked_area(path: Path, record: VolumeRecord) -> bytes:
    with open_volume_file(path) as descriptor:
        if record.kind == "writable":
            return bytes(check_writable(descriptor, record)[1])
        return bytes(check_file(descriptor, record).area)


def _volume_key(record: VolumeRecord, area: bytes, key: bytes | bytearray) -> bytearray:
    check_key(key, record)
    if len(key) == XTS_KEY_SIZE:
        return bytearray(key)
    header = parse_header(area, uuid=record.uuid, layout=layout_of(record))
    return unlock(header, area, key)


def _check_phrase(phrase: bytes | bytearray) -> None:
    if not _SHORTEST <= len(phrase) <= MAX_PHRASE:
        raise InputError(
            "volume.phrase_size",
            f"a recovery phrase has {_SHORTEST} to {MAX_PHRASE} bytes, not {len(phrase)}",
        )


def _write(descriptor: int, content: bytes | bytearray, offset: int) -> None:
    with memoryview(content) as view:
        done = 0
        while done < len(content):
            done += os.pwrite(descriptor, view[done:], offset + done)


@contextlib.contextmanager
def _new_file(target: Path) -> Iterator[int]:
    """A file for this user alone; gone again if the block fails."""
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(target, flags, 0o600)
        try:
            yield descriptor
            os.fsync(descriptor)
        except BaseException:
            target.unlink()
            raise
        finally:
            os.close(descriptor)
        sync_path(target.parent)
    except OSError as error:
        raise Unavailable(
            "file.unwritable", f"cannot write: {error.strerror}", where=str(target)
        ) from None
