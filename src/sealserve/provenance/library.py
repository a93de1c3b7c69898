"""The `model-signing` library: an extra, imported when it is first needed.

Importing it brings in Sigstore's client, 50 MB of it; nothing of that talks to anybody
for the two kinds of signature that are used here.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from sealserve.errors import Unavailable

__all__ = ["SIGNATURE_NAME", "memory_file", "require_library"]

SIGNATURE_NAME = "model.sig"
"""The signature's file in the directory of a model's version."""


def require_library() -> None:
    """Refuse to go on where signatures could not be checked.

    Raises:
        Unavailable: ``provenance.extra_missing``.
    """
    for module in ("model_signing", "OpenSSL"):
        if find_spec(module) is None:
            raise Unavailable(
                "provenance.extra_missing",
                f"signatures of models cannot be checked: {module} is not installed",
                hint="pip install 'sealserve[provenance]'",
            )


@contextlib.contextmanager
def memory_file(content: bytes = b"") -> Iterator[Path]:
    """A file that is on no disk: the library takes keys and signatures by path only."""
    descriptor = os.memfd_create("provenance")
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
