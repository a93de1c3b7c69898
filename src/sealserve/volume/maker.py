"""Make sealed volumes: no root, no device-mapper, no plaintext on any disk.

Rules this module keeps:

* ``cryptsetup luksFormat`` writes the header (a fresh random volume key, always:
  XTS is deterministic, so two volumes must never share one); ``mkfs.ext4`` fills
  the filesystem through the encrypting FUSE file; the verity tree is appended;
  the record states what came out.
* Work is done on ``<path>.partial`` under a lock. The final name appears by a
  rename, when everything is on the disk: an interrupted make leaves nothing that
  looks finished, and the next one starts anew.
* The header has exactly one shape, which `sealserve.volume.luks2` insists on.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import threading
import uuid as uuids
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from sealserve.errors import InputError, Unavailable
from sealserve.files import sync_path
from sealserve.volume.child import FuseChild, require_fuse
from sealserve.volume.luks2 import KEYSLOTS_SIZE, METADATA_SIZE
from sealserve.volume.process import Runner, run, secret_pipe
from sealserve.volume.record import (
    BLOCK_SIZE,
    KEY_SIZE,
    HeaderPin,
    ModelEntry,
    VerityParameters,
    VolumeRecord,
    key_id_of,
    sign_record,
)
from sealserve.volume.tree import SourceTree, find_models, scan
from sealserve.volume.verity import append_tree, read_exactly

__all__ = ["SEGMENT_OFFSET", "Progress", "create_sealed"]

SEGMENT_OFFSET: Final = 2 * METADATA_SIZE + KEYSLOTS_SIZE
"""Bytes before the encrypted segment: 16 MiB, cryptsetup's own default."""

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all); the first never decreases."""

_MAX_SIZE: Final = 1 << 44
_FILL_TIMEOUT: Final = 6 * 3600.0
_WATCH_PAUSE: Final = 0.1
_PBKDF2_ITERATIONS: Final = 1000  # the key is 256 random bits: there is nothing to stretch


def create_sealed(
    path: Path,
    source: Path,
    *,
    key: bytes | bytearray,
    owner_key: Ed25519PrivateKey,
    name: str,
    version: int = 1,
    size: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
    runner: Runner = run,
) -> bytes:
    """Seal a directory into a volume file.

    Args:
        path: the file to make.
        source: directory with what goes in (see docs/architecture.md, "A sealed
            volume's inside"); every ``models/<name>/<version>`` is listed in the record.
        key: 32 random bytes that will open it; the caller wipes its own copy.
        owner_key: signs the record.
        name: the volume's name: letters, digits and ``. _ -``, at most 128.
        version: of the volume, counted up by the owner with each remake.
        size: bytes for the filesystem, a multiple of 4096; chosen from the source if absent.
        force: replace a file that is there.
        progress: see `Progress`.
        runner: runs the system's programs.

    Returns:
        The signed record (`sealserve.volume.record.open_record` reads it).

    Raises:
        InputError: ``volume.exists``, ``volume.in_use``, ``volume.key_size``,
            ``volume.name``, ``volume.size``, ``volume.source_changed``, and what
            `sealserve.volume.tree.scan` and `find_models` refuse.
        Unavailable: ``volume.unwritable``, ``volume.fuse_missing``, ``volume.tool_missing``,
            ``volume.tool_failed`` (also when the tree does not fit into ``size``).
    """
    if len(key) != KEY_SIZE:
        raise InputError("volume.key_size", f"a volume key has {KEY_SIZE} bytes, not {len(key)}")
    _check_target(path, force=force)
    tree = scan(source)
    plan = _Plan(
        name=name,
        version=version,
        uuid=str(uuids.uuid4()),
        key_id=key_id_of(key),
        data_size=_checked_size(size, tree),
        models=find_models(source),
        inodes=tree.inodes,
    )
    _check_plan(plan, owner_key)
    require_fuse()
    report = _Reporter(progress, plan.data_size, plan.hash_offset)
    try:
        with _partial_file(path) as (partial, descriptor):
            os.ftruncate(descriptor, plan.hash_offset)
            _format(partial, plan, key, runner)
            with _encrypting_file(descriptor, plan, key) as inside:
                with _watching(partial, report):
                    runner(_mkfs_command(inside, plan, source), timeout=_FILL_TIMEOUT)
                if tree.foreign:
                    _give_to_root(inside, tree.inodes, runner)
            if scan(source).state != tree.state:
                raise InputError(
                    "volume.source_changed",
                    "the source was changed while it was sealed",
                    where=str(source),
                    hint="run it again when nothing writes there",
                )
            record = _finish(descriptor, plan, report)
            os.fsync(descriptor)
            partial.replace(path)
        sync_path(path.parent)
    except OSError as error:
        raise Unavailable(
            "volume.unwritable", f"cannot make the volume: {error.strerror}", where=str(path)
        ) from None
    return sign_record(record, owner_key)


@dataclass(frozen=True)
class _Plan:
    """What is decided before the first byte is written."""

    name: str
    version: int
    uuid: str
    key_id: str
    data_size: int
    models: tuple[ModelEntry, ...]
    inodes: int

    @property
    def hash_offset(self) -> int:
        return SEGMENT_OFFSET + self.data_size

    @property
    def data_blocks(self) -> int:
        return self.hash_offset // BLOCK_SIZE

    def record(self, header_sha256: str, salt: str, root_hash: str) -> VolumeRecord:
        return VolumeRecord(
            name=self.name,
            uuid=self.uuid,
            version=self.version,
            created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            data_size=self.data_size,
            header=HeaderPin(sha256=header_sha256, size=SEGMENT_OFFSET),
            segment_offset=SEGMENT_OFFSET,
            verity=VerityParameters(
                data_blocks=self.data_blocks,
                hash_offset=self.hash_offset,
                salt=salt,
                root_hash=root_hash,
            ),
            key_id=self.key_id,
            models=self.models,
        )


class _Reporter:
    """Turns the two stages, filling and hashing, into one count of bytes."""

    def __init__(self, progress: Progress | None, fill: int, hashed: int) -> None:
        self._progress = progress
        self._fill = fill
        self._total = fill + hashed
        self._done = 0

    def filled(self, count: int) -> None:
        self._report(min(count, self._fill))

    def hashed(self, count: int) -> None:
        self._report(self._fill + count)

    def _report(self, done: int) -> None:
        self._done = max(self._done, done)
        if self._progress:
            self._progress(self._done, self._total)


def _check_target(path: Path, *, force: bool) -> None:
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise InputError("volume.exists", "is there and is no ordinary file", where=str(path))
    if path.exists() and path.stat().st_size and not force:
        raise InputError(
            "volume.exists",
            "is there already and is not empty",
            where=str(path),
            hint="choose another name, or replace it with --force",
        )


def _check_plan(plan: _Plan, owner_key: Ed25519PrivateKey) -> None:
    """Make and sign a record with zeros for digests: better now than after an hour's work."""
    zeros = "0" * 64
    try:
        sign_record(plan.record(zeros, zeros, zeros), owner_key)
    except ValidationError:
        raise InputError(
            "volume.name",
            "a volume's name has letters, digits and . _ -, and its version counts from 1",
            hint="for example: --name models",
        ) from None


def _checked_size(size: int | None, tree: SourceTree) -> int:
    chosen = tree.volume_size if size is None else size
    if chosen % BLOCK_SIZE or not BLOCK_SIZE * 256 <= chosen <= _MAX_SIZE:
        raise InputError(
            "volume.size",
            f"{chosen} bytes: not a multiple of {BLOCK_SIZE} between 1 MiB and 16 TiB",
        )
    if chosen < tree.content:
        raise InputError(
            "volume.size",
            f"{tree.content} bytes of files do not fit into a volume of {chosen}",
            hint=f"{tree.volume_size >> 20} MiB are enough",
        )
    return chosen


@contextlib.contextmanager
def _partial_file(path: Path) -> Iterator[tuple[Path, int]]:
    """``<path>.partial``, empty and locked; gone afterwards unless it was renamed."""
    partial = path.with_name(f"{path.name}.partial")
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                "volume.in_use", "another process is making this volume", where=str(partial)
            ) from None
        try:
            os.ftruncate(descriptor, 0)
            yield partial, descriptor
        finally:
            with contextlib.suppress(FileNotFoundError):
                partial.unlink()
    finally:
        os.close(descriptor)


