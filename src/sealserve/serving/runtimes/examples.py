"""tf.Example: the graph is cut behind its parser, and the parsing is done here.

OpenVINO has no ParseExample. Where a signature's string input goes into one and
nowhere else, the signature can be computed from the parser's dense outputs, and those
are made here from the serialized examples.

Rules this module keeps:

* What a feature must look like - type, shape, default - is read from the graph's own
  parsing node. Sparse and ragged features, and shapes that vary, are not parsed here:
  such a signature is left to another runtime.
* The meaning is TensorFlow's: a feature that is missing takes its default or is an
  error; one of another type or number of values is an error; the last of two features
  of one name counts.
* What the examples ask for is added up before memory is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from google.protobuf.message import DecodeError

from sealserve.errors import InputError, SealserveError
from sealserve.wire.tensorflow import example_pb2, graph_pb2
from sealserve.wire.tensorflow import tensor_pb2 as pb
from sealserve.wire.tensors import Array, numpy_dtype, to_array

__all__ = ["DenseFeature", "ExampleCut", "cut_examples", "made_up_example", "parse_examples"]

_PARSERS = ("ParseExample", "ParseExampleV2")
_MAX_BYTES = 2**30
_MAX_DEFAULT_BYTES = 2**24
_KINDS: dict[int, tuple[str, str]] = {
    pb.DT_FLOAT: ("float_list", "float"),
    pb.DT_INT64: ("int64_list", "int64"),
    pb.DT_STRING: ("bytes_list", "string"),
}
_KIND_NAMES = dict(_KINDS.values())


@dataclass(frozen=True)
class DenseFeature:
    """A feature of fixed shape.

    Attributes:
        name: its key in an example.
        input: the input of the cut signature that takes it.
        dtype: DT_FLOAT, DT_INT64 or DT_STRING.
        shape: of one example's values.
        default: what a missing one is; None when it is required.
    """

    name: str
    input: str
    dtype: int
    shape: tuple[int, ...]
    default: Array | None


@dataclass(frozen=True)
class ExampleCut:
    """A signature behind its parser.

    Attributes:
        examples: the signature's input that takes serialized examples.
        features: what is to be parsed out of them.
        wire: the signature whose inputs are the parser's outputs.
    """

    examples: str
    features: tuple[DenseFeature, ...]
    wire: graph_pb2.SignatureDef


def cut_examples(
    meta: graph_pb2.MetaGraphDef, signature: graph_pb2.SignatureDef
) -> ExampleCut | None:
    """Cut a signature behind its parser; None where it has none, or one that is not for us."""
    strings = [key for key, info in signature.inputs.items() if info.dtype == pb.DT_STRING]
    if len(strings) != 1:
        return None
    (key,) = strings
    nodes = {node.name: node for node in meta.graph_def.node}
    source = signature.inputs[key].name
    parsers = [
        node
        for node in nodes.values()
        if node.op in _PARSERS and node.input and _source(nodes, node.input[0]) == _full(source)
    ]
    if len(parsers) != 1:
        return None
    parser = parsers[0]
    used = _used_outputs(nodes, signature, parser.name)
    layout = _layout(nodes, parser)
    if layout is None or not used or not used <= layout.keys():
        return None
    wire = graph_pb2.SignatureDef()
    wire.CopyFrom(signature)
    del wire.inputs[key]
    features = []
    for index in sorted(used):
        name, dtype, shape, default = layout[index]
        inside = f"{key}/{index}"
        info = wire.inputs[inside]
        info.name, info.dtype = f"{parser.name}:{index}", dtype  # type: ignore[assignment]
        info.tensor_shape.dim.add(size=-1)
        for size in shape:
            info.tensor_shape.dim.add(size=size)
        features.append(DenseFeature(name, inside, dtype, shape, default))
    return ExampleCut(key, tuple(features), wire)


def made_up_example(features: tuple[DenseFeature, ...], number: int) -> bytes:
    """A serialized example that has these features; another one for each number."""
    generator = np.random.default_rng(number)
    example = example_pb2.Example()
    for each in features:
        value, count = example.features.feature[each.name], prod(each.shape)
        if each.dtype == pb.DT_FLOAT:
            value.float_list.value.extend(generator.standard_normal(count))
        elif each.dtype == pb.DT_INT64:
            value.int64_list.value.extend(generator.integers(2, size=count))
        else:
            words = generator.integers(1000, size=count)
            value.bytes_list.value.extend(b"word %d" % word for word in words)
    return example.SerializeToString()


def parse_examples(serialized: Array, features: tuple[DenseFeature, ...]) -> dict[str, Array]:
    """Make the dense tensors of a vector of serialized examples.

    Args:
        serialized: bytes, of shape ``[n]``.
        features: what to take out of them.

    Returns:
        An array of shape ``[n, ...]`` for each feature's input.

    Raises:
        InputError: ``request.example_malformed`` or ``tensor.too_large``.
    """
    if serialized.ndim != 1:
        raise _malformed(f"Expected serialized to be a vector, got shape: {list(serialized.shape)}")
    count = len(serialized)
    needed = sum(count * prod(each.shape) * 8 for each in features)
    if needed > _MAX_BYTES:
        raise InputError("tensor.too_large", f"the examples take {needed} bytes once parsed")
    columns = {
        each.input: np.empty((count, *each.shape), numpy_dtype(each.dtype)) for each in features
    }
    for row, raw in enumerate(serialized.tolist()):
        found = _decoded(raw)
        for each in features:
            columns[each.input][row] = _values(each, found, row)
    return columns


def _decoded(raw: object) -> Mapping[str, example_pb2.Feature]:
    try:
        return example_pb2.Example.FromString(raw).features.feature  # type: ignore[arg-type]
    except (DecodeError, TypeError):
        raise _malformed("Could not parse example input") from None


def _values(feature: DenseFeature, found: Mapping[str, example_pb2.Feature], row: int) -> Array:
    field, wanted = _KINDS[feature.dtype]
    wire = found.get(feature.name)
    kind = wire.WhichOneof("kind") if wire is not None else None
    if wire is None or kind is None:
        if feature.default is None:
            raise _malformed(
                f"Name: <unknown>, Feature: {feature.name} (data type: {wanted}) is required "
                "but could not be found."
            )
        return feature.default
    if kind != field:
        raise _malformed(
            f"Name: <unknown>, Feature: {feature.name}: Data types don't match. "
            f"Data type: {_KIND_NAMES[kind]} but expected type: {wanted}"
        )
    values = getattr(wire, field).value
    if len(values) != prod(feature.shape):
        raise _malformed(
            f"Name: <unknown>, Key: {feature.name}, Index: {row}.  Number of {wanted} values != "
            f"expected.  Values size: {len(values)} but output shape: {list(feature.shape)}"
        )
    flat = np.empty(len(values), numpy_dtype(feature.dtype))
    flat[:] = values
    return flat.reshape(feature.shape)


def _layout(
    nodes: Mapping[str, graph_pb2.NodeDef], parser: graph_pb2.NodeDef
) -> dict[int, tuple[str, int, tuple[int, ...], Array | None]] | None:
    """Name, type, shape and default of each dense output by its number; None if not for us."""
    dtypes = list(parser.attr["Tdense"].list.type)
    shapes = [
        tuple(dim.size for dim in shape.dim) if not shape.unknown_rank else (-1,)
        for shape in parser.attr["dense_shapes"].list.shape
    ]
    inputs = [name for name in parser.input if not name.startswith("^")]
    if parser.op == "ParseExample":
        sparse, dense = parser.attr["Nsparse"].i, parser.attr["Ndense"].i
        keys = [_constant(nodes, name) for name in inputs[2 + sparse : 2 + sparse + dense]]
        defaults = inputs[2 + sparse + dense :]
        names = [key.reshape(-1) for key in keys if key is not None]
        flat = [bytes(name[0]) for name in names if len(name) == 1]
    else:
        sparse, dense = parser.attr["num_sparse"].i, len(dtypes)
        vector = _constant(nodes, inputs[3]) if len(inputs) > 4 else None
        flat = [bytes(name) for name in vector.reshape(-1)] if vector is not None else []
        defaults = inputs[5:]
    if not len(flat) == len(dtypes) == len(shapes) == len(defaults) == dense or sparse < 0:
        return None
    layout = {}
    for position, (name, dtype, shape) in enumerate(zip(flat, dtypes, shapes, strict=True)):
        default = _constant(nodes, defaults[position])
        if default is None or dtype not in _KINDS or min(shape, default=0) < 0:
            continue  # nothing that may be used
        required = default.size == 0 and prod(shape) > 0
        fitting = None if required else np.broadcast_to(default.reshape(-1), (prod(shape),))
        layout[3 * sparse + position] = (
            name.decode(errors="replace"),
            int(dtype),
            shape,
            None if fitting is None else fitting.reshape(shape),
        )
    return layout


def _constant(nodes: Mapping[str, graph_pb2.NodeDef], tensor: str) -> Array | None:
    node = nodes.get(_source(nodes, tensor).partition(":")[0])
    while node is not None and node.op == "Reshape":  # the shape wanted is known already
        node = nodes.get(_source(nodes, node.input[0]).partition(":")[0])
    if node is None or node.op != "Const":
        return None
    try:
        return to_array(node.attr["value"].tensor, _MAX_DEFAULT_BYTES)
    except SealserveError:
        return None


def _source(nodes: Mapping[str, graph_pb2.NodeDef], tensor: str) -> str:
    """The tensor that this one is a copy of, through any number of Identity nodes."""
    for _ in range(len(nodes)):
        name = tensor.partition(":")[0]
        node = nodes.get(name)
        if node is None or node.op != "Identity" or not node.input:
            break
        tensor = node.input[0]
    return _full(tensor)


def _full(tensor: str) -> str:
    return tensor if ":" in tensor else f"{tensor}:0"


def _used_outputs(
    nodes: Mapping[str, graph_pb2.NodeDef], signature: graph_pb2.SignatureDef, parser: str
) -> set[int]:
    """Which of the parser's outputs the signature's outputs are computed from."""
    used: set[int] = set()
    seen: set[str] = set()
    todo = [info.name for info in signature.outputs.values()]
    while todo:
        tensor = todo.pop()
        name, _, number = tensor.removeprefix("^").partition(":")
        if name == parser:
            if not tensor.startswith("^"):
                used.add(int(number or 0))
            continue
        if name not in seen and name in nodes:
            seen.add(name)
            todo.extend(nodes[name].input)
    return used


def _malformed(message: str) -> InputError:
    return InputError("request.example_malformed", message)
