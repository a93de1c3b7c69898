"""Whether a signature may be batched: shown at load, on rows alone and together.

Joining requests is right only if each row of the answer depends on its own row of the
inputs alone. A model may break that without any error: a mean over the batch, a batch
normalisation left in training mode, one scale for all rows. So made-up rows are
computed one by one and then beside others - also beside rows of NaN and of huge numbers,
which spread through any arithmetic between rows - and must come out the same. Where a runtime
refuses NaN, whose requests are then run alone, there are numbers near the end of float32 instead.

Rules this module keeps:

* What cannot be shown is not batched, and the reason is told.
* A signature that keeps state is not even tried: trying would change it.

Known limit: a model that mixes rows only under a condition that these rows do not meet
is taken for one that does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Final

import numpy as np

from sealserve.errors import SealserveError
from sealserve.serving.batching.joining import join
from sealserve.serving.runtimes.base import Model, Signature, TensorSpec
from sealserve.wire.tensors import Array, numpy_dtype

__all__ = ["Verdict", "judge"]

TOLERANCE: Final = 1e-4
"""How far a row's answer may move, absolutely and relatively, at float32."""

_COARSE: Final = 2e-2  # bfloat16 has 8 bits
_SEED: Final = 26
_LENGTHS: Final = (8, 32, 224, 1)
_MAX_ROW_ELEMENTS: Final = 2**22
_HUGE: Final = 1e6
_ENORMOUS: Final = 1e30
_REFUSED: Final = "request.not_finite"

Rows = list[dict[str, Array]]


@dataclass(frozen=True)
class Verdict:
    """Whether requests for a signature may be joined, and why.

    Attributes:
        row: one row of inputs that can be computed, if they may.
    """

    batched: bool
    reason: str
    row: Mapping[str, Array] = field(default_factory=dict, compare=False, repr=False)


def judge(model: Model, key: str) -> Verdict:
    """Decide about one signature of a loaded model; runs it a few times."""
    signature = model.signatures[key]
    unfit = "it keeps state" if key in model.stateful else _unfit(signature)
    if unfit:
        return Verdict(False, unfit)
    reason = "its inputs are too large to be made up"
    for rows in _attempts(model, signature):
        alone = _alone(model, signature, rows)
        if isinstance(alone, Verdict):
            return alone
        if not isinstance(alone, str):
            return _compare(model, signature, rows, alone)
        reason = alone
    return Verdict(False, reason)


def _unfit(signature: Signature) -> str:
    """What forbids batching by the signature alone; empty if nothing does."""
    if not signature.inputs:
        return "it has no inputs"
    for key, spec in signature.inputs.items():
        if spec.shape is None:
            return f'the rank of input "{key}" is not stated'
        if not spec.shape or spec.shape[0] != -1:
            return f'the first dimension of input "{key}" does not vary'
    for key, spec in signature.outputs.items():
        if spec.shape is not None and (not spec.shape or spec.shape[0] != -1):
            return f'the first dimension of output "{key}" does not vary'
    return ""


def _attempts(model: Model, signature: Signature) -> Iterator[Rows]:
    """Rows of one shape each: all positive, all negative, mixed, as far as there are signs."""
    made = [model.made_up(signature.name, number) for number in range(3)]
    if None not in made:
        yield [dict(row) for row in made if row is not None]
        return
    open_ended = any(-1 in (spec.shape or ())[1:] for spec in signature.inputs.values())
    for length in _LENGTHS if open_ended else _LENGTHS[:1]:
        shapes = {
            key: tuple(length if size == -1 else size for size in (spec.shape or ())[1:])
            for key, spec in signature.inputs.items()
        }
        if sum(map(prod, shapes.values())) > _MAX_ROW_ELEMENTS:
            continue
        for positive in (False, True):
            generator = np.random.default_rng(_SEED)
            yield [
                {
                    key: _row(spec, shapes[key], generator, 1 if positive else sign)
                    for key, spec in signature.inputs.items()
                }
                for sign in (1, -1, 0)
            ]


