"""The Open Inference Protocol, version 2, over the dataplane: what both fronts share.

A model's ``serving_default`` signature is what is asked for; another one by the request
parameter ``signature_name``. A version is its number in decimal; none is the newest.

Rules this module keeps:

* The same dataplane, checks and error statuses as TensorFlow Serving's own API.
* Data types have the protocol's names; strings are ``BYTES``, each with its length in
  four bytes before it where they travel raw.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from math import prod
from typing import Any

import numpy as np

from sealserve.errors import InputError
from sealserve.serving.calls import Call
from sealserve.serving.catalog import ModelSpec
from sealserve.serving.dataplane import Dataplane, Prediction
from sealserve.serving.runtimes.base import DEFAULT_SIGNATURE, Signature
from sealserve.serving.versions import MAX_VERSION
from sealserve.wire.tensorflow import graph_pb2
from sealserve.wire.tensorflow import tensor_pb2 as pb
from sealserve.wire.tensors import Array, numpy_dtype

__all__ = [
    "PLATFORM",
    "by_name",
    "check_parameters",
    "data_type",
    "datatype_of",
    "described",
    "from_raw",
    "infer",
    "is_ready",
    "of_shape",
    "spec_of",
    "tensor_error",
    "to_raw",
    "versions_of",
]

PLATFORM = "sealserve"

_DATATYPES = {
    "BOOL": pb.DT_BOOL,
    "UINT8": pb.DT_UINT8,
    "UINT16": pb.DT_UINT16,
    "UINT32": pb.DT_UINT32,
    "UINT64": pb.DT_UINT64,
    "INT8": pb.DT_INT8,
    "INT16": pb.DT_INT16,
    "INT32": pb.DT_INT32,
    "INT64": pb.DT_INT64,
    "FP16": pb.DT_HALF,
    "FP32": pb.DT_FLOAT,
    "FP64": pb.DT_DOUBLE,
    "BYTES": pb.DT_STRING,
}
_NAMES: dict[int, str] = {number: name for name, number in _DATATYPES.items()}
_OF_DTYPE = {numpy_dtype(number): name for name, number in _DATATYPES.items()}
# Triton's extensions whose silent absence would give another answer than was asked for.
_NOT_DONE = ("classification", "shared_memory_region")
_MAX_DIMENSIONS = 32
_MAX_ELEMENTS = 2**31


def spec_of(name: str, version: str) -> ModelSpec:
    """Which model a request means.

    Raises:
        InputError: ``request.version_invalid``.
    """
    if not version:
        return ModelSpec(name)
    plain = version.isascii() and version.isdigit() and len(version) <= 19
    if not plain or int(version) > MAX_VERSION:
        raise InputError("request.version_invalid", f"{version[:40]!r} is no version number")
    return ModelSpec(name, int(version))


def versions_of(dataplane: Dataplane, name: str) -> list[str]:
    """The versions of a model that can be asked for."""
    states = dataplane.status(ModelSpec(name))
    return [str(each.version) for each in states if each.state.name == "AVAILABLE"]


def is_ready(dataplane: Dataplane, name: str, version: str) -> bool:
    """Whether a model, or a version of it, can be asked."""
    spec = spec_of(name, version)
    try:
        return any(each.state.name == "AVAILABLE" for each in dataplane.status(spec))
    except InputError:
        return False


def described(dataplane: Dataplane, spec: ModelSpec) -> tuple[int, graph_pb2.SignatureDef]:
    """The version that answers and its default signature."""
    version, definitions = dataplane.definitions(spec)
    signatures = definitions.signature_def
    key = DEFAULT_SIGNATURE if DEFAULT_SIGNATURE in signatures else min(signatures, default="")
    return version, signatures[key]


def infer(
    dataplane: Dataplane,
    spec: ModelSpec,
    signature: str,
    inputs: dict[str, Array],
    outputs: list[str],
    call: Call,
) -> Prediction:
    """Answer one request.

    Raises:
        InputError: a ``request.*`` or ``tensor.*`` code.
    """
    call.model = spec.name

    def decode(_: Signature) -> dict[str, Array]:
        return inputs

    prediction = dataplane.predict(spec, signature, decode, tuple(outputs))
    call.version = prediction.version
    return prediction


def by_name(tensors: Iterable[tuple[str, Array]]) -> dict[str, Array]:
    """The inputs of a request.

    Raises:
        InputError: ``request.v2_tensor``: one is given twice.
    """
    inputs: dict[str, Array] = {}
    for name, array in tensors:
        if name in inputs:
            raise tensor_error(name, "it is given twice")
        inputs[name] = array
    return inputs


def datatype_of(what: Array | int) -> str:
    """The protocol's name for an array's type, or for a DataType."""
    if isinstance(what, int):
        return _NAMES.get(what, "")
    return _OF_DTYPE.get(what.dtype, "")


def data_type(datatype: str) -> int:
    """The DataType of a name that `of_shape` has accepted."""
    return int(_DATATYPES[datatype])


def of_shape(name: str, datatype: str, shape: list[int]) -> tuple[np.dtype[Any], int]:
    """The numpy type of a stated tensor, and how many elements it must have.

    Raises:
        InputError: ``request.v2_tensor``.
    """
    if datatype not in _DATATYPES:
        raise tensor_error(name, f"data type {datatype[:40]!r} is not served")
    if len(shape) > _MAX_DIMENSIONS or any(size < 0 for size in shape):
        raise tensor_error(name, "each dimension must be 0 or more, and there may be at most 32")
    count = prod(shape)
    if count > _MAX_ELEMENTS or prod(max(size, 1) for size in shape) > 2**48:
        raise tensor_error(name, "the shape asks for too many elements")
    return numpy_dtype(_DATATYPES[datatype]), count


def from_raw(name: str, datatype: str, shape: list[int], raw: bytes) -> Array:
    """An array out of the protocol's raw form, little-endian.

    Raises:
        InputError: ``request.v2_tensor``.
    """
    dtype, count = of_shape(name, datatype, shape)
    if dtype.kind == "O":
        return _strings(name, raw, count).reshape(shape)
    if len(raw) != count * dtype.itemsize:
        raise tensor_error(name, f"{len(raw)} raw bytes for {count} elements of {datatype}")
    if datatype == "BOOL" and raw and max(raw) > 1:
        raise tensor_error(name, "a BOOL is neither 0 nor 1")
    return np.frombuffer(raw, dtype).reshape(shape)


def to_raw(array: Array) -> bytes:
    """The raw form of an array."""
    if array.dtype.kind == "O":
        items = [bytes(item) for item in array.ravel().tolist()]
        return b"".join(struct.pack("<I", len(item)) + item for item in items)
    return np.ascontiguousarray(array).tobytes()


def check_parameters(name: str, parameters: Iterable[str]) -> None:
    """Refuse what is asked of an output and would not be done.

    Raises:
        InputError: ``request.v2_parameter``.
    """
    for each in parameters:
        if each in _NOT_DONE:
            raise InputError(
                "request.v2_parameter",
                f"output {name[:100]!r}: {each} is an extension that is not served",
            )


def _strings(name: str, raw: bytes, count: int) -> Array:
    if count * 4 > len(raw):
        raise tensor_error(name, f"{len(raw)} raw bytes cannot hold {count} strings")
    items = np.empty(count, object)
    at = 0
    for position in range(count):
        size = int.from_bytes(raw[at : at + 4], "little")
        at += 4
        if at + size > len(raw):
            raise tensor_error(name, "a string reaches beyond the raw bytes")
        items[position] = raw[at : at + size]
        at += size
    if at != len(raw):
        raise tensor_error(name, "there are raw bytes behind the last string")
    return items


def tensor_error(name: str, what: str) -> InputError:
    """A tensor that is not what it says."""
    return InputError("request.v2_tensor", f"input {name[:100]!r}: {what}")
