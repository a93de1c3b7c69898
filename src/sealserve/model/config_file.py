"""``models.config``: which models of a directory are served, as TensorFlow Serving reads it."""

from __future__ import annotations

from pathlib import Path

from google.protobuf import text_format

from sealserve.errors import InputError
from sealserve.files import write_atomically
from sealserve.wire.serving import config_pb2

__all__ = ["CONFIG_NAME", "config_of", "write_config"]

CONFIG_NAME = "models.config"


def write_config(tree: Path) -> tuple[str, ...]:
    """Write ``models.config`` for every model below ``tree/models``.

    Args:
        tree: what will be sealed; holds ``models/<name>/<version>``.

    Returns:
        The models' names.

    Raises:
        InputError: ``model.nothing_to_serve``, or ``file.exists``.
        Unavailable: ``file.unwritable``.
    """
    text, names = config_of(tree / "models")
    write_atomically(tree / CONFIG_NAME, text, replace=False)
    return names


def config_of(models: Path) -> tuple[bytes, tuple[str, ...]]:
    """The text of ``models.config`` for every ``<name>/<version>`` in a directory.

    The base paths are relative to the file, ``models/<name>``, so that a tree can be
    sealed here and mounted anywhere.

    Returns:
        The text, and the models' names.

    Raises:
        InputError: ``model.nothing_to_serve``.
    """
    names = sorted(
        entry.name
        for entry in (models.iterdir() if models.is_dir() else ())
        if entry.is_dir() and any(child.name.isdigit() for child in entry.iterdir())
    )
    if not names:
        raise InputError(
            "model.nothing_to_serve",
            f"there is no {models.name}/NAME/VERSION directory",
            where=str(models.parent),
            hint=f"import a model first: sealserve model import ... --out {models}",
        )
    config = config_pb2.ModelServerConfig()
    for name in names:
        entry = config.model_config_list.config.add()
        entry.name, entry.base_path, entry.model_platform = name, f"models/{name}", "tensorflow"
    return text_format.MessageToString(config).encode(), tuple(names)
