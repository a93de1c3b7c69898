"""What the server does, without any transport: arrays in, arrays out, typed errors.

Rules this module keeps:

* Both fronts call this and nothing below it; no protobuf request, no JSON and
  no HTTP is known here.
* A request is checked against its signature before a runtime sees it: names,
  types and dimensions; another rank only where each number is computed by itself.
* Error texts that clients match are TensorFlow Serving's (``predict_util.cc``,
  ``get_model_status_impl.cc``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from sealserve.errors import InputError
from sealserve.serving.catalog import Handle, ModelSpec, VersionStatus
from sealserve.serving.inference import (
    CLASSIFY,
    INPUT,
    Classes,
    Method,
    examples_array,
    to_classes,
    to_values,
)
from sealserve.serving.metrics import Metrics
from sealserve.serving.runtimes.base import DEFAULT_SIGNATURE, Model, Signature
from sealserve.serving.table import Table
from sealserve.wire.serving import api_pb2
from sealserve.wire.tensors import Array, dtype_name, numpy_dtype, to_array

__all__ = ["Dataplane", "Inferred", "Prediction", "Task"]

_MAX_DEFAULT_BYTES = 2**30

Decoder = Callable[[Signature], Mapping[str, Array]]


@dataclass(frozen=True)
class Prediction:
    """The answer to a prediction, with the version and signature that gave it."""

    version: int
    signature: Signature
    outputs: Mapping[str, Array]


@dataclass(frozen=True)
class Task:
    """One part of a MultiInference request; Classify and Regress have just one.

    Attributes:
        method: what is asked.
        signature: its key; empty for ``serving_default``.
        not_found: the words with which an unknown signature is refused.
    """

    method: Method
    signature: str
    not_found: str = "No signature was found with the name: "

    @property
    def key(self) -> str:
        """The signature's key."""
        return self.signature or DEFAULT_SIGNATURE


@dataclass(frozen=True)
class Inferred:
    """The answers to tasks, in their order: classes or values of each example."""

    version: int
    results: list[Classes | list[float]]


class Dataplane:
    """The operations of PredictionService and ModelService over a catalog."""

    def __init__(
        self,
        catalog: Table,
        metrics: Metrics | None = None,
        *,
        method_name_check: bool = False,
    ) -> None:
        """Stand over a catalog.

        Args:
            catalog: the models.
            metrics: where runs are counted.
            method_name_check: Classify and Regress want the signature's method_name to be theirs.
        """
        self._catalog = catalog
        self._metrics = metrics or Metrics()
        self._method_name_check = method_name_check

    def predict(
        self,
        spec: ModelSpec,
        signature: str,
        decode: Decoder,
        output_filter: Sequence[str] = (),
    ) -> Prediction:
        """Run a signature.

        Args:
            spec: the model.
            signature: its key; empty for ``serving_default``.
            decode: gives the inputs once the signature is known (JSON has no types).
            output_filter: the outputs wanted; empty for all.

        Raises:
            InputError: a ``request.*`` or ``tensor.*`` code.
        """
        with self._catalog.acquire(spec) as handle:
            wanted = _signature(handle.model, signature or DEFAULT_SIGNATURE)
            outputs = _wanted_outputs(wanted, output_filter)
            inputs = _with_defaults(handle.model, wanted, decode(wanted))
            _check_names(wanted, inputs)
            for key in wanted.inputs:
                _check_tensor(wanted, key, inputs[key])
            answer = self._run(handle, "Predict", wanted, inputs, outputs)
            return Prediction(handle.version, wanted, answer)

    def infer(self, spec: ModelSpec, tasks: Sequence[Task], examples: list[bytes]) -> Inferred:
        """Classify or regress serialized examples.

        Raises:
            InputError: a ``request.*`` or ``tensor.*`` code.
        """
        with self._catalog.acquire(spec) as handle:
            seen: set[str] = set()
            for task in tasks:
                if task.key in seen:
                    raise InputError(
                        "request.task_repeated", f"Duplicate evaluation of signature: {task.key}"
                    )
                seen.add(task.key)
                definition = handle.model.definitions.get(task.key)
                if definition is None:
                    raise InputError("request.signature_unknown", f"{task.not_found}{task.key}")
                task.method.check(definition, method_name_too=self._method_name_check)
            inputs = {INPUT: examples_array(examples)}
            self._metrics.examples(handle.name, handle.version, len(examples))
            results: list[Classes | list[float]] = []
            for task in tasks:
                signature = _signature(handle.model, task.key)
                _check_tensor(signature, INPUT, inputs[INPUT])
                wanted = task.method.outputs_of(signature)
                api = "Classify" if task.method is CLASSIFY else "Regress"
                answer = self._run(handle, api, signature, inputs, wanted)
                read = to_classes if task.method is CLASSIFY else to_values
                results.append(read(answer, len(examples)))
            return Inferred(handle.version, results)

    def _run(
        self,
        handle: Handle,
        api: str,
        signature: Signature,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
    ) -> dict[str, Array]:
        begun = time.perf_counter()
        answer = handle.model.run(signature.name, inputs, outputs)
        seconds = time.perf_counter() - begun
        self._metrics.ran(handle.name, handle.version, api, "sealserve", seconds)
        return answer

    def definitions(self, spec: ModelSpec) -> tuple[int, api_pb2.SignatureDefMap]:
        """The version that is served and its SignatureDefs, as the model's file has them.

        Raises:
            InputError: ``request.servable_not_found`` or ``request.label_unknown``.
        """
        with self._catalog.acquire(spec) as handle:
            definitions = api_pb2.SignatureDefMap()
            for key, definition in handle.model.definitions.items():
                definitions.signature_def[key].CopyFrom(definition)
            return handle.version, definitions

    def status(self, spec: ModelSpec) -> list[VersionStatus]:
        """The states of a model's versions.

        Raises:
            InputError: ``request.versions_not_found`` or ``request.label_unknown``.
        """
        return self._catalog.statuses(spec)


