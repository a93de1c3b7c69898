"""Runs in a Python that has TensorFlow: one Keras file becomes one SavedModel.

This file is started by its path and imports nothing of sealserve. The last line of its
output is a JSON object: ``exported``, ``missing``, ``unloadable`` or ``failed``.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any

_MAX_REASON_CHARS = 300


def export(source: str, target: str) -> dict[str, str]:
    """Load a file in safe mode and export it."""
    try:
        import tensorflow

        keras = tensorflow.keras
        if int(keras.__version__.partition(".")[0]) < 3:
            return {"missing": f"Keras {keras.__version__} is not Keras 3"}
    except ImportError as error:
        return {"missing": _reason(error)}
    try:
        # The file's name must end as its kind does; what it is has been seen by its content.
        model = keras.models.load_model(source, compile=False, safe_mode=True)
    except Exception as error:  # whatever the file makes Keras raise
        return {"unloadable": _reason(error)}
    try:
        model.export(target, format="tf_saved_model", verbose=False)
    except Exception as error:
        return {"failed": _reason(error)}
    return {"exported": f"Keras {keras.__version__}, TensorFlow {tensorflow.__version__}"}


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:_MAX_REASON_CHARS] or type(error).__name__


def main(arguments: list[str]) -> None:
    """Export, and say how it went."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answer: dict[str, Any] = export(*arguments)
    os.write(1, b"\n" + json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main(sys.argv[1:])
