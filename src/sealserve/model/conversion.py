"""Proof at import that a runtime can run a graph, and the types and shapes it gives.

OpenVINO converts the graph between the given inputs and outputs. That either
fails, with the operations it does not know, or yields what the signature needs:
an output's type and shape cannot be read off a GraphDef.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from sealserve.errors import InputError
from sealserve.wire.tensorflow import tensor_pb2 as pb

__all__ = ["check_onnx", "infer_outputs"]

_DATA_TYPES: Final[Mapping[str, int]] = {
    "f32": pb.DT_FLOAT,
    "f64": pb.DT_DOUBLE,
    "f16": pb.DT_HALF,
    "bf16": pb.DT_BFLOAT16,
    "i8": pb.DT_INT8,
    "i16": pb.DT_INT16,
    "i32": pb.DT_INT32,
    "i64": pb.DT_INT64,
    "u8": pb.DT_UINT8,
    "u16": pb.DT_UINT16,
    "u32": pb.DT_UINT32,
    "u64": pb.DT_UINT64,
    "boolean": pb.DT_BOOL,
    "string": pb.DT_STRING,
}


def infer_outputs(
    graph_file: Path, inputs: Sequence[str], outputs: Sequence[str], where: str
) -> list[tuple[int, tuple[int | None, ...] | None]]:
    """Convert a graph and read off its outputs.

    Args:
        graph_file: a binary GraphDef; OpenVINO reads from a path only.
        inputs: tensors to feed (``"input:0"``).
        outputs: tensors to fetch.
        where: the file that the user gave, for messages.

    Returns:
        For each output its DataType and its shape (None: unknown size, or rank).

    Raises:
        InputError: ``graph.unsupported``: OpenVINO cannot run it, or would run
            it without one of the inputs.
        ModuleNotFoundError: OpenVINO is not installed.
    """
    from openvino import frontend

    try:
        tensorflow = frontend.FrontEndManager().load_by_framework("tf")
        source = tensorflow.load(str(graph_file))
        source.extract_subgraph(
            [source.get_place_by_tensor_name(name) for name in inputs],
            [source.get_place_by_tensor_name(name) for name in outputs],
        )
        model = tensorflow.convert(source)
        fed = {name for port in model.inputs for name in port.names}
        ports = [model.output(name) for name in outputs]
    except Exception as error:  # OpenVINO's errors have no base of their own
        raise _unsupported(_reason(error), where) from error
    if lost := [name for name in inputs if name not in fed]:
        raise _unsupported(f"the converted graph no longer reads {lost[0]!r}", where)
    return [(_data_type(port, where), _shape(port)) for port in ports]


def check_onnx(file: Path, where: str) -> None:
    """Have OpenVINO read an ONNX file.

    Args:
        file: the model, its external data beside it.
        where: the file that the user gave, for messages.

    Raises:
        InputError: ``onnx.unsupported``: an operator that OpenVINO does not have, weights of
            another size than their shapes say, or something else it does not take.
        ModuleNotFoundError: OpenVINO is not installed.
    """
    import openvino

    try:
        openvino.Core().read_model(file)
    except RuntimeError as error:
        raise InputError(
            "onnx.unsupported", f"OpenVINO cannot run this model: {_reason(error)}", where=where
        ) from error


def _data_type(port: Any, where: str) -> int:
    name = port.get_element_type().get_type_name()
    if name not in _DATA_TYPES:
        raise _unsupported(f"an output has the type {name!r}", where)
    return _DATA_TYPES[name]


def _shape(port: Any) -> tuple[int | None, ...] | None:
    shape = port.get_partial_shape()
    if shape.rank.is_dynamic:
        return None
    return tuple(None if size.is_dynamic else size.get_length() for size in shape)


def _reason(error: Exception) -> str:
    """The one telling line of OpenVINO's report."""
    lines = [line.strip(" -\t") for line in str(error).splitlines() if line.strip()]
    telling = [
        line for line in lines if "conversion rule" in line or "Conversion is failed" in line
    ]
    return (telling or lines[-1:] or [type(error).__name__])[0][:300]


def _unsupported(reason: str, where: str) -> InputError:
    return InputError(
        "graph.unsupported",
        f"OpenVINO cannot run this graph: {reason}",
        where=where,
        hint="choose --inputs and --outputs that leave pre- or post-processing out",
    )
