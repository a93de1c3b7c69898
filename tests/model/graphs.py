"""Small graphs that hold one difficulty each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sealserve.model.graphdef import GraphBuilder, attribute_type, shape_proto
from sealserve.wire.tensorflow import graph_pb2 as graph_pb
from sealserve.wire.tensorflow import tensor_pb2 as tensor_pb
from sealserve.wire.tensors import to_proto

FLOAT = attribute_type(tensor_pb.DT_FLOAT)
INT32 = attribute_type(tensor_pb.DT_INT32)
INT64 = attribute_type(tensor_pb.DT_INT64)


@dataclass
class Case:
    """A graph, how to import it, and what to feed."""

    graph: graph_pb.GraphDef
    feeds: dict[str, np.ndarray[Any, Any]]
    # key in the signature -> tensor in the graph
    outputs: dict[str, str]
    import_options: dict[str, list[str]] = field(default_factory=dict)


def random(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.Generator(np.random.PCG64(11)).standard_normal(shape, np.float32)


def layers() -> Case:
    """Every layer of the builder, on a picture whose sides are odd."""
    b = GraphBuilder()
    x = b.placeholder("x", [None, 13, 9, 3])
    x = b.pad("pad", x, [[0, 0], [2, 3], [1, 0], [0, 0]])
    x = b.conv2d("conv_same", x, random(3, 3, 3, 8), stride=2)
    x = b.batch_norm(
        "bn",
        x,
        scale=random(8),
        offset=random(8),
        mean=random(8),
        variance=random(8) ** 2 + 0.1,
        epsilon=1e-3,
    )
    x = b.relu6("relu6", x)
    y = b.depthwise_conv2d("depthwise", x, random(3, 3, 8, 2), stride=1)
    y = b.conv2d("conv_valid", y, random(1, 1, 16, 8), padding="VALID")
    x = b.add("add", x, y)
    x = b.max_pool("pool", x, size=3, stride=2)
    x = b.subtract("sub", x, b.const("half", np.float32(0.5)))
    x = b.multiply("mul", x, b.const("gain", random(8)))
    x = b.relu("relu", x)
    b.identity("features", x)
    x = b.mean("mean", x, [1, 2])
    b.softmax("classes", b.dense("dense", x, random(8, 5), random(5)))
    return Case(
        b.graph,
        {"x": random(2, 13, 9, 3)},
        {"features": "features:0", "classes": "classes:0"},
    )


def scalar_bytes() -> Case:
    """A constant of rank 0 as bytes, as TensorFlow's graph optimizers write it."""
    b = GraphBuilder()
    x = b.placeholder("x", [None, 3])
    proto = to_proto(np.float32(7), typed_fields=False)
    assert proto.tensor_content
    b.node("Const", "seven", dtype=FLOAT, value=proto)
    b.multiply("y", x, "seven")
    return Case(b.graph, {"x": random(2, 3)}, {"y": "y:0"})


def ports_and_keys() -> Case:
    """A node with several results, keys of the caller's own, and integers."""
    b = GraphBuilder()
    b.node("Placeholder", "ids", dtype=INT32, shape=shape_proto([None, 6]))
    b.const("axis", np.int32(1))
    b.node("Split", "parts", ["axis", "ids"], T=INT32, num_split=3)
    b.const("dim", np.int32(1))
    b.node("ArgMax", "best", ["ids", "dim"], T=INT32, Tidx=INT32, output_type=INT64)
    b.node("Cast", "real", ["parts:1"], SrcT=INT32, DstT=FLOAT, Truncate=False)
    return Case(
        b.graph,
        {"numbers": np.array([[5, 1, 9, 2, 7, 3], [0, 8, 4, 6, 2, 1]], np.int32)},
        {"best": "best:0", "third": "parts:2", "parts:1": "parts:1", "real": "real:0"},
        {
            "inputs": ["numbers=ids"],
            "outputs": ["best", "third=parts:2", "parts:1", "real:0"],
        },
    )


def training_left_overs() -> Case:
    """A variable and a saver that the result does not need."""
    b = GraphBuilder()
    x = b.placeholder("x", [None, 4])
    b.node("VariableV2", "global_step", dtype=FLOAT, shape=shape_proto([]))
    b.identity("global_step/read", "global_step")
    b.placeholder("label", [None])
    b.identity("loss", "label")
    b.softmax("y", x)
    return Case(b.graph, {"x": random(3, 4)}, {"y": "y:0"}, {"outputs": ["y"]})


def unknown_rank() -> Case:
    """A placeholder that takes any shape."""
    b = GraphBuilder()
    x = b.node("Placeholder", "x", dtype=FLOAT, shape=shape_proto(None))
    b.relu("y", x)
    return Case(b.graph, {"x": random(3, 4)}, {"y": "y:0"})


CASES = {
    case.__name__: case
    for case in (layers, scalar_bytes, ports_and_keys, training_left_overs, unknown_rank)
}
