"""PyTorch checkpoints (``.pth``) read without PyTorch, and without trust.

A checkpoint is a pickle, and an unpickler runs what the pickle tells it to.
This one runs nothing: `pickletools` splits the pickle into opcodes, and the
opcodes act on plain data. A name like ``torch.FloatStorage`` stays a name; the
only two "calls" that mean anything are an empty ``OrderedDict`` and a tensor's
description, and there is no callable anywhere that another could reach.

The layout is that of ``torch.save`` before version 1.6 ("legacy"), in which
the ImageNet checkpoints of that time are published: five pickles (magic
number, protocol, platform, the object, the storage keys) and then for each key
a 64-bit element count and the raw elements. Source: ``_legacy_load`` in
PyTorch's ``torch/serialization.py``.
"""

from __future__ import annotations

import io
import pickletools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np

from sealserve.errors import InputError
from sealserve.files import read_limited
from sealserve.wire.tensors import Array

__all__ = ["read_checkpoint"]

_MAX_BYTES = 1 << 30
_MAX_OPCODES = 2_000_000

# What a damaged pickle does to an honest interpreter: end of file within an opcode,
# an empty stack, an unknown memo, an unhashable key, an escape that is none.
_DAMAGE = (DeprecationWarning, ValueError, IndexError, KeyError, TypeError, AttributeError)
_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001

_STORAGE_DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "torch FloatStorage": np.dtype("<f4"),
    "torch DoubleStorage": np.dtype("<f8"),
    "torch HalfStorage": np.dtype("<f2"),
    "torch IntStorage": np.dtype("<i4"),
    "torch LongStorage": np.dtype("<i8"),
}
_ORDERED_DICT = "collections OrderedDict"
_REBUILD_TENSOR = "torch._utils _rebuild_tensor_v2"
_KNOWN_NAMES = {*_STORAGE_DTYPES, _ORDERED_DICT, _REBUILD_TENSOR}


@dataclass(frozen=True)
class _Name:
    """A global that the pickle names; never looked up."""

    text: str


@dataclass(frozen=True)
class _Storage:
    """A run of elements that follows the pickles in the file."""

    key: str
    dtype: np.dtype[Any]
    count: int


