"""A model whose requests are joined, in front of one that runs them.

Rules this module keeps:

* Each requester gets the answer that it would get alone. Where a joined run fails, its
  requests are run one by one, so that each gets its own answer or its own error.
* Only signatures that `rows` has shown to be safe are joined; requests that do not fit
  (another rank, no rows) run alone. A signature that is seen to mix rows while it serves
  is not batched again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from sealserve.errors import InternalError, SealserveError
from sealserve.logs import Log
from sealserve.serving.batching.joining import join, joinable, rows_of, take_apart
from sealserve.serving.batching.parameters import (
    FILE_NAME,
    BatchingConfig,
    BatchingParameters,
    read_parameters,
)
from sealserve.serving.batching.queue import BatchQueue, Piece, Turns
from sealserve.serving.batching.rows import judge
from sealserve.serving.metrics import Metrics
from sealserve.serving.runtimes.base import Model
from sealserve.wire.tensors import Array

__all__ = ["Batching"]

_MOST_PREPARED_BYTES: Final = 2**26


class Batching:
    """Puts queues in front of models; one for a server."""

    def __init__(self, config: BatchingConfig, metrics: Metrics, log: Log) -> None:
        self._config = config
        self._metrics = metrics
        self._log = log
        # As in the original, threads and their name are the server's, not a model's.
        self._turns = Turns(config.common.num_batch_threads)
        log.info("batching", per_model=config.per_model, **_told(config.common))

    def __call__(self, name: str, version: int, path: Path, model: Model) -> Model:
        """The model, its requests joined where that is safe.

        Raises:
            InputError: ``serve_config.batching``: the version's own parameters.
        """
        parameters = self._config.common
        if self._config.per_model:
            file = path / FILE_NAME
            if not file.is_file():
                self._log.info("not_batched", model=name, version=version,
                               reason=f"it has no {FILE_NAME}")  # fmt: skip
                return model
            parameters = read_parameters(file)
        batched = _BatchedModel(model, parameters)
        for key in sorted(model.signatures):
            verdict = judge(model, key)
            say = self._log.info if verdict.batched else self._log.warning
            say("signature_batching", model=name, version=version, signature=key,
                batched=verdict.batched, reason=verdict.reason)  # fmt: skip
            if verdict.batched:
                counted = _Counted(self._metrics, (name, version), self._config.common)
                batched.gather(key, self._turns, counted, self._log)
                self._run_each_size(model, key, verdict.row, parameters.allowed_batch_sizes)
        return batched

    def _run_each_size(
        self, model: Model, key: str, row: Mapping[str, Array], sizes: Sequence[int]
    ) -> None:
        """Run once what will be run often: OpenVINO prepares itself for each new shape."""
        bytes_of_row = sum(array.nbytes for array in row.values())
        for size in sizes:
            if size * bytes_of_row > _MOST_PREPARED_BYTES:
                continue
            try:
                model.run(key, join([row], size), list(model.signatures[key].outputs))
            except SealserveError as error:
                self._log.warning("size_not_prepared", signature=key, size=size, code=error.code)

    def hurry(self) -> None:
        """Let nothing wait for more rows: the server is going down."""
        self._turns.hurry()


class _Counted:
    """Counts under one version's name."""

    def __init__(
        self, metrics: Metrics, version: tuple[str, int], common: BatchingParameters
    ) -> None:
        self._metrics = metrics
        self._version = version
        self._pool = common.thread_pool_name

    def queued(self, seconds: float) -> None:
        self._metrics.batch_queued(*self._version, self._pool, seconds)

    def asked(self, inputs: Mapping[str, Array]) -> None:
        self._metrics.batch_asked(*self._version, map(len, inputs.values()))

    def ran(self, rows: int, filling: int) -> None:
        self._metrics.batch_ran(*self._version, rows, filling)


