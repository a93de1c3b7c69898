"""Tensors that become empty within a graph, though no input is.

Of nothing, OpenVINO gives float32's least number as the maximum, zero as the mean, and as the
first, the best or the product with a matrix whatever lies in memory (2026.4).

Rules this module keeps:

* A tensor may be empty if something cuts it out of an axis of unknown length, or values say
  how long it is; and so may whatever follows from it. Nothing else is, for empty inputs are
  refused.
* Operations that compute rightly with an empty operand stand in ``_RIGHT``, held against
  TensorFlow by the tests. Any other is watched: its operand must not be empty where its output
  is not.
* Loops and branches must be given nothing empty, and within them nothing may become so that
  would have to be watched: else their signature is refused.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from sealserve.serving.runtimes.loops import bodies_of
from sealserve.serving.runtimes.sizes import depending, is_sized_by_values

__all__ = ["Watched", "empty_operands", "is_wrong", "unwatched_empties"]

_RIGHT: Final = frozenset(
    ("Add", "Subtract", "Multiply", "Divide", "Power", "Maximum", "Minimum", "Mod", "FloorMod",
     "SquaredDifference", "PRelu", "Equal", "NotEqual", "Less", "LessEqual", "Greater",
     "GreaterEqual", "LogicalAnd", "LogicalOr", "LogicalXor", "LogicalNot", "Abs", "Negative",
     "Sign", "Sqrt", "Exp", "Log", "Floor", "Ceiling", "Round", "Clamp", "Relu", "Elu", "Selu",
     "Sigmoid", "Tanh", "Erf", "Gelu", "Swish", "HSwish", "Mish", "HardSigmoid", "HSigmoid",
     "SoftPlus", "SoftSign", "Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh",
     "Asinh", "Acosh", "Atanh", "IsNaN", "IsInf", "IsFinite", "Select", "Convert",
     "ConvertLike", "ReduceSum", "ReduceProd", "ReduceLogicalOr", "ReduceLogicalAnd", "Concat",
     "Pad", "Tile", "Broadcast", "Softmax", "LogSoftmax", "CumSum", "Transpose", "Reshape",
     "Squeeze", "Unsqueeze", "Slice", "StridedSlice", "Split", "VariadicSplit", "Gather",
     "GatherND", "Reverse", "OneHot", "NonZero", "NonMaxSuppression", "ShapeOf", "Range",
     "Convolution", "GroupConvolution", "MaxPool", "AvgPool", "Result")
)  # fmt: skip
_BODIES: Final = ("If", "Loop", "TensorIterator")

Watched = tuple[Any, list[Any]]
"""An operand that may be empty, and the outputs that must then be so too; none: it must not be."""


def empty_operands(graph: ov.Model) -> list[Watched]:
    """What has to be watched in a graph."""
    depends = depending(graph)
    found: list[Watched] = []
    for node, operand in _at_risk(graph, depends):
        outputs = [] if node.get_type_name() in _BODIES else _read_outputs(node)
        found.append((operand, outputs))
    return found


def unwatched_empties(graph: ov.Model) -> list[str]:
    """What would have to be watched within loops and branches."""
    return sorted(_within(graph, depending(graph)))


def is_wrong(watched: Watched) -> Any:
    """A node that says whether an operand is empty where its outputs are not."""
    operand, outputs = watched
    wrong = _is_empty(operand)
    for output in outputs:
        wrong = ops.logical_and(wrong, ops.logical_not(_is_empty(output)))
    return wrong


def _within(graph: ov.Model, depends: set[str]) -> set[str]:
    found = set()
    for node in graph.get_ordered_ops():
        for body in bodies_of(node, depends):
            for inner, _ in _at_risk(body.graph, body.depends):
                what, where = inner.get_type_name(), node.get_type_name()
                found.add(f"{what} of what may be empty within {where}")
            found |= _within(body.graph, body.depends)
    return found


def _at_risk(graph: ov.Model, depends: set[str]) -> list[tuple[Any, Any]]:
    """Nodes that may be given something empty and are not known to be right then."""
    tainted: set[str] = set()
    found = []
    for node in graph.get_ordered_ops():
        sources = [each for each in node.input_values() if _name(each) in tainted]
        if node.get_type_name() not in _RIGHT:
            found += [(node, each) for each in sources if _may_be_empty(each)]
        if sources or _cuts(node, depends):
            tainted.add(node.get_name())
    return found


def _may_be_empty(value: Any) -> bool:
    shape = value.get_partial_shape()
    return bool(
        shape.rank.is_dynamic or any(each.is_dynamic or not each.get_length() for each in shape)
    )


def _cuts(node: Any, depends: set[str]) -> bool:
    """Whether something empty may come out of a node that is given nothing empty."""
    if not any(map(_may_be_empty, node.outputs())):
        return False
    kind = node.get_type_name()
    if kind in ("Slice", "StridedSlice"):
        return _shortens(node)
    if kind in ("Split", "VariadicSplit"):
        axis, shape = _numbers(node.input_value(1)), node.input_value(0).get_partial_shape()
        if axis is None or shape.rank.is_dynamic or shape[int(axis[0])].is_dynamic:
            return True
        lengths = _numbers(node.input_value(2)) if kind == "VariadicSplit" else [1]
        return lengths is None or 0 in lengths
    if kind in _BODIES and any(_makes_empties(body) for body in bodies_of(node, depends)):
        return True
    return is_sized_by_values(node, depends)


def _makes_empties(body: Any) -> bool:
    return any(_cuts(node, body.depends) for node in body.graph.get_ordered_ops())


def _shortens(node: Any) -> bool:
    """Whether a slice may leave nothing of an axis of unknown length."""
    shape = node.input_value(0).get_partial_shape()
    bounds = [_numbers(each) for each in list(node.input_values())[1:4]]
    if shape.rank.is_dynamic or any(each is None for each in bounds):
        return True
    begins, ends, steps = (list(each) for each in [*bounds, [1] * len(bounds[0])][:3])
    if node.get_type_name() == "Slice":
        given = _numbers(node.input_value(4)) if node.get_input_size() > 4 else range(len(begins))
        if given is None:
            return True
        return any(
            shape[int(axis)].is_dynamic and not _leaves_some(begin, end, step, False, False)
            for axis, begin, end, step in zip(given, begins, ends, steps, strict=True)
        )
    attributes = node.get_attributes()

    def mask(name: str) -> list[int]:
        bits = list(attributes.get(f"{name}_mask", ()))
        return bits + [0] * (len(begins) - len(bits))

    axis = 0
    kept = sum(
        not (new or ellipsis)
        for new, ellipsis in zip(mask("new_axis"), mask("ellipsis"), strict=True)
    )
    for entry in range(len(begins)):
        if mask("ellipsis")[entry]:
            axis += shape.rank.get_length() - kept
        elif not mask("new_axis")[entry]:
            open_begin, open_end = bool(mask("begin")[entry]), bool(mask("end")[entry])
            some = mask("shrink_axis")[entry] or _leaves_some(
                begins[entry], ends[entry], steps[entry], open_begin, open_end
            )
            if shape[axis].is_dynamic and not some:
                return True
            axis += 1
    return False


def _leaves_some(begin: int, end: int, step: int, open_begin: bool, open_end: bool) -> bool:
    """Whether a slice leaves something of every axis that is not empty."""
    farthest = 2**31 - 1
    open_begin = open_begin or (begin == 0 if step > 0 else begin >= farthest)
    open_end = open_end or (end >= farthest if step > 0 else end <= -farthest)
    if open_begin and open_end:
        return True
    if step < 0:
        return False
    return (open_end and begin < 0) or (open_begin and end > 0)


def _read_outputs(node: Any) -> list[Any]:
    return [port for port in node.outputs() if port.get_target_inputs()]


def _is_empty(value: Any) -> Any:
    if value.get_partial_shape().rank == ov.Dimension(0):
        return ops.constant(np.array(False))
    sizes = ops.shape_of(value)
    none = ops.equal(sizes, ops.constant(np.array([0], np.int64)))
    return ops.reduce_logical_or(none, ops.constant(np.array([0], np.int64)), False)


def _numbers(value: Any) -> Any:
    node = value.get_node()
    return node.get_data().ravel() if node.get_type_name() == "Constant" else None


def _name(value: Any) -> str:
    name: str = value.get_node().get_name()
    return name
