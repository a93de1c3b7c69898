"""Indices are held to what they index, in the graph itself.

OpenVINO's CPU plugin does not check an index: one beyond the end reads whatever lies
there in memory (GatherND; it may end the process), or zeros (Gather), or what an earlier
request left (a StridedSlice that takes one element of an axis that has fewer). TensorFlow
refuses each. So a graph gets more outputs, one for each place where an index depends on
the inputs, or an axis does that one element is taken of: true where it is out of range.

Rules this module keeps:

* An index out of range is refused, and no number computed with it is given out; the
  operation itself is given 0 in its place, for some would read, and some end the process.
* What cannot be guarded so is named, for its signature to be refused: indices that
  something is written to (ScatterUpdate and its like), and Unique, whose output has the
  length of its input and is not filled. So are an Inverse, which TensorFlow refuses of some
  matrices, updates that meet at one place, and what ends OpenVINO's compiler.
* Within the bodies of loops and branches there are no outputs to watch: an index there is
  a counter that is held to its limit (`loops`), or its signature is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from sealserve.errors import InputError
from sealserve.serving.runtimes.empties import empty_operands, is_wrong, unwatched_empties
from sealserve.serving.runtimes.finite import losses, spoilt, unwatched
from sealserve.serving.runtimes.loops import Bound, Index, number_of, of_node
from sealserve.serving.runtimes.sizes import depending

__all__ = ["GUARD", "add_guards", "refusal", "unguarded"]

GUARD: Final = "guard."
_INDEX, _EMPTY, _FINITE, _RANGE = "index", "empty", "finite", "range"
_NARROW: Final = {
    ov.Type.i8: (-128, 127),
    ov.Type.u8: (0, 255),
    ov.Type.i16: (-(2**15), 2**15 - 1),
    ov.Type.u16: (0, 2**16 - 1),
}
_WRITES: Final = (
    "ScatterUpdate",
    "ScatterElementsUpdate",
    "ScatterNDUpdate",
    "GatherElements",
    "EmbeddingBagOffsetsSum",
    "EmbeddingBagPackedSum",
    "EmbeddingSegmentsSum",
)
_INDICES: Final = 1  # the input of each of them


def unguarded(graph: ov.Model) -> list[str]:
    """What would have to be guarded and cannot be."""
    depends = depending(graph)
    found = set()
    for node in graph.get_ordered_ops():
        kind = node.get_type_name()
        found |= of_node(node, depends, _indices_within).unheld
        if kind in ("Unique", "Inverse"):
            found.add(kind)
        if kind == "ScatterNDUpdate" and _writes_twice(node):
            found.add(f"{kind} at the same place twice")
        if kind in ("Reshape", "Squeeze") and _is_scalar_product(node):
            found.add("MatMul made a scalar")
        if kind in _WRITES and _source(node, _INDICES) in depends:
            found.add(f"{kind} at places that depend on the inputs")
        if kind == "GatherND" and _source(node, _INDICES) in depends:
            shape = node.input(_INDICES).get_partial_shape()
            if shape.rank.is_dynamic or shape[len(shape) - 1].is_dynamic:
                found.add("GatherND by indices of unknown length")
    return sorted(found) + unwatched(graph) + unwatched_empties(graph)


def _writes_twice(node: Any) -> bool:
    """Whether updates meet at fixed places: OpenVINO takes the last of them for their sum."""
    source = node.input_value(_INDICES).get_node()
    if source.get_type_name() != "Constant":
        return False
    places = source.get_data()
    rows = places.reshape(-1, places.shape[-1])
    reduction = node.get_attributes().get("reduction", "none")
    return bool(reduction == "none" and len(np.unique(rows, axis=0)) < len(rows))


def _is_scalar_product(node: Any) -> bool:
    """Whether a node makes a scalar of a matrix product: OpenVINO's compiler ends the process."""
    scalar = node.output(0).get_partial_shape().rank == ov.Dimension(0)
    return bool(scalar and node.input_value(0).get_node().get_type_name() == "MatMul")


