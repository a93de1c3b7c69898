"""The versions a model has: what its base path holds, and which of it a policy wants.

Rules this module keeps:

* A version directory has a number for a name; ``00000123`` is version 123. Of two
  names for one number the first in order counts.
* A base path that cannot be read is not an empty one: it says nothing of what
  should be served, and what is served stays.
"""

from __future__ import annotations

from pathlib import Path

from sealserve.errors import Unavailable
from sealserve.serving.config import Latest, ModelConfig, Specific

__all__ = ["MAX_VERSION", "find_versions", "newest_version"]

MAX_VERSION = 2**63 - 1


def find_versions(config: ModelConfig) -> dict[int, Path]:
    """The version directories that the policy selects, oldest first.

    Raises:
        Unavailable: ``servable.base_path_unreadable``.
    """
    found: dict[int, Path] = {}
    try:
        children = sorted(config.base_path.iterdir())
    except OSError as error:
        raise Unavailable(
            "servable.base_path_unreadable",
            f"cannot read the base path of model {config.name}: {error.strerror}",
            where=str(config.base_path),
        ) from None
    for child in children:
        name = child.name
        # As long as it is checked before it is read, no name costs more than its length.
        if name.isascii() and name.isdigit() and len(name) <= 64 and child.is_dir():
            version = int(name)
            if version <= MAX_VERSION:
                found.setdefault(version, child)
    numbers = sorted(found)
    match config.policy:
        case Latest(count):
            numbers = numbers[-count:]
        case Specific(versions):
            numbers = [number for number in numbers if number in versions]
    return {number: found[number] for number in numbers}


def newest_version(path: Path) -> Path:
    """The newest version directory of a base path; the path itself where it has none."""
    versions = find_versions(ModelConfig(path.name, path))
    return versions[max(versions)] if versions else path
