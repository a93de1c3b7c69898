"""GraphDefs built node by node, and read.

`GraphBuilder` writes the few operations that the model zoo needs, always with
NHWC layout and float32. Each method adds one node and returns its name, which
is how the next node refers to it. The attributes are those of TensorFlow's op
registry (``tf.raw_ops``); the tests run each of them in TensorFlow.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from sealserve.errors import InputError
from sealserve.wire import tensors
from sealserve.wire.tensorflow import graph_pb2 as graph_pb
from sealserve.wire.tensorflow import tensor_pb2 as tensor_pb

__all__ = [
    "PLACEHOLDER_OPS",
    "GraphBuilder",
    "attribute_type",
    "check_frozen",
    "needed_for",
    "parse_graph",
    "shape_proto",
    "sinks",
]

# The GraphDef version of TensorFlow 1.15, the last whose frozen graphs people keep.
_PRODUCER = 134
_MIN_CONSUMER = 12

PLACEHOLDER_OPS = {"Placeholder", "PlaceholderV2", "PlaceholderWithDefault"}
# A node of these kinds is no result, even where nothing reads it.
_NOT_A_RESULT = {"Const", "NoOp", "Assert"} | PLACEHOLDER_OPS
_STATEFUL_OPS = {
    "AutoReloadVariable",
    "Variable",
    "VariableV2",
    "VarHandleOp",
    "ReadVariableOp",
    "AssignVariableOp",
    "AssignAddVariableOp",
    "AssignSubVariableOp",
    "Assign",
    "AssignAdd",
    "AssignSub",
    "HashTable",
    "HashTableV2",
    "MutableHashTable",
    "MutableHashTableV2",
    "IteratorGetNext",
    "PyFunc",
    "EagerPyFunc",
    "RandomUniform",
    "RandomStandardNormal",
    "TruncatedNormal",
    "QueueDequeueV2",
    "ReadFile",
    "WriteFile",
}


@dataclass(frozen=True)
class _Type:
    """A DataType as an attribute; a plain number would be an ``int`` attribute."""

    number: int


def attribute_type(data_type: int) -> _Type:
    """A DataType as `GraphBuilder.node` takes it for an attribute."""
    return _Type(data_type)


_FLOAT = _Type(tensor_pb.DT_FLOAT)
_INT32 = _Type(tensor_pb.DT_INT32)


def shape_proto(sizes: Sequence[int | None] | None) -> tensor_pb.TensorShapeProto:
    """A shape; None is an unknown size, and None for the whole an unknown rank."""
    if sizes is None:
        return tensor_pb.TensorShapeProto(unknown_rank=True)
    shape = tensor_pb.TensorShapeProto()
    for size in sizes:
        shape.dim.add(size=-1 if size is None else size)
    return shape


class GraphBuilder:
    """A GraphDef under construction.

    Attributes:
        graph: the graph so far.
    """

    def __init__(self) -> None:
        self.graph = graph_pb.GraphDef()
        self.graph.versions.producer = _PRODUCER
        self.graph.versions.min_consumer = _MIN_CONSUMER
        self._names: set[str] = set()

    def node(self, op: str, name: str, inputs: Iterable[str] = (), **attributes: Any) -> str:
        """Add any node; an attribute's kind follows from its Python type.

        Raises:
            ValueError: there is a node of this name, or none of an input's.
        """
        inputs = list(inputs)
        unknown = [source for source in inputs if source.partition(":")[0] not in self._names]
        if name in self._names or unknown:
            raise ValueError(f"node {name!r}: the name is taken or an input unknown: {unknown}")
        self._names.add(name)
        node = self.graph.node.add(name=name, op=op, input=inputs)
        for key, value in attributes.items():
            _set_attribute(node.attr[key], value)
        return name

    def placeholder(self, name: str, sizes: Sequence[int | None]) -> str:
        """A float32 input; None is a dimension of any size."""
        return self.node("Placeholder", name, dtype=_FLOAT, shape=shape_proto(sizes))

    def const(self, name: str, value: npt.ArrayLike) -> str:
        """A constant; a single number is spelled out (see `sealserve.wire.graphs`)."""
        array = np.asarray(value)
        proto = tensors.to_proto(array, typed_fields=array.ndim == 0)
        return self.node("Const", name, dtype=_Type(proto.dtype), value=proto)

    def conv2d(
        self, name: str, x: str, kernel: npt.ArrayLike, *, stride: int = 1, padding: str = "SAME"
    ) -> str:
        """Convolution with a constant kernel [height, width, in, out]."""
        weights = self.const(f"{name}/kernel", np.asarray(kernel, np.float32))
        return self.node("Conv2D", name, [x, weights], **_window(stride, padding), T=_FLOAT)

    def depthwise_conv2d(
        self, name: str, x: str, kernel: npt.ArrayLike, *, stride: int = 1, padding: str = "SAME"
    ) -> str:
        """Depthwise convolution with a constant kernel [height, width, in, multiplier]."""
        weights = self.const(f"{name}/kernel", np.asarray(kernel, np.float32))
        window = _window(stride, padding)
        return self.node("DepthwiseConv2dNative", name, [x, weights], **window, T=_FLOAT)

    def batch_norm(
        self,
        name: str,
        x: str,
        *,
        scale: npt.ArrayLike,
        offset: npt.ArrayLike,
        mean: npt.ArrayLike,
        variance: npt.ArrayLike,
        epsilon: float,
    ) -> str:
        """Inference batch normalisation, each statistic of shape [channels]."""
        named = {"gamma": scale, "beta": offset, "mean": mean, "variance": variance}
        statistics = [
            self.const(f"{name}/{key}", np.asarray(value, np.float32))
            for key, value in named.items()
        ]
        return self.node(
            "FusedBatchNormV3",
            name,
            [x, *statistics],
            T=_FLOAT,
            U=_FLOAT,
            epsilon=float(epsilon),
            is_training=False,
            data_format=b"NHWC",
        )

    def relu(self, name: str, x: str) -> str:
        """max(x, 0)."""
        return self.node("Relu", name, [x], T=_FLOAT)

    def relu6(self, name: str, x: str) -> str:
        """min(max(x, 0), 6)."""
        return self.node("Relu6", name, [x], T=_FLOAT)

    def pad(self, name: str, x: str, paddings: npt.ArrayLike) -> str:
        """Zeros around; ``paddings`` of shape [rank, 2] (before, after)."""
        amounts = self.const(f"{name}/paddings", np.asarray(paddings, np.int32))
        return self.node("Pad", name, [x, amounts], T=_FLOAT, Tpaddings=_INT32)

    def max_pool(self, name: str, x: str, *, size: int, stride: int, padding: str = "SAME") -> str:
        """The maximum of each ``size`` x ``size`` window."""
        window = _window(stride, padding, dilations=False)
        return self.node("MaxPool", name, [x], **window, ksize=[1, size, size, 1], T=_FLOAT)

    def mean(self, name: str, x: str, axes: Sequence[int]) -> str:
        """The mean over some axes, which are dropped."""
        where = self.const(f"{name}/axes", np.asarray(axes, np.int32))
        return self.node("Mean", name, [x, where], T=_FLOAT, Tidx=_INT32, keep_dims=False)

    def dense(self, name: str, x: str, kernel: npt.ArrayLike, bias: npt.ArrayLike) -> str:
        """``x @ kernel + bias`` for x [batch, in] and a kernel [in, out]."""
        weights = self.const(f"{name}/kernel", np.asarray(kernel, np.float32))
        product = self.node(
            "MatMul", f"{name}/MatMul", [x, weights], T=_FLOAT, transpose_a=False, transpose_b=False
        )
        offset = self.const(f"{name}/bias", np.asarray(bias, np.float32))
        return self.node("BiasAdd", name, [product, offset], T=_FLOAT, data_format=b"NHWC")

    def add(self, name: str, x: str, y: str) -> str:
        """x + y, broadcast."""
        return self.node("AddV2", name, [x, y], T=_FLOAT)

    def subtract(self, name: str, x: str, y: str) -> str:
        """x - y, broadcast."""
        return self.node("Sub", name, [x, y], T=_FLOAT)

    def multiply(self, name: str, x: str, y: str) -> str:
        """x * y, broadcast."""
        return self.node("Mul", name, [x, y], T=_FLOAT)

    def identity(self, name: str, x: str) -> str:
        """x under another name."""
        return self.node("Identity", name, [x], T=_FLOAT)

    def softmax(self, name: str, x: str) -> str:
        """Softmax over the last axis."""
        return self.node("Softmax", name, [x], T=_FLOAT)


def parse_graph(content: bytes, where: str) -> graph_pb.GraphDef:
    """Read a binary GraphDef.

    Raises:
        InputError: ``graph.malformed``: not a GraphDef, or one without nodes, with
            two nodes of a name, or with an input that is no node.
    """
    try:
        graph = graph_pb.GraphDef.FromString(content)
    except DecodeError as error:
        raise _malformed("the file is not a binary GraphDef", where) from error
    names = {node.name for node in graph.node}
    if not graph.node or "" in names or any(not node.op for node in graph.node):
        raise _malformed("the file holds no named nodes", where)
    if len(names) != len(graph.node):
        raise _malformed("two nodes have the same name", where)
    for node in graph.node:
        for source in node.input:
            if _node_of(source) not in names:
                raise _malformed(f"node {node.name!r} reads {source!r}, which is no node", where)
    return graph


def sinks(graph: graph_pb.GraphDef) -> list[str]:
    """The names of the nodes whose results no other node reads, in graph order."""
    read = {_node_of(source) for node in graph.node for source in node.input}
    return [
        node.name for node in graph.node if node.name not in read and node.op not in _NOT_A_RESULT
    ]


def needed_for(graph: graph_pb.GraphDef, fetched: Iterable[str]) -> graph_pb.GraphDef:
    """A copy of a graph with only those nodes that some results depend on.

    Args:
        graph: from `parse_graph`.
        fetched: tensors (``"node:0"``) of nodes that the graph has.
    """
    by_name = {node.name: node for node in graph.node}
    needed: set[str] = set()
    waiting = [_node_of(tensor) for tensor in fetched]
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting += map(_node_of, by_name[name].input)
    return graph_pb.GraphDef(
        node=[node for node in graph.node if node.name in needed],
        library=graph.library,
        versions=graph.versions,
    )


def check_frozen(graph: graph_pb.GraphDef, where: str) -> None:
    """Refuse what a graph alone cannot carry: variables, tables, other state, functions.

    Raises:
        InputError: ``graph.not_frozen`` or ``graph.has_functions``.
    """
    functions = {function.signature.name for function in graph.library.function}
    for node in graph.node:
        if node.op in _STATEFUL_OPS:
            raise InputError(
                "graph.not_frozen",
                f"node {node.name!r} ({node.op}) keeps a state outside the graph",
                where=where,
                hint="freeze the graph, which turns variables into constants, or give a SavedModel",
            )
        kinds = {attribute.WhichOneof("value") for attribute in node.attr.values()}
        if node.op in functions or "func" in kinds:
            raise InputError(
                "graph.has_functions",
                f"node {node.name!r} ({node.op}) calls a function",
                where=where,
                hint="inline the functions when freezing, or give a SavedModel",
            )


def _node_of(source: str) -> str:
    return source.removeprefix("^").partition(":")[0]


def _window(stride: int, padding: str, *, dilations: bool = True) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "strides": [1, stride, stride, 1],
        "padding": padding.encode(),
        "data_format": b"NHWC",
    }
    return attributes | ({"dilations": [1, 1, 1, 1]} if dilations else {})


def _set_attribute(attribute: graph_pb.AttrValue, value: Any) -> None:
    match value:
        case bool():  # before int, of which it is a kind
            attribute.b = value
        case int():
            attribute.i = value
        case float():
            attribute.f = value
        case bytes():
            attribute.s = value
        case list():
            attribute.list.i.extend(value)
        case _Type():
            attribute.type = value.number  # type: ignore[assignment]
        case tensor_pb.TensorShapeProto():
            attribute.shape.CopyFrom(value)
        case tensor_pb.TensorProto():
            attribute.tensor.CopyFrom(value)
        case _:
            raise TypeError(f"no attribute kind for a {type(value).__name__}")


def _malformed(what: str, where: str) -> InputError:
    return InputError(
        "graph.malformed",
        what,
        where=where,
        hint="give a frozen graph as TensorFlow writes it (binary, weights as constants)",
    )
