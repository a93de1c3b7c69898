"""JSON of the REST API: request bodies to arrays, arrays to response bodies.

The forms are those of TensorFlow Serving (``util/json_tensor.cc``): *row*,
``{"instances": [...]}`` answered by ``{"predictions": [...]}``, and *column*,
``{"inputs": ...}`` answered by ``{"outputs": ...}``.

Rules this module keeps:

* ``NaN``, ``Infinity`` and ``-Infinity`` are numbers, in and out.
* A float32 is written with the fewest digits that give it back (0.1, never
  0.10000000149011612), and a whole one as ``3.0``.
* Every body that is not a request gives an `InputError`.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from sealserve.errors import InputError
from sealserve.serving.runtimes.base import Signature, TensorSpec
from sealserve.wire.tensorflow import tensor_pb2 as pb
from sealserve.wire.tensors import Array, dtype_name, numpy_dtype

__all__ = [
    "JsonRequest",
    "array_of",
    "bytes_in",
    "dump",
    "is_bytes",
    "may_hold_truths",
    "parse_object",
    "parse_request",
    "plain",
    "response_body",
    "signature_in",
]

_BYTES_SUFFIX = "_bytes"
# For each kind of array that is wanted: the kinds that JSON's lists may have become, and
# the types that a value in them may have.
_ARRAYS_FOR = {"f": "fiu", "i": "iu", "u": "iu", "b": "b"}
_VALUES_FOR: dict[str, set[type]] = {"f": {int, float}, "i": {int}, "u": {int}, "b": {bool}}
_NO: set[type] = set()


@dataclass(frozen=True)
class JsonRequest:
    """A parsed predict body whose values still wait for the signature's types.

    Attributes:
        signature: the signature's key; empty for the default.
        row: whether the body has the row form.
    """

    signature: str
    row: bool
    _values: Any
    _truths: bool

    def decode(self, signature: Signature) -> Mapping[str, Array]:
        """The inputs as arrays of the signature's types.

        Raises:
            InputError: ``request.json_values``.
        """
        columns = _columns(self._values, signature) if self.row else _named(self._values, signature)
        return {
            key: _array(key, signature.inputs.get(key), value, truths=self._truths)
            for key, value in columns.items()
        }


def parse_request(body: bytes) -> JsonRequest:
    """Read the body of a predict request.

    Raises:
        InputError: ``request.json_malformed`` or ``request.json_form``.
    """
    parsed = parse_object(body)
    signature = signature_in(parsed)
    if "instances" in parsed and "inputs" in parsed:
        raise _form(
            "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist"
        )
    if "instances" in parsed:
        instances = parsed["instances"]
        if not isinstance(instances, list):
            raise _form("Expecting 'instances' to be an list/array")
        if not instances:
            raise _form("No values in 'instances' array")
        return JsonRequest(signature, True, instances, may_hold_truths(body))
    if "inputs" in parsed:
        return JsonRequest(signature, False, parsed["inputs"], may_hold_truths(body))
    raise _form("Missing 'inputs' or 'instances' key")


def may_hold_truths(body: bytes) -> bool:
    """Whether there can be a ``true`` or ``false``, which among numbers becomes a number."""
    return b"true" in body or b"false" in body


def parse_object(body: bytes) -> dict[str, Any]:
    """Read a body that must be a JSON object.

    Raises:
        InputError: ``request.json_malformed`` or ``request.json_form``.
    """
    parsed = _parse(body)
    if not isinstance(parsed, dict):
        raise _form("Is not object")
    return parsed


def signature_in(parsed: dict[str, Any]) -> str:
    """The signature that a body names; empty for the default.

    Raises:
        InputError: ``request.json_form``.
    """
    signature = parsed.get("signature_name", "")
    if not isinstance(signature, str):
        raise _form("not formatted correctly. 'signature_name' key must be a string value.")
    return signature


def response_body(outputs: Mapping[str, Array], *, row: bool) -> bytes:
    """Write the outputs in the form of the request.

    Raises:
        InputError: ``request.json_rows``: the outputs have no common first dimension.
    """
    plain = {key: _writable(key, array) for key, array in outputs.items()}
    if not row:
        return dump({"outputs": next(iter(plain.values())) if len(plain) == 1 else plain})
    rows = _batch_size(outputs)
    if len(plain) == 1:
        return dump({"predictions": next(iter(plain.values()))})
    return dump(
        {"predictions": [{key: value[n] for key, value in plain.items()} for n in range(rows)]}
    )


def dump(value: Any) -> bytes:
    """JSON bytes of anything made of lists, objects, strings, numbers and finite arrays."""
    return (
        orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
        if _is_finite(value)
        else _slow(value)
    )


def _parse(body: bytes) -> Any:
    if not body.strip():
        raise _malformed("The document is empty")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        pass  # it may hold a NaN or an Infinity, which only the slower parser reads
    try:
        return _parse_slowly(body)
    except UnicodeEncodeError:
        raise _malformed("The surrogate pair in string is invalid.") from None
    except RecursionError:
        raise _malformed("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        what = error.msg.replace("Expecting value", "Invalid value.")  # the original's words
        raise _malformed(f"{what} at offset: {error.pos}") from None
    except ValueError:  # not UTF-8, or a number of thousands of digits
        raise _malformed("Invalid value.") from None


def _parse_slowly(body: bytes) -> Any:
    parsed = json.loads(body.decode("utf-8-sig"))
    if b"\\u" in body:
        # Half of a surrogate pair is no text: it can be neither computed with nor answered.
        json.dumps(parsed, ensure_ascii=False).encode()
    return parsed


def _columns(instances: list[Any], signature: Signature) -> dict[str, Any]:
    """Turn rows into columns: a list of objects, or of values of the only input."""
    if not _is_object(instances[0]):
        if len(signature.inputs) != 1:
            raise _values(
                "instances is a plain list, but expecting list of objects as multiple "
                "input tensors required as per tensorinfo_map"
            )
        if any(_is_object(item) for item in instances):
            raise _values("Expecting value/list but got object in the input list")
        return {next(iter(signature.inputs)): instances}
    names = set(signature.inputs)
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for position, item in enumerate(instances):
        if not _is_object(item):
            raise _values(f"Expecting object but got list at item {position} of input list")
        if set(item) != names:
            raise _values(
                f"Failed to process element: {position} of 'instances' list. JSON object keys "
                f"must be equal to: {','.join(sorted(names))}"
            )
        for name, value in item.items():
            columns[name].append(value)
    return columns


def _named(inputs: Any, signature: Signature) -> dict[str, Any]:
    if not _is_object(inputs):
        if len(signature.inputs) != 1:
            raise _values(
                "inputs is a plain value/list, but expecting an object as multiple "
                "input tensors required as per tensorinfo_map"
            )
        return {next(iter(signature.inputs)): inputs}
    for name in sorted(signature.inputs):
        if name not in inputs:
            raise _values(f"Missing named input: {name} in 'inputs' object.")
    # What the signature does not know is passed over, as the original does in this form.
    return {name: inputs[name] for name in signature.inputs}


def _is_object(value: Any) -> bool:
    """An object of names; ``{"b64": "..."}`` is a value."""
    return isinstance(value, dict) and not is_bytes(value)


def is_bytes(value: Any) -> bool:
    """Whether it is ``{"b64": "..."}``."""
    return isinstance(value, dict) and set(value) == {"b64"} and isinstance(value["b64"], str)


def bytes_in(value: dict[str, str]) -> bytes:
    """What ``{"b64": "..."}`` holds; white space in it, and missing padding, do not matter.

    Raises:
        InputError: ``request.json_values``.
    """
    text = "".join(value["b64"].split())
    padding = "" if "=" in text else "=" * (-len(text) % 4)
    try:
        return base64.b64decode(text + padding, validate=True)
    except (binascii.Error, ValueError):
        raise _values("Unable to base64 decode") from None


def _array(key: str, spec: TensorSpec | None, value: Any, *, truths: bool) -> Array:
    if spec is None:
        raise _values(f"JSON object: does not have named input: {key}")
    if spec.dtype == pb.DT_STRING:
        return _string_array(key, value)
    try:
        found = np.asarray(value)
        wanted = numpy_dtype(spec.dtype)
        if found.size == 0 and found.dtype.kind == "f":
            return found.astype(wanted)  # [] says nothing of its type
        if truths or found.dtype.kind not in _ARRAYS_FOR.get(wanted.kind, ""):
            # numpy makes one type of several, and of large numbers floats: look at each.
            found = np.array(value, object)
            if not set(map(type, found.reshape(-1).tolist())) <= _VALUES_FOR.get(wanted.kind, _NO):
                raise _values(
                    f'input "{key}" holds a JSON value that is not of expected type: '
                    f"{_type_name(spec.dtype)}"
                )
        return _within(key, found, wanted)
    except OverflowError:  # an integer of hundreds of digits
        raise _values(f'input "{key}" holds a number that is too large') from None
    except (ValueError, RecursionError):
        raise _values(f'input "{key}" is not a list of lists of one size') from None


def _within(key: str, found: Array, wanted: np.dtype[Any]) -> Array:
    if wanted.kind in "iu" and found.size:
        limits = np.iinfo(wanted)
        if int(found.min()) < limits.min or int(found.max()) > limits.max:
            raise _values(f'input "{key}" holds a number outside {limits.min}..{limits.max}')
    with np.errstate(over="ignore"):
        # What is too large becomes an infinity, as the original's parser has it.
        return found.astype(wanted)


def _string_array(key: str, value: Any) -> Array:
    def convert(item: Any) -> Any:
        if isinstance(item, list):
            return [convert(each) for each in item]
        if isinstance(item, str):
            return item.encode()
        if is_bytes(item):
            return bytes_in(item)
        raise _values(f'input "{key}" holds a JSON value that is not of expected type: string')

    try:
        return np.array(convert(value), dtype=object)
    except (ValueError, RecursionError):
        raise _values(f'input "{key}" is not a list of lists of one size') from None


def _batch_size(outputs: Mapping[str, Array]) -> int:
    size: int | None = None
    for key, array in outputs.items():
        if array.ndim == 0:
            raise InputError(
                "request.json_rows",
                f"Tensor name: {key} has no shape information; ask in the column form, 'inputs'",
            )
        if size not in (None, array.shape[0]):
            raise InputError(
                "request.json_rows",
                f"Tensor name: {key} has inconsistent batch size: {array.shape[0]} "
                f"expecting: {size}; ask in the column form, 'inputs'",
            )
        size = array.shape[0]
    return size or 0


def _writable(key: str, array: Array) -> Any:
    if array.dtype.kind == "c":
        raise _values(f"Failed to write JSON value for tensor type: {array.dtype}")
    if array.dtype != object:
        return np.ascontiguousarray(array) if array.ndim else array[()]

    def convert(item: Any) -> Any:
        if isinstance(item, list):
            return [convert(each) for each in item]
        if key.endswith(_BYTES_SUFFIX):
            return {"b64": base64.b64encode(item).decode()}
        return item.decode(errors="replace")

    return convert(array.tolist())


def _is_finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list):
        return all(map(_is_finite, value))
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind == "f":
        return bool(np.isfinite(value).all())
    return True


def _slow(value: Any) -> bytes:
    """With NaN and Infinity, which orjson would write as null."""

    def plain(item: Any) -> Any:
        if isinstance(item, np.ndarray | np.generic):
            array = np.asarray(item)
            if array.dtype.kind == "f":
                array = array.astype("U").astype("f8")  # by way of the shortest digits
            return array.tolist()
        raise TypeError(type(item).__name__)

    return json.dumps(value, default=plain, separators=(",", ":")).encode()


def array_of(key: str, data_type: int, value: Any, *, truths: bool) -> Array:
    """JSON values as an array of a DataType.

    Args:
        key: the input's name.
        data_type: the DataType.
        value: lists of lists of values.
        truths: what `may_hold_truths` says of the body.

    Raises:
        InputError: ``request.json_values``.
    """
    return _array(key, TensorSpec(data_type, None), value, truths=truths)


def plain(key: str, array: Array) -> Any:
    """An array as `dump` writes it."""
    return _writable(key, array)


def _type_name(data_type: int) -> str:
    """What TensorFlow calls a type in its messages: ``float``, ``int32``, ``string``."""
    return dtype_name(data_type).removeprefix("DT_").lower()


def _malformed(why: str) -> InputError:
    return InputError("request.json_malformed", f"JSON Parse error: {why}")


def _form(message: str) -> InputError:
    return InputError("request.json_form", message)


def _values(message: str) -> InputError:
    return InputError("request.json_values", message)
