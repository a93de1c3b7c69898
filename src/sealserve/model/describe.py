"""What a model takes and gives, whatever kind of file it is."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sealserve.errors import Unavailable
from sealserve.model import graphdef
from sealserve.model.onnx_model import FILE_NAME, read_onnx
from sealserve.model.signature import (
    Signature,
    TensorSpec,
    parse_saved_model,
    placeholder_specs,
    serves,
)
from sealserve.wire.graphs import read_graph_file

__all__ = ["describe"]

_SAVED_MODEL: Final = "saved_model.pb"


def describe(path: Path) -> tuple[Signature, ...]:
    """The signatures of a model's directory or ONNX file, or what a frozen graph offers.

    A frozen graph has no signatures: its placeholders and its ends are listed
    under the name ``(frozen graph)``, the ends with an unknown type and shape.

    Raises:
        InputError: ``savedmodel.*``, ``onnx.*``, ``graph.*`` or ``file.too_large``.
        Unavailable: ``file.unreadable``.
    """
    if path.suffix == ".onnx":
        return (read_onnx(path).signature,)
    if path.is_dir() and (path / FILE_NAME).is_file() and not (path / _SAVED_MODEL).exists():
        return (read_onnx(path / FILE_NAME).signature,)
    if path.is_dir():
        file = path / _SAVED_MODEL
        if not file.exists():
            raise Unavailable(
                "file.unreadable",
                f"there is neither {_SAVED_MODEL} nor {FILE_NAME}",
                where=str(path),
                hint="`sealserve model check` reads TensorFlow Lite and OpenVINO IR files too",
            )
        model = parse_saved_model(read_graph_file(file), str(file))
        signatures = next(filter(serves, model.meta_graphs)).signature_def
        return tuple(
            Signature.from_proto(name, proto)
            for name, proto in sorted(signatures.items())
            if not name.startswith("__")  # the loader's own, such as __saved_model_init_op
        )
    graph = graphdef.parse_graph(read_graph_file(path), str(path))
    outputs = [TensorSpec(name, f"{name}:0", 0, None) for name in graphdef.sinks(graph)]
    return (Signature("(frozen graph)", "-", tuple(placeholder_specs(graph)), tuple(outputs)),)
