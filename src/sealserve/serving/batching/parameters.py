"""How requests are gathered into batches: TensorFlow Serving's ``BatchingParameters``.

One file for the server (``--batching_parameters_file``), or one in each version's
directory (``batching_params.pbtxt``); numbers stand in wrappers, ``max_batch_size { value: 128 }``.
Defaults and the words of the refusals are the original's (``shared_batch_scheduler.h``,
``batching_session.cc``).
"""

from __future__ import annotations

import os
from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from google.protobuf import text_format

from sealserve.errors import InputError
from sealserve.files import read_limited
from sealserve.wire.serving import config_pb2

__all__ = [
    "FILE_NAME",
    "BatchingConfig",
    "BatchingParameters",
    "parameters_of",
    "read_parameters",
]

FILE_NAME: Final = "batching_params.pbtxt"
"""What a version directory's own parameters are called."""

DEFAULT_POOL_NAME: Final = "batch_threads"
SERVER_POOL_NAME: Final = "model_server_batch_threads"

_MAX_BYTES: Final = 2**20
_MAX_SIZE: Final = 2**20
_MAX_THREADS: Final = 1024
_MAX_MICROS: Final = 3_600_000_000


@dataclass(frozen=True)
class BatchingParameters:
    """One server's, or one version's, way of gathering requests.

    Attributes:
        max_batch_size: the most rows that a request may have, and a batch unless requests
            are split.
        batch_timeout_micros: how long a batch that is not full waits for more rows.
        max_enqueued_batches: batches that may wait; one more request is turned away.
        num_batch_threads: batches that are run at a time, over the whole server.
        thread_pool_name: a label of the metrics.
        allowed_batch_sizes: ascending; batches are filled up to the next of them. Empty: any.
        pad_variable_length_inputs: fill up inputs that differ in other dimensions than the first.
        enable_large_batch_splitting: a request may be spread over several batches.
        max_execution_batch_size: the most rows of a batch when requests are split.
    """

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = 1
    thread_pool_name: str = DEFAULT_POOL_NAME
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False
    enable_large_batch_splitting: bool = False
    max_execution_batch_size: int = 1000

    @property
    def batch_limit(self) -> int:
        """The most rows that are run at once, before filling up."""
        if self.enable_large_batch_splitting:
            return self.max_execution_batch_size
        return self.max_batch_size

    def filled_up(self, rows: int) -> int:
        """The allowed size for so many rows: the next one, or just as many."""
        position = bisect_left(self.allowed_batch_sizes, rows)
        sizes = self.allowed_batch_sizes
        return sizes[position] if position < len(sizes) else rows


@dataclass(frozen=True)
class BatchingConfig:
    """What the server does about batching, when it is on.

    Attributes:
        common: for every model.
        per_model: read each version's own parameters instead; a version without any is not
            batched, as in the original.
    """

    common: BatchingParameters
    per_model: bool = False


def read_parameters(file: Path) -> BatchingParameters:
    """Read a file of BatchingParameters.

    Raises:
        InputError: ``file.too_large``, ``serve_config.batching``.
        Unavailable: ``file.unreadable``.
    """
    text = read_limited(file, _MAX_BYTES)
    try:
        wire = text_format.Parse(text, config_pb2.BatchingParameters())
    except (text_format.ParseError, UnicodeError) as error:
        raise InputError(
            "serve_config.batching",
            f"Error parsing text-format tensorflow.serving.BatchingParameters: {error}",
            where=str(file),
            hint="numbers stand in wrappers: max_batch_size { value: 128 }",
        ) from None
    return parameters_of(wire, str(file))


def parameters_of(
    wire: config_pb2.BatchingParameters, where: str, pool_name: str = DEFAULT_POOL_NAME
) -> BatchingParameters:
    """Check BatchingParameters and put the defaults in.

    Args:
        wire: the message.
        where: what it came from, for errors.
        pool_name: the name where none is given.

    Raises:
        InputError: ``serve_config.batching``.
    """
    numbers = _Numbers(wire, where)
    largest = numbers.get("max_batch_size", 1000, 1, _MAX_SIZE)
    splitting = wire.enable_large_batch_splitting.value
    execution = numbers.get("max_execution_batch_size", largest, 1, _MAX_SIZE)
    if splitting and execution > largest:
        raise _bad(
            "When enable_large_batch_splitting is true, max_batch_size must be greater than or "
            f"equal to max_execution_batch_size; they are {largest} and {execution}",
            where,
        )
    cores = len(os.sched_getaffinity(0))
    parameters = BatchingParameters(
        max_batch_size=largest,
        batch_timeout_micros=numbers.get("batch_timeout_micros", 0, 0, _MAX_MICROS),
        # The original takes 0 for 1 when requests are not split.
        max_enqueued_batches=numbers.get("max_enqueued_batches", 10, int(splitting), 2**31) or 1,
        num_batch_threads=numbers.get("num_batch_threads", cores, 1, _MAX_THREADS),
        thread_pool_name=wire.thread_pool_name.value or pool_name,
        allowed_batch_sizes=tuple(wire.allowed_batch_sizes),
        pad_variable_length_inputs=wire.pad_variable_length_inputs,
        enable_large_batch_splitting=splitting,
        max_execution_batch_size=execution,
    )
    _check_sizes(parameters, where)
    return parameters


class _Numbers:
    """The wrapped numbers of a message."""

    def __init__(self, wire: config_pb2.BatchingParameters, where: str) -> None:
        self._wire: Any = wire
        self._where = where

    def get(self, name: str, default: int, least: int, most: int) -> int:
        value: int = getattr(self._wire, name).value if self._wire.HasField(name) else default
        if not least <= value <= most:
            raise _bad(f"{name} must be within {least}..{most}; was {value}", self._where)
        return value


def _check_sizes(parameters: BatchingParameters, where: str) -> None:
    sizes = parameters.allowed_batch_sizes
    if not sizes:
        return
    if sizes[0] < 1 or any(a >= b for a, b in pairwise(sizes)):
        raise _bad(
            "allowed_batch_sizes entries must be monotonically increasing, from 1; they are "
            f"{list(sizes)}",
            where,
        )
    largest, execution = parameters.max_batch_size, parameters.max_execution_batch_size
    if not parameters.enable_large_batch_splitting:
        if sizes[-1] != largest:
            raise _bad(
                "Last entry in allowed_batch_sizes must match max_batch_size; last entry was "
                f"{sizes[-1]}; expected {largest}",
                where,
            )
    elif sizes[-1] not in (largest, execution):
        # The original's server asks for the first, its library for the second.
        raise _bad(
            "Last entry in allowed_batch_sizes must be equal to max_execution_batch_size or to "
            f"max_batch_size; last entry was {sizes[-1]}; expected {execution} or {largest}",
            where,
        )


def _bad(message: str, where: str) -> InputError:
    return InputError("serve_config.batching", message, where=where)
