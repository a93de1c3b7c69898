"""What the sizes of a graph's tensors follow from: the inputs' shapes alone, or values too."""

from __future__ import annotations

from typing import Any, Final

import openvino as ov

from sealserve.serving.runtimes.loops import bodies_of

__all__ = ["by_values", "depending", "is_sized_by_values"]

_ALWAYS: Final = frozenset(("NonZero", "NonMaxSuppression", "Unique"))
# The inputs of each that say how large its output is.
_SIZED_BY: Final = {
    "Reshape": (1,),
    "Broadcast": (1,),
    "Tile": (1,),
    "OneHot": (1,),
    "TopK": (1,),
    "Interpolate": (1, 2),
    "Pad": (1, 2),
    "Slice": (1, 2, 3),
    "StridedSlice": (1, 2, 3),
    "Range": (0, 1, 2),
    "VariadicSplit": (2,),
    "ConvolutionBackpropData": (2,),
    "GroupConvolutionBackpropData": (2,),
    "BatchToSpace": (1, 2, 3),
    "SpaceToBatch": (1, 2, 3),
    "Eye": (0, 1),
    "Loop": (0, 1),
}


def depending(graph: ov.Model) -> set[str]:
    """The names of the nodes whose values depend on the inputs' values."""
    found: set[str] = set()
    for node in graph.get_ordered_ops():
        kind = node.get_type_name()
        if kind == "Parameter" or (
            kind != "ShapeOf" and any(_name(each) in found for each in node.input_values())
        ):
            found.add(node.get_name())
    return found


def by_values(graph: ov.Model) -> bool:
    """Whether any size in a graph follows from the inputs' values."""
    return _by_values(graph, depending(graph))


def _by_values(graph: ov.Model, depends: set[str]) -> bool:
    return any(is_sized_by_values(node, depends) for node in graph.get_ordered_ops())


def is_sized_by_values(node: Any, depends: set[str]) -> bool:
    """Whether values say how large what a node gives is, or something within it."""
    kind = node.get_type_name()
    if kind in _ALWAYS:
        return True
    sources = list(node.input_values())
    sizes = (sources[each] for each in _SIZED_BY.get(kind, ()) if each < len(sources))
    if any(_name(each) in depends for each in sizes):
        return any(port.get_partial_shape().is_dynamic for port in node.outputs())
    return any(_by_values(body.graph, body.depends) for body in bodies_of(node, depends))


def _name(value: Any) -> str:
    name: str = value.get_node().get_name()
    return name
