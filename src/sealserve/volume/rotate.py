"""Give a volume a new volume key: every sector is encrypted anew.

Rules this module keeps:

* Changing a keyslot revokes nothing: whoever kept the old header opens the old
  keyslot for ever. Only a new volume key does, and only for the new file.
* The old file is read, verified block by block if it is sealed, and never changed. The
  new one takes its name by a rename when it is complete: an interrupted rotation
  leaves the old volume usable, and the next one starts anew.
"""

from __future__ import annotations

import os
import uuid as uuids
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealserve.errors import InputError, Unavailable
from sealserve.files import sync_path
from sealserve.volume.engine import PlainView, SealedView, WritableView
from sealserve.volume.filling import SEGMENT_OFFSET, format_header
from sealserve.volume.luks2 import Layout
from sealserve.volume.maker import Plan, Progress, finish, partial_file
from sealserve.volume.mapper import locked_volume_file
from sealserve.volume.process import Runner, run
from sealserve.volume.record import KEY_SIZE, VolumeRecord, key_id_of, sign_record

__all__ = ["rotate"]

_CHUNK: Final = 1 << 20


def rotate(
    path: Path,
    record: VolumeRecord,
    key: bytes | bytearray,
    *,
    new_key: bytes | bytearray,
    owner_key: Ed25519PrivateKey,
    target: Path | None = None,
    progress: Progress | None = None,
    runner: Runner = run,
) -> bytes:
    """Encrypt a volume anew, under a new volume key and a new keyslot.

    Args:
        path: the volume; must not be written to meanwhile.
        record: its record.
        key: opens it.
        new_key: 32 random bytes that will open the new one.
        owner_key: signs the new record.
        target: the new file; it takes the old one's place if absent.
        progress: see `sealserve.volume.maker.Progress`.
        runner: runs the system's programs.

    Returns:
        The signed record of the new file: its version is one higher.

    Raises:
        InputError: ``volume.exists``, ``volume.in_use``, ``volume.key_size``.
        Refused: the file or the key is not what the record says.
        Unavailable: ``volume.unwritable``, ``volume.tool_failed``.
    """
    if len(new_key) != KEY_SIZE:
        raise InputError("volume.key_size", f"a volume key has {KEY_SIZE} bytes")
    if target is not None and target.exists():
        raise InputError("volume.exists", "is there already", where=str(target))
    place = target or path
    write = record.kind == "writable"  # nobody else may
    try:
        with (
            locked_volume_file(path, write=write) as old,
            partial_file(place) as (partial, new),
        ):
            view = (WritableView.of_record if write else SealedView)(old, record, key)
            try:
                plan = _plan(record, view.size, new_key)
                os.ftruncate(new, plan.segment_end)
                format_header(partial, plan.uuid, new_key, runner)
                _copy(view, new, plan, new_key, progress)
            finally:
                view.close()
            made = finish(new, plan, lambda _: None)
            os.fsync(new)
            partial.replace(place)
        sync_path(place.parent)
    except OSError as error:
        raise Unavailable(
            "volume.unwritable", f"cannot make the volume: {error.strerror}", where=str(place)
        ) from None
    return sign_record(made, owner_key)


def _plan(record: VolumeRecord, size: int, new_key: bytes | bytearray) -> Plan:
    return Plan(
        name=record.name,
        version=record.version + 1,
        uuid=str(uuids.uuid4()),
        key_id=key_id_of(new_key),
        kind=record.kind,
        filesystem=record.filesystem,
        data_size=size,
        models=record.models,
        provenance=record.provenance,
    )


def _copy(
    source: SealedView | PlainView,
    descriptor: int,
    plan: Plan,
    key: bytes | bytearray,
    progress: Progress | None,
) -> None:
    layout = Layout(SEGMENT_OFFSET)
    view = WritableView(descriptor, uuid=plan.uuid, layout=layout, size=plan.data_size, key=key)
    try:
        for offset in range(0, plan.data_size, _CHUNK):
            chunk = source.pread(offset, _CHUNK)
            view.pwrite(offset, bytes(chunk))
            if progress:
                progress(offset + len(chunk), plan.data_size)
    finally:
        view.close()
