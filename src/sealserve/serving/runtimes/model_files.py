"""Models that are one file: TensorFlow Lite, ONNX, OpenVINO IR.

A version directory is served by the first of these that it has:

| file | what |
|---|---|
| ``saved_model.pb`` | a SavedModel (`saved_model`) |
| ``model.tflite`` | TensorFlow Lite |
| ``model.onnx`` | ONNX; its external data beside it |
| ``model.xml`` | OpenVINO IR; the weights in ``model.bin`` |

Such a file has one signature, ``serving_default``, whose keys are its own tensor
names; a TensorFlow Lite file may state a signature with keys of its own. It is the
file itself that says what is computed, so there is nothing to cut and nothing to
prove but that it keeps no state and is computed exactly. It is read as what its name says:
OpenVINO by itself tries every reader it has, and one of them prints what it does not like.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import openvino as ov
from openvino.frontend import NotImplementedFailure, OpConversionFailure

from sealserve.errors import InputError, Unavailable
from sealserve.files import read_limited
from sealserve.serving.runtimes.base import DEFAULT_SIGNATURE, Signature, TensorSpec
from sealserve.serving.runtimes.graphs import (
    CONVERSION_FAILURES,
    ELEMENT_TYPES,
    Graph,
    reason_of,
    stateful_kinds,
)
from sealserve.serving.runtimes.saved_model import FILE_NAME
from sealserve.serving.runtimes.tflite import LiteSignature, is_elementwise, read_signatures
from sealserve.serving.runtimes.translations import load_frontend
from sealserve.wire.graphs import MAX_GRAPH_BYTES
from sealserve.wire.tensorflow import graph_pb2
from sealserve.wire.tensorflow import tensor_pb2 as pb

__all__ = ["PREDICT_METHOD", "definition_of", "find_file", "read_file"]

PREDICT_METHOD: Final = "tensorflow/serving/predict"

_LITE: Final = "model.tflite"
# OpenVINO's names of what a TensorFlow Lite file may compute with at any rank: TensorFlow
# Serving resizes its inputs to what it is given (docs/adr/0028).
_ELEMENTWISE: Final = frozenset(("Add", "Maximum", "Minimum", "Multiply", "Relu", "Subtract"))
_FORMATS: Final = {_LITE: "tflite", "model.onnx": "onnx", "model.xml": "ir"}
_DATA_TYPES: Final = {str(element): number for number, element in ELEMENT_TYPES.items()}


def find_file(path: Path, *, prefer_lite: bool = False) -> Path | None:
    """The model file of a version directory; None where it has a SavedModel, or nothing."""
    if prefer_lite and (path / _LITE).is_file():
        return path / _LITE
    if (path / FILE_NAME).exists():
        return None
    return next((path / name for name in _FORMATS if (path / name).is_file()), None)


def read_file(core: ov.Core, file: Path, *, ranks: Mapping[str, int] | None = None) -> Graph:
    """Read a model file.

    Args:
        core: OpenVINO.
        file: the file.
        ranks: by the signature's keys, for an elementwise file: take inputs of these ranks.

    Raises:
        InputError: ``servable.file_malformed``, ``servable.names_collide``.
        Unavailable: ``servable.runtime_cannot``, ``servable.stateful``.
    """
    frontend = load_frontend(_FORMATS[file.name])
    if not frontend.supported(str(file)):
        raise InputError(
            "servable.file_malformed",
            f"the file is not of the format {_FORMATS[file.name]}",
            where=str(file),
        )
    try:
        lite = file.name == _LITE
        graph = frontend.convert(frontend.load(str(file))) if lite else core.read_model(file)
    except (OpConversionFailure, NotImplementedFailure) as error:
        raise Unavailable(
            "servable.runtime_cannot",
            f"OpenVINO cannot convert the model: {reason_of(error)}",
            where=str(file),
        ) from None
    except (*CONVERSION_FAILURES, RuntimeError, ValueError) as error:
        raise InputError(
            "servable.file_malformed",
            f"OpenVINO cannot read the model: {reason_of(error)}",
            where=str(file),
        ) from None
    if not graph.outputs:
        raise InputError("servable.file_malformed", "the model has no output", where=str(file))
    stateful = stateful_kinds(graph)
    if stateful:
        raise Unavailable(
            "servable.stateful",
            f"the model keeps state or draws random numbers ({', '.join(stateful)}), "
            "which the OpenVINO runtime does not serve",
            where=str(file),
            hint="export it for inference, without variables that change",
        )
    ports = _Ports(
        {_key(port, "input", file): port for port in graph.inputs},
        {_key(port, "output", file): port for port in graph.outputs},
    )
    if len(ports.inputs) != len(graph.inputs) or len(ports.outputs) != len(graph.outputs):
        raise InputError(
            "servable.names_collide", "two tensors of the model have one name", where=str(file)
        )
    keys = _lite_keys(file, ports) if file.name == _LITE else None
    if keys is None:
        keys = LiteSignature(
            DEFAULT_SIGNATURE,
            {name.removesuffix(":0"): name for name in ports.inputs},
            {name.removesuffix(":0"): name for name in ports.outputs},
        )
    signature = Signature(
        name=keys.key,
        inputs={key: _spec(ports.inputs[name], key, file) for key, name in keys.inputs.items()},
        outputs={key: _spec(ports.outputs[name], key, file) for key, name in keys.outputs.items()},
        method_name=PREDICT_METHOD,
        elementwise=file.name == _LITE and _is_elementwise(graph) and _states_elementwise(file),
    )
    if ranks is not None:
        graph.reshape({keys.inputs[key]: ov.PartialShape([-1] * n) for key, n in ranks.items()})
    return Graph(signature, graph, keys.inputs, keys.outputs)


def _is_elementwise(graph: ov.Model) -> bool:
    """Whether each number is computed by itself: then TensorFlow Lite takes any rank too."""
    operations = {node.get_type_name() for node in graph.get_ops()}
    return operations <= _ELEMENTWISE | {"Constant", "Parameter", "Result"}


def _states_elementwise(file: Path) -> bool:
    """Whether the file says so too: a converter may leave out a reshape that changes nothing."""
    return is_elementwise(read_limited(file, MAX_GRAPH_BYTES))


@dataclass(frozen=True)
class _Ports:
    """A graph's ports by the names that its file gives them."""

    inputs: dict[str, Any]
    outputs: dict[str, Any]