def _format(partial: Path, plan: _Plan, key: bytes | bytearray, runner: Runner) -> None:
    with secret_pipe(key) as reader:
        command = [
            "cryptsetup",
            "luksFormat",
            "--type=luks2",
            "--batch-mode",
            # Its lock for plain files is flock(2), which the maker itself holds.
            "--disable-locks",
            "--cipher=aes-xts-plain64",
            "--key-size=512",
            f"--sector-size={BLOCK_SIZE}",
            "--hash=sha256",
            "--pbkdf=pbkdf2",
            f"--pbkdf-force-iterations={_PBKDF2_ITERATIONS}",
            f"--luks2-metadata-size={METADATA_SIZE}",
            f"--luks2-keyslots-size={KEYSLOTS_SIZE}",
            f"--offset={SEGMENT_OFFSET // 512}",
            f"--uuid={plan.uuid}",
            f"--key-file=/proc/self/fd/{reader}",
            str(partial),
        ]
        runner(command, pass_fds=[reader])


@contextlib.contextmanager
def _encrypting_file(descriptor: int, plan: _Plan, key: bytes | bytearray) -> Iterator[Path]:
    """The inside of the volume as a writable file; all on the disk when the block ends."""
    settings = {"uuid": plan.uuid, "segment_offset": SEGMENT_OFFSET, "size": plan.data_size}
    child = FuseChild("fill", descriptor, settings, key)
    try:
        yield child.file
        with child.file.open("rb") as file:
            os.fsync(file.fileno())
    finally:
        status = child.close()
    if status != 0:
        raise Unavailable("volume.fuse_failed", f"the FUSE process ended with status {status}")


