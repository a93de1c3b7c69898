"""Known answers: what a model is known to give, compared with what it gives here.

Two kinds of file are read:

* ``.npz``: arrays ``inputs/KEY`` and ``outputs/KEY``, and optionally ``signature``, a string;
* TFRecord of ``PredictionLog`` with request and response, as warm-up files are, of kind Predict.

Rules this module keeps:

* The model answers by way of the dataplane, through the checks that any request passes.
* What is expected and not given, of another type or another shape, differs. A file
  without an answer in it proves nothing and is refused.
* Nothing in a file is code: arrays of Python objects are not read.
* No message holds a tensor: it says how many values differ, and by how much.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from google.protobuf.message import DecodeError

from sealserve.errors import InputError, Refused, Unavailable
from sealserve.serving.catalog import ModelSpec
from sealserve.serving.dataplane import Dataplane
from sealserve.serving.runtimes.base import DEFAULT_SIGNATURE, Model
from sealserve.serving.table import Table
from sealserve.serving.warmup import read_records
from sealserve.wire.serving import api_pb2
from sealserve.wire.tensors import Array, to_array

__all__ = ["KnownAnswer", "check_against", "read_known_answers"]

_MAX_BYTES: Final = 2**30
_MAX_RECORDS: Final = 1000
_NAME: Final = "model"


@dataclass(frozen=True)
class KnownAnswer:
    """One request and its known answer."""

    signature: str
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


def check_against(model: Model, file: Path, tolerance: float) -> int:
    """Ask a loaded model what a file of known answers asks.

    Args:
        model: what would be served.
        file: the known answers.
        tolerance: what a number may differ by, absolutely and relative to the known one.

    Returns:
        How many answers were compared.

    Raises:
        Refused: ``known_answers.differs``.
        InputError: ``known_answers.malformed``, or the request is none that the model takes.
        Unavailable: ``file.unreadable``.
    """
    plane = Dataplane(Table.of(_NAME, 1, model))
    count = 0
    for each in read_known_answers(file):
        answer = plane.predict(
            ModelSpec(_NAME),
            each.signature,
            lambda _, each=each: each.inputs,  # type: ignore[misc]
            sorted(each.outputs),
        )
        for key, known in each.outputs.items():
            difference = _difference(answer.outputs[key], known, tolerance)
            if difference:
                raise Refused(
                    "known_answers.differs",
                    f"answer {count} of signature {each.signature!r}, output {key!r}: {difference}",
                    where=str(file),
                    hint="the model is not the one that gave these answers, or is computed "
                    "otherwise here; --tolerance says what numbers may differ by",
                )
        count += 1
    if not count:
        raise _malformed("it holds no answer", file)
    return count


def read_known_answers(file: Path) -> Iterator[KnownAnswer]:
    """Read a file of known answers.

    Raises:
        InputError: ``known_answers.malformed``, ``warmup.malformed``, ``tensor.*``.
        Unavailable: ``file.unreadable``.
    """
    try:
        zipped = zipfile.is_zipfile(file)
        file.open("rb").close()
    except OSError as error:
        raise Unavailable(
            "file.unreadable", f"cannot read: {error.strerror}", where=str(file)
        ) from None
    if zipped:
        yield _of_arrays(file)
        return
    for number, record in enumerate(read_records(file, _MAX_BYTES)):
        if number == _MAX_RECORDS:
            raise _malformed(f"it holds more than {_MAX_RECORDS} records", file)
        yield _of_record(record, file)


def _of_arrays(file: Path) -> KnownAnswer:
    try:
        with zipfile.ZipFile(file) as parts:
            if sum(part.file_size for part in parts.infolist()) > _MAX_BYTES:
                raise _malformed(f"it holds more than {_MAX_BYTES} bytes", file)
        with np.load(file, allow_pickle=False) as stored:
            arrays = {name: _portable(stored[name]) for name in stored.files}
    except (OSError, EOFError, ValueError, KeyError, SyntaxError, TypeError, RuntimeError,
            NotImplementedError, zipfile.BadZipFile, zlib.error) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise _malformed(f"no arrays can be read: {reason}", file) from None
    signature = arrays.pop("signature", None)
    inputs = {key[7:]: array for key, array in arrays.items() if key.startswith("inputs/")}
    outputs = {key[8:]: array for key, array in arrays.items() if key.startswith("outputs/")}
    if not outputs or len(inputs) + len(outputs) != len(arrays):
        raise _malformed("its arrays are to be called inputs/KEY and outputs/KEY", file)
    if signature is None:
        return KnownAnswer(DEFAULT_SIGNATURE, inputs, outputs)
    if signature.ndim or signature.dtype != object:
        raise _malformed("'signature' is to be one string", file)
    return KnownAnswer(signature.item().decode(errors="replace"), inputs, outputs)


def _portable(array: Array) -> Array:
    """Strings as bytes, as everywhere else here; numbers in this machine's byte order."""
    if array.dtype.kind == "U":
        array = np.char.encode(array, "utf-8")
    if array.dtype.kind == "S":
        return array.astype(object)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _of_record(record: bytes, file: Path) -> KnownAnswer:
    try:
        log = api_pb2.PredictionLog.FromString(record)
    except DecodeError:
        raise _malformed("a record is not a PredictionLog", file) from None
    if log.WhichOneof("log_type") != "predict_log" or not log.predict_log.response.outputs:
        raise _malformed("a record is no Predict request with its response", file)
    request, response = log.predict_log.request, log.predict_log.response
    return KnownAnswer(
        request.model_spec.signature_name or DEFAULT_SIGNATURE,
        {key: to_array(tensor, _MAX_BYTES) for key, tensor in request.inputs.items()},
        {key: to_array(tensor, _MAX_BYTES) for key, tensor in response.outputs.items()},
    )


def _difference(given: Array, known: Array, tolerance: float) -> str:
    """How two arrays differ; empty if they do not."""
    if given.dtype != known.dtype:
        return f"it is of type {given.dtype}, and {known.dtype} is expected"
    if given.shape != known.shape:
        return f"it has the shape {list(given.shape)}, and {list(known.shape)} is expected"
    if given.dtype.kind == "f":
        same = np.isclose(given, known, rtol=tolerance, atol=tolerance, equal_nan=True)
    else:
        same = np.asarray(given == known)
    wrong = int(np.count_nonzero(~same))
    if not wrong:
        return ""
    many = f"{wrong} of {same.size} values differ"
    if given.dtype.kind not in "fiu":
        return many
    gap = np.abs(given[~same].astype("f8") - known[~same].astype("f8"))
    return f"{many}, by up to {np.max(gap):.3g}"


def _malformed(what: str, file: Path) -> InputError:
    return InputError(
        "known_answers.malformed",
        f"cannot read the known answers: {what}",
        where=str(file),
        hint="give an .npz with inputs/KEY and outputs/KEY, or a TFRecord of PredictionLog",
    )