def _signature(model: Model, name: str) -> Signature:
    if name in model.refused:
        raise InputError(
            "request.signature_unservable",
            f'Serving signature key "{name}" is not served: {model.refused[name].message}',
        )
    if name not in model.signatures:
        raise InputError(
            "request.signature_not_found", f'Serving signature key "{name}" not found.'
        )
    return model.signatures[name]


def _wanted_outputs(signature: Signature, output_filter: Sequence[str]) -> list[str]:
    for name in output_filter:
        if name not in signature.outputs:
            raise InputError(
                "request.output_unknown",
                f"output tensor alias not found in signature: {name} Outputs expected to be "
                f"in the set {_braced(signature.outputs)}.",
            )
        if output_filter.count(name) > 1:
            raise InputError("request.output_repeated", f"duplicate output tensor alias: {name}")
    return list(output_filter) or sorted(signature.outputs)


def _with_defaults(
    model: Model, signature: Signature, inputs: Mapping[str, Array]
) -> Mapping[str, Array]:
    """The inputs, and those that may be left out because the model brings values for them."""
    definition = model.definitions.get(signature.name)
    if definition is None or len(inputs) >= len(signature.inputs) or not definition.defaults:
        return inputs
    lacking = definition.defaults.keys() & (signature.inputs.keys() - inputs.keys())
    values = {
        key: to_array(definition.defaults[key], _MAX_DEFAULT_BYTES, where=f'default of "{key}"')
        for key in sorted(lacking)
    }
    return {**values, **inputs}


def _check_names(signature: Signature, inputs: Mapping[str, Array]) -> None:
    sent, expected = set(inputs), set(signature.inputs)
    if sent != expected:
        raise InputError(
            "request.inputs_mismatch",
            f"input size does not match signature: {len(sent)}!={len(expected)} "
            f"len({_braced(sent)}) != len({_braced(expected)}). "
            f"Sent extra: {_braced(sent - expected)}. "
            f"Missing but required: {_braced(expected - sent)}.",
        )


def _check_tensor(signature: Signature, key: str, array: Array) -> None:
    spec = signature.inputs[key]
    if array.dtype != numpy_dtype(spec.dtype):
        raise InputError(
            "request.dtype_mismatch",
            f'input "{key}" expects {dtype_name(spec.dtype)} but {array.dtype} is provided',
        )
    if spec.shape is None:
        return
    if len(spec.shape) == array.ndim:
        fits = all(fixed in (-1, size) for fixed, size in zip(spec.shape, array.shape, strict=True))
    else:
        fits = signature.elementwise
    if not fits:
        raise InputError(
            "request.shape_mismatch",
            f'input "{key}" expects shape {list(spec.shape)} but {list(array.shape)} is provided',
        )


def _braced(names: Iterable[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"