def _row(
    spec: TensorSpec, shape: tuple[int, ...], generator: np.random.Generator, sign: int
) -> Array:
    dtype, shape = numpy_dtype(spec.dtype), (1, *shape)
    if dtype.kind == "O":
        row = np.empty(shape, object)
        row.flat[:] = [b"word %d" % each for each in generator.integers(1000, size=prod(shape))]
        return row
    if dtype.kind == "f":
        normal = generator.standard_normal(shape)
        return (normal if not sign else sign * abs(normal)).astype(dtype)
    # Small numbers are within every vocabulary; bytes are pixels.
    return generator.integers(256 if dtype == np.uint8 else 2, size=shape).astype(dtype)


def _alone(model: Model, signature: Signature, rows: Rows) -> Rows | Verdict | str:
    """Each row's own answer; a verdict if that tells all, a reason if it tells nothing."""
    answers = []
    for row in rows:
        try:
            answers.append(model.run(signature.name, row, list(signature.outputs)))
        except SealserveError:
            return "made-up inputs cannot be computed, so its rows cannot be compared"
    for key in signature.outputs:
        parts = [answer[key] for answer in answers]
        if any(not part.ndim or len(part) != 1 for part in parts):
            return _unequal(key)
        if any(part.dtype.kind == "f" and not np.isfinite(part).all() for part in parts):
            return f'output "{key}" of made-up inputs is no number, so its rows cannot be compared'
    told = any(
        not _same(answers[0][key], answer[key], 0.0)
        for key in signature.outputs
        for answer in answers[1:]
    )
    return answers if told else "made-up rows all have the same answer alone"


def _compare(model: Model, signature: Signature, rows: Rows, alone: Rows) -> Verdict:
    """Compute the rows beside others, and hold the answers against those alone."""
    first, second, third = rows
    batches: list[tuple[str, list[int | None], Rows]] = [
        ("another row", [0, 1, 2], rows),
        ("another row", [2, 0], [third, first]),
    ]
    instead: list[tuple[str, list[int | None], Rows]] = []
    if any(row.dtype.kind == "f" for row in first.values()):
        nan = _spoilt(second, lambda values: values * np.nan)
        huge = _spoilt(first, lambda values: values * _HUGE)
        enormous = _spoilt(second, lambda values: np.copysign(_ENORMOUS, values))
        instead = [("a row of enormous numbers", [2, None, 1], [third, enormous, second])]
        batches += [
            ("a row of NaN", [2, None, 1], [third, nan, second]),
            ("a row of huge numbers", [None, 0, 2], [huge, first, third]),
        ]
    tuning = model.tuning.get(signature.name)
    tolerance = TOLERANCE if tuning is None or tuning.precision == "f32" else _COARSE
    compared = 0
    while batches:
        neighbour, numbers, batch = batches.pop(0)
        try:
            answer = model.run(signature.name, join(batch, len(batch)), list(signature.outputs))
        except SealserveError as error:
            if error.code == _REFUSED and None in numbers:
                # So it is while it serves: such requests are run alone.
                batches, instead = batches + instead, []
                continue
            return Verdict(False, f"its rows cannot be computed beside {neighbour}")
        for key, array in answer.items():
            if not array.ndim or len(array) != len(batch):
                return _unequal(key)
            for place, number in enumerate(numbers):
                if number is None:
                    continue
                if not _same(array[place : place + 1], alone[number][key], tolerance):
                    return Verdict(
                        False, f'a row of output "{key}" changes beside {neighbour}: rows are mixed'
                    )
        compared += 1
    return Verdict(
        True,
        f"{len(rows)} seeded rows came out the same alone and in {compared} batches, "
        f"to {tolerance:g}",
        first,
    )


def _unequal(key: str) -> Verdict:
    return Verdict(False, f'output "{key}" has not one row for each row of the inputs')


def _spoilt(row: Mapping[str, Array], spoil: Callable[[Array], Any]) -> dict[str, Array]:
    with np.errstate(over="ignore"):  # a half is infinite then
        return {
            key: np.asarray(spoil(array)).astype(array.dtype) if array.dtype.kind == "f" else array
            for key, array in row.items()
        }


def _same(one: Array, other: Array, tolerance: float) -> bool:
    if one.shape != other.shape:
        return False
    if one.dtype.kind != "f":
        return bool(np.array_equal(one, other))
    return bool(np.allclose(one, other, rtol=tolerance, atol=tolerance))
