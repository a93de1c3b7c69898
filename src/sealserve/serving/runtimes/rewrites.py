"""What OpenVINO's CPU plugin computes wrongly, put another way in the converted graph.

Seen in 2026.4, each held against TensorFlow by the tests:

* a ``Tile`` along several axes, one of which has length one, or by numbers that are no
  constants, mixes up what it repeats; so it becomes a ``Broadcast`` beside each axis;
* a ``StridedSlice`` that adds an axis and takes one element of another (``x[:, None, 0]``)
  takes it of the wrong axis; so the axes are added afterwards.

What follows an ``If`` by way of a ``Transpose`` may be given memory that nobody wrote, as
soon as shapes change. There is no other way to put it, so `misread_branches` names it.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from sealserve.serving.runtimes.finite import bodies
from sealserve.serving.runtimes.signs import constant

__all__ = ["misread_branches", "rewrite"]

# They compute into memory of their own, of which a transpose behind them may be a view.
_APART: Final = frozenset(
    ("ShapeOf", "MatMul", "Convolution", "GroupConvolution", "ReduceSum", "ReduceMean",
     "ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogicalOr", "ReduceLogicalAnd", "TopK",
     "Result")
)  # fmt: skip


def rewrite(graph: ov.Model) -> list[str]:
    """Change a graph in place.

    Returns:
        What would have to be changed and cannot be.
    """
    left: set[str] = set()
    for node in graph.get_ordered_ops():
        for body in bodies(node):
            left.update(rewrite(body))
        kind = node.get_type_name()
        if kind == "Tile" and not _is_simple_tile(node):
            _replace(node, _tile(node), left)
        elif kind == "StridedSlice" and _adds_and_takes(node):
            _replace(node, _strided_slice(node), left)
    graph.validate_nodes_and_infer_types()
    return sorted(left)


def misread_branches(graph: ov.Model) -> list[str]:
    """An ``If`` whose result a transpose takes, directly or by way of others' memory."""
    found: set[str] = set()
    reached: set[str] = set()
    for node in graph.get_ordered_ops():
        kind = node.get_type_name()
        for body in bodies(node):
            found.update(misread_branches(body))
        if kind == "If":
            reached.add(node.get_name())
        elif kind not in _APART and any(
            each.get_node().get_name() in reached for each in node.input_values()
        ):
            reached.add(node.get_name())
            if kind == "Transpose":
                found.add("Transpose behind If")
    return sorted(found)


def _replace(node: Any, value: Any, left: set[str]) -> None:
    if value is None:
        left.add(f"{node.get_type_name()} of unknown rank")
        return
    old = node.output(0)
    names = old.get_names()
    for target in old.get_target_inputs():
        target.replace_source_output(value.output(0))
    value.output(0).set_names(names)
    value.set_friendly_name(node.get_friendly_name())


def _is_simple_tile(node: Any) -> bool:
    multiples = constant(node.input_value(1))
    return multiples is not None and int((multiples != 1).sum()) <= 1


def _tile(node: Any) -> Any:
    """Blocks of each axis, broadcast beside it and made one with it."""
    given, multiples = node.input_value(0), node.input_value(1)
    lengths = multiples.get_partial_shape()
    rank = given.get_partial_shape().rank
    if lengths.is_dynamic or rank.is_dynamic or rank.get_length() != lengths[0].get_length():
        return None
    count = rank.get_length()
    zero = ops.constant(np.array(0))
    wide = ops.convert(multiples, "i64")
    shape = ops.shape_of(given, "i64")
    order = ops.constant(np.array([n // 2 + count * (n % 2) for n in range(2 * count)]))
    beside = ops.gather(ops.concat([wide, shape], 0), order, zero)
    apart = ops.unsqueeze(given, ops.constant(np.arange(0, 2 * count, 2)))
    return ops.reshape(ops.broadcast(apart, beside), ops.multiply(wide, shape), False)


def _adds_and_takes(node: Any) -> bool:
    stated = node.get_attributes()
    return any(stated["new_axis_mask"]) and any(stated["shrink_axis_mask"])


def _strided_slice(node: Any) -> Any:
    """Without its new axes, and those after it."""
    stated = node.get_attributes()
    shape = node.input_value(1).get_partial_shape()
    rank = node.input_value(0).get_partial_shape().rank
    if shape.is_dynamic or rank.is_dynamic:
        return None
    count = shape[0].get_length()
    masks = {
        key: [bool(each) for each in stated[key]] + [False] * (count - len(stated[key]))
        for key in ("begin_mask", "end_mask", "new_axis_mask", "shrink_axis_mask", "ellipsis_mask")
    }
    new, shrunk, rest = (
        masks[key] for key in ("new_axis_mask", "shrink_axis_mask", "ellipsis_mask")
    )
    kept = [n for n in range(count) if not new[n] or rest[n]]
    added, position = [], 0
    for n in range(count):
        if rest[n]:
            position += rank.get_length() - (len(kept) - 1)
        elif new[n]:
            added.append(position)
            position += 1
        elif not shrunk[n]:
            position += 1
    places, zero = ops.constant(np.array(kept)), ops.constant(np.array(0))
    sliced = ops.strided_slice(
        node.input_value(0),
        *(ops.gather(node.input_value(n), places, zero) for n in (1, 2, 3)),
        *([int(masks[key][n]) for n in kept] for key in ("begin_mask", "end_mask")),
        [0] * len(kept),
        [int(shrunk[n]) for n in kept],
        [int(rest[n]) for n in kept],
    )
    return ops.unsqueeze(sliced, ops.constant(np.array(added)))