def add_guards(graph: ov.Model, *, from_the_end: bool) -> int:
    """Add an output to a graph for each index, and each value that must be finite, to watch.

    Args:
        graph: it is changed in place.
        from_the_end: negative indices count from the end, as ONNX has it; TensorFlow refuses them.

    Returns:
        How many outputs were added; their names begin with `GUARD`.
    """
    depends = depending(graph)
    lost, empty = losses(graph), empty_operands(graph)
    results: list[Any] = []

    def watch(wrong: Any, what: str) -> None:
        some = ops.reduce_logical_or(wrong, _all_axes(wrong), keep_dims=False)
        some.output(0).set_names({f"{GUARD}{what}.{len(results)}"})
        results.append(ops.result(some))

    for node in graph.get_ordered_ops():
        for wrong in _guards(node, depends, from_the_end):
            watch(wrong, _INDEX)
        if _narrows(node) and node.get_name() in depends:
            watch(_beyond(node), _RANGE)
        for bound in of_node(node, depends, _indices_within).bounds:
            watch(_too_far(bound), _INDEX)
    for operand in empty:
        watch(is_wrong(operand), _EMPTY)
    for value, what in lost:
        watch(spoilt(value, what), _FINITE)
    if results:
        graph.add_results(results)
        graph.validate_nodes_and_infer_types()
    return len(results)


def refusal(guard: str) -> InputError:
    """What to say to inputs for which a guard is true."""
    if guard.startswith(f"{GUARD}{_INDEX}."):
        return InputError("request.index_range", "an index is beyond the end of what it indexes")
    if guard.startswith(f"{GUARD}{_RANGE}."):
        return InputError(
            "request.value_range",
            "a number within the graph is beyond the 8- or 16-bit integer that it is cast to",
        )
    if guard.startswith(f"{GUARD}{_EMPTY}."):
        return InputError(
            "request.empty_input",
            "the inputs lead to an empty tensor within the graph, "
            "which the OpenVINO runtime does not compute with",
        )
    return InputError(
        "request.not_finite",
        "the inputs lead to a NaN or an Infinity within the graph, "
        "which the OpenVINO runtime would not carry on as TensorFlow does",
    )


def _guards(node: Any, depends: set[str], from_the_end: bool) -> Iterator[Any]:
    kind = node.get_type_name()
    if kind == "Gather" and (_source(node, _INDICES) in depends or _is_open(node)):
        size = ops.gather(_shape_of(node), node.input_value(2), _constant(0))
        # Its axis may be a vector of one; a scalar index has to stay a scalar.
        yield _hold(node, ops.reshape(size, _constant([]), False), from_the_end)
    elif kind == "GatherND" and _source(node, _INDICES) in depends:
        first = node.get_attributes().get("batch_dims", 0)
        shape = node.input(_INDICES).get_partial_shape()
        last = first + shape[len(shape) - 1].get_length()
        sizes = ops.gather(_shape_of(node), _constant(list(range(first, last))), _constant(0))
        yield _hold(node, sizes, from_the_end)
    elif kind == "StridedSlice":
        for axis, entry in _single_elements(node):
            if (
                node.input(0).get_partial_shape()[axis].is_static
                and _source(node, 1) not in depends
            ):
                continue  # OpenVINO checks it when it compiles
            size = ops.gather(_shape_of(node), _constant(axis), _constant(0))
            begin = ops.gather(node.input_value(1), _constant(entry), _constant(0))
            yield _outside(begin, size, from_the_end=True)


def _narrows(node: Any) -> bool:
    """Whether a node casts floats to integers that hold few of them."""
    if node.get_type_name() != "Convert" or node.get_output_element_type(0) not in _NARROW:
        return False
    return bool(node.get_input_element_type(0).is_real())


def _beyond(node: Any) -> Any:
    """Whether a float, cut at its point, lies beyond the integers that it is cast to."""
    least, largest = _NARROW[node.get_output_element_type(0)]
    value = ops.convert(node.input_value(0), "f32")
    low, high = (ops.constant(np.float32(each)) for each in (least - 1, largest + 1))
    return ops.logical_or(ops.less_equal(value, low), ops.greater_equal(value, high))


