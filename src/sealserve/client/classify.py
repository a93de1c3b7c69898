"""A picture in, ImageNet labels out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sealserve.client.connection import Connection
from sealserve.client.images import load_image
from sealserve.client.labels import imagenet_labels
from sealserve.errors import InputError

__all__ = ["Label", "classify_image"]

# A 1001-way model has "background" before the thousand classes.
_CLASSES = 1000


@dataclass(frozen=True)
class Label:
    """One class with its probability, from 0 to 1."""

    name: str
    probability: float

    def __str__(self) -> str:
        return f"{self.name}: {self.probability:.4f}"

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def classify_image(
    connection: Connection, model: str, image: Path, *, top: int = 3
) -> tuple[Label, ...]:
    """The ``top`` most probable ImageNet classes of a picture, best first.

    Args:
        connection: to the server.
        model: a servable with one image input and an output of probabilities.
        image: the picture's file.
        top: how many labels.

    Raises:
        InputError: ``predict.not_a_classifier``, the picture's or the server's error.
    """
    specs = connection.input_specs(model)
    if len(specs) != 1:
        raise InputError(
            "predict.not_a_classifier",
            f"model {model!r} takes {len(specs)} inputs, not one picture",
            hint="name an image classifier with --model",
        )
    (name, spec), *_ = specs.items()
    outputs = connection.predict(model, {name: load_image(image)[np.newaxis].astype(spec.dtype)})
    probabilities = _probabilities(outputs, model)
    labels = imagenet_labels()
    background = len(probabilities) - _CLASSES
    best = np.argsort(probabilities)[::-1][:top]
    return tuple(
        Label(
            labels[index - background] if index >= background else "background",
            float(probabilities[index]),
        )
        for index in best
    )


def _probabilities(
    outputs: dict[str, np.ndarray[Any, Any]], model: str
) -> np.ndarray[Any, np.dtype[np.floating[Any]]]:
    """The output of shape ``[1, 1000]`` or ``[1, 1001]`` that sums to one."""
    for array in outputs.values():
        if (
            array.shape in {(1, _CLASSES), (1, _CLASSES + 1)}
            and array.dtype.kind == "f"
            and abs(float(array.sum()) - 1) < 1e-3
        ):
            row: np.ndarray[Any, np.dtype[np.floating[Any]]] = array[0]
            return row
    raise InputError(
        "predict.not_a_classifier",
        f"model {model!r} has no output with probabilities of the ImageNet classes",
        hint="name an image classifier with --model",
    )
