"""Constants that one reader takes for zero, spelled so that all read them alike."""

from __future__ import annotations

import numpy as np
import pytest

from sealserve.errors import InputError
from sealserve.wire.graphs import spell_out_scalars
from sealserve.wire.tensorflow import graph_pb2 as pb
from sealserve.wire.tensorflow import tensor_pb2 as tensor_pb
from sealserve.wire.tensors import to_proto


def test_constants_keep_their_meaning_when_spelled_out() -> None:
    graph = pb.GraphDef()
    values = {"f": np.float32(1.5), "i": np.int64(-3), "h": np.float16(0.1), "b": np.bool_(True)}
    for name, value in values.items():
        node = graph.node.add(name=name, op="Const")
        node.attr["value"].tensor.CopyFrom(to_proto(value, typed_fields=False))
    vector = graph.node.add(name="vector", op="Const")
    vector.attr["value"].tensor.CopyFrom(to_proto(np.ones(1, "f4"), typed_fields=False))
    inner = graph.library.function.add().node_def.add(name="inner", op="Const")
    inner.attr["value"].tensor.CopyFrom(to_proto(np.float32(2), typed_fields=False))
    assert spell_out_scalars(graph) == 5
    assert not any(node.attr["value"].tensor.tensor_content for node in graph.node[:4])
    assert vector.attr["value"].tensor.tensor_content
    assert inner.attr["value"].tensor.float_val[:] == [2]
    for node, value in zip(graph.node, values.values(), strict=False):
        assert node.attr["value"].tensor == to_proto(value)
    malformed = graph.node.add(name="bad", op="Const").attr["value"].tensor
    malformed.dtype = tensor_pb.DT_FLOAT
    malformed.tensor_content = b"123"
    with pytest.raises(InputError, match=r"bad: .*tensor\.values_invalid"):
        spell_out_scalars(graph)
