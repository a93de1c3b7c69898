"""Tensors between numpy and the wire: ``numpy.ndarray`` <-> ``TensorProto``.

A TensorProto carries its elements in one of two forms: as raw little-endian
bytes in ``tensor_content``, or as numbers in the repeated field of its type
(``float_val``, ``int_val``, ...). The rules are those of TensorFlow's
``tensor.proto`` and of ``Tensor::FromProto``; where TensorFlow is lenient and
would compute with garbage, this module refuses.

Rules this module keeps:

* The size a proto *asks for* is checked before memory is taken: a short list
  of values stands for a whole tensor (its last value is repeated), so a proto
  of twenty bytes can describe terabytes.
* Every malformed proto gives an `InputError`; none gives a wrong array.
* Strings are ``bytes`` in an array of dtype ``object``. numpy has no bfloat16:
  such tensors become float32, which holds each of their values exactly.
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sealserve.errors import InputError
from sealserve.wire.tensorflow import tensor_pb2 as pb

__all__ = ["Array", "data_type_of", "dtype_name", "numpy_dtype", "to_array", "to_proto"]

Array = npt.NDArray[Any]

_MAX_RANK = 32  # numpy allows 64; no operation of TensorFlow takes more than 8 to 12
_MAX_EXTENT = 2**48  # elements; the address space of the processors that can run this
_POINTER_BYTES = 8  # what each element of an array of strings costs besides its bytes


class _Form(NamedTuple):
    """How a data type looks in numpy and in which repeated field it travels."""

    dtype: np.dtype[Any]
    field: str


_FORMS: dict[int, _Form] = {
    pb.DT_FLOAT: _Form(np.dtype("<f4"), "float_val"),
    pb.DT_DOUBLE: _Form(np.dtype("<f8"), "double_val"),
    pb.DT_INT8: _Form(np.dtype("i1"), "int_val"),
    pb.DT_INT16: _Form(np.dtype("<i2"), "int_val"),
    pb.DT_INT32: _Form(np.dtype("<i4"), "int_val"),
    pb.DT_INT64: _Form(np.dtype("<i8"), "int64_val"),
    pb.DT_UINT8: _Form(np.dtype("u1"), "int_val"),
    pb.DT_UINT16: _Form(np.dtype("<u2"), "int_val"),
    pb.DT_UINT32: _Form(np.dtype("<u4"), "uint32_val"),
    pb.DT_UINT64: _Form(np.dtype("<u8"), "uint64_val"),
    pb.DT_BOOL: _Form(np.dtype("?"), "bool_val"),
    pb.DT_HALF: _Form(np.dtype("<f2"), "half_val"),
    pb.DT_BFLOAT16: _Form(np.dtype("<f4"), "half_val"),
    pb.DT_COMPLEX64: _Form(np.dtype("<c8"), "scomplex_val"),
    pb.DT_COMPLEX128: _Form(np.dtype("<c16"), "dcomplex_val"),
    pb.DT_STRING: _Form(np.dtype(object), "string_val"),
}
_DATA_TYPE_OF = {form.dtype: number for number, form in _FORMS.items() if number != pb.DT_BFLOAT16}
_VALUE_FIELDS = tuple({form.field: None for form in _FORMS.values()})


def dtype_name(data_type: int) -> str:
    """The name of a DataType number for messages: ``"DT_FLOAT"``, or ``"DataType 99"``."""
    try:
        return str(pb.DataType.Name(data_type))
    except ValueError:
        return f"DataType {data_type}"


def numpy_dtype(data_type: int) -> np.dtype[Any]:
    """The numpy dtype in which `to_array` gives a tensor of this DataType.

    Raises:
        InputError: ``tensor.dtype_unsupported``.
    """
    return _form(data_type, None).dtype


def data_type_of(array: Array) -> int:
    """The DataType in which `to_proto` sends this array.

    Raises:
        InputError: ``tensor.dtype_unsupported``.
    """
    if array.dtype.kind in "SUO":
        return pb.DT_STRING
    number = _DATA_TYPE_OF.get(array.dtype.newbyteorder("<"))
    if number is None:
        raise InputError(
            "tensor.dtype_unsupported",
            f"numpy dtype {array.dtype} has no TensorFlow data type",
            hint="convert the array first, for example with .astype('float32')",
        )
    return number


def to_proto(
    array: npt.ArrayLike, *, data_type: int | None = None, typed_fields: bool = True
) -> pb.TensorProto:
    """Write an array as a TensorProto.

    Args:
        array: any numeric, bool or string array; ``str`` elements travel as UTF-8.
        data_type: the DataType to send, where it does not follow from the dtype:
            ``DT_BFLOAT16`` for a float32 array (rounded to nearest, ties to even).
        typed_fields: elements as numbers in the repeated field of their type, as
            TensorFlow Serving answers; otherwise as bytes in ``tensor_content``,
            which is smaller and quicker for large tensors.

    Raises:
        InputError: ``tensor.dtype_unsupported`` or ``tensor.values_invalid``
            (an object array with an element that is neither bytes nor str).
    """
    array = np.asarray(array)
    own = data_type_of(array)
    number = own if data_type is None else data_type
    if number != own and not (number == pb.DT_BFLOAT16 and own == pb.DT_FLOAT):
        raise InputError(
            "tensor.dtype_unsupported",
            f"an array of dtype {array.dtype} cannot be sent as {dtype_name(number)}",
        )
    proto = pb.TensorProto(dtype=number)  # type: ignore[arg-type]
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    if number == pb.DT_STRING:
        strings = [_to_bytes(item) for item in array.ravel().tolist()]
        if typed_fields:
            proto.string_val.extend(strings)
        else:
            proto.tensor_content = _pack_strings(strings)
        return proto
    flat = np.ascontiguousarray(array, dtype=_FORMS[own].dtype).ravel()
    if number == pb.DT_BFLOAT16:
        flat = _round_to_bfloat16(flat)
    if not typed_fields:
        proto.tensor_content = flat.tobytes()
        return proto
    getattr(proto, _FORMS[number].field).extend(_as_field_values(flat).tolist())
    return proto


def to_array(proto: pb.TensorProto, max_bytes: int, *, where: str | None = None) -> Array:
    """Read a TensorProto into an array of the shape it states.

    Args:
        proto: a TensorProto from anywhere.
        max_bytes: refuse a tensor whose elements take more bytes than this.
        where: the name of the input, for error messages.

    Returns:
        The array; it may be a read-only view of the proto's bytes.

    Raises:
        InputError: ``tensor.dtype_unsupported``, ``tensor.shape_invalid``,
            ``tensor.too_large`` or ``tensor.values_invalid``.
    """
    form = _form(proto.dtype, where)
    shape = _shape(proto.tensor_shape, where)
    count = prod(shape)
    element_bytes = _POINTER_BYTES if proto.dtype == pb.DT_STRING else form.dtype.itemsize
    if count * element_bytes > max_bytes:
        raise InputError(
            "tensor.too_large",
            f"a tensor of shape {list(shape)} and type {dtype_name(proto.dtype)} takes "
            f"{count * element_bytes} bytes; at most {max_bytes} are accepted",
            where=where,
        )
    _check_only_field(proto, form.field, where)
    if proto.dtype == pb.DT_STRING:
        return _strings(proto, shape, max_bytes, where)
    if proto.tensor_content:
        flat = _from_content(proto, form, count, where)
    else:
        flat = _from_field(proto, form, count, where)
    return flat.reshape(shape)


def _form(data_type: int, where: str | None) -> _Form:
    form = _FORMS.get(data_type)
    if form is None:
        raise InputError(
            "tensor.dtype_unsupported",
            f"tensors of type {dtype_name(data_type)} are not supported",
            where=where,
        )
    return form


def _shape(shape: pb.TensorShapeProto, where: str | None) -> tuple[int, ...]:
    sizes = tuple(dim.size for dim in shape.dim)
    # An empty tensor may still state an extent that no array can address.
    extent = prod(max(size, 1) for size in sizes)
    if (
        shape.unknown_rank
        or len(sizes) > _MAX_RANK
        or any(size < 0 for size in sizes)
        or extent > _MAX_EXTENT
    ):
        stated = "unknown rank" if shape.unknown_rank else f"shape {list(sizes[: _MAX_RANK + 1])}"
        raise InputError(
            "tensor.shape_invalid",
            f"a tensor of {stated}: each dimension must be known, not negative and of a size "
            f"that memory can hold, and there may be at most {_MAX_RANK}",
            where=where,
        )
    return sizes


def _check_only_field(proto: pb.TensorProto, field: str, where: str | None) -> None:
    """Refuse values that reading would pass over: they mean the sender erred."""
    stray = [name for name in _VALUE_FIELDS if name != field and len(getattr(proto, name))]
    if proto.tensor_content and len(getattr(proto, field)):
        stray.append(f"both tensor_content and {field}")
    if stray:
        raise _invalid(f"a {dtype_name(proto.dtype)} tensor has values in {stray[0]}", where)


def _from_content(proto: pb.TensorProto, form: _Form, count: int, where: str | None) -> Array:
    stored = np.dtype("<u2") if proto.dtype == pb.DT_BFLOAT16 else form.dtype
    if len(proto.tensor_content) != count * stored.itemsize:
        raise _invalid(
            f"tensor_content holds {len(proto.tensor_content)} bytes; "
            f"the shape and type need {count * stored.itemsize}",
            where,
        )
    if proto.dtype == pb.DT_BOOL:
        raw = np.frombuffer(proto.tensor_content, np.uint8)
        if raw.max(initial=0) > 1:  # any other byte is a bool that is neither True nor False
            raise _invalid("tensor_content of a bool tensor holds a byte above 1", where)
    flat = np.frombuffer(proto.tensor_content, stored)
    return _widen_bfloat16(flat) if proto.dtype == pb.DT_BFLOAT16 else flat


def _from_field(proto: pb.TensorProto, form: _Form, count: int, where: str | None) -> Array:
    values = getattr(proto, form.field)
    per_element = 2 if form.dtype.kind == "c" else 1
    if len(values) > count * per_element or len(values) % per_element:
        raise _invalid(f"{len(values)} values in {form.field} for {count} elements", where)
    if form.field == "half_val":
        bits = _within(np.fromiter(values, np.int32, len(values)), np.dtype("<u2"), where)
        half = proto.dtype == pb.DT_HALF
        flat = bits.view("<f2") if half else _widen_bfloat16(bits)
    elif form.field == "int_val":
        flat = _within(np.fromiter(values, np.int32, len(values)), form.dtype, where)
    elif per_element == 2:
        part = np.dtype(f"<f{form.dtype.itemsize // 2}")
        flat = np.fromiter(values, part, len(values)).view(form.dtype)
    else:
        flat = np.fromiter(values, form.dtype, len(values))
    if flat.size == count:
        return flat
    if flat.size == 0:
        return np.zeros(count, form.dtype)
    whole = np.empty(count, form.dtype)
    whole[: flat.size] = flat
    whole[flat.size :] = flat[-1]
    return whole


def _within(numbers: npt.NDArray[np.int32], dtype: np.dtype[Any], where: str | None) -> Array:
    limits = np.iinfo(dtype)
    if numbers.size and (numbers.min() < limits.min or numbers.max() > limits.max):
        raise _invalid(f"a value is outside {limits.min}..{limits.max}", where)
    return numbers.astype(dtype)


def _as_field_values(flat: Array) -> Array:
    """The elements as the repeated field holds them: halves as bits, complex as pairs."""
    if flat.dtype.kind == "c":
        return flat.view(f"<f{flat.dtype.itemsize // 2}")
    if flat.dtype == np.float16:
        return flat.view("<u2")
    return flat


def _widen_bfloat16(bits: Array) -> Array:
    return (bits.astype("<u4") << np.uint32(16)).view("<f4")


def _round_to_bfloat16(flat: Array) -> Array:
    bits = flat.view("<u4")
    # Adding half of the lost range, less one when the kept part is even, carries
    # exactly when round-to-nearest-even rounds up; a NaN must not carry into inf.
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet_nan = (bits >> np.uint32(16)) | np.uint32(0x40)
    return np.where(np.isnan(flat), quiet_nan, rounded).astype("<u2")


def _to_bytes(item: object) -> bytes:
    if isinstance(item, bytes):
        return item
    if isinstance(item, str):
        return item.encode()
    raise _invalid(f"an element of a string tensor is a {type(item).__name__}", None)


def _strings(
    proto: pb.TensorProto, shape: tuple[int, ...], max_bytes: int, where: str | None
) -> Array:
    count = prod(shape)
    if proto.tensor_content:
        values = _unpack_strings(proto.tensor_content, count, where)
    else:
        values = list(proto.string_val)
        if len(values) > count:
            raise _invalid(f"{len(values)} values in string_val for {count} elements", where)
        last = values[-1] if values else b""
        values += [last] * (count - len(values))
    total = sum(map(len, values)) + count * _POINTER_BYTES
    if total > max_bytes:
        raise InputError(
            "tensor.too_large",
            f"the strings take {total} bytes; at most {max_bytes} are accepted",
            where=where,
        )
    flat = np.empty(count, object)
    flat[:] = values
    return flat.reshape(shape)


def _pack_strings(strings: list[bytes]) -> bytes:
    """TensorFlow's EncodeStringList: all lengths as varints, then all bytes."""
    lengths = bytearray()
    for item in strings:
        size = len(item)
        while size > 0x7F:
            lengths.append(size & 0x7F | 0x80)
            size >>= 7
        lengths.append(size)
    return bytes(lengths) + b"".join(strings)


def _unpack_strings(content: bytes, count: int, where: str | None) -> list[bytes]:
    if count > len(content):  # each string has a length of one byte at least
        raise _invalid(f"tensor_content ends before the lengths of {count} strings", where)
    sizes: list[int] = []
    position = 0
    while len(sizes) < count:
        size = 0
        for shift in range(0, 35, 7):
            if position == len(content):
                raise _invalid("tensor_content ends within the lengths of its strings", where)
            byte = content[position]
            position += 1
            size |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
        else:
            raise _invalid("a string length in tensor_content is not a varint", where)
        sizes.append(size)
    if position + sum(sizes) != len(content):
        raise _invalid(
            f"the lengths in tensor_content add up to {position + sum(sizes)} bytes; "
            f"it has {len(content)}",
            where,
        )
    values = []
    for size in sizes:
        values.append(content[position : position + size])
        position += size
    return values


def _invalid(message: str, where: str | None) -> InputError:
    return InputError("tensor.values_invalid", message, where=where)