def _indices_within(body: ov.Model, depends: set[str]) -> Iterator[Index]:
    """What is indexed in the body of a loop or branch by what depends on inputs or turns."""
    for node in body.get_ordered_ops():
        kind = node.get_type_name()
        if kind == "Unique" or (_narrows(node) and node.get_name() in depends):
            yield Index(kind, None, 0, None, 0)
        elif kind == "StridedSlice":
            for axis, entry in _single_elements(node):
                data = node.input_value(0)
                if _source(node, 1) in depends or data.get_partial_shape()[axis].is_dynamic:
                    yield Index(kind, node.input_value(1), entry, data, axis)
        elif kind in ("Gather", "GatherND", *_WRITES) and _source(node, _INDICES) in depends:
            position = {"Gather": 2, "ScatterUpdate": 3}.get(kind)
            along = None if position is None else number_of(node.input_value(position))
            counted = along is not None and along >= 0
            index = node.input_value(_INDICES) if counted else None
            yield Index(kind, index, 0, node.input_value(0), along or 0)


def _too_far(bound: Bound) -> Any:
    """Whether a loop would count beyond what it indexes."""
    size = _constant(bound.size)
    if bound.data is not None:
        size = ops.gather(ops.shape_of(bound.data), _constant(bound.axis), _constant(0))
    limit = _constant(bound.limit) if isinstance(bound.limit, int) else bound.limit
    limit = ops.convert(limit, "i64")
    if bound.runs:
        limit = ops.maximum(limit, _constant(bound.first + 1))
    return ops.greater(limit, size)


def _hold(node: Any, size: Any, from_the_end: bool) -> Any:
    """Give a node 0 in place of each index that is out of range; say where they are."""
    index = node.input_value(_INDICES)
    wrong = _outside(index, size, from_the_end)
    zero = ops.convert(_constant(0), index.get_element_type().get_type_name())
    node.input(_INDICES).replace_source_output(ops.select(wrong, zero, index).output(0))
    return wrong


def _outside(index: Any, size: Any, from_the_end: bool) -> Any:
    """Whether an index is not in [0, size), or counted from the end not in [-size, size)."""
    index, size = (ops.convert(each, "i64") for each in (index, size))
    least = ops.negative(size) if from_the_end else _constant(0)
    return ops.logical_or(ops.less(index, least), ops.greater_equal(index, size))


def _is_open(node: Any) -> bool:
    """Whether a Gather takes values from an axis of which the inputs say how long it is."""
    axis, shape = number_of(node.input_value(2)), node.input(0).get_partial_shape()
    return axis is None or shape.rank.is_dynamic or shape[axis].is_dynamic


def _single_elements(node: Any) -> Iterator[tuple[int, int]]:
    """Of which axes a StridedSlice takes one element: the axis, and the entry that says which."""
    rank = node.input(0).get_partial_shape().rank
    attributes = node.get_attributes()
    shrink, new, ellipsis = (
        list(attributes.get(f"{name}_mask", ())) for name in ("shrink_axis", "new_axis", "ellipsis")
    )
    if rank.is_dynamic or not any(shrink):
        return
    length = max(map(len, (shrink, new, ellipsis)))
    shrink, new, ellipsis = (mask + [0] * (length - len(mask)) for mask in (shrink, new, ellipsis))
    taken = sum(not (new[i] or ellipsis[i]) for i in range(length))
    axis = 0
    for entry in range(length):
        if ellipsis[entry]:
            # Entries beyond the masks' end stand for whole axes and come last.
            begins = node.input(1).get_partial_shape()[0]
            more = begins.get_length() - length if begins.is_static else 0
            axis += rank.get_length() - taken - max(more, 0)
        elif not new[entry]:
            if shrink[entry]:
                yield axis, entry
            axis += 1


def _source(node: Any, position: int) -> str:
    name: str = node.input_value(position).get_node().get_name()
    return name


def _shape_of(node: Any) -> Any:
    return ops.shape_of(node.input_value(0))


def _all_axes(node: Any) -> Any:
    shape = ops.shape_of(ops.shape_of(node))
    return ops.range(_constant(0), ops.squeeze(shape, _constant([0])), _constant(1), "i64")


def _constant(value: Any) -> Any:
    return ops.constant(np.asarray(value, np.int64))
