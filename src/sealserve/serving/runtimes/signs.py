"""Which values of a graph are shown to be above zero, or not below it, whatever the inputs.

A variance plus a constant is; so its root and what is divided by it make no NaN. One pass in
the order of computing, so that it takes no longer than the graph is long.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import openvino as ov

__all__ = ["NOT_NEGATIVE", "POSITIVE", "Place", "constant", "place", "signs"]

UNKNOWN: Final = 0
NOT_NEGATIVE: Final = 1
POSITIVE: Final = 2
"""Above zero, and not only by a little."""

Place = tuple[str, int]
"""An output of a node: the node's name, and which."""

_NEVER_NEGATIVE: Final = frozenset(
    ("Relu", "Abs", "Exp", "Sigmoid", "Softmax", "Sqrt", "SquaredDifference", "SoftPlus",
     "ReduceL1", "ReduceL2")
)  # fmt: skip
_PASSING: Final = frozenset(
    ("Reshape", "Squeeze", "Unsqueeze", "Transpose", "Split", "VariadicSplit", "Slice",
     "StridedSlice", "Gather", "Broadcast", "Tile", "Reverse", "Convert")
)  # fmt: skip
_SUMMING: Final = frozenset(("ReduceSum", "ReduceMean", "ReduceMax", "AvgPool", "MaxPool"))


def signs(graph: ov.Model) -> dict[Place, int]:
    """The sign of each value, as far as it is shown."""
    found: dict[Place, int] = {}
    for node in graph.get_ordered_ops():
        sign = _sign(node, [found.get(place(each), UNKNOWN) for each in node.input_values()])
        if sign:
            for number in range(node.get_output_size()):
                found[node.get_name(), number] = sign
    return found


def constant(value: Any) -> Any:
    """The numbers of a constant, through conversions; None of anything else."""
    node = value.get_node()
    while node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    return np.asarray(node.get_data()) if node.get_type_name() == "Constant" else None


def place(value: Any) -> Place:
    """Where a value comes from."""
    return value.get_node().get_name(), value.get_index()


def _sign(node: Any, given: list[int]) -> int:
    kind = node.get_type_name()
    if kind == "Constant":
        return _of_numbers(np.asarray(node.get_data()))
    if kind in _PASSING or (kind == "Sqrt" and given[0] == POSITIVE):
        return given[0]
    if kind in _SUMMING:
        return min(given[0], NOT_NEGATIVE)
    if kind == "Add":
        return max(given) if min(given) >= NOT_NEGATIVE else UNKNOWN
    if kind == "Maximum":
        return max(given)
    if kind == "Minimum":
        return min(given)
    if kind == "Clamp":
        least = node.get_attributes()["min"]
        return POSITIVE if least > 0 else NOT_NEGATIVE if least == 0 else UNKNOWN
    if kind == "Multiply":
        same = place(node.input_value(0)) == place(node.input_value(1))
        return max(min(given), NOT_NEGATIVE if same else UNKNOWN)
    if kind == "Divide":
        return given[0] if given[1] == POSITIVE else UNKNOWN
    if kind == "Sigmoid" and given[0] >= NOT_NEGATIVE:
        return POSITIVE  # a half and more
    if kind == "Power":
        return _of_power(constant(node.input_value(1)), given[0])
    return NOT_NEGATIVE if kind in _NEVER_NEGATIVE else UNKNOWN


def _of_power(exponent: Any, base: int) -> int:
    if exponent is None:
        return UNKNOWN
    if base == POSITIVE:
        return POSITIVE if (abs(exponent) <= 1).all() else NOT_NEGATIVE
    if (exponent < 0).any():
        return UNKNOWN
    return NOT_NEGATIVE if base or (exponent % 2 == 0).all() else UNKNOWN


def _of_numbers(values: Any) -> int:
    if values.dtype.kind not in "fiu" or not values.size:
        return UNKNOWN
    least = values.min()
    return POSITIVE if least > 0 else NOT_NEGATIVE if least >= 0 else UNKNOWN