def _lite_keys(file: Path, ports: _Ports) -> LiteSignature | None:
    """The file's own signature, if it has one over exactly these ports."""
    stated = read_signatures(read_limited(file, MAX_GRAPH_BYTES))
    for each in (_without_suffixes(one, ports) for one in stated):
        whole = set(each.inputs.values()) == set(ports.inputs)
        if whole and set(each.outputs.values()) == set(ports.outputs):
            return each
    return None


def _without_suffixes(stated: LiteSignature, ports: _Ports) -> LiteSignature:
    """Name tensors as OpenVINO does: older files may say ``x:0`` for ``x``, or the reverse."""

    def named(tensors: dict[str, str], known: dict[str, Any]) -> dict[str, str]:
        by_stem = {name.removesuffix(":0"): name for name in known}
        return {key: by_stem.get(name.removesuffix(":0"), name) for key, name in tensors.items()}

    return LiteSignature(
        stated.key, named(stated.inputs, ports.inputs), named(stated.outputs, ports.outputs)
    )


def definition_of(graph: Graph) -> graph_pb2.SignatureDef:
    """The SignatureDef that a file without one would have."""
    signature = graph.signature
    wire = graph_pb2.SignatureDef(method_name=signature.method_name)
    for entries, specs in ((wire.inputs, signature.inputs), (wire.outputs, signature.outputs)):
        for key, spec in specs.items():
            info = entries[key]
            info.name = f"{key}:0"
            info.dtype = cast("pb.DataType", spec.dtype)
            if spec.shape is None:
                info.tensor_shape.unknown_rank = True
            else:
                for size in spec.shape:
                    info.tensor_shape.dim.add(size=size)
    return wire


def _key(port: Any, kind: str, file: Path) -> str:
    # A port may have several names; the shortest one is the file's own, without ":0".
    try:
        names = port.get_names()
        if any("\0" in name for name in names):
            raise ValueError  # no XML can hold it
    except ValueError:
        raise InputError(
            "servable.file_malformed", f"the name of an {kind} is no text", where=str(file)
        ) from None
    if not names:
        raise InputError("servable.names_collide", f"an {kind} has no name", where=str(file))
    return str(min(names, key=lambda name: (len(name), name)))


def _spec(port: Any, key: str, file: Path) -> TensorSpec:
    number = _DATA_TYPES.get(str(port.get_element_type()))
    if number is None:
        raise Unavailable(
            "servable.runtime_cannot",
            f"{key!r} is of type {port.get_element_type()}, which the OpenVINO runtime "
            "does not serve",
            where=str(file),
        )
    shape = port.get_partial_shape()
    if shape.rank.is_dynamic:
        return TensorSpec(number, None)
    return TensorSpec(number, tuple(-1 if dim.is_dynamic else dim.get_length() for dim in shape))
