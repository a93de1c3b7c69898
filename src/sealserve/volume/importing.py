"""Volumes that others made become ours: by their files, or as they are.

Rules this module keeps:

* The old file is only read. What nothing vouches for before is vouched for by the new
  record: look at what you import before you rely on it.
* `import_volume` makes a new volume of the old one's *files*: a new header, new keys.
  They go from the decrypting FUSE file to the encrypting one, by no disk.
* `adopt` keeps header and ciphertext as they are, lays a verity tree behind a copy and
  states the whole in a record: for LUKS2 volumes in the shape of ours whose only keyslot
  a 32-byte key opens, with sectors of 512 or 4096 bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealserve.errors import InputError, Refused, Unavailable
from sealserve.files import sync_path
from sealserve.volume.cipher import wipe
from sealserve.volume.filling import Arrangement
from sealserve.volume.foreign import Foreign, files_of, open_foreign
from sealserve.volume.luks2 import Layout, parse_header, unlock
from sealserve.volume.maker import (
    Plan,
    Progress,
    check_plan,
    check_target,
    create_sealed,
    finish,
    partial_file,
)
from sealserve.volume.process import Runner, run
from sealserve.volume.reader import SealedReader
from sealserve.volume.record import (
    BLOCK_SIZE,
    Filesystem,
    VolumeRecord,
    key_id_of,
    open_record,
    sign_record,
)
from sealserve.volume.tree import find_models
from sealserve.volume.verity import read_exactly

__all__ = ["adopt", "import_volume"]

_CHUNK: Final = 1 << 20
_INSTEAD: Final = "make a new volume of its files with `volume import`"
_MODELS: Final = "model"
_TLS: Final = "ssl_configure"


def import_volume(
    old: Path,
    path: Path,
    *,
    passphrase: bytes | bytearray,
    key: bytes | bytearray,
    owner_key: Ed25519PrivateKey,
    name: str,
    version: int = 1,
    size: int | None = None,
    filesystem: Filesystem = "ext4",
    config_of: Callable[[Path], bytes] | None = None,
    force: bool = False,
    progress: Progress | None = None,
    runner: Runner = run,
) -> bytes:
    """Seal the files of a LUKS1 or LUKS2 volume into a new one.

    Args:
        old: the volume, with an ext4 filesystem; it is only read.
        path: the file to make.
        passphrase: opens the old volume.
        key: 32 random bytes that will open the new one; this and all further arguments
            as for `sealserve.volume.maker.create_sealed`.
        config_of: arrange the tree anew, as a guest expects it: ``model`` becomes
            ``models``, ``ssl_configure`` becomes ``tls``, and this makes ``models.config``
            of the directory with the models.

    Returns:
        The signed record of the new volume.

    Raises:
        SealserveError: as `sealserve.volume.foreign.open_foreign`, `files_of` and
            `sealserve.volume.maker.create_sealed`.
        InputError: ``volume.layout_unknown``.
    """
    check_target(path, key, force=force)
    if config_of and filesystem != "ext4":
        raise _layout_unknown("only an ext4 volume can be arranged anew")
    with open_foreign(old, passphrase, runner) as foreign, files_of(foreign, runner) as source:
        arrangement = _arrangement(source, config_of) if config_of else Arrangement()
        signed = create_sealed(
            path, source, key=key, owner_key=owner_key, name=name, version=version, size=size,
            filesystem=filesystem, arrangement=arrangement, force=force, progress=progress,
            runner=runner,
        )  # fmt: skip
    if config_of:
        _check_arranged(path, open_record(signed, owner_key.public_key()), key, arrangement)
    return signed


def _arrangement(source: Path, config_of: Callable[[Path], bytes]) -> Arrangement:
    names = {entry.name for entry in source.iterdir()}
    if _MODELS not in names or names & {"models", "tls", "models.config"}:
        raise _layout_unknown(f"there is no {_MODELS} directory, or a newer layout beside it")
    moved = [(_MODELS, "models")]
    if _TLS in names:
        moved.append((_TLS, "tls"))
    return Arrangement(tuple(moved), (("models.config", config_of(source / _MODELS)),))


def _check_arranged(
    path: Path, record: VolumeRecord, key: bytes | bytearray, wanted: Arrangement
) -> None:
    """``debugfs`` does not tell by its exit status that a command failed."""
    with SealedReader(path, record, key) as volume:
        names = set(volume.names())
        moved = all(old not in names and new in names for old, new in wanted.moved)
        added = all(name in names and volume.read(name) == text for name, text in wanted.added)
    if not (moved and added):
        path.unlink()
        raise Unavailable("volume.tool_failed", "debugfs did not arrange the files as it was told")


def _layout_unknown(what: str) -> InputError:
    return InputError(
        "volume.layout_unknown",
        f"the files cannot be arranged as a guest expects them: {what}",
        hint="import them as they are, without --rearrange",
    )


def adopt(
    old: Path,
    path: Path,
    *,
    key: bytes | bytearray,
    owner_key: Ed25519PrivateKey,
    name: str,
    version: int = 1,
    force: bool = False,
    progress: Progress | None = None,
    runner: Runner = run,
) -> bytes:
    """Make a sealed volume of a LUKS2 volume, header and ciphertext as they are.

    Args:
        old: the volume, with an ext4 filesystem; it is only read.
        path: the file to make: a copy with a verity tree behind it.
        key: 32 bytes, which open the only keyslot.
        owner_key: signs the record.
        name: the volume's name.
        version: of the volume.
        force: replace a file that is there.
        progress: see `sealserve.volume.maker.Progress`.
        runner: runs the system's programs.

    Returns:
        The signed record.

    Raises:
        Refused: ``volume.adopt_refused`` for a header that is not in the shape of ours.
        SealserveError: as `sealserve.volume.foreign.open_foreign`, `files_of` and
            `sealserve.volume.maker.create_sealed`.
    """
    check_target(path, key, force=force)
    with open_foreign(old, key, runner) as foreign:
        layout = _layout_of(foreign, key)
        _require_mountable(foreign)
        with files_of(foreign, runner) as source:
            models = find_models(source)
        plan = Plan(
            name=name,
            version=version,
            uuid=foreign.header.uuid,
            key_id=key_id_of(key),
            kind="sealed",
            filesystem="ext4",
            data_size=-(-foreign.size // BLOCK_SIZE) * BLOCK_SIZE,
            models=models,
            layout=layout,
        )
        check_plan(plan, owner_key)
        report = progress or (lambda _done, _total: None)
        total = 2 * plan.segment_end
        try:
            with partial_file(path) as (partial, descriptor):
                _copy(foreign, descriptor, lambda done: report(done, total))
                os.ftruncate(descriptor, plan.segment_end)
                record = finish(
                    descriptor, plan, lambda done: report(plan.segment_end + done, total)
                )
                os.fsync(descriptor)
                partial.replace(path)
            sync_path(path.parent)
        except OSError as error:
            raise Unavailable(
                "volume.unwritable", f"cannot make the volume: {error.strerror}", where=str(path)
            ) from None
    return sign_record(record, owner_key)


def _require_mountable(foreign: Foreign) -> None:
    """The kernel mounts no filesystem whose blocks are smaller than those of dm-verity."""
    if foreign.block_size != BLOCK_SIZE:
        raise Refused(
            "volume.adopt_refused",
            f"its filesystem has blocks of {foreign.block_size} bytes, not {BLOCK_SIZE}, which no "
            "kernel mounts over a hash tree",
            hint=_INSTEAD,
        )


def _layout_of(foreign: Foreign, key: bytes | bytearray) -> Layout:
    """The layout of a header that whoever opens the volume will accept by its record."""
    header = foreign.header
    if header.version != 2:
        raise Refused("volume.adopt_refused", "LUKS1 volumes cannot be adopted", hint=_INSTEAD)
    layout = Layout(header.start, header.unit, header.metadata_size)
    if header.start % BLOCK_SIZE:
        raise Refused(
            "volume.adopt_refused", f"its segment begins between two {BLOCK_SIZE}-byte blocks",
            hint=_INSTEAD,
        )  # fmt: skip
    try:
        accepted = parse_header(foreign.area, uuid=header.uuid, layout=layout)
    except Refused as error:
        raise Refused("volume.adopt_refused", error.message, hint=_INSTEAD) from None
    wipe(unlock(accepted, foreign.area, key))  # as a guest will
    return layout


def _copy(foreign: Foreign, descriptor: int, report: Callable[[int], None]) -> None:
    """The header as it was accepted, then the ciphertext as it stands."""
    os.pwrite(descriptor, foreign.area, 0)
    start, end = foreign.header.start, foreign.header.start + foreign.size
    for offset in range(start, end, _CHUNK):
        piece = read_exactly(foreign.descriptor, min(_CHUNK, end - offset), offset)
        done = 0
        with memoryview(piece) as view:
            while done < len(piece):
                done += os.pwrite(descriptor, view[done:], offset + done)
        report(offset + done)
