"""SavedModel directories: find the graph, and say whether a signature keeps state.

Rules this module keeps:

* The format is that of ``tensorflow/core/protobuf/saved_model.proto``; fields
  that our messages do not name are carried along untouched.
* Whether a signature keeps state, refuses inputs or may take any rank is read from the
  graph itself, before any conversion: a converter may drop an assignment and leave a
  graph that looks clean.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from google.protobuf.message import DecodeError

from sealserve.errors import InputError, Unavailable
from sealserve.wire.graphs import read_graph_file
from sealserve.wire.tensorflow import graph_pb2

__all__ = [
    "ELEMENTWISE",
    "not_elementwise",
    "only_signature",
    "operations_behind",
    "read_meta_graph",
    "refusing",
    "stateful",
]

FILE_NAME = "saved_model.pb"

# Operations that change something, or answer otherwise each time they are asked.
# TensorArrays and v1 loop operations are stateful to TensorFlow only within a call.
_STATEFUL = re.compile(
    r"Assign.*|Resource(Sparse)?Apply.*|ResourceScatter.*|ResourceStridedSliceAssign"
    r"|(Resource)?CountUpTo|(Sparse)?Apply[A-Z].*|Scatter(Nd)?(Add|Sub|Mul|Div|Min|Max|Update)"
    r"|Random(?!Dataset).*|(Parameterized)?TruncatedNormal|Multinomial"
    r"|Stateful(Uniform|StandardNormal|TruncatedNormal|Random).*|Rng.*|NonDeterministicInts"
    r"|SampleDistortedBoundingBox.*|LookupTable(Insert|Import|Remove).*|Mutable.*HashTable.*"
    r"|.*Queue(V2)?|Stage|Unstage|.*Iterator.*|(Eager)?PyFunc.*|Print(V2)?|Timestamp"
    r"|WriteFile|ReadFile|Save.*|DestroyResourceOp"
)

# Operations whose only use is to refuse some inputs. OpenVINO drops the first three and
# answers; its segment sums do not mind a segment too few.
_REFUSING = re.compile(r"Assert|CheckNumerics(V2)?|EnsureShape|Segment(Sum|Mean|Prod|Min|Max)")

# Operations that take each number by itself and broadcast as NumPy does, at any rank,
# each compared with TensorFlow by the tests; and those that only pass values on.
ELEMENTWISE = frozenset(
    re.findall(
        r"\w+",
        """
        Abs Acos Acosh Add AddN AddV2 Asin Asinh Atan Atan2 Atanh Cast Ceil Cos Cosh DivNoNan Elu
        Equal Erf Exp Expm1 Floor FloorDiv FloorMod Greater GreaterEqual LeakyRelu Less LessEqual
        Log Log1p LogicalAnd LogicalNot LogicalOr Maximum Minimum Mul Neg NotEqual Pow RealDiv
        Reciprocal Relu Relu6 Round Rsqrt SelectV2 Selu Sigmoid Sign Sin Sinh Softplus Softsign
        Sqrt Square SquaredDifference Sub Tan Tanh Xdivy Xlogy
        """,
    )
)
_PLUMBING = frozenset(
    (
        "Const",
        "Identity",
        "IdentityN",
        "NoOp",
        "PartitionedCall",
        "ReadVariableOp",
        "StatefulPartitionedCall",
        "StopGradient",
        "VarHandleOp",
        "VariableV2",
    )
)


def read_meta_graph(path: Path, tags: tuple[str, ...]) -> graph_pb2.MetaGraphDef:
    """Read the meta graph with exactly these tags from a SavedModel directory.

    Raises:
        InputError: ``file.too_large``, ``servable.saved_model_malformed`` or
            ``servable.tags_not_found``.
        Unavailable: ``file.unreadable``.
    """
    file = path / FILE_NAME
    if not file.exists():
        raise Unavailable(
            "file.unreadable",
            "there is no model: no saved_model.pb, model.tflite, model.onnx or model.xml",
            where=str(path),
            hint="a model has a directory for each version, with a number for a name",
        )
    try:
        saved = graph_pb2.SavedModel.FromString(read_graph_file(file))
    except DecodeError:
        raise InputError(
            "servable.saved_model_malformed",
            "cannot read the SavedModel: it is not a SavedModel message",
            where=str(file),
        ) from None
    for meta in saved.meta_graphs:
        if set(meta.meta_info_def.tags) == set(tags):
            return meta
    have = [sorted(meta.meta_info_def.tags) for meta in saved.meta_graphs]
    raise InputError(
        "servable.tags_not_found",
        "Could not find meta graph def matching supplied tags: "
        f"{{ {' '.join(tags)} }}; the file has {have}",
        where=str(file),
        hint="choose with --saved_model_tags",
    )


def only_signature(
    meta: graph_pb2.MetaGraphDef, signature: graph_pb2.SignatureDef
) -> graph_pb2.SavedModel:
    """The same model with this signature as its only, default one."""
    saved = graph_pb2.SavedModel(saved_model_schema_version=1)
    copy = saved.meta_graphs.add()
    copy.CopyFrom(meta)
    copy.ClearField("signature_def")
    copy.signature_def["serving_default"].CopyFrom(signature)
    return saved


def operations_behind(graph: graph_pb2.GraphDef, signature: graph_pb2.SignatureDef) -> set[str]:
    """The kinds of operations that a signature's outputs are computed by.

    The walk goes back from the outputs over data and control inputs, stops at the
    signature's inputs, and takes the whole body of each function that it meets;
    a call is not an operation.
    """
    nodes = {node.name: node for node in graph.node}
    functions = {function.signature.name: function for function in graph.library.function}
    cut = {_node_of(info.name) for info in signature.inputs.values()}
    todo = [_node_of(info.name) for info in signature.outputs.values()]
    found: set[str] = set()
    seen: set[str] = set()
    seen_functions: set[str] = set()
    while todo:
        name = todo.pop()
        if name in seen or name in cut or name not in nodes:
            continue
        seen.add(name)
        todo.extend(_node_of(source) for source in nodes[name].input)
        bodies = list(_called_functions(nodes[name], functions))
        found.add(nodes[name].op)
        while bodies:
            function = bodies.pop()
            if function in seen_functions:
                continue
            seen_functions.add(function)
            for node in functions[function].node_def:
                found.add(node.op)
                bodies.extend(_called_functions(node, functions))
    return found - functions.keys()


def stateful(operations: Iterable[str]) -> list[str]:
    """Those that keep state or draw random numbers."""
    return sorted(filter(_STATEFUL.fullmatch, operations))


def refusing(operations: Iterable[str]) -> list[str]:
    """Those that are there to refuse inputs, which a converter leaves out."""
    return sorted(filter(_REFUSING.fullmatch, operations))


def not_elementwise(operations: Iterable[str]) -> list[str]:
    """Those that do not compute each number by itself, whatever the ranks of their inputs.

    What is left broadcasts as NumPy does, in TensorFlow and in OpenVINO alike, so that a
    graph of nothing else may be converted for any rank (docs/adr/0028).
    """
    return sorted(set(operations) - ELEMENTWISE - _PLUMBING)


def _called_functions(
    node: graph_pb2.NodeDef, functions: dict[str, graph_pb2.FunctionDef]
) -> Iterator[str]:
    named = [node.op]
    for value in node.attr.values():
        named.append(value.func.name)
        named.extend(function.name for function in value.list.func)
    return (name for name in named if name in functions)


def _node_of(tensor: str) -> str:
    """``"^node"``, ``"node:0"`` and ``"node"`` all name a node."""
    return tensor.removeprefix("^").partition(":")[0]