class _Gathered:
    """One signature: its queue, and the running of its batches."""

    def __init__(
        self,
        model: Model,
        key: str,
        parameters: BatchingParameters,
        turns: Turns,
        counted: _Counted,
        log: Log,
    ) -> None:
        self._model = model
        self._signature = model.signatures[key]
        self._parameters = parameters
        self._counted = counted
        self._log = log
        tuning = model.tuning.get(key)
        self.mixes = False
        self.queue = BatchQueue(
            parameters,
            turns,
            self._compute,
            lanes=tuning.streams if tuning else 1,
            queued=counted.queued,
        )

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        padding = self._parameters.pad_variable_length_inputs
        common = None if self.mixes else joinable(self._signature, inputs, padding=padding)
        if common is None:
            return self._model.run(self._signature.name, inputs, outputs)
        self._counted.asked(inputs)
        pieces = self.queue.run(common, rows_of(inputs), (inputs, outputs))
        if len(pieces) == 1:
            answer: dict[str, Array] = pieces[0].answer
            return answer
        return {key: np.concatenate([each.answer[key] for each in pieces]) for key in outputs}

    def _compute(self, pieces: Sequence[Piece]) -> list[Any]:
        sizes = [piece.size for piece in pieces]
        rows = self._parameters.filled_up(sum(sizes))
        if len(pieces) == 1 and rows == sizes[0]:
            self._counted.ran(rows, 0)
            return [self._single(pieces[0])]
        wanted = sorted({key for piece in pieces for key in piece.work[1]})
        try:
            inputs = join([_inputs_of(piece) for piece in pieces], rows)
            answer = self._model.run(self._signature.name, inputs, wanted)
            answers = take_apart(answer, rows, sizes)
        except Exception as error:  # each is to get its own answer, or its own error
            if isinstance(error, InternalError) and error.code == "servable.batch_mixed":
                self.mixes = True
                self._log.error("batching_stopped", signature=self._signature.name,
                                reason=error.message)  # fmt: skip
            return [self._single(piece) for piece in pieces]
        self._counted.ran(rows, rows - sum(sizes))
        return [
            {key: each[key] for key in piece.work[1]}
            for piece, each in zip(pieces, answers, strict=True)
        ]

    def _single(self, piece: Piece) -> dict[str, Array] | Exception:
        try:
            return self._model.run(self._signature.name, _inputs_of(piece), piece.work[1])
        except Exception as error:  # it is raised where it belongs
            return error


class _BatchedModel(Model):
    def __init__(self, model: Model, parameters: BatchingParameters) -> None:
        self._model = model
        self._parameters = parameters
        self._gathered: dict[str, _Gathered] = {}
        self.definitions = model.definitions
        self.signatures = model.signatures
        self.refused = model.refused
        self.tuning = model.tuning
        self.stateful = model.stateful

    def gather(self, key: str, turns: Turns, counted: _Counted, log: Log) -> None:
        """Join the requests of a signature from now on."""
        self._gathered[key] = _Gathered(self._model, key, self._parameters, turns, counted, log)

    def run(
        self, signature: str, inputs: Mapping[str, Array], outputs: Sequence[str]
    ) -> dict[str, Array]:
        gathered = self._gathered.get(signature)
        if gathered is None:
            return self._model.run(signature, inputs, outputs)
        return gathered.run(inputs, outputs)

    def hurry(self) -> None:
        for gathered in self._gathered.values():
            gathered.queue.hurry()

    def close(self) -> None:
        for gathered in self._gathered.values():
            gathered.queue.close()
        self._model.close()


def _inputs_of(piece: Piece) -> Mapping[str, Array]:
    inputs: Mapping[str, Array] = piece.work[0]
    if piece.whole:
        return inputs
    return {key: array[piece.begin : piece.end] for key, array in inputs.items()}


def _told(parameters: BatchingParameters) -> dict[str, Any]:
    return {
        "max_batch_size": parameters.max_batch_size,
        "batch_timeout_micros": parameters.batch_timeout_micros,
        "max_enqueued_batches": parameters.max_enqueued_batches,
        "num_batch_threads": parameters.num_batch_threads,
        "allowed_batch_sizes": list(parameters.allowed_batch_sizes),
        "pad_variable_length_inputs": parameters.pad_variable_length_inputs,
        "enable_large_batch_splitting": parameters.enable_large_batch_splitting,
        "max_execution_batch_size": parameters.batch_limit,
    }
