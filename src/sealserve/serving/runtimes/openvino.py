"""OpenVINO as a runtime, one compiled graph for each signature.

A graph that `graphs` has shown to be the signature is compiled only if OpenVINO
computes it exactly (`exactness`), at float32 unless bfloat16 was asked for (by itself it
takes that where the processor has it), and the compiled graph is asked whether it is.

Indices that depend on the inputs are held to what they index (`guards`), and empty inputs
are not computed, for some operations answer them with what an earlier request left in memory.
Inputs must be finite where a NaN in them would be lost (`finite`).

No cache directory is set: nothing of a model is written to a disk.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import openvino as ov

from sealserve.errors import InputError, InternalError, SealserveError, Unavailable
from sealserve.logs import Log
from sealserve.serving.config import RuntimeConfig
from sealserve.serving.deadline import current
from sealserve.serving.gentle import is_beside_requests
from sealserve.serving.runtimes.base import Model, Signature, TensorSpec, Tuning
from sealserve.serving.runtimes.conversion import (
    Conversion,
    Converted,
    NotConverted,
    Reading,
    convert,
    convert_ranks,
)
from sealserve.serving.runtimes.converting import Converters
from sealserve.serving.runtimes.exactness import WIDE_LIMIT
from sealserve.serving.runtimes.examples import ExampleCut, made_up_example, parse_examples
from sealserve.serving.runtimes.graphs import Graph, reason_of
from sealserve.serving.runtimes.guards import GUARD, refusal
from sealserve.serving.runtimes.lanes import Lanes
from sealserve.serving.runtimes.tuning import Tuner, weights_of
from sealserve.serving.runtimes.ways import Lane, Way
from sealserve.wire.tensorflow import graph_pb2
from sealserve.wire.tensors import Array

__all__ = ["CORE", "OpenVinoRuntime"]

_DEVICE = "CPU"
_KEPT_BYTES = 16 * 2**20
_MAX_RANK = 8
_MAX_OTHERS = 8  # for one input: all of them

CORE: Final = ov.Core()
"""The one of this process, to its end.

