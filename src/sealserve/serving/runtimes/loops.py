"""Indices within loops and branches, where no output can watch them from outside.

Rules this module keeps:

* An index within a body is served if it does not depend on the inputs, or if it is a counter
  of its loop (it begins at a constant, grows by a constant, and the loop goes on only while
  it is below a limit) and the limit is not beyond what is indexed: shown at load where both
  are known, else compared by a guard outside of the loop, on each request.
* Every other one is named, for its signature to be refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import openvino as ov

__all__ = ["Body", "Bound", "Index", "Seen", "bodies_of", "number_of", "of_node"]

_SAME_NUMBER: Final = ("Convert", "Reshape", "Squeeze", "Unsqueeze")
# Of their first operand they keep the first axis, or make it longer.
_SAME_LENGTH: Final = ("Convert", "Broadcast", "ScatterUpdate")


@dataclass(frozen=True)
class Bound:
    """What must hold before a loop runs: a limit is within the size of an axis.

    Attributes:
        limit: the loop's, a number or an output of the graph around it.
        first: where its counter begins.
        runs: the first turn comes whatever the limit is.
        data: what is indexed, an output of the graph around it; None where ``size`` is known.
        axis: of ``data``.
        size: of the axis.
    """

    limit: Any
    first: int
    runs: bool
    data: Any
    axis: int
    size: int


@dataclass
class Seen:
    """What was found within the bodies of a node.

    Attributes:
        bounds: to be guarded in the graph around.
        unheld: what cannot be.
    """

    bounds: list[Bound] = field(default_factory=list)
    unheld: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Index:
    """A place in a body where something is indexed.

    Attributes:
        what: for people.
        value: the index; None if it cannot be a counter.
        entry: which number of ``value`` it is.
        data: what is indexed.
        axis: of it.
    """

    what: str
    value: Any
    entry: int
    data: Any
    axis: int


def of_node(node: Any, depends: set[str], indices: Any) -> Seen:
    """Judge the bodies of a loop or branch.

    Args:
        node: in a graph whose outputs can be guarded.
        depends: the names of the nodes of that graph that depend on the inputs.
        indices: a function from a body and what depends in it to its `Index` places.
    """
    seen = Seen()
    for body in bodies_of(node, depends):
        for index in indices(body.graph, body.depends):
            bound = body.bound(index)
            if bound is None:
                seen.unheld.add(f"{index.what} within {node.get_type_name()}")
            elif not _is_known(bound):
                seen.bounds.append(bound)
        for inner in body.graph.get_ordered_ops():
            below = of_node(inner, body.depends, indices)
            seen.unheld |= below.unheld
            if below.bounds:
                seen.unheld.add(f"counters of a loop within {node.get_type_name()}")
    return seen


def _is_known(bound: Bound) -> bool:
    numbers = bound.data is None and isinstance(bound.limit, int)
    return numbers and max(bound.limit, bound.first + bound.runs) <= bound.size


@dataclass(frozen=True)
class Body:
    """One body: its graph, where its parameters come from, and what depends in it.

    Attributes:
        graph: of the body.
        depends: names of its nodes that depend on the inputs, or change from turn to turn.
        outside: for each parameter, by name, the output of the graph around; None if sliced.
        fed_back: for each parameter that changes, by name, the value that it takes next.
        going_on: what the loop goes on for; None in a branch.
        iterations: the name of the parameter that counts, and the number of turns.
        runs: the first turn is not subject to a condition.
    """

    graph: ov.Model
    depends: set[str]
    outside: dict[str, Any]
    fed_back: dict[str, Any]
    going_on: Any = None
    iterations: tuple[str, Any] | None = None
    runs: bool = True

    def bound(self, index: Index) -> Bound | None:
        """What must hold for an index; None if nothing would be enough."""
        counter = _counter(index.value, index.entry) if index.value is not None else None
        if counter is None or counter.get_type_name() != "Parameter":
            return None
        first, limit = self._counted(counter.get_name())
        if limit is None:
            return None
        shape = index.data.get_partial_shape()
        if shape.rank.is_static and shape[index.axis].is_static:
            return Bound(limit, first, self.runs, None, 0, shape[index.axis].get_length())
        outer = self._origin(index.data, index.axis)
        return None if outer is None else Bound(limit, first, self.runs, outer, index.axis, 0)

    def _counted(self, name: str) -> tuple[int, Any]:
        """Where a counter begins and its limit; a limit of None if it is no counter."""
        if self.iterations is not None and name == self.iterations[0]:
            return 0, _number_or(self.iterations[1])
        following, outside = self.fed_back.get(name), self.outside.get(name)
        first = number_of(outside) if outside is not None else None
        if following is None or first is None or first < 0:
            return 0, None
        node = following.get_node()
        if node.get_type_name() != "Add" or self.going_on is None:
            return 0, None
        one, other = node.input_values()
        step = number_of(other) if _name(one) == name else number_of(one)
        if name not in (_name(one), _name(other)) or step is None or step < 1:
            return 0, None
        limits = (self._limit(each, node.get_name()) for each in _conditions(self.going_on))
        return first, next((limit for limit in limits if limit is not None), None)

    def _limit(self, condition: Any, following: str) -> Any:
        """The limit below which a condition holds the next value of a counter."""
        if condition.get_type_name() != "Less" or _name(condition.input_value(0)) != following:
            return None
        limit = condition.input_value(1)
        number = number_of(limit)
        if number is not None:
            return number
        name = _name(limit)
        outer = self.outside.get(name) if name not in self.fed_back else None
        return None if outer is None else _number_or(outer)

    def _origin(self, data: Any, axis: int) -> Any:
        """The value outside that is no longer along an axis than some data in the body."""
        name = _first_of(data, axis)
        outer = self.outside.get(name)
        following = self.fed_back.get(name)
        if following is not None and (axis or _first_of(following, axis) != name):
            return None
        return outer


def bodies_of(node: Any, depends: set[str]) -> Iterator[Body]:
    """The bodies of a loop or branch; of another node none."""
    kind = node.get_type_name()
    if kind == "If":
        for number, graph in enumerate((node.get_then_body(), node.get_else_body())):
            yield _body(node, graph, node.get_input_descriptions(number), depends)
    elif kind == "Loop":
        graph = node.get_function()
        body = _body(node, graph, node.get_input_descriptions(), depends)
        counting, condition = node.get_special_body_ports()
        going_on = graph.get_results()[condition].input_value(0) if condition >= 0 else None
        turns = None
        if counting >= 0:
            turns = (graph.get_parameters()[counting].get_name(), node.input_value(0))
        runs = node.input_value(1).get_node().get_type_name() == "Constant"
        yield replace(body, going_on=going_on, iterations=turns, runs=runs)
    elif kind == "TensorIterator":
        yield _body(node, node.get_body(), node.get_input_descriptions(), depends)


def _body(node: Any, graph: ov.Model, descriptions: Any, depends: set[str]) -> Body:
    parameters, results = graph.get_parameters(), graph.get_results()
    outside: dict[str, Any] = {}
    fed_back: dict[str, Any] = {}
    constant: set[str] = set()
    for each in descriptions:
        name = parameters[each.body_parameter_index].get_name()
        kind = each.get_type_info().name
        if kind != "SliceInputDescription":
            outside[name] = node.input_value(each.input_index)
        if kind == "MergedInputDescription":
            fed_back[name] = results[each.body_value_index].input_value(0)
        elif _name(node.input_value(each.input_index)) not in depends:
            constant.add(name)
    found: set[str] = set()
    for inner in graph.get_ordered_ops():
        kind, name = inner.get_type_name(), inner.get_name()
        if kind == "Parameter":
            if name not in constant:
                found.add(name)
        elif kind != "ShapeOf" and any(_name(each) in found for each in inner.input_values()):
            found.add(name)
    return Body(graph, found, outside, fed_back)


def _counter(value: Any, entry: int) -> Any:
    """The node that one number of an index comes from."""
    node = value.get_node()
    while True:
        kind = node.get_type_name()
        if kind == "Concat":
            parts = list(node.input_values())
            if any(part.get_partial_shape() != ov.PartialShape([1]) for part in parts):
                return None
            node, entry = parts[entry].get_node(), 0
        elif kind in _SAME_NUMBER and entry == 0:
            node = node.input_value(0).get_node()
        else:
            return node


def _conditions(value: Any) -> Iterator[Any]:
    """The conditions that all hold where a value is true."""
    node = value.get_node()
    if node.get_type_name() in ("LogicalAnd", *_SAME_NUMBER):
        for each in list(node.input_values())[: 2 if node.get_type_name() == "LogicalAnd" else 1]:
            yield from _conditions(each)
    else:
        yield node


def _first_of(data: Any, axis: int) -> str:
    """The name of the node whose length along an axis some data has at least."""
    node = data.get_node()
    while node.get_type_name() in (_SAME_LENGTH if axis == 0 else ("Convert",)):
        node = node.input_value(0).get_node()
    name: str = node.get_name()
    return name


def number_of(value: Any) -> int | None:
    """The value of a constant of one number."""
    node = value.get_node()
    while node.get_type_name() in _SAME_NUMBER:
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Constant":
        return None
    numbers = np.asarray(node.get_data())
    return int(numbers.flat[0]) if numbers.size == 1 and numbers.dtype.kind in "iu" else None


def _number_or(value: Any) -> Any:
    number = number_of(value)
    return value if number is None else number


def _name(value: Any) -> str:
    name: str = value.get_node().get_name()
    return name
