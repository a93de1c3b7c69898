"""OpenVINO as a runtime for SavedModels, one compiled graph for each signature.

OpenVINO reads one signature of a SavedModel, follows the graph beyond the
signature's inputs, takes a placeholder's default for a constant and some scalar
constants for zero, drops assignments and computes in bfloat16 where the
processor can. So each signature is loaded like this:

1. scalar constants are spelled out (`sealserve.wire.graphs`), and its graph is
   searched for operations that keep state (`saved_model`);
2. the model is presented to OpenVINO with that signature alone, under names of
   ours that cannot collide (``input.0``, ``output.0``, ...);
3. the graph is cut at exactly the signature's tensors, with their types and shapes;
4. the converted graph must have those inputs and outputs, each once, with those
   types and compatible shapes, and no operation that keeps state;
5. it must not compute integers or doubles where OpenVINO does so wrongly (`exactness`);
6. it is compiled at float32, and the compiled graph is asked whether it is.

Known limit: an index beyond the end of a table (``tf.gather``), which TensorFlow
refuses, is answered with numbers.

The rewritten ``saved_model.pb`` lives in a memfd: no byte of a model touches a
disk, and no cache directory is set. The converter that reports telemetry
(``openvino.convert_model``) is never called.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import openvino as ov
from openvino.frontend import (
    FrontEndManager,
    GeneralFailure,
    InitializationFailure,
    NotImplementedFailure,
    OpConversionFailure,
    OpValidationFailure,
)

from sealserve.errors import InputError, InternalError, SealserveError, Unavailable
from sealserve.logs import Log
from sealserve.serving.config import RuntimeConfig
from sealserve.serving.runtimes.base import Model, Signature, TensorSpec
from sealserve.serving.runtimes.exactness import WIDE_LIMIT, inexact_operations
from sealserve.serving.runtimes.saved_model import (
    only_signature,
    read_meta_graph,
    stateful_operations,
)
from sealserve.wire.graphs import spell_out_scalars
from sealserve.wire.tensorflow import graph_pb2
from sealserve.wire.tensorflow import tensor_pb2 as pb
from sealserve.wire.tensors import Array, dtype_name

__all__ = ["OpenVinoRuntime"]

_DEVICE = "CPU"

_ELEMENT_TYPES: dict[int, Any] = {
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

_CONVERSION_FAILURES = (
    GeneralFailure,
    InitializationFailure,
    NotImplementedFailure,
    OpConversionFailure,
    OpValidationFailure,
)

# Signatures that are a SavedModel's own plumbing, not for clients.
_INTERNAL_PREFIX = "__saved_model_"


class OpenVinoRuntime:
    """Loads SavedModels with OpenVINO on the cores this process may use."""

    name = "openvino"

    def __init__(self, config: RuntimeConfig, log: Log) -> None:
        self._tags = config.tags
        self._log = log
        self._core = ov.Core()
        cores = len(os.sched_getaffinity(0))
        self._threads = config.threads or cores
        self._streams = config.streams or 1
        log.info(
            "runtime",
            runtime=self.name,
            version=ov.get_version(),
            precision="f32",
            threads=self._threads,
            streams=self._streams,
            reason=(
                f"set by flags, on {cores} cores"
                if config.threads or config.streams
                else f"one inference at a time on all {cores} cores: the lowest latency; "
                "--tensorflow_inter_op_parallelism=N runs N side by side"
            ),
        )

    def load(self, path: Path) -> Model:
        """Load a version directory; a signature that cannot be proved is in ``refused``.

        Raises:
            InputError, Unavailable: there is no SavedModel to look at.
        """
        meta = read_meta_graph(path, self._tags)
        spell_out_scalars(meta.graph_def)
        compiled: dict[str, _Compiled] = {}
        refused: dict[str, SealserveError] = {}
        for key in sorted(meta.signature_def):
            if key.startswith(_INTERNAL_PREFIX):
                continue
            try:
                compiled[key] = self._compile(path, meta, key)
            except SealserveError as error:
                refused[key] = error
        # Copies: a message inside another keeps all of it in memory, weights included.
        definitions = {
            key: graph_pb2.SignatureDef.FromString(wire.SerializeToString())
            for key, wire in meta.signature_def.items()
        }
        return _OpenVinoModel(definitions, compiled, refused)

    def _compile(self, path: Path, meta: graph_pb2.MetaGraphDef, key: str) -> _Compiled:
        wire = meta.signature_def[key]
        where = f"{path}, signature {key!r}"
        signature = Signature.from_wire(key, wire)
        _check_signature(signature, where)
        stateful = stateful_operations(meta.graph_def, wire)
        if stateful:
            raise _stateful(stateful, where)
        names = _Names(signature)
        with _presented(path, only_signature(meta, names.rename(wire))) as directory:
            graph = _convert(directory, signature, wire, where)
        _prove(graph, signature, names, where)
        inexact = inexact_operations(graph)
        if inexact:
            raise Unavailable(
                "servable.inexact",
                f"OpenVINO would not compute this signature exactly: {', '.join(inexact)}",
                where=where,
                hint="compute in float32 or int32, and pass 64-bit integers on as they are",
            )
        model = self._core.compile_model(
            graph,
            _DEVICE,
            {
                "INFERENCE_PRECISION_HINT": "f32",
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": self._threads,
                "NUM_STREAMS": self._streams,
                "CACHE_DIR": "",
            },
        )
        if model.get_property("INFERENCE_PRECISION_HINT") != ov.Type.f32:
            raise InternalError(
                "servable.precision", "OpenVINO did not compile the graph at f32", where=where
            )
        return _Compiled(signature, model, names)


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


class _Compiled:
    """One signature, compiled, with a pool of infer requests for concurrent calls."""

    def __init__(self, signature: Signature, model: ov.CompiledModel, names: _Names) -> None:
        self.signature = signature
        self._inputs = {key: _position(model.inputs, name) for key, name in names.inputs.items()}
        self._outputs = {key: _position(model.outputs, name) for key, name in names.outputs.items()}
        self._pool: SimpleQueue[Any] = SimpleQueue()
        for _ in range(model.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")):
            self._pool.put(model.create_infer_request())

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        feeds = {}
        for key, position in self._inputs.items():
            _check_range(key, inputs[key])
            feeds[position] = np.ascontiguousarray(inputs[key])
        request = self._pool.get()
        try:
            # Shared inputs spare a copy; they live until this call returns.
            request.infer(feeds, share_inputs=True, share_outputs=True)
            # The request goes back to the pool, so its outputs must be copied out.
            return {
                key: np.array(request.get_output_tensor(self._outputs[key]).data) for key in outputs
            }
        except RuntimeError as error:
            raise InputError(
                "request.inference_failed",
                f"the inputs cannot be computed together: {_reason(error)}",
            ) from None
        finally:
            self._pool.put(request)


class _OpenVinoModel(Model):
    def __init__(
        self,
        definitions: Mapping[str, graph_pb2.SignatureDef],
        compiled: dict[str, _Compiled],
        refused: Mapping[str, SealserveError],
    ) -> None:
        self.definitions = definitions
        self.signatures = {key: each.signature for key, each in compiled.items()}
        self.refused = refused
        self._compiled = compiled

    def run(
        self, signature: str, inputs: Mapping[str, Array], outputs: Sequence[str]
    ) -> dict[str, Array]:
        return self._compiled[signature].run(inputs, outputs)

    def close(self) -> None:
        self._compiled.clear()


def _check_range(key: str, array: Array) -> None:
    """Refuse integers that OpenVINO, which keeps them in 32 bits, would change."""
    wide = array.dtype.kind in "iu" and array.dtype.itemsize >= 4 and array.dtype != np.int32
    if wide and array.size and not -WIDE_LIMIT <= array.min() <= array.max() <= WIDE_LIMIT:
        raise InputError(
            "request.value_range",
            f'input "{key}" holds a {array.dtype} beyond +-{WIDE_LIMIT}, '
            "which the OpenVINO runtime cannot compute with",
        )


def _check_signature(signature: Signature, where: str) -> None:
    for kind, specs in (("input", signature.inputs), ("output", signature.outputs)):
        for key, spec in specs.items():
            if spec.dtype not in _ELEMENT_TYPES:
                raise Unavailable(
                    "servable.runtime_cannot",
                    f"{kind} {key!r} is of type {dtype_name(spec.dtype)}, "
                    "which the OpenVINO runtime does not serve",
                    where=where,
                )
            if kind == "input" and spec.shape is None:
                raise Unavailable(
                    "servable.runtime_cannot",
                    f"input {key!r} is of unknown rank, which the OpenVINO runtime does not serve",
                    where=where,
                    hint="export the model with the rank of its inputs",
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
        frontend = FrontEndManager().load_by_framework("tf")
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
            model.set_element_type(place, _ELEMENT_TYPES[spec.dtype])
            model.set_partial_shape(place, _partial_shape(spec))
        return frontend.convert(model)
    except (*_CONVERSION_FAILURES, RuntimeError, ValueError) as error:
        raise Unavailable(
            "servable.runtime_cannot",
            f"OpenVINO cannot convert this signature: {_reason(error)}",
            where=where,
        ) from None


def _prove(graph: ov.Model, signature: Signature, names: _Names, where: str) -> None:
    """Show that the converted graph is the signature, or refuse it."""
    stateful = {op.get_type_name() for op in graph.get_ops()} & _STATEFUL_OPERATIONS
    if stateful or graph.get_variables():
        raise _stateful(sorted(stateful), where)
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
            if port.get_element_type() != _ELEMENT_TYPES[spec.dtype]:
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


def _position(ports: Sequence[Any], name: str) -> int:
    return next(n for n, port in enumerate(ports) if name in port.get_names())


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


def _reason(error: Exception) -> str:
    """OpenVINO's sentence without the source lines of its own that come before it."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return " ".join(said)[:300] or type(error).__name__
