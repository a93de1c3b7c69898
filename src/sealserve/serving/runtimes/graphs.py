"""From a file to a graph that OpenVINO runs, shown to be what the file says.

OpenVINO reads one signature of a SavedModel, follows the graph beyond the
signature's inputs, takes a placeholder's default for a constant and some scalar
constants for zero, and drops assignments. So a signature becomes a graph like this:

1. scalar constants are spelled out (`sealserve.wire.graphs`), and its graph is
   searched for operations that keep state, refuse inputs, or bind it to ranks (`saved_model`);
2. the model is presented to OpenVINO with that signature alone, under names of
   ours that cannot collide (``input.0``, ``output.0``, ...);
3. the graph is cut at exactly the signature's tensors, with their types and shapes;
4. the converted graph must have those inputs and outputs, each once, with those
   types and compatible shapes, and no operation that keeps state.

The rewritten ``saved_model.pb`` lives in a memfd: no byte of a model touches a
disk. The converter that reports telemetry (``openvino.convert_model``) is never called.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import openvino as ov
from openvino.frontend import (
    GeneralFailure,
    InitializationFailure,
    NotImplementedFailure,
    OpConversionFailure,
    OpValidationFailure,
)

from sealserve.errors import InputError, Unavailable
from sealserve.serving.runtimes.base import Signature, TensorSpec
from sealserve.serving.runtimes.saved_model import (
    not_elementwise,
    only_signature,
    operations_behind,
    refusing,
    stateful,
)
from sealserve.serving.runtimes.translations import load_frontend
from sealserve.wire.tensorflow import graph_pb2
from sealserve.wire.tensorflow import tensor_pb2 as pb
from sealserve.wire.tensors import dtype_name

__all__ = [
    "CONVERSION_FAILURES",
    "ELEMENT_TYPES",
    "Graph",
    "of_signature",
    "reason_of",
    "stateful_kinds",
]

ELEMENT_TYPES: dict[int, Any] = {
    pb.DT_FLOAT: ov.Type.f32,
    pb.DT_DOUBLE: ov.Type.f64,
    pb.DT_HALF: ov.Type.f16,
    pb.DT_INT8: ov.Type.i8,
    pb.DT_INT16: ov.Type.i16,
    pb.DT_INT32: ov.Type.i32,
    pb.DT_INT64: ov.Type.i64,
    pb.DT_UINT8: ov.Type.u8,
    pb.DT_UINT16: ov.Type.u16,
    pb.DT_UINT32: ov.Type.u32,
    pb.DT_UINT64: ov.Type.u64,
    pb.DT_BOOL: ov.Type.boolean,
}
_STATEFUL_OPERATIONS = {"Assign", "ReadValue", "RandomUniform", "Multinomial", "FrameworkNode"}

CONVERSION_FAILURES = (
    GeneralFailure,
    InitializationFailure,
    NotImplementedFailure,
    OpConversionFailure,
    OpValidationFailure,
)


@dataclass(frozen=True)
class Graph:
    """A converted graph and what it serves.

    Attributes:
        signature: what clients call.
        graph: OpenVINO's, not compiled yet.
        inputs: the signature's input keys -> names of the graph's ports.
        outputs: likewise.
        finite: keys of the inputs that may hold no NaN and no Infinity.
        by_values: sizes within it follow from the inputs' values, not from their shapes alone.
    """

    signature: Signature
    graph: ov.Model
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    finite: tuple[str, ...] = ()
    by_values: bool = False


def of_signature(
    path: Path,
    meta: graph_pb2.MetaGraphDef,
    key: str,
    wire: graph_pb2.SignatureDef | None = None,
    ranks: Mapping[str, int] | None = None,
) -> Graph:
    """The graph of one signature of a SavedModel.

    Args:
        path: its directory.
        meta: its meta graph, scalars spelled out.
        key: the signature's.
        wire: the signature itself, where it is another than the file's.
        ranks: of inputs that come with another rank than the signature states.

    Raises:
        InputError: ``servable.differs``.
        Unavailable: ``servable.runtime_cannot``, ``servable.stateful``.
    """
    wire = meta.signature_def[key] if wire is None else wire
    where = f"{path}, signature {key!r}"
    stated = Signature.from_wire(key, wire)
    signature = _of_ranks(stated, ranks or {})
    _check_signature(signature, where)
    operations = operations_behind(meta.graph_def, wire)
    if kept := stateful(operations):
        raise _stateful(kept, where)
    if dropped := refusing(operations):
        raise Unavailable(
            "servable.runtime_cannot",
            f"the signature refuses some inputs ({', '.join(dropped)}), "
            "and the OpenVINO runtime would answer them",
            where=where,
        )
    bound = not_elementwise(operations)
    if bound and signature is not stated:
        raise Unavailable(
            "servable.runtime_cannot",
            f"an input's rank is not stated, and {', '.join(bound)} would not be computed "
            "or refused at each rank as TensorFlow does",
            where=where,
        )
    names = _Names(signature)
    with _presented(path, only_signature(meta, names.rename(wire))) as directory:
        graph = _convert(directory, signature, wire, where)
    _prove(graph, signature, names, where)
    return Graph(replace(signature, elementwise=not bound), graph, names.inputs, names.outputs)


def _of_ranks(signature: Signature, ranks: Mapping[str, int]) -> Signature:
    """The signature for inputs of other ranks; one of unknown rank is a vector until asked."""
    inputs = {}
    for key, spec in signature.inputs.items():
        if key in ranks or spec.shape is None:
            inputs[key] = TensorSpec(spec.dtype, (-1,) * ranks.get(key, 1))
        else:
            inputs[key] = spec
    if inputs == signature.inputs:
        return signature
    outputs = {key: TensorSpec(spec.dtype, None) for key, spec in signature.outputs.items()}
    return Signature(signature.name, inputs, outputs, signature.method_name)


def stateful_kinds(graph: ov.Model) -> list[str]:
    """The kinds of operations in a graph that keep state or draw random numbers."""
    found = {op.get_type_name() for op in graph.get_ops()} & _STATEFUL_OPERATIONS
    return sorted(found) or (["a variable"] if graph.get_variables() else [])


class _Names:
    """Names of ours for a signature's tensors, and the way back to its keys.

    OpenVINO names ports after signature keys and renames those that collide
    (an input and an output of one name), so that keys do not say which is which.
    """

    def __init__(self, signature: Signature) -> None:
        self.inputs = {key: f"input.{n}" for n, key in enumerate(sorted(signature.inputs))}
        self.outputs = {key: f"output.{n}" for n, key in enumerate(sorted(signature.outputs))}

    def rename(self, wire: graph_pb2.SignatureDef) -> graph_pb2.SignatureDef:
        renamed = graph_pb2.SignatureDef(method_name=wire.method_name)
        for key, info in wire.inputs.items():
            renamed.inputs[self.inputs[key]].CopyFrom(info)
        for key, info in wire.outputs.items():
            renamed.outputs[self.outputs[key]].CopyFrom(info)
        return renamed


def _check_signature(signature: Signature, where: str) -> None:
    for kind, specs in (("input", signature.inputs), ("output", signature.outputs)):
        for key, spec in specs.items():
            if spec.dtype not in ELEMENT_TYPES:
                raise Unavailable(
                    "servable.runtime_cannot",
                    f"{kind} {key!r} is of type {dtype_name(spec.dtype)}, "
                    "which the OpenVINO runtime does not serve",
                    where=where,
                )
    if not signature.outputs:
        raise InputError("servable.differs", "the signature has no outputs", where=where)


@contextmanager
def _presented(path: Path, saved: graph_pb2.SavedModel) -> Iterator[Path]:
    """A directory that OpenVINO takes for a SavedModel; only links lie in it."""
    descriptor = os.memfd_create("saved_model")
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(saved.SerializeToString())
        with tempfile.TemporaryDirectory(prefix="sealserve-") as name:
            directory = Path(name)
            (directory / "saved_model.pb").symlink_to(f"/proc/self/fd/{descriptor}")
            for part in ("variables", "assets"):
                if (path / part).is_dir():
                    (directory / part).symlink_to((path / part).resolve())
            yield directory
    finally:
        os.close(descriptor)


def _convert(
    directory: Path, signature: Signature, wire: graph_pb2.SignatureDef, where: str
) -> ov.Model:
    try:
        frontend = load_frontend("tf")
        model = frontend.load(str(directory))
        inputs = {
            key: model.get_place_by_tensor_name(info.name) for key, info in wire.inputs.items()
        }
        outputs = [model.get_place_by_tensor_name(info.name) for info in wire.outputs.values()]
        if None in inputs.values() or None in outputs:
            raise InputError(
                "servable.differs", "the signature names a tensor that is not there", where=where
            )
        model.extract_subgraph(list(inputs.values()), outputs)
        for key, place in inputs.items():
            spec = signature.inputs[key]
            model.set_element_type(place, ELEMENT_TYPES[spec.dtype])
            model.set_partial_shape(place, _partial_shape(spec))
        return frontend.convert(model)
    except (*CONVERSION_FAILURES, RuntimeError, ValueError) as error:
        raise Unavailable(
            "servable.runtime_cannot",
            f"OpenVINO cannot convert this signature: {reason_of(error)}",
            where=where,
        ) from None


def _prove(graph: ov.Model, signature: Signature, names: _Names, where: str) -> None:
    """Show that the converted graph is the signature, or refuse it."""
    if kept := stateful_kinds(graph):
        raise _stateful(kept, where)
    for kind, ports, specs, known in (
        ("input", graph.inputs, signature.inputs, names.inputs),
        ("output", graph.outputs, signature.outputs, names.outputs),
    ):
        found = set()
        for key, spec in specs.items():
            matches = [n for n, port in enumerate(ports) if known[key] in port.get_names()]
            if len(matches) != 1:
                raise _differs(
                    f"the converted graph has no {kind} {key!r}: "
                    "the signature does not use it, or it is a constant",
                    where,
                )
            port = ports[matches[0]]
            found.add(matches[0])
            if port.get_element_type() != ELEMENT_TYPES[spec.dtype]:
                raise _differs(
                    f"{kind} {key!r} became {port.get_element_type()}; "
                    f"the signature says {dtype_name(spec.dtype)}",
                    where,
                )
            if not port.get_partial_shape().compatible(_partial_shape(spec)):
                raise _differs(
                    f"{kind} {key!r} became {port.get_partial_shape()}; "
                    f"the signature says {_partial_shape(spec)}",
                    where,
                )
        if len(found) != len(ports):
            raise _differs(f"the converted graph has {kind}s that the signature has not", where)


def _partial_shape(spec: TensorSpec) -> ov.PartialShape:
    if spec.shape is None:
        return ov.PartialShape.dynamic()
    return ov.PartialShape(list(spec.shape))


def _stateful(operations: Sequence[str], where: str) -> Unavailable:
    return Unavailable(
        "servable.stateful",
        f"the signature keeps state or draws random numbers ({', '.join(operations)}), "
        "which the OpenVINO runtime does not serve",
        where=where,
        hint="export an inference signature without variables that change",
    )


def _differs(message: str, where: str) -> InputError:
    return InputError("servable.differs", message, where=where)


def reason_of(error: Exception) -> str:
    """OpenVINO's sentence without the source lines of its own that come before it."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return " ".join(said)[:300] or type(error).__name__
