"""A SavedModel's variables: whole as TensorFlow wrote them, or not read at all.

TensorFlow keeps a checksum of the index's blocks and of each tensor, and looks at them;
OpenVINO does not: a damaged index takes its process down, a damaged tensor is computed with.

The index is a table of sorted strings as LevelDB writes it: blocks, each followed by its
kind and its checksum, and a footer that says where the block of blocks lies. Its values are
`BundleHeaderProto` (under the empty key) and `BundleEntryProto` messages; the tensors
themselves lie in ``variables.data-XXXXX-of-XXXXX``.

Rules this module keeps:

* Every byte that a runtime would take is covered by a checksum that was computed here.
* It finds damage, not malice: whoever can write the checksums can write the graph.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

import google_crc32c
from google.protobuf.message import DecodeError

from sealserve.errors import InputError
from sealserve.files import read_limited
from sealserve.serving.crc32c import masked, masked_of
from sealserve.serving.runtimes.snappy import unpack
from sealserve.wire.tensorflow import bundle_pb2, tensor_pb2

__all__ = ["check_variables", "entries"]

_MAX_INDEX_BYTES: Final = 64 * 2**20
_MAGIC: Final = 0xDB4775248B80FB57
_FOOTER: Final = 48
_TRAILER: Final = 5  # a block's kind, and its checksum
_PLAIN: Final = 0
_SNAPPY: Final = 1  # as TensorFlow wrote it for years
_PIECE: Final = 2**20  # the interpreter is not given up within one


def check_variables(version: Path) -> None:
    """Compare the variables of a version's directory with their checksums.

    Raises:
        InputError: ``servable.variables_damaged`` or ``file.too_large``.
        Unavailable: ``file.unreadable``.
    """
    index = version / "variables" / "variables.index"
    if not index.exists():
        return  # a model without variables; where some are missing, its conversion fails
    try:
        header, tensors = _read(read_limited(index, _MAX_INDEX_BYTES))
    except (ValueError, DecodeError, IndexError, struct.error) as error:
        raise _refusal(str(error) or type(error).__name__, index) from None
    if header.endianness:
        raise _refusal("the checkpoint is big-endian", index)
    shards: dict[int, dict[str, bundle_pb2.BundleEntryProto]] = {}
    for key, entry in tensors.items():
        shards.setdefault(entry.shard_id, {})[key] = entry
    for shard, here in shards.items():
        if not 0 <= shard < header.num_shards:
            raise _refusal(f"there is no file {shard} of {header.num_shards}", index)
        data = index.with_name(f"variables.data-{shard:05}-of-{header.num_shards:05}")
        _check_shard(data, here)


def entries(raw: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The keys and values of a table.

    Raises:
        ValueError, IndexError, struct.error: it is damaged.
    """
    if len(raw) < _FOOTER or struct.unpack("<Q", raw[-8:])[0] != _MAGIC:
        raise _Damaged("the index has no end")
    at = len(raw) - _FOOTER
    _, at = _varint(raw, at)  # the block of metadata, which nobody fills
    _, at = _varint(raw, at)
    begin, at = _varint(raw, at)
    size, _ = _varint(raw, at)
    for _, handle in _block(raw, begin, size):
        begin, at = _varint(handle, 0)
        size, _ = _varint(handle, at)
        yield from _block(raw, begin, size)


class _Damaged(ValueError):
    """Why a table is refused."""


def _read(
    raw: bytes,
) -> tuple[bundle_pb2.BundleHeaderProto, dict[str, bundle_pb2.BundleEntryProto]]:
    header, tensors = None, {}
    for key, value in entries(raw):
        if key == b"":
            header = bundle_pb2.BundleHeaderProto.FromString(value)
        else:
            tensors[key.decode(errors="replace")] = bundle_pb2.BundleEntryProto.FromString(value)
    if header is None:
        raise _Damaged("the index has no header")
    return header, tensors


def _block(raw: bytes, begin: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """The entries of one block; each key is given by what it shares with the one before."""
    end = begin + size
    if end + _TRAILER > len(raw):
        raise _Damaged("a block of the index lies beyond its end")
    (checksum,) = struct.unpack_from("<I", raw, end + 1)
    if checksum != masked(raw[begin : end + 1]):
        raise _Damaged("a block of the index has another checksum")
    kind, raw = raw[end], raw[begin:end]
    if kind == _SNAPPY:
        raw = unpack(raw, _MAX_INDEX_BYTES)
    elif kind != _PLAIN:
        raise _Damaged("the index is packed in a way that TensorFlow has not")
    (restarts,) = struct.unpack_from("<I", raw, len(raw) - 4)
    last = len(raw) - 4 * (restarts + 1)
    key, at = b"", 0
    while at < last:
        shared, at = _varint(raw, at)
        fresh, at = _varint(raw, at)
        length, at = _varint(raw, at)
        key = key[:shared] + raw[at : at + fresh]
        at += fresh
        yield key, raw[at : at + length]
        at += length


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte, least first, and where the next thing begins."""
    number = shift = 0
    while True:
        byte = raw[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
        shift += 7
        if shift > 63:
            raise _Damaged("a number of the index has no end")


def _check_shard(data: Path, tensors: dict[str, bundle_pb2.BundleEntryProto]) -> None:
    filled = {key: entry for key, entry in tensors.items() if entry.size > 0}
    if not filled:
        return
    key = next(iter(filled))
    try:
        # Read, not mapped: an error of the disk is an exception then, and no signal.
        with data.open("rb") as file:
            for key, entry in filled.items():
                if entry.crc32c != masked_of(_checksum(file, entry)):
                    raise _refusal(f"{key} has another checksum", data)
    except OSError as error:
        raise _refusal(f"the data cannot be read: {error.strerror}", data) from None
    except (ValueError, IndexError):
        raise _refusal(f"{key} ends early, or its place is none", data) from None


def _checksum(file: IO[bytes], entry: bundle_pb2.BundleEntryProto) -> int:
    file.seek(entry.offset)
    if entry.dtype == tensor_pb2.DT_STRING:
        rest = max(0, os.fstat(file.fileno()).st_size - entry.offset)
        return _string_checksum(file.read(min(entry.size, rest)), entry)
    checksum, left = 0, entry.size
    while left:
        piece = file.read(min(left, _PIECE))
        if not piece:
            raise _Damaged("the file ends early")
        checksum = google_crc32c.extend(checksum, piece)
        left -= len(piece)
    return checksum


def _string_checksum(raw: bytes, entry: bundle_pb2.BundleEntryProto) -> int:
    """Of strings: of their lengths as numbers, the checksum of those, and the strings."""
    count = 1
    for dim in entry.shape.dim:
        count *= dim.size
    at, checksum = 0, 0
    for _ in range(count):
        length, at = _varint(raw, at)
        wide = struct.pack("<I" if length < 2**32 else "<Q", length)
        checksum = google_crc32c.extend(checksum, wide)
    return int(google_crc32c.extend(checksum, raw[at:]))


def _refusal(reason: str, where: Path) -> InputError:
    return InputError(
        "servable.variables_damaged",
        f"the model's variables are damaged: {reason}",
        where=str(where),
        hint="copy the model again; compare the files with the original's",
    )
