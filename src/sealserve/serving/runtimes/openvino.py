"""OpenVINO as a runtime, one compiled graph for each signature.

A graph that `graphs` has shown to be the signature is compiled only if OpenVINO
computes it exactly (`exactness`), at float32 unless bfloat16 was asked for (by itself it
takes that where the processor has it), and the compiled graph is asked whether it is.

Indices that depend on the inputs are held to what they index (`guards`), and empty inputs
are not computed, for some operations answer them with what an earlier request left in memory.

Known limit: where an input holds a NaN, OpenVINO's maxima, minima, ``Relu`` and comparisons
give a number and TensorFlow's a NaN.

No cache directory is set: nothing of a model is written to a disk.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import openvino as ov

from sealserve.errors import InputError, InternalError, SealserveError, Unavailable
from sealserve.logs import Log
from sealserve.serving.config import RuntimeConfig
from sealserve.serving.runtimes.base import Model, Signature, TensorSpec, Tuning
from sealserve.serving.runtimes.checkpoint import check_variables
from sealserve.serving.runtimes.exactness import WIDE_LIMIT, inexact_operations
from sealserve.serving.runtimes.examples import (
    ExampleCut,
    cut_examples,
    made_up_example,
    parse_examples,
)
from sealserve.serving.runtimes.graphs import Graph, of_signature, reason_of
from sealserve.serving.runtimes.guards import GUARD, add_guards, unguarded
from sealserve.serving.runtimes.model_files import definition_of, find_file, read_file
from sealserve.serving.runtimes.saved_model import operations_behind, read_meta_graph, stateful
from sealserve.serving.runtimes.tuning import Tuner
from sealserve.wire.graphs import spell_out_scalars
from sealserve.wire.tensorflow import graph_pb2
from sealserve.wire.tensors import Array

__all__ = ["OpenVinoRuntime"]

_DEVICE = "CPU"
_MAX_RANK = 8
_MAX_OTHERS = 8  # for one input: all of them

# Signatures that are a SavedModel's own plumbing, not for clients.
_INTERNAL_PREFIX = "__saved_model_"


class OpenVinoRuntime:
    """Loads SavedModels with OpenVINO on the cores this process may use."""

    name = "openvino"

    def __init__(self, config: RuntimeConfig, log: Log) -> None:
        self._tags = config.tags
        self._log = log
        self._prefer_lite = config.prefer_lite
        self._precision = config.precision
        self._core = ov.Core()
        _make_first_tensor()
        self._tuner = Tuner.here(config)
        log.info(
            "runtime",
            runtime=self.name,
            version=ov.get_version(),
            precision=config.precision,
            cores=self._tuner.cores,
        )

    def load(self, path: Path) -> Model:
        """Load a version directory; a signature that cannot be proved is in ``refused``.

        Raises:
            InputError, Unavailable: there is no model to look at.
        """
        file = find_file(path, prefer_lite=self._prefer_lite)
        if file is not None:
            return self._load_file(file)
        meta = read_meta_graph(path, self._tags)
        check_variables(path)
        spell_out_scalars(meta.graph_def)
        compiled: dict[str, _Computed] = {}
        refused: dict[str, SealserveError] = {}
        keeping: set[str] = set()
        for key in sorted(meta.signature_def):
            if key.startswith(_INTERNAL_PREFIX):
                continue
            try:
                compiled[key] = self._compile_signature(path, meta, key)
            except SealserveError as error:
                refused[key] = error
                if stateful(operations_behind(meta.graph_def, meta.signature_def[key])):
                    keeping.add(key)
        # Copies: a message inside another keeps all of it in memory, weights included.
        definitions = {
            key: graph_pb2.SignatureDef.FromString(wire.SerializeToString())
            for key, wire in meta.signature_def.items()
        }
        model = _OpenVinoModel(definitions, compiled, refused)
        model.stateful = keeping
        return model

    def _compile_signature(self, path: Path, meta: graph_pb2.MetaGraphDef, key: str) -> _Computed:
        where = f"{path}, signature {key!r}"
        cut = cut_examples(meta, meta.signature_def[key])
        if cut is None:
            first = self._compile(of_signature(path, meta, key), where)
            if not first.signature.elementwise:
                return first
            stated = Signature.from_wire(key, meta.signature_def[key])
            return _AnyRank(stated, first, lambda ranks: self._compile_ranks(path, key, ranks))
        behind = self._compile(of_signature(path, meta, key, cut.wire), where)
        return _ExampleFed(Signature.from_wire(key, meta.signature_def[key]), behind, cut)

    def _compile_ranks(self, path: Path, key: str, ranks: Mapping[str, int]) -> _Compiled:
        """Convert a signature anew for inputs of these ranks, with every proof."""
        meta = read_meta_graph(path, self._tags)
        spell_out_scalars(meta.graph_def)
        graph = of_signature(path, meta, key, ranks=ranks)
        return self._compile(graph, f"{path}, signature {key!r}, ranks {dict(ranks)}")

    def _load_file(self, file: Path) -> Model:
        graph = read_file(self._core, file)
        key = graph.signature.name
        compiled = self._compile(graph, str(file), from_the_end=True)
        computed: _Computed = compiled
        if graph.signature.elementwise:

            def again(ranks: Mapping[str, int]) -> _Compiled:
                other = read_file(self._core, file, ranks=ranks)
                where = f"{file}, ranks {dict(ranks)}"
                return self._compile(other, where, from_the_end=True)

            computed = _AnyRank(graph.signature, compiled, again)
        return _OpenVinoModel({key: definition_of(graph)}, {key: computed}, {})

    def _compile(self, graph: Graph, where: str, *, from_the_end: bool = False) -> _Compiled:
        inexact = inexact_operations(graph.graph) + unguarded(graph.graph)
        if inexact:
            raise Unavailable(
                "servable.inexact",
                f"OpenVINO would not compute this signature exactly: {', '.join(inexact)}",
                where=where,
                hint="compute in float32 or int32, and pass 64-bit integers on as they are",
            )
        add_guards(graph.graph, from_the_end=from_the_end)
        properties, reason = self._tuner.properties(graph.graph)
        try:
            model = self._core.compile_model(graph.graph, _DEVICE, properties)
        except RuntimeError as error:
            raise Unavailable(
                "servable.runtime_cannot",
                f"OpenVINO cannot compile this signature: {reason_of(error)}",
                where=where,
            ) from None
        tuning = self._tuner.tuning(model, reason)
        if self._precision == "f32" and tuning.precision != "f32":
            raise InternalError(
                "servable.precision", "OpenVINO did not compile the graph at f32", where=where
            )
        return _Compiled(graph, model, tuning)


class _Compiled:
    """One signature, compiled, with a pool of infer requests for concurrent calls."""

    def __init__(self, graph: Graph, model: ov.CompiledModel, tuning: Tuning) -> None:
        self.signature = graph.signature
        self.tuning = tuning
        self._inputs = {key: _position(model.inputs, name) for key, name in graph.inputs.items()}
        self._outputs = {key: _position(model.outputs, name) for key, name in graph.outputs.items()}
        self._guards = [
            n
            for n, port in enumerate(model.outputs)
            if any(name.startswith(GUARD) for name in port.get_names())
        ]
        self._pool: SimpleQueue[Any] = SimpleQueue()
        for _ in range(tuning.streams):
            self._pool.put(model.create_infer_request())

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        feeds = {}
        for key, position in self._inputs.items():
            _check_range(key, inputs[key])
            if not inputs[key].size and not self.signature.elementwise:
                raise InputError(
                    "request.empty_input",
                    f'input "{key}" is empty, which the OpenVINO runtime does not compute with',
                )
            feeds[position] = np.asarray(inputs[key], order="C")  # a scalar stays one
        request = self._pool.get()
        try:
            # Shared inputs spare a copy; they live until this call returns.
            request.infer(feeds, share_inputs=True, share_outputs=True)
            if any(request.get_output_tensor(n).data for n in self._guards):
                raise InputError(
                    "request.index_range", "an index is beyond the end of what it indexes"
                )
            # The request goes back to the pool, so its outputs must be copied out.
            return {
                key: np.array(request.get_output_tensor(self._outputs[key]).data) for key in outputs
            }
        except RuntimeError as error:
            raise InputError(
                "request.inference_failed",
                f"the inputs cannot be computed together: {reason_of(error)}",
            ) from None
        finally:
            self._pool.put(request)


class _AnyRank:
    """An elementwise signature, which takes inputs of other ranks than it states.

    TensorFlow Serving feeds what it is given: ``[1.0, 2.0]`` goes into an input of shape
    ``[-1, 1]``. OpenVINO's graph has the stated rank, so each other one is converted
    anew, from the file, when it is first asked for; failures are remembered like
    successes, and both are few. Why no other signature does so: docs/adr/0028.
    """

    def __init__(
        self, signature: Signature, first: _Compiled, make: Callable[[Mapping[str, int]], _Compiled]
    ) -> None:
        self.signature = replace(signature, elementwise=True)
        self.tuning = first.tuning
        self._first = first
        self._make = make
        self._lock = threading.Lock()
        self._others: dict[tuple[int, ...], _Compiled | SealserveError] = {}

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        ranks = {key: inputs[key].ndim for key in sorted(inputs)}
        stated = self._first.signature.inputs
        if all(_has_rank(stated[key], rank) for key, rank in ranks.items()):
            return self._first.run(inputs, outputs)
        return self._of(ranks).run(inputs, outputs)

    def _of(self, ranks: Mapping[str, int]) -> _Compiled:
        shape = tuple(ranks.values())
        if max(shape) > _MAX_RANK:
            raise _no_rank(ranks, f"{_MAX_RANK} is the highest rank")
        with self._lock:
            if shape not in self._others:
                if len(self._others) >= _MAX_OTHERS:
                    raise _no_rank(ranks, "too many others have been asked for")
                try:
                    self._others[shape] = self._make(ranks)
                except SealserveError as error:
                    self._others[shape] = _no_rank(ranks, error.message)
            found = self._others[shape]
        if isinstance(found, SealserveError):
            raise found
        return found


class _ExampleFed:
    """A signature that takes serialized examples, over the graph behind its parser."""

    def __init__(self, signature: Signature, behind: _Compiled, cut: ExampleCut) -> None:
        self.signature = signature
        self.tuning = behind.tuning
        self._behind = behind
        self._cut = cut

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        feeds = {key: array for key, array in inputs.items() if key != self._cut.examples}
        feeds |= parse_examples(inputs[self._cut.examples], self._cut.features)
        return self._behind.run(feeds, outputs)

    def made_up(self, number: int) -> dict[str, Array] | None:
        """One row of inputs, if examples are all that the signature takes."""
        if set(self.signature.inputs) != {self._cut.examples}:
            return None
        row = np.empty(1, object)
        row[0] = made_up_example(self._cut.features, number)
        return {self._cut.examples: row}


_Computed = _Compiled | _AnyRank | _ExampleFed


class _OpenVinoModel(Model):
    def __init__(
        self,
        definitions: Mapping[str, graph_pb2.SignatureDef],
        compiled: dict[str, _Computed],
        refused: Mapping[str, SealserveError],
    ) -> None:
        self.definitions = definitions
        self.signatures = {key: each.signature for key, each in compiled.items()}
        self.refused = refused
        self.tuning = {key: each.tuning for key, each in compiled.items()}
        self._compiled = compiled

    def run(
        self, signature: str, inputs: Mapping[str, Array], outputs: Sequence[str]
    ) -> dict[str, Array]:
        return self._compiled[signature].run(inputs, outputs)

    def made_up(self, signature: str, number: int) -> Mapping[str, Array] | None:
        computed = self._compiled[signature]
        return computed.made_up(number) if isinstance(computed, _ExampleFed) else None

    def close(self) -> None:
        self._compiled.clear()


def _make_first_tensor() -> None:
    """Let OpenVINO's binding set itself up in one thread.

    What it sets up with the first tensor of a process lets go of the interpreter's lock on
    the way; a second thread that comes to the same place then holds that lock while it waits,
    and neither ever goes on (2026.4).
    """
    np.asarray(ov.Tensor(np.zeros(1, np.float32), shared_memory=True).data)


def _check_range(key: str, array: Array) -> None:
    """Refuse integers that OpenVINO, which keeps them in 32 bits, would change."""
    wide = array.dtype.kind in "iu" and array.dtype.itemsize >= 4 and array.dtype != np.int32
    if wide and array.size and not -WIDE_LIMIT <= array.min() <= array.max() <= WIDE_LIMIT:
        raise InputError(
            "request.value_range",
            f'input "{key}" holds a {array.dtype} beyond +-{WIDE_LIMIT}, '
            "which the OpenVINO runtime cannot compute with",
        )


def _has_rank(spec: TensorSpec, rank: int) -> bool:
    return spec.shape is None or len(spec.shape) == rank


def _no_rank(ranks: Mapping[str, int], why: str) -> InputError:
    stated = ", ".join(f'"{key}" of rank {rank}' for key, rank in ranks.items())
    return InputError(
        "request.shape_mismatch", f"the signature cannot be computed for {stated}: {why}"
    )


def _position(ports: Sequence[Any], name: str) -> int:
    return next(n for n, port in enumerate(ports) if name in port.get_names())