def _mkfs_command(target: Path, plan: _Plan, source: Path) -> list[str]:
    # What mkfs would choose at random is derived from the volume's UUID.
    inner = uuids.uuid5(uuids.UUID(plan.uuid), "ext4")
    return [
        "mkfs.ext4",
        "-q",
        "-F",
        f"-b{BLOCK_SIZE}",
        "-m0",
        f"-N{plan.inodes + 32}",
        f"-U{inner}",
        # Never written again: a journal and room to grow would be wasted.
        "-O^has_journal,^resize_inode",
        f"-Eroot_owner=0:0,hash_seed={inner},lazy_itable_init=0,nodiscard",
        f"-d{source}",
        str(target),
        f"{plan.data_size // 1024}k",
    ]


def _give_to_root(inside: Path, inodes: int, runner: Runner) -> None:
    """``mkfs -d`` copies the owners of the source; inside a volume all belongs to root."""
    # lost+found is inode 11; mkfs gives the next numbers to the tree, in a row.
    numbers = range(12, 12 + inodes)
    commands = "".join(f"sif <{n}> uid 0\nsif <{n}> gid 0\n" for n in numbers)
    with os.fdopen(os.memfd_create("commands"), "wb") as file:
        file.write(commands.encode())
        file.flush()
        path = f"/proc/self/fd/{file.fileno()}"
        runner(["debugfs", "-w", "-f", path, str(inside)], pass_fds=[file.fileno()])


@contextlib.contextmanager
def _watching(partial: Path, report: _Reporter) -> Iterator[None]:
    """Report how far the filling is: the blocks that the sparse file has by now."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_WATCH_PAUSE):
            report.filled(partial.stat().st_blocks * 512)

    thread = threading.Thread(target=watch, name="volume-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _finish(descriptor: int, plan: _Plan, report: _Reporter) -> VolumeRecord:
    """Append the tree; state in a record what the file now is."""
    salt = secrets.token_bytes(32)
    root = append_tree(descriptor, plan.data_blocks, salt, report.hashed)
    area = read_exactly(descriptor, SEGMENT_OFFSET, 0)
    return plan.record(hashlib.sha256(area).hexdigest(), salt.hex(), root.hex())
