"""What a model takes and gives: signatures as data, in TensorFlow's terms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from sealserve.errors import InputError
from sealserve.model import graphdef
from sealserve.wire.tensorflow import graph_pb2 as graph_pb
from sealserve.wire.tensorflow import tensor_pb2 as tensor_pb
from sealserve.wire.tensors import dtype_name

__all__ = [
    "PREDICT_METHOD",
    "SERVING_TAG",
    "Signature",
    "TensorSpec",
    "parse_saved_model",
    "placeholder_specs",
    "serves",
]

PREDICT_METHOD = "tensorflow/serving/predict"
SERVING_TAG = "serve"


@dataclass(frozen=True)
class TensorSpec:
    """One input or output.

    Attributes:
        key: its name in requests and answers.
        tensor: its name in the graph (``"input:0"``).
        data_type: number of a DataType.
        shape: sizes, None where a size is unknown; None for an unknown rank.
    """

    key: str
    tensor: str
    data_type: int
    shape: tuple[int | None, ...] | None

    @classmethod
    def from_info(cls, key: str, info: graph_pb.TensorInfo) -> TensorSpec:
        """Read a SignatureDef's entry."""
        return cls(key, info.name, info.dtype, _sizes(info.tensor_shape))

    def to_info(self) -> graph_pb.TensorInfo:
        """The SignatureDef's entry."""
        return graph_pb.TensorInfo(
            name=self.tensor,
            dtype=self.data_type,  # type: ignore[arg-type]
            tensor_shape=graphdef.shape_proto(self.shape),
        )

    def __str__(self) -> str:
        sizes = "of unknown rank" if self.shape is None else _list(self.shape)
        return f"{self.key}: {dtype_name(self.data_type)} {sizes} ({self.tensor})"

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        shape = None if self.shape is None else list(self.shape)
        dtype = dtype_name(self.data_type)
        return {"key": self.key, "tensor": self.tensor, "dtype": dtype, "shape": shape}


@dataclass(frozen=True)
class Signature:
    """One way to call a model."""

    name: str
    method: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @classmethod
    def from_proto(cls, name: str, proto: graph_pb.SignatureDef) -> Signature:
        """Read a SignatureDef; inputs and outputs in order of their keys."""
        return cls(
            name,
            proto.method_name,
            tuple(TensorSpec.from_info(key, info) for key, info in sorted(proto.inputs.items())),
            tuple(TensorSpec.from_info(key, info) for key, info in sorted(proto.outputs.items())),
        )

    def to_proto(self) -> graph_pb.SignatureDef:
        """The SignatureDef."""
        return graph_pb.SignatureDef(
            method_name=self.method,
            inputs={spec.key: spec.to_info() for spec in self.inputs},
            outputs={spec.key: spec.to_info() for spec in self.outputs},
        )

    def __str__(self) -> str:
        lines = [f"{self.name} ({self.method})"]
        lines += [f"  in   {spec}" for spec in self.inputs]
        lines += [f"  out  {spec}" for spec in self.outputs]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "name": self.name,
            "method": self.method,
            "inputs": [spec.to_dict() for spec in self.inputs],
            "outputs": [spec.to_dict() for spec in self.outputs],
        }


def parse_saved_model(content: bytes, where: str) -> graph_pb.SavedModel:
    """Read a ``saved_model.pb`` and check that a server can find a model in it.

    Raises:
        InputError: ``savedmodel.malformed``: not a SavedModel, or one without
            exactly one graph tagged ``serve`` that has a signature.
    """
    try:
        model = graph_pb.SavedModel.FromString(content)
    except DecodeError as error:
        raise _malformed("the file is not a SavedModel", where) from error
    serving = [graph for graph in model.meta_graphs if serves(graph)]
    if len(serving) != 1:
        raise _malformed(
            f"it has {len(serving)} graphs with the tag {SERVING_TAG!r}; one is needed", where
        )
    if not serving[0].signature_def:
        raise _malformed("its graph has no signature, so nobody could call it", where)
    return model


def serves(graph: graph_pb.MetaGraphDef) -> bool:
    """Whether a graph of a SavedModel is the one for serving."""
    return list(graph.meta_info_def.tags) == [SERVING_TAG]


def placeholder_specs(graph: graph_pb.GraphDef) -> list[TensorSpec]:
    """The placeholders of a graph with the types and shapes that they state."""
    specs = []
    for node in graph.node:
        if node.op in graphdef.PLACEHOLDER_OPS:
            # A placeholder without a shape takes any, as one of unknown rank does.
            shape = _sizes(node.attr["shape"].shape) if "shape" in node.attr else None
            specs.append(TensorSpec(node.name, f"{node.name}:0", node.attr["dtype"].type, shape))
    return specs


def _sizes(shape: tensor_pb.TensorShapeProto) -> tuple[int | None, ...] | None:
    if shape.unknown_rank:
        return None
    return tuple(None if dim.size < 0 else dim.size for dim in shape.dim)


def _list(shape: tuple[int | None, ...]) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"


def _malformed(what: str, where: str) -> InputError:
    return InputError(
        "savedmodel.malformed",
        what,
        where=where,
        hint="give a directory that tf.saved_model.save or Keras' export wrote",
    )
