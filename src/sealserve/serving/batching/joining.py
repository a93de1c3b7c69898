"""Arrays of several requests made one, and the answer taken apart again.

Rules this module keeps:

* Only what agrees is joined: the stated ranks, one number of rows in all inputs of a
  request, and between requests all other dimensions - unless these are filled up.
* What a batch is filled up with is real data, as in the original: the first row of the last
  request for rows that are missing, an array's first element for other dimensions. It
  is cut off again, and nobody sees it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from sealserve.errors import InternalError
from sealserve.serving.runtimes.base import Signature
from sealserve.wire.tensors import Array

__all__ = ["join", "joinable", "rows_of", "take_apart"]

Inputs = Mapping[str, Array]


def joinable(signature: Signature, inputs: Inputs, *, padding: bool) -> Hashable | None:
    """What requests must have in common to be joined; None for one that must run alone.

    Args:
        signature: what is asked.
        inputs: of one request.
        padding: other dimensions than the first may differ.
    """
    rows = rows_of(inputs)
    if not rows:
        return None
    shapes = []
    for key in sorted(inputs):
        array, stated = inputs[key], signature.inputs[key].shape
        if stated is None or array.ndim != len(stated) or len(array) != rows or not array.size:
            return None
        shapes.append(array.shape[1:])
    return () if padding else tuple(shapes)


def rows_of(inputs: Inputs) -> int:
    """The number of rows, by the first input."""
    first = next(iter(inputs.values()), None)
    return len(first) if first is not None and first.ndim else 0


def join(parts: Sequence[Inputs], rows: int) -> dict[str, Array]:
    """One request of several.

    Args:
        parts: their inputs, which `joinable` has found alike.
        rows: how many it shall have; not fewer than the parts have together.
    """
    missing = rows - sum(map(rows_of, parts))
    return {key: _join([part[key] for part in parts], missing) for key in parts[0]}


def _join(arrays: Sequence[Array], missing: int) -> Array:
    shape = tuple(map(max, zip(*(array.shape[1:] for array in arrays), strict=True)))
    parts = [_widened(array, shape) for array in arrays]
    if missing:
        parts.append(np.repeat(parts[-1][:1], missing, axis=0))
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _widened(array: Array, shape: tuple[int, ...]) -> Array:
    if array.shape[1:] == shape:
        return array
    wide = np.full((len(array), *shape), array.flat[0], array.dtype)
    wide[tuple(map(slice, array.shape))] = array
    return wide


def take_apart(outputs: Inputs, rows: int, sizes: Sequence[int]) -> list[dict[str, Array]]:
    """The answers of the requests in a batch.

    Args:
        outputs: of the batch.
        rows: that it had, with what it was filled up with.
        sizes: the rows of each request, in their order.

    Raises:
        InternalError: ``servable.batch_mixed``: there is not one row for each.
    """
    for key, array in outputs.items():
        if not array.ndim or len(array) != rows:
            raise InternalError(
                "servable.batch_mixed",
                f"output {key!r} of a batch of {rows} rows has the shape {list(array.shape)}",
            )
    answers, begin = [], 0
    for size in sizes:
        answers.append({key: array[begin : begin + size] for key, array in outputs.items()})
        begin += size
    return answers
