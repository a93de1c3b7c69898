"""Finds the public test vectors, and believes them only by their SHA-256.

They stand in ``<repo>/../shared/vectors`` or where ``SEALSERVE_VECTORS``
points; ``scripts/fetch-vectors.py`` brings them. They are other projects' data
and no part of this repository.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from pathlib import Path

import pytest

from tests.conftest import ROOT, missing

__all__ = ["read_vector", "vector_path"]

_MANIFEST = ROOT / "tests" / "vectors_manifest.json"


def vector_path(name: str) -> Path:
    """The path of one vector; skips the test (fails it in CI) where it is missing."""
    directory = Path(os.environ.get("SEALSERVE_VECTORS") or ROOT.parent / "shared" / "vectors")
    path = directory / name
    if not path.exists():
        missing(f"the test vector {name}", "run scripts/fetch-vectors.py")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != _digests()[name]:
        pytest.fail(f"{path} has SHA-256 {digest}, which is not the manifest's")
    return path


def read_vector(name: str) -> bytes:
    """The bytes of one vector."""
    return vector_path(name).read_bytes()


@functools.cache
def _digests() -> dict[str, str]:
    return {entry["file"]: entry["sha256"] for entry in json.loads(_MANIFEST.read_text())["files"]}
