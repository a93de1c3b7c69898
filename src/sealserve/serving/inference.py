"""Classify and Regress: which signatures they fit, and what their outputs mean.

The rules and the texts are TensorFlow Serving's (``classifier.cc``, ``regressor.cc``,
``multi_inference.cc``): one input, ``inputs``, that takes serialized examples;
``classes`` and/or ``scores`` of shape ``[examples, classes]``, or ``outputs``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sealserve.errors import InputError
from sealserve.serving.runtimes.base import Signature
from sealserve.wire.tensorflow import graph_pb2
from sealserve.wire.tensorflow import tensor_pb2 as pb
from sealserve.wire.tensors import Array, data_type_of, dtype_name

__all__ = [
    "CLASSIFY",
    "INPUT",
    "REGRESS",
    "Classes",
    "Method",
    "examples_array",
    "to_classes",
    "to_values",
]

INPUT = "inputs"
_CLASSES, _SCORES, _OUTPUT = "classes", "scores", "outputs"

Classes = list[list[tuple[str, float]]]
"""For each example, its classes: label and score."""


@dataclass(frozen=True)
class Method:
    """Classify or Regress.

    Attributes:
        method_name: what a signature for it says.
        noun: what it is called in errors.
    """

    method_name: str
    noun: str

    def check(self, definition: graph_pb2.SignatureDef, *, method_name_too: bool) -> None:
        """Refuse a signature that is not for this method.

        Raises:
            InputError: ``request.signature_unfit``.
        """
        if method_name_too and definition.method_name != self.method_name:
            raise _unfit(
                f"Expected {self.noun} signature method_name to be {self.method_name}. "
                f"Was: {definition.method_name}"
            )
        outputs = len(definition.outputs)
        if len(definition.inputs) != 1:
            raise _unfit("Expected one input Tensor.")
        if self is CLASSIFY and outputs not in (1, 2):
            raise _unfit(f"Expected one or two output Tensors, found {outputs}")
        if self is REGRESS and outputs != 1:
            raise _unfit("Expected one output Tensor.")
        if INPUT not in definition.inputs:
            raise _unfit(f"No {self.noun} inputs found in SignatureDef: {definition}")
        if self is CLASSIFY and not {_CLASSES, _SCORES} & set(definition.outputs):
            raise _unfit(
                "Expected classification signature outputs to contain at least one of "
                f'"{_CLASSES}" or "{_SCORES}". Signature was: {definition}'
            )
        if self is REGRESS and _OUTPUT not in definition.outputs:
            raise _unfit(f"No regression outputs found in SignatureDef: {definition}")

    def outputs_of(self, signature: Signature) -> list[str]:
        """The outputs that the answer is made of."""
        wanted = (_CLASSES, _SCORES) if self is CLASSIFY else (_OUTPUT,)
        return [key for key in wanted if key in signature.outputs]


CLASSIFY = Method("tensorflow/serving/classify", "classification")
REGRESS = Method("tensorflow/serving/regress", "regression")


def examples_array(examples: list[bytes]) -> Array:
    """The examples as a vector of strings.

    Raises:
        InputError: ``request.input_empty``.
    """
    if not examples:
        raise InputError("request.input_empty", "Input is empty.")
    array = np.empty(len(examples), object)
    array[:] = examples
    return array


def to_classes(outputs: Mapping[str, Array], count: int) -> Classes:
    """What Classify answers.

    Raises:
        InputError: ``request.outputs_unfit``.
    """
    classes, scores = outputs.get(_CLASSES), outputs.get(_SCORES)
    for array, name, dtype in ((classes, _CLASSES, pb.DT_STRING), (scores, _SCORES, pb.DT_FLOAT)):
        if array is None:
            continue
        if array.ndim != 2:
            raise _outputs(
                "Expected Tensor shape: [batch_size num_classes] but got "
                f"[{','.join(map(str, array.shape))}]"
            )
        if data_type_of(array) != dtype:
            raise _outputs(
                f"Expected {name} Tensor of {dtype_name(dtype)}. "
                f"Got: {dtype_name(data_type_of(array))}"
            )
        if array.shape[0] != count:
            raise _outputs(f"Expected {name} output batch size of {count}. Got: {array.shape[0]}")
    if classes is not None and scores is not None and classes.shape[1] != scores.shape[1]:
        raise _outputs(
            "Tensors class and score should match in dim_size(1). "
            f"Got {classes.shape[1]} vs. {scores.shape[1]}"
        )
    width = next(array.shape[1] for array in (classes, scores) if array is not None)
    labels = [[""] * width] * count if classes is None else _texts(classes)
    numbers = [[0.0] * width] * count if scores is None else scores.tolist()
    return [list(zip(*row, strict=True)) for row in zip(labels, numbers, strict=True)]


def to_values(outputs: Mapping[str, Array], count: int) -> list[float]:
    """What Regress answers.

    Raises:
        InputError: ``request.outputs_unfit``.
    """
    array = outputs[_OUTPUT]
    if not (array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1)):
        raise _outputs(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "
            f"[{','.join(map(str, array.shape))}]"
        )
    if array.shape[0] != count:
        raise _outputs(
            f"Input batch size did not match output batch size: {count} vs. {array.shape[0]}"
        )
    if data_type_of(array) != pb.DT_FLOAT:
        raise _outputs(
            f"Expected output Tensor of DT_FLOAT.  Got: {dtype_name(data_type_of(array))}"
        )
    values: list[float] = array.reshape(-1).tolist()
    return values


def _texts(array: Array) -> list[list[str]]:
    return [[bytes(item).decode(errors="replace") for item in row] for row in array.tolist()]


def _unfit(message: str) -> InputError:
    return InputError("request.signature_unfit", message)


def _outputs(message: str) -> InputError:
    return InputError("request.outputs_unfit", message)
