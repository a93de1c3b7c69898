"""The vectors of this package's own manifest, and through it those of the common one."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from pathlib import Path

import pytest

from tests import vectors as common
from tests.conftest import ROOT, missing

__all__ = ["read_vector", "vector_path"]

_MANIFEST = Path(__file__).with_name("vectors_manifest.json")


def vector_path(name: str) -> Path:
    """The path of one vector; skips the test (fails it in CI) where it is missing."""
    digest = _digests().get(name)
    if digest is None:
        return common.vector_path(name)
    path = Path(os.environ.get("SEALSERVE_VECTORS") or ROOT.parent / "shared" / "vectors") / name
    if not path.exists():
        missing(
            f"the test vector {name}", "fetch it from where tests/tdx/vectors_manifest.json says"
        )
    if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
        pytest.fail(f"{path} is not the file of the manifest")
    return path


def read_vector(name: str) -> bytes:
    """The bytes of one vector."""
    return vector_path(name).read_bytes()


@functools.cache
def _digests() -> dict[str, str]:
    return {entry["file"]: entry["sha256"] for entry in json.loads(_MANIFEST.read_text())["files"]}