@dataclass(frozen=True)
class _Tensor:
    """A view of a storage; offset and strides in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_checkpoint(path: Path) -> dict[str, Array]:
    """Read a checkpoint that holds one dictionary of named tensors.

    Args:
        path: the ``.pth`` file, at most 1 GiB.

    Returns:
        Each tensor by its name, C-contiguous, in the file's order.

    Raises:
        InputError: ``checkpoint.malformed`` (truncated, inconsistent, not a
            dictionary of tensors), ``checkpoint.forbidden`` (the pickle names or
            calls something that is not part of a tensor),
            ``checkpoint.format_unsupported`` (the newer zip format),
            ``file.too_large``.
        Unavailable: ``file.unreadable``.
    """
    content = read_limited(path, _MAX_BYTES)
    if content.startswith(b"PK\x03\x04"):
        raise InputError(
            "checkpoint.format_unsupported",
            "this checkpoint is in the zip format of PyTorch 1.6 and later",
            where=str(path),
            hint="save it with torch.save(..., _use_new_zipfile_serialization=False)",
        )
    try:
        return _read(io.BytesIO(content))
    except InputError as error:
        raise InputError(error.code, error.message, where=str(path), hint=error.hint) from error


def _read(file: io.BytesIO) -> dict[str, Array]:
    if _Pickle(file).load() != _MAGIC or _Pickle(file).load() != _PROTOCOL:
        raise _malformed("it does not start as a PyTorch checkpoint does")
    platform = _Pickle(file).load()
    if not isinstance(platform, dict) or platform.get("little_endian") is not True:
        raise _malformed("it was not written by a little-endian machine")
    named = _Pickle(file).load()
    if not isinstance(named, dict) or not all(
        isinstance(tensor, _Tensor) for tensor in named.values()
    ):
        raise _malformed("it does not hold one dictionary of named tensors")
    storages = _read_storages(file, named.values())
    return {name: _view(tensor, storages) for name, tensor in named.items()}


def _read_storages(file: io.BytesIO, tensors: Any) -> dict[str, Array]:
    declared = {tensor.storage.key: tensor.storage for tensor in tensors}
    keys = _Pickle(file).load()
    if (
        not isinstance(keys, list)
        or not all(isinstance(key, str) for key in keys)
        or sorted(keys) != sorted(declared)
    ):
        raise _malformed("the storages in the file are not those that the tensors name")
    storages: dict[str, Array] = {}
    for key in keys:
        storage = declared[key]
        count = int.from_bytes(file.read(8), "little")
        if count != storage.count:
            raise _malformed(f"storage {key} has {count} elements, not {storage.count}")
        raw = file.read(count * storage.dtype.itemsize)
        if len(raw) != count * storage.dtype.itemsize:
            raise _malformed(f"it ends within storage {key}")
        storages[key] = np.frombuffer(raw, storage.dtype)
    if file.read(1):
        raise _malformed("something follows the last storage")
    return storages


def _view(tensor: _Tensor, storages: Mapping[str, Array]) -> Array:
    elements = storages[tensor.storage.key]
    # Each element at most once: no view that unfolds a few bytes into gigabytes.
    last = tensor.offset + sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True)
    )
    count = prod(tensor.shape)
    if count > elements.size or (count > 0 and last >= elements.size):
        raise _malformed(f"a tensor of shape {list(tensor.shape)} reaches outside its storage")
    strides = [stride * elements.itemsize for stride in tensor.strides]
    view = np.lib.stride_tricks.as_strided(elements[tensor.offset :], tensor.shape, strides)
    return np.ascontiguousarray(view)


class _Pickle:
    """One pickle, interpreted over plain data.

    Args:
        file: positioned at the pickle; left behind it by `load`.
    """

    def __init__(self, file: io.BytesIO) -> None:
        self._file = file
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def load(self) -> Any:
        try:
            # A damaged string makes the opcode reader warn of its escapes.
            with warnings.catch_warnings(action="error", category=DeprecationWarning):
                for number, (opcode, argument, _) in enumerate(pickletools.genops(self._file)):
                    if number == _MAX_OPCODES:
                        raise _malformed("its pickle is too long")
                    self._step(opcode.name, argument)
            return self._stack.pop()
        except (
            DeprecationWarning,
            ValueError,
            IndexError,
            KeyError,
            TypeError,
            AttributeError,
        ) as error:
            # What a damaged pickle does to an honest interpreter: end of file
            # within an opcode, an empty stack, an unknown memo, an unhashable key.
            raise _malformed("its pickle is truncated or damaged") from error

    def _step(self, opcode: str, argument: Any) -> None:
        if opcode in _LITERALS:
            self._stack.append(argument if opcode in _WITH_ARGUMENT else _LITERALS[opcode]())
        elif opcode in {"BINPUT", "LONG_BINPUT"}:
            self._memo[argument] = self._stack[-1]
        elif opcode in {"BINGET", "LONG_BINGET"}:
            self._stack.append(self._memo[argument])
        elif opcode == "GLOBAL":
            self._stack.append(_known(argument))
        elif opcode == "MARK":
            self._marks.append(len(self._stack))
        elif opcode == "TUPLE":
            self._stack.append(tuple(self._since_mark()))
        elif opcode in _TUPLES:
            self._stack.append(tuple(self._take(_TUPLES[opcode])))
        elif opcode in {"APPEND", "APPENDS"}:
            items = self._since_mark() if opcode == "APPENDS" else self._take(1)
            _expect(self._stack[-1], list).extend(items)
        elif opcode in {"SETITEM", "SETITEMS"}:
            items = self._since_mark() if opcode == "SETITEMS" else self._take(2)
            # Text only: to hash a tuple of a million nested tuples would end the process.
            names = [_expect(name, str) for name in items[::2]]
            _expect(self._stack[-1], dict).update(zip(names, items[1::2], strict=True))
        elif opcode == "BINPERSID":
            self._stack.append(_storage(self._stack.pop()))
        elif opcode == "REDUCE":
            name, arguments = self._take(2)
            self._stack.append(_reduce(name, arguments))
        elif opcode == "BUILD":
            # torch hangs version notes on the dictionary; nobody here reads them.
            state = self._stack.pop()
            if not isinstance(self._stack[-1], dict) or not isinstance(state, dict):
                raise _forbidden("an object with a state")
        elif opcode not in {"PROTO", "STOP"}:
            raise _forbidden(f"the opcode {opcode}")

    def _take(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise IndexError("pickle stack underflow")
        items = self._stack[-count:]
        del self._stack[-count:]
        return items

    def _since_mark(self) -> list[Any]:
        mark = self._marks.pop()
        items = self._stack[mark:]
        del self._stack[mark:]
        return items


_WITH_ARGUMENT = {"BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1"}
_LITERALS: Final[Mapping[str, Callable[[], Any]]] = {
    **dict.fromkeys(_WITH_ARGUMENT, lambda: None),
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_TUPLES: Final[Mapping[str, int]] = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _known(argument: str) -> _Name:
    if argument not in _KNOWN_NAMES:
        raise _forbidden(f"the name {argument[:100].replace(' ', '.')!r}")
    return _Name(argument)


def _storage(description: Any) -> _Storage:
    kind, storage_type, key, _location, count, view = _expect(description, tuple)
    dtype = _STORAGE_DTYPES.get(_expect(storage_type, _Name).text)
    if kind != "storage" or dtype is None or view is not None:
        raise _malformed("a storage is described in a way this reader does not know")
    if not isinstance(key, str) or not _is_size(count):
        raise _malformed("a storage has no name or no size")
    return _Storage(key, dtype, count)


def _reduce(name: Any, arguments: Any) -> Any:
    text = _expect(name, _Name).text
    if text == _ORDERED_DICT and arguments == ():
        return {}
    if text != _REBUILD_TENSOR:
        raise _forbidden(f"a call of {text.replace(' ', '.')!r}")
    storage, offset, shape, strides, _requires_grad, _hooks = _expect(arguments, tuple)
    sizes = (offset, *_expect(shape, tuple), *_expect(strides, tuple))
    if not all(map(_is_size, sizes)) or len(shape) != len(strides):
        raise _malformed("a tensor's shape, strides and offset do not fit together")
    return _Tensor(_expect(storage, _Storage), offset, shape, strides)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**48


def _expect(value: Any, kind: type[Any]) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"expected a {kind.__name__}")
    return value


def _malformed(what: str) -> InputError:
    return InputError("checkpoint.malformed", f"not a checkpoint that can be read: {what}")


def _forbidden(what: str) -> InputError:
    return InputError(
        "checkpoint.forbidden",
        f"the checkpoint's pickle holds {what}, which no dictionary of tensors needs",
        hint="do not load this file with PyTorch either: it may run code",
    )
