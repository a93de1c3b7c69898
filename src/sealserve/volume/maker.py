"""Make volumes: no root, no device-mapper, no plaintext on any disk.

Rules this module keeps:

* `sealserve.volume.filling` makes header and filesystem; over a sealed volume the
  verity tree is laid; the record states what came out.
* Work is done on ``<path>.partial`` under a lock. The final name appears by a
  rename, when everything is on the disk: an interrupted make leaves nothing that
  looks finished, and the next one starts anew.
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
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from sealserve.errors import InputError, Unavailable
from sealserve.files import sync_path
from sealserve.provenance import Trust, verify_model
from sealserve.volume.child import require_fuse
from sealserve.volume.filling import OUR_LAYOUT, SEGMENT_OFFSET, Arrangement, Inside, format_header
from sealserve.volume.luks2 import Layout
from sealserve.volume.process import Runner, find_tool, run
from sealserve.volume.provenance import Provenance
from sealserve.volume.record import (
    BLOCK_SIZE,
    KEY_SIZE,
    Filesystem,
    HeaderPin,
    Kind,
    ModelEntry,
    VerityParameters,
    VolumeRecord,
    key_id_of,
    sign_record,
)
from sealserve.volume.tree import SourceTree, find_models, scan
from sealserve.volume.verity import append_tree, read_exactly

__all__ = [
    "SEGMENT_OFFSET",
    "Plan",
    "Progress",
    "check_plan",
    "check_target",
    "create_sealed",
    "create_writable",
    "finish",
    "partial_file",
]

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all); the first never decreases."""

_MAX_SIZE: Final = 1 << 44
_WATCH_PAUSE: Final = 0.1
_AS_IT_IS: Final = Arrangement()