Its processor plugin gives the thread that first compiles another stack for signals
(sigaltstack(2)), and unmaps it when the last that uses the plugin ends, in whatever
thread: the next signal to the first one would end the process.
"""


class OpenVinoRuntime:
    """Loads SavedModels with OpenVINO on the cores this process may use."""

    name = "openvino"

    def __init__(self, config: RuntimeConfig, log: Log) -> None:
        self._reading = Reading(config.tags, prefer_lite=config.prefer_lite)
        self._precision = config.precision
        _make_first_tensor()
        self._converters = Converters(CORE)
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
        compiled: dict[str, _Computed] = {}
        refused: dict[str, SealserveError] = {}
        keeping: set[str] = set()
        with self._converted(path) as conversion:
            for each in conversion.signatures:
                try:
                    compiled[each.key] = self._computed(path, each)
                except SealserveError as error:
                    if conversion.is_file:
                        raise
                    refused[each.key] = _bare(error)
                    if each.keeps_state:
                        keeping.add(each.key)
                del each  # not while the next one is converted
        model = _OpenVinoModel(conversion.definitions, compiled, refused)
        model.stateful = keeping
        return model

    def give_up(self) -> None:
        """End the loads that are under way, as far as they are conversions."""
        self._converters.give_up()

    def _converted(self, path: Path) -> AbstractContextManager[Conversion]:
        if is_beside_requests():
            return self._converters.convert(path, self._reading)
        return nullcontext(convert(CORE, path, self._reading))

    def _computed(self, path: Path, each: Converted | NotConverted) -> _Computed:
        if isinstance(each, NotConverted):
            raise each.error
        key = each.key
        behind = self._compile(each, lambda: self._converted_again(path, key))
        if each.cut is not None:
            return _ExampleFed(each.signature, behind, each.cut)
        if not each.signature.elementwise:
            return behind

        def convert_for(ranks: Mapping[str, int]) -> Converted:
            return convert_ranks(CORE, path, self._reading, key, ranks)

        def compile_for(ranks: Mapping[str, int]) -> _Compiled:
            return self._compile(convert_for(ranks), lambda: convert_for(ranks))

        return _AnyRank(each.signature, behind, compile_for)

    def _converted_again(self, path: Path, key: str) -> Converted:
        """A signature, converted beside the requests for others."""
        with self._converters.convert(path, self._reading) as conversion:
            each = next(each for each in conversion.signatures if each.key == key)
        if isinstance(each, NotConverted):
            raise each.error
        return each

    def _compile(self, converted: Converted, again: Callable[[], Converted]) -> _Compiled:
        """Compile a graph, and be able to do so again: from what it was converted from."""
        graph = converted.graph
        plan = self._tuner.plan(graph.graph)
        kept = [graph.graph]

        def compile_with(properties: Mapping[str, Any]) -> ov.CompiledModel:
            source = kept[0] if kept else again().graph.graph
            return CORE.compile_model(source, _DEVICE, dict(properties))

        try:
            ways = [
                Way(partial(compile_with, properties), by_values=graph.by_values)
                for properties in plan.ways
            ]
        except RuntimeError as error:
            raise Unavailable(
                "servable.runtime_cannot",
                f"OpenVINO cannot compile this signature: {reason_of(error)}",
                where=converted.where,
            ) from None
        tuning = self._tuner.tuning([way.model for way in ways], plan.reason)
        if self._precision == "f32" and tuning.precision != "f32":
            raise InternalError(
                "servable.precision",
                "OpenVINO did not compile the graph at f32",
                where=converted.where,
            )
        if weights_of(graph.graph)[0] > _KEPT_BYTES:
            kept.clear()  # the compiled ones have weights of their own
        return _Compiled(graph, ways, tuning)


class _Compiled:
    """One signature, compiled one way or two, with infer requests for concurrent calls."""

    def __init__(self, graph: Graph, ways: Sequence[Way], tuning: Tuning) -> None:
        model = ways[0].model  # of the same graph as the other, so of the same ports
        self.signature = graph.signature
        self.tuning = tuning
        self._inputs = {key: _position(model.inputs, name) for key, name in graph.inputs.items()}
        self._outputs = {key: _position(model.outputs, name) for key, name in graph.outputs.items()}
        self._finite = graph.finite
        self._guards = {
            name: position
            for position, port in enumerate(model.outputs)
            for name in port.get_names()
            if name.startswith(GUARD)
        }
        counts = (tuning.streams, tuning.beside)
        self._lanes = Lanes(
            *([Lane(way) for _ in range(count)] for way, count in zip(ways, counts, strict=False))
        )

    def run(
        self, inputs: Mapping[str, Array], outputs: Sequence[str], *, everywhere: bool = False
    ) -> dict[str, Array]:
        """Compute in one lane, or in each, for those that are to be no lane's first request."""
        feeds = self._feeds(inputs)
        if everywhere:
            first, *_ = [self._infer(lane, feeds, outputs) for lane in self._lanes.every()]
            return first
        with self._lanes.one() as lane:
            current().check()  # it may have waited long
            return self._infer(lane, feeds, outputs)

    def _feeds(self, inputs: Mapping[str, Array]) -> dict[int, Array]:
        """The inputs by position, if they are such as OpenVINO computes with rightly."""
        feeds = {}
        for key, position in self._inputs.items():
            _check_range(key, inputs[key])
            if not inputs[key].size and not self.signature.elementwise:
                raise InputError(
                    "request.empty_input",
                    f'input "{key}" is empty, which the OpenVINO runtime does not compute with',
                )
            if key in self._finite and not np.isfinite(inputs[key]).all():
                raise InputError(
                    "request.not_finite",
                    f'input "{key}" holds a NaN or an Infinity, which the OpenVINO runtime '
                    "would not carry on as TensorFlow does",
                    hint="send finite numbers",
                )
            feeds[position] = np.asarray(inputs[key], order="C")  # a scalar stays one
        return feeds

    def _infer(
        self, lane: Lane, feeds: Mapping[int, Array], outputs: Sequence[str]
    ) -> dict[str, Array]:
        with lane.infer(feeds) as output:
            for guard, position in self._guards.items():
                if output(position):
                    raise refusal(guard)
            # The lane goes on to others, so its outputs must be copied out.
            return {key: np.array(output(self._outputs[key])) for key in outputs}


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
        self.signature = signature
        self.tuning = first.tuning
        self._first = first
        self._make = make
        self._lock = threading.Lock()
        self._others: dict[tuple[int, ...], _Compiled | SealserveError] = {}

    def run(
        self, inputs: Mapping[str, Array], outputs: Sequence[str], *, everywhere: bool = False
    ) -> dict[str, Array]:
        ranks = {key: inputs[key].ndim for key in sorted(inputs)}
        stated = self._first.signature.inputs
        if all(_has_rank(stated[key], rank) for key, rank in ranks.items()):
            return self._first.run(inputs, outputs, everywhere=everywhere)
        return self._of(ranks).run(inputs, outputs, everywhere=everywhere)

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

    def run(
        self, inputs: Mapping[str, Array], outputs: Sequence[str], *, everywhere: bool = False
    ) -> dict[str, Array]:
        feeds = {key: array for key, array in inputs.items() if key != self._cut.examples}
        feeds |= parse_examples(inputs[self._cut.examples], self._cut.features)
        return self._behind.run(feeds, outputs, everywhere=everywhere)

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
        self._everywhere = False

    def run(
        self, signature: str, inputs: Mapping[str, Array], outputs: Sequence[str]
    ) -> dict[str, Array]:
        return self._compiled[signature].run(inputs, outputs, everywhere=self._everywhere)

    def for_warm_up(self) -> Model:
        model = copy(self)
        model._everywhere = True
        return model

    def made_up(self, signature: str, number: int) -> Mapping[str, Array] | None:
        computed = self._compiled[signature]
        return computed.made_up(number) if isinstance(computed, _ExampleFed) else None

    def close(self) -> None:
        self._compiled.clear()


def _bare(error: SealserveError) -> SealserveError:
    """Without the frames that it came through: they hold graphs for as long as it is kept."""
    error.__context__ = None
    return error.with_traceback(None)


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
