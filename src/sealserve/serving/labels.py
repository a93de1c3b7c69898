"""Which version a label means: TensorFlow Serving's rules.

Rules this module keeps:

* A label is given only to a version that is available. With
  ``--allow_version_labels_for_unavailable_models`` a label that is not in use may
  be given earlier; one that is in use never moves to a version that cannot serve.
* A label that cannot be given stays where it was, and is given once it can be.
"""

from __future__ import annotations

from sealserve.errors import InputError
from sealserve.serving.config import ModelConfig
from sealserve.serving.table import Entry

__all__ = ["assign_labels"]


def assign_labels(config: ModelConfig, entry: Entry, *, early: bool) -> list[InputError]:
    """Give a model's labels to its versions; called under the table's lock.

    Returns:
        A ``servable.label_unavailable`` for each label that could not be given.
    """
    wanted = dict(config.labels)
    labels = {label: version for label, version in entry.labels.items() if label in wanted}
    refused = []
    for label, version in wanted.items():
        servable = entry.versions.get(version)
        ready = servable is not None and servable.model is not None
        free = labels.get(label, version) == version
        if ready or (early and free):
            labels[label] = version
        elif labels.get(label) != version:
            refused.append(
                InputError(
                    "servable.label_unavailable",
                    f"Request to assign label to version {version} of model {config.name}, "
                    "which is not currently available for inference",
                    hint=f"label {label!r} is given to it once it is available",
                )
            )
    entry.labels = labels
    return refused
