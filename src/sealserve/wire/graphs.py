"""Graphs: read up to protobuf's limit, and made safe for every reader.

OpenVINO's TensorFlow frontend (seen in 2026.4) reads a constant of rank 0 whose
value stands in ``tensor_content`` as zero, for every data type and without a
word. TensorFlow's Python writes such constants as typed values, but its graph
optimizers write them as ``tensor_content``, so frozen and optimized graphs
have them. Whoever hands a graph to OpenVINO spells them out first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sealserve.files import read_limited
from sealserve.wire.tensorflow import graph_pb2 as pb
from sealserve.wire.tensors import to_array, to_proto

__all__ = ["MAX_GRAPH_BYTES", "TOO_LARGE_HINT", "read_graph_file", "spell_out_scalars"]

MAX_GRAPH_BYTES: Final = 2**31 - 1
"""protobuf refuses to read or write a larger message."""

TOO_LARGE_HINT: Final = (
    "protobuf ends at 2 GiB; a larger model has to keep its weights outside the graph, "
    "as a SavedModel does"
)

_MAX_SCALAR_BYTES = 1 << 20  # numbers take 16 at most, a string what it takes


def read_graph_file(path: Path) -> bytes:
    """The bytes of a ``saved_model.pb`` or a frozen graph.

    Raises:
        InputError: ``file.too_large``.
        Unavailable: ``file.unreadable``.
    """
    return read_limited(path, MAX_GRAPH_BYTES, hint_if_large=TOO_LARGE_HINT)


def spell_out_scalars(graph: pb.GraphDef) -> int:
    """Rewrite constants of rank 0 from bytes to typed values, in place.

    The graph means the same afterwards, to TensorFlow and to OpenVINO.

    Returns:
        How many constants were rewritten.

    Raises:
        InputError: ``tensor.*``: such a constant is malformed.
    """
    rewritten = 0
    nodes = [*graph.node, *(node for body in graph.library.function for node in body.node_def)]
    for node in nodes:
        value = node.attr["value"].tensor if "value" in node.attr else None
        if node.op != "Const" or value is None or not value.tensor_content:
            continue
        if value.tensor_shape.dim or value.tensor_shape.unknown_rank:
            continue
        scalar = to_array(value, _MAX_SCALAR_BYTES, where=node.name)
        value.CopyFrom(to_proto(scalar, data_type=value.dtype))
        rewritten += 1
    return rewritten
