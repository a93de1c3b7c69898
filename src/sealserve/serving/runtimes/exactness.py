"""Where OpenVINO's CPU plugin would compute integers and doubles wrongly, unasked.

The plugin computes float64 as float32 and keeps 64-bit integers in 32 bits; it
saturates 8-bit arithmetic where TensorFlow wraps, and divides, reduces and
clamps integers by way of float32 (tried with 2026.4; the tests hold one case of each kind).
None of it is reported: the numbers are just wrong.

So a graph is served only if every integer that depends on its inputs is merely
moved, compared, converted, or computed by an operation known to be exact:

* any type: the operations in ``_MOVES``, which pick and place values;
* int32: ``_EXACT_INT32``;
* 64-bit and uint32 (*wide*): adding and subtracting constants, as embeddings do
  to wrap a negative index. The inputs are held to +-2**30 on each request and
  the constants to 2**30 in sum, so that 32 bits are enough;
* float64 and bfloat16 (to which it does not round as TensorFlow does): nothing at all;
* float16, which the plugin computes as float32 and rounds only at the end: one operation of
  ``_ONCE``, with nothing but moves after it. Model files, unlike SavedModels, do not say how
  precisely it is to be done, so theirs may do more. Nor do they say in which order a TopK is
  that is not sorted, as TensorFlow has one of its own.

Sizes computed from shapes do not depend on values and are left alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov

from sealserve.serving.runtimes.finite import bodies

__all__ = ["WIDE_LIMIT", "inexact_operations"]

WIDE_LIMIT = 2**30

_WIDE = (ov.Type.i64, ov.Type.u64, ov.Type.u32)
_NARROW = (ov.Type.i32, ov.Type.i16, ov.Type.u16, ov.Type.i8, ov.Type.u8)
_SIGNED = (ov.Type.i64, ov.Type.i32, ov.Type.i16, ov.Type.i8)

_MOVES = frozenset(
    (
        "Parameter",
        "Result",
        "Reshape",
        "Squeeze",
        "Unsqueeze",
        "Transpose",
        "Concat",
        "Split",
        "VariadicSplit",
        "Slice",
        "StridedSlice",
        "Gather",
        "GatherElements",
        "GatherND",
        "Broadcast",
        "Tile",
        "Select",
        "Pad",
        "Reverse",
        "ReverseSequence",
        "ScatterUpdate",
        "ScatterElementsUpdate",
        "ScatterNDUpdate",
        "TopK",
        "NonZero",
        "NonMaxSuppression",
        "OneHot",
        "Maximum",
        "Minimum",
        "Bucketize",
        "Loop",
        "TensorIterator",
        "If",
    )
)
_EXACT_INT32 = frozenset(("Add", "Subtract", "Multiply", "Abs"))
_EXACT_WIDE = frozenset(("Add", "Subtract"))
# Rounding comes before or after them alike.
_ALIKE = _MOVES | frozenset(
    ("Relu", "Abs", "Negative", "Clamp", "MaxPool", "ReduceMax", "ReduceMin")
)
# Rounded once, they are what TensorFlow gives; Convert is the rounding itself.
_ONCE = frozenset(
    ("Add", "Subtract", "Multiply", "Divide", "Sqrt", "Exp", "Log", "Tanh", "Sigmoid", "Floor",
     "Ceiling", "Round", "Erf", "Convert")
)  # fmt: skip
# Bounds and trip counts, where a huge constant means "to the end".
_OPEN_ENDED = frozenset(("Slice", "StridedSlice", "Loop"))


def inexact_operations(graph: ov.Model, *, as_tensorflow: bool = True) -> list[str]:
    """The operations of a converted graph that might compute something else than TensorFlow.

    Args:
        graph: the graph.
        as_tensorflow: float16 is rounded after each operation, and an order is TensorFlow's.

    Returns:
        One phrase each (``"Divide on int32"``); empty if the graph is exact.
    """
    found: set[str] = set()
    if _walk(graph, found, in_body=False) > WIDE_LIMIT:
        found.add("constants added to 64-bit integers")
    if as_tensorflow:
        _find_unrounded(graph, found)
        _find_unsorted(graph, found)
    return sorted(found)


def _find_unsorted(graph: ov.Model, found: set[str]) -> None:
    for node in graph.get_ops():
        if node.get_type_name() == "TopK" and node.get_attributes()["sort"] != "value":
            shape = node.output(0).get_partial_shape()
            axis = node.get_attributes()["axis"]
            if shape.rank.is_dynamic or shape[axis] != ov.Dimension(1):
                found.add("TopK that is not sorted")
        for body in bodies(node):
            _find_unsorted(body, found)


def _find_unrounded(graph: ov.Model, found: set[str]) -> None:
    """Note operations on float16 whose operands would have been rounded by TensorFlow."""
    depends: set[str] = set()
    computed: set[str] = set()
    for node in graph.get_ordered_ops():
        kind = node.get_type_name()
        sources = list(node.input_values())
        if kind == "Parameter":
            depends.add(node.get_name())
        if kind == "ShapeOf" or not any(_name(each) in depends for each in sources):
            continue
        depends.add(node.get_name())
        for body in bodies(node):
            _find_unrounded(body, found)
        halves = [each for each in sources if each.get_element_type() == ov.Type.f16]
        gives = any(port.get_element_type() == ov.Type.f16 for port in node.outputs())
        again = any(_name(each) in computed for each in halves)
        if kind in _ALIKE and (gives or kind == "Result"):
            once = again
        else:
            once = gives and kind in _ONCE
            if again or (gives and not once):
                found.add(f"{kind} on f16")
        if once:
            computed.add(node.get_name())


def _walk(graph: ov.Model, found: set[str], *, in_body: bool) -> int:
    """Note what is inexact; return the sum of the constants added to wide integers."""
    depends: set[str] = set()
    added = 0
    for node in graph.get_ordered_ops():
        kind = node.get_type_name()
        sources = [port.get_source_output() for port in node.inputs()]
        if kind == "ShapeOf":
            continue
        if kind != "Parameter" and not any(_name(each) in depends for each in sources):
            continue
        depends.add(node.get_name())
        for body in bodies(node):
            _walk(body, found, in_body=True)
        if kind not in _OPEN_ENDED and any(_is_too_wide(each) for each in sources):
            found.add(f"{kind} with a constant beyond 32 bits")
        for position in range(node.get_output_size()):
            if not node.output(position).get_target_inputs() and kind != "Result":
                continue  # nobody reads it, as the indices of a MaxPool
            wanted = node.get_output_element_type(position)
            if wanted in _WIDE and kind in _EXACT_WIDE and not in_body:
                constant = _largest_constant(sources)
                if constant is not None:
                    added += constant
                    continue
            if not _is_exact(kind, wanted, sources):
                found.add(f"{kind} on {wanted.get_type_name()}")
    return added


def _is_exact(kind: str, wanted: Any, sources: list[Any]) -> bool:
    if wanted in (ov.Type.f64, ov.Type.bf16):
        return False
    if wanted not in _WIDE and wanted not in _NARROW:
        return True  # floats of 32 bits or fewer, and bool
    if kind in _MOVES:
        return True
    if kind == "Convert":
        return wanted not in _WIDE or _widens_exactly(sources[0].get_element_type(), wanted)
    return wanted == ov.Type.i32 and kind in _EXACT_INT32


def _widens_exactly(source: Any, wanted: Any) -> bool:
    if source == ov.Type.boolean:
        return True
    if source not in _WIDE and source not in _NARROW:
        return False  # a float may be larger than 32 bits hold
    return wanted == ov.Type.i64 or source not in _SIGNED


def _largest_constant(sources: list[Any]) -> int | None:
    """The largest magnitude of the one constant among two operands, if there is one."""
    for source in sources:
        values = _constant(source)
        if values is not None:
            return max((abs(int(each)) for each in (values.min(), values.max())), default=0)
    return None


def _is_too_wide(source: Any) -> bool:
    values = _constant(source)
    if values is None or source.get_element_type() not in _WIDE:
        return False
    limits = np.iinfo(np.int32)
    return bool(values.min() < limits.min or values.max() > limits.max)


def _constant(source: Any) -> Any:
    """The values of a constant of integers that is not empty, else None."""
    node = source.get_node()
    if node.get_type_name() != "Constant" or source.get_element_type() not in _WIDE:
        return None
    values = node.get_data()
    return values if values.size else None


def _name(source: Any) -> str:
    name: str = source.get_node().get_name()
    return name