def create_sealed(
    path: Path,
    source: Path,
    *,
    key: bytes | bytearray,
    owner_key: Ed25519PrivateKey,
    name: str,
    version: int = 1,
    size: int | None = None,
    filesystem: Filesystem = "ext4",
    arrangement: Arrangement = _AS_IT_IS,
    signers: Trust | None = None,
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
        filesystem: ``ext4``, or ``erofs``, which takes no more than it needs.
        arrangement: what goes elsewhere than it is in the source; for ext4.
        signers: whose signature every model must carry: checked now, and demanded by
            the record, so that a guest checks it again before it serves the model.
        force: replace a file that is there.
        progress: see `Progress`.
        runner: runs the system's programs.

    Returns:
        The signed record (`sealserve.volume.record.open_record` reads it).

    Raises:
        InputError: ``volume.exists``, ``volume.in_use``, ``volume.key_size``,
            ``volume.name``, ``volume.size``, ``volume.source_changed``, and what
            `sealserve.volume.tree.scan` and `find_models` refuse.
        Refused: as `sealserve.provenance.verify.verify_model`.
        Unavailable: ``volume.unwritable``, ``volume.fuse_missing``, ``volume.tool_missing``,
            ``volume.tool_failed`` (also when the tree does not fit into ``size``).
    """
    check_target(path, key, force=force)
    tree = scan(source)
    place = _before("models", arrangement)
    models = find_models(source, place)
    if signers is not None:
        for model in models:
            verify_model(source / place / model.name / str(model.version), signers)
    plan = Plan(
        name=name,
        version=version,
        uuid=str(uuids.uuid4()),
        key_id=key_id_of(key),
        kind="sealed",
        filesystem=filesystem,
        data_size=_checked_size(size, tree),
        models=models,
        provenance=Provenance.of(signers) if signers is not None else None,
    )
    return _make(path, plan, source, tree, key, owner_key, progress, runner, arrangement)


def create_writable(
    path: Path,
    *,
    size: int,
    key: bytes | bytearray,
    owner_key: Ed25519PrivateKey,
    name: str,
    version: int = 1,
    source: Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
    runner: Runner = run,
) -> bytes:
    """Make a volume for state: encrypted, its header pinned by the record, its content not.

    Args:
        path: the file to make.
        size: bytes for the filesystem, a multiple of 4096.
        key: as for `create_sealed`, like all the others.
        owner_key: signs the record.
        name: the volume's name.
        version: of the volume.
        source: directory with what is in it at first; empty if absent.
        force: replace a file that is there.
        progress: see `Progress`.
        runner: runs the system's programs.

    Returns:
        The signed record.

    Raises:
        InputError: as `create_sealed`.
        Unavailable: as `create_sealed`.
    """
    check_target(path, key, force=force)
    tree = scan(source) if source else SourceTree(0, False, 0, b"")
    plan = Plan(
        name=name,
        version=version,
        uuid=str(uuids.uuid4()),
        key_id=key_id_of(key),
        kind="writable",
        filesystem="ext4",
        data_size=_checked_size(size, tree),
        models=(),
    )
    return _make(path, plan, source, tree, key, owner_key, progress, runner)


def _make(
    path: Path,
    plan: Plan,
    source: Path | None,
    tree: SourceTree,
    key: bytes | bytearray,
    owner_key: Ed25519PrivateKey,
    progress: Progress | None,
    runner: Runner,
    arrangement: Arrangement = _AS_IT_IS,
) -> bytes:
    check_plan(plan, owner_key)
    require_fuse()
    find_tool(f"mkfs.{plan.filesystem}")
    sealed = plan.kind == "sealed"
    report = _Reporter(progress, plan.data_size, plan.segment_end if sealed else 0)
    inside = Inside(
        plan.uuid, plan.kind, plan.filesystem, plan.data_size, tree.inodes, tree.foreign,
        arrangement,
    )  # fmt: skip
    try:
        with partial_file(path) as (partial, descriptor):
            os.ftruncate(descriptor, plan.segment_end)
            format_header(partial, plan.uuid, key, runner)
            with _watching(partial, report):
                size = inside.fill(descriptor, source, key, runner)
            report.filled(plan.data_size)
            if source and scan(source).state != tree.state:
                raise InputError(
                    "volume.source_changed",
                    "the source was changed while it was sealed",
                    where=str(source),
                    hint="run it again when nothing writes there",
                )
            plan = replace(plan, data_size=size)
            os.ftruncate(descriptor, plan.segment_end)
            record = finish(descriptor, plan, report.hashed)
            os.fsync(descriptor)
            report.complete()
            partial.replace(path)
        sync_path(path.parent)
    except OSError as error:
        raise Unavailable(
            "volume.unwritable", f"cannot make the volume: {error.strerror}", where=str(path)
        ) from None
    return sign_record(record, owner_key)


@dataclass(frozen=True)
class Plan:
    """What is decided before the first byte is written."""

    name: str
    version: int
    uuid: str
    key_id: str
    kind: Kind
    filesystem: Filesystem
    data_size: int
    models: tuple[ModelEntry, ...]
    layout: Layout = OUR_LAYOUT
    provenance: Provenance | None = None

    @property
    def segment_end(self) -> int:
        return self.layout.segment_offset + self.data_size

    def record(self, header_sha256: str, salt: str, root_hash: str) -> VolumeRecord:
        """Salt and root hash are used for a sealed volume only."""
        verity = VerityParameters(
            data_blocks=self.segment_end // BLOCK_SIZE,
            hash_offset=self.segment_end,
            salt=salt,
            root_hash=root_hash,
        )
        return VolumeRecord(
            kind=self.kind,
            name=self.name,
            uuid=self.uuid,
            version=self.version,
            created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            data_size=self.data_size,
            header=HeaderPin(
                sha256=header_sha256,
                size=self.layout.segment_offset,
                metadata_size=self.layout.metadata_size,  # type: ignore[arg-type]  # validated
            ),
            sector_size=self.layout.sector_size,  # type: ignore[arg-type]  # validated
            segment_offset=self.layout.segment_offset,
            verity=verity if self.kind == "sealed" else None,
            filesystem=self.filesystem,
            key_id=self.key_id,
            models=self.models,
            provenance=self.provenance,
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

    def complete(self) -> None:
        self._report(self._total)

    def _report(self, done: int) -> None:
        self._done = max(self._done, done)
        if self._progress:
            self._progress(self._done, self._total)


def check_target(path: Path, key: bytes | bytearray, *, force: bool) -> None:
    """Refuse a key of another size, and to replace what is there without being told.

    Raises:
        InputError: ``volume.key_size``, ``volume.exists``.
    """
    if len(key) != KEY_SIZE:
        raise InputError("volume.key_size", f"a volume key has {KEY_SIZE} bytes, not {len(key)}")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise InputError("volume.exists", "is there and is no ordinary file", where=str(path))
    if path.exists() and path.stat().st_size and not force:
        raise InputError(
            "volume.exists",
            "is there already and is not empty",
            where=str(path),
            hint="choose another name, or replace it with --force",
        )


def check_plan(plan: Plan, owner_key: Ed25519PrivateKey) -> None:
    """Make and sign a record with zeros for digests: better now than after an hour's work.

    Raises:
        InputError: ``volume.name``, ``record.too_large``.
    """
    zeros = "0" * 64
    try:
        sign_record(plan.record(zeros, zeros, zeros), owner_key)
    except ValidationError:
        raise InputError(
            "volume.name",
            "a volume's name has letters, digits and . _ -, and its version counts from 1",
            hint="for example: --name models",
        ) from None


def _before(name: str, arrangement: Arrangement) -> str:
    """What a name at the top of the volume is called in the source."""
    return next((old for old, new in arrangement.moved if new == name), name)


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
def partial_file(path: Path) -> Iterator[tuple[Path, int]]:
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


def finish(descriptor: int, plan: Plan, hashed: Callable[[int], None]) -> VolumeRecord:
    """Lay the tree over a sealed volume; state in a record what the file now is."""
    area = hashlib.sha256(read_exactly(descriptor, plan.layout.segment_offset, 0)).hexdigest()
    zeros = "0" * 64
    if plan.kind == "writable":
        return plan.record(area, zeros, zeros)
    salt = secrets.token_bytes(32)
    root = append_tree(descriptor, plan.segment_end // BLOCK_SIZE, salt, hashed)
    return plan.record(area, salt.hex(), root.hex())
