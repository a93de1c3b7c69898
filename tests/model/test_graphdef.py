"""Graphs: building, reading, cutting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealserve.errors import InputError
from sealserve.model import graphdef
from sealserve.model.graphdef import GraphBuilder
from sealserve.wire.tensorflow import graph_pb2 as pb
from sealserve.wire.tensors import to_array
from tests.model.graphs import CASES


def test_a_constant_holds_its_array() -> None:
    builder = GraphBuilder()
    array = np.arange(6, dtype=np.int64).reshape(2, 3)
    builder.const("c", array)
    (node,) = builder.graph.node
    np.testing.assert_array_equal(to_array(node.attr["value"].tensor, 1 << 10), array)


def test_attributes_follow_from_python_types() -> None:
    builder = GraphBuilder()
    builder.node("Op", "n", flag=True, count=2, ratio=0.5, text=b"x", sizes=[1, 2])
    kinds = {key: value.WhichOneof("value") for key, value in builder.graph.node[0].attr.items()}
    assert kinds == {"flag": "b", "count": "i", "ratio": "f", "text": "s", "sizes": "list"}
    with pytest.raises(TypeError, match="no attribute kind"):
        builder.node("Op", "m", what={1})


@pytest.mark.parametrize(("name", "source"), [("x", "x"), ("y", "nowhere"), ("y", "y")])
def test_names_are_unique_and_inputs_known(name: str, source: str) -> None:
    builder = GraphBuilder()
    builder.placeholder("x", [None])
    with pytest.raises(ValueError, match="taken or an input unknown"):
        builder.relu(name, source)


def test_shapes_have_unknown_sizes_and_ranks() -> None:
    assert [dim.size for dim in graphdef.shape_proto([None, 0, 3]).dim] == [-1, 0, 3]
    assert graphdef.shape_proto(None).unknown_rank
    assert not graphdef.shape_proto([]).unknown_rank


def test_the_ends_of_a_graph_are_its_results() -> None:
    assert graphdef.sinks(CASES["layers"]().graph) == ["features", "classes"]
    # A constant and a placeholder that nobody reads are none.
    builder = GraphBuilder()
    builder.placeholder("unused", [None])
    builder.const("c", np.zeros(2))
    assert graphdef.sinks(builder.graph) == []


def test_control_inputs_and_ports_are_followed() -> None:
    builder = GraphBuilder()
    builder.node("NoOp", "first")
    builder.placeholder("x", [None])
    builder.const("alone", np.zeros(2))
    graph = builder.graph
    graph.node.add(name="y", op="Identity", input=["x:0", "^first"])
    cut = graphdef.needed_for(graph, ["y:0"])
    assert [node.name for node in cut.node] == ["first", "x", "y"]
    assert cut.versions == graph.versions


def test_a_loop_in_the_graph_is_walked_once() -> None:
    graph = pb.GraphDef()
    graph.node.add(name="merge", op="Merge", input=["next"])
    graph.node.add(name="next", op="NextIteration", input=["merge"])
    assert len(graphdef.needed_for(graph, ["merge:0"]).node) == 2


def parse(graph: pb.GraphDef) -> pb.GraphDef:
    return graphdef.parse_graph(graph.SerializeToString(), "file.pb")


def test_graphs_that_do_not_hold_together_are_refused() -> None:
    two = pb.GraphDef(node=[pb.NodeDef(name="a", op="NoOp"), pb.NodeDef(name="a", op="NoOp")])
    dangling = pb.GraphDef(node=[pb.NodeDef(name="a", op="Relu", input=["b"])])
    nameless = pb.GraphDef(node=[pb.NodeDef(op="NoOp")])
    no_op = pb.GraphDef(node=[pb.NodeDef(name="a")])
    for graph in (pb.GraphDef(), two, dangling, nameless, no_op):
        with pytest.raises(InputError, match=r"file\.pb: .*graph\.malformed"):
            parse(graph)


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_any_bytes_are_a_graph_or_an_input_error(content: bytes) -> None:
    try:
        graph = graphdef.parse_graph(content, "file.pb")
    except InputError:
        return
    assert graph.node


def test_state_and_functions_are_refused() -> None:
    variable = pb.GraphDef(node=[pb.NodeDef(name="v", op="VarHandleOp")])
    with pytest.raises(InputError, match=r"'v' \(VarHandleOp\).*graph\.not_frozen"):
        graphdef.check_frozen(variable, "file.pb")
    call = pb.GraphDef(node=[pb.NodeDef(name="c", op="mine")])
    call.library.function.add().signature.name = "mine"
    with pytest.raises(InputError, match=r"graph\.has_functions"):
        graphdef.check_frozen(call, "file.pb")
    partitioned = pb.GraphDef(node=[pb.NodeDef(name="c", op="PartitionedCall")])
    partitioned.node[0].attr["f"].func.name = "mine"
    with pytest.raises(InputError, match=r"graph\.has_functions"):
        graphdef.check_frozen(partitioned, "file.pb")
