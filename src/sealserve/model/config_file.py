"""``models.config``: which models of a directory are served, as TensorFlow Serving reads it."""

from __future__ import annotations

from pathlib import Path

from google.protobuf import text_format

from sealserve.errors import InputError
from sealserve.files import write_atomically
from sealserve.wire.serving import config_pb2

__all__ = ["CONFIG_NAME", "write_config"]

CONFIG_NAME = "models.config"


def write_config(tree: Path) -> tuple[str, ...]:
    """Write ``models.config`` for every model below ``tree/models``.

    The base paths are relative to the file, so that the tree can be sealed
    here and mounted anywhere.

    Args:
        tree: what will be sealed; holds ``models/<name>/<version>``.

    Returns:
        The models' names.

    Raises:
        InputError: ``model.nothing_to_serve``, or ``file.exists``.
        Unavailable: ``file.unwritable``.
    """
    models = tree / "models"
    names = sorted(
        entry.name
        for entry in (models.iterdir() if models.is_dir() else ())
        if entry.is_dir() and any(child.name.isdigit() for child in entry.iterdir())
    )
    if not names:
        raise InputError(
            "model.nothing_to_serve",
            "there is no models/NAME/VERSION directory",
            where=str(tree),
            hint=f"import a model first: sealserve model import ... --out {models}",
        )
    config = config_pb2.ModelServerConfig()
    for name in names:
        entry = config.model_config_list.config.add()
        entry.name, entry.base_path, entry.model_platform = name, f"models/{name}", "tensorflow"
    text = text_format.MessageToString(config).encode()
    write_atomically(tree / CONFIG_NAME, text, replace=False)
    return tuple(names)
