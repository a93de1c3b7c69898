"""What becomes of NaN and Infinity, which OpenVINO and TensorFlow do not carry on alike.

Where an operand is a NaN, OpenVINO's ``Relu``, ``Maximum``, ``Exp``, ``TopK``, comparisons and
more give a number (2026.4), so that nothing in the answer tells of it; TensorFlow's NaN stays.

Rules this module keeps:

* Operations known to carry a NaN on as TensorFlow does stand in ``_KEEP``, each held against
  TensorFlow by the tests; any other is taken to lose it.
* An input from which an operation is reached that loses a NaN must be finite: an Infinity
  becomes a NaN soon (``inf - inf``).
* A NaN that arises of finite numbers is looked for in the graph itself, where an operation
  that can make one (``log(-1)``, ``0 / 0``) comes before one that loses it. Whether it can is
  judged by signs: the root of a variance plus a constant cannot.

Known limit: sums and products that go beyond float32 are not looked for. That would cost
every network, and takes numbers beyond 1e30 in inputs or weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from sealserve.serving.runtimes.signs import NOT_NEGATIVE, POSITIVE, Place, constant, place, signs

__all__ = ["bodies", "losses", "needing_finite", "spoilt", "unwatched"]

_NAN, _NOT_FINITE, _EXTREME = "NaN", "not finite", "extreme"
_FLOATS: Final = (ov.Type.f32, ov.Type.f16)

_PLACING = frozenset(
    ("Reshape", "Squeeze", "Unsqueeze", "Transpose", "Concat", "Split", "VariadicSplit",
     "Slice", "StridedSlice", "Gather", "Broadcast", "Tile", "Pad", "Reverse", "Result")
)  # fmt: skip
_KEEP: Final = _PLACING | {
    "Add", "Subtract", "Multiply", "Divide", "Negative", "Abs", "MatMul", "ReduceSum",
    "ReduceMean", "SquaredDifference", "IsNaN", "IsInf", "IsFinite",
}  # fmt: skip
# Of infinities alone they make the last of float32's numbers.
_EXTREMES: Final = ("ReduceMax", "ReduceMin")
# They lose a NaN, and compute with Infinity as TensorFlow does.
_BEAR_INFINITY: Final = frozenset(
    ("Relu", "Maximum", "Minimum", "Clamp", "Exp", "Less", "LessEqual", "Greater",
     "GreaterEqual", "Equal", "NotEqual", "ReduceMax", "ReduceMin", "TopK", "Softmax",
     "Sigmoid", "Tanh", "Select", "Log", "Power", "Sqrt", "Erf", "Floor")
)  # fmt: skip
# They make no NaN and no Infinity of ordinary numbers.
_TAME: Final = _KEEP - {"Divide"} | frozenset(
    ("Relu", "Maximum", "Minimum", "Clamp", "ReduceMax", "ReduceMin", "TopK", "Softmax",
     "Sigmoid", "Tanh", "Select", "Erf", "Floor", "Ceiling", "Round", "Sign", "Sin", "Cos",
     "Atan", "Asinh", "Convolution", "GroupConvolution", "ConvolutionBackpropData",
     "GroupConvolutionBackpropData", "MaxPool", "AvgPool", "AdaptiveAvgPool",
     "AdaptiveMaxPool", "BatchNormInference", "LRN", "MVN", "NormalizeL2", "ReduceL1",
     "ReduceL2", "LSTMSequence", "GRUSequence", "RNNSequence", "LSTMCell", "GRUCell",
     "RNNCell", "LogSoftmax", "Elu", "Selu", "PRelu", "Gelu", "Swish", "HSwish", "Mish",
     "HardSigmoid", "HSigmoid", "SoftPlus", "SoftSign", "Interpolate", "DepthToSpace",
     "SpaceToDepth", "BatchToSpace", "SpaceToBatch", "GatherND", "GatherElements",
     "ScatterUpdate", "ScatterNDUpdate", "ScatterElementsUpdate", "ReverseSequence", "OneHot",
     "CumSum", "NonMaxSuppression", "Range", "FakeQuantize", "Einsum", "DFT", "IDFT", "RDFT",
     "IRDFT", "ExtractImagePatches", "ShuffleChannels", "Convert", "ConvertLike", "Parameter", "If",
     "Loop", "TensorIterator")
)  # fmt: skip


def bodies(node: Any) -> list[ov.Model]:
    """The graphs within a node: of a branch or a loop."""
    kind = node.get_type_name()
    if kind == "If":
        return [node.get_then_body(), node.get_else_body()]
    if kind == "Loop":
        return [node.get_function()]
    if kind == "TensorIterator":
        return [node.get_body()]
    return []


def needing_finite(graph: ov.Model) -> set[str]:
    """The names of the inputs in which a NaN might be lost."""
    origins: dict[str, set[str]] = {}
    found: set[str] = set()
    for node in graph.get_ordered_ops():
        kind = node.get_type_name()
        if kind == "Parameter":
            origins[node.get_name()] = set(node.output(0).get_names())
            continue
        here: set[str] = set()
        for source in _float_sources(node):
            here |= origins.get(source.get_node().get_name(), set())
        if not _keeps(node):
            found |= here
        origins[node.get_name()] = here
    return found


def losses(graph: ov.Model) -> list[tuple[Any, str]]:
    """Where a NaN or an Infinity that arises in a graph would be lost.

    Returns:
        The values in which it shows, and what must not be in each, for `spoilt`.
    """
    return list(_losses(graph, spoilt_inputs=False)[0].values())


def unwatched(graph: ov.Model) -> list[str]:
    """The loops and branches within which a NaN may arise and be lost: nobody can watch there."""
    found = set()
    for node in graph.get_ordered_ops():
        for body in bodies(node):
            if _loses_inside(body):
                found.add(f"{node.get_type_name()} in which a NaN may arise")
            found |= set(unwatched(body))
    return sorted(found)


def spoilt(value: Any, what: str) -> Any:
    """A node that says where something is in a value that must not be there."""
    if what == _NAN:
        return ops.is_nan(value)
    if what == _NOT_FINITE:
        return ops.logical_not(ops.is_finite(value))
    extreme = np.finfo(value.get_element_type().to_dtype()).max
    return ops.equal(ops.absolute(value), ops.constant(extreme))


def _loses_inside(body: ov.Model) -> bool:
    watched, makes = _losses(body, spoilt_inputs=False)
    # What one turn of a loop makes comes into the next.
    return bool(watched) or (makes and bool(_losses(body, spoilt_inputs=True)[0]))


def _losses(graph: ov.Model, *, spoilt_inputs: bool) -> tuple[dict[Place, tuple[Any, str]], bool]:
    """What to watch, by its place; and whether anything in the graph makes a NaN."""
    watched: dict[Place, tuple[Any, str]] = {}
    suspect: set[str] = set()
    depends: set[str] = set()
    known = signs(graph)
    makes = False
    for node in graph.get_ordered_ops():
        kind = node.get_type_name()
        name = node.get_name()
        if kind == "ShapeOf":
            continue
        if kind == "Parameter" or any(_name(each) in depends for each in node.input_values()):
            depends.add(name)
        found = [each for each in _float_sources(node) if _name(each) in suspect]
        if found and not _keeps(node):
            what = _NAN if kind in _BEAR_INFINITY else _NOT_FINITE
            for each in found:
                if _name(each) in depends:  # a constant is what it is
                    before = watched.get(place(each), (each, what))[1]
                    watched[place(each)] = (each, _NOT_FINITE if before == _NOT_FINITE else what)
            if kind in _EXTREMES:
                watched[name, -1] = (node.output(0), _EXTREME)
        maker = name in depends and _has_floats(node) and _makes(node, depends, known)
        makes = makes or maker
        if found or maker or _is_spoilt_constant(node) or (kind == "Parameter" and spoilt_inputs):
            suspect.add(name)
    return watched, makes


def _keeps(node: Any) -> bool:
    kind = node.get_type_name()
    if kind == "Select":  # what it chooses by is no float
        return True
    if kind == "Convert":
        return _is_float(node.output(0))
    return kind in _KEEP


def _makes(node: Any, depends: set[str], known: dict[Place, int]) -> bool:
    """Whether a node may make a NaN or an Infinity of ordinary numbers."""
    kind = node.get_type_name()
    if kind in _TAME:
        return any(_losses(body, spoilt_inputs=False)[1] for body in bodies(node))
    first = known.get(place(node.input_value(0)), 0)
    if kind in ("Divide", "Mod", "FloorMod"):
        by = node.input_value(1)
        values = constant(by)
        if values is not None:
            return not values.all()
        return _name(by) in depends and known.get(place(by)) != POSITIVE
    if kind == "Sqrt":
        return first < NOT_NEGATIVE
    if kind == "Log":
        return first < POSITIVE
    if kind == "Power":
        exponent = constant(node.input_value(1))
        if exponent is None or (exponent < 0).any():
            return first < POSITIVE
        return first < NOT_NEGATIVE and not (exponent == np.floor(exponent)).all()
    return True


def _is_spoilt_constant(node: Any) -> bool:
    is_float = node.get_type_name() == "Constant" and _has_floats(node)
    return is_float and not np.isfinite(node.get_data()).all()


def _has_floats(node: Any) -> bool:
    return any(_is_float(port) for port in node.outputs())


def _float_sources(node: Any) -> Iterator[Any]:
    if node.get_type_name() != "ShapeOf":
        yield from (each for each in node.input_values() if _is_float(each))


def _is_float(port: Any) -> bool:
    return port.get_element_type() in _FLOATS


def _name(value: Any) -> str:
    name: str = value.get_node().get_name()
    return name
