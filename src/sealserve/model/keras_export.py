"""Keras 3 files (``.keras``, ``.h5``) become SavedModels, in TensorFlow's own Python.

Rules this module keeps:

* sealserve never imports TensorFlow: the Python that has it runs `keras_worker`, and what
  that writes is checked as any SavedModel is.
* Keras' safe mode stays on, so that a file with a Lambda layer, which is code, is refused.
  It is no sandbox: import Keras files only from whom you trust, on the owner's machine.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Final

from sealserve.errors import InputError, Unavailable
from sealserve.model import keras_worker

__all__ = ["export_keras", "is_keras"]

_TIMEOUT_SECONDS: Final = 900
_ZIP: Final = b"PK\x03\x04"
_HDF5: Final = b"\x89HDF\r\n\x1a\n"


def is_keras(path: Path) -> bool:
    """Whether a file is a Keras model, by how it begins."""
    try:
        with path.open("rb") as file:
            return file.read(8).startswith((_ZIP, _HDF5))
    except OSError:
        return False


def export_keras(source: Path, target: Path, interpreter: Path | None) -> str:
    """Have Keras write a SavedModel.

    Args:
        source: a ``.keras`` or ``.h5`` file.
        target: the directory to make; its parent exists and holds nothing else.
        interpreter: a Python in whose environment TensorFlow and Keras 3 are.

    Returns:
        Which Keras and TensorFlow did it.

    Raises:
        InputError: ``keras.unloadable``: Keras cannot load the file, or will not in safe mode.
        Unavailable: ``keras.no_tensorflow``, ``keras.failed``.
    """
    if interpreter is None:
        raise _no_tensorflow("no TensorFlow is installed here", source)
    command = [str(interpreter), "-I", keras_worker.__file__, str(source.resolve()), str(target)]
    # Keras reads its settings, and looks for files, where nothing of the caller's is.
    environment = {
        "KERAS_BACKEND": "tensorflow",
        "KERAS_HOME": str(target.parent / "settings"),
        "HOME": str(target.parent),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "",
        "PATH": "/usr/bin:/bin",
    }
    try:
        done = subprocess.run(
            command,
            env=environment,
            cwd=target.parent,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
        said = json.loads(done.stdout.splitlines()[-1])
    except OSError as error:
        raise _no_tensorflow(f"{interpreter} cannot be run: {error.strerror}", source) from None
    except subprocess.TimeoutExpired:
        raise _failed(f"no end within {_TIMEOUT_SECONDS} seconds", source) from None
    except (IndexError, ValueError):
        raise _failed(f"the process ended with status {done.returncode}", source) from None
    match said:
        case {"missing": str(what)}:
            raise _no_tensorflow(what, source)
        case {"unloadable": str(reason)}:
            raise InputError(
                "keras.unloadable",
                f"Keras does not load the model: {reason}",
                where=str(source),
                hint="Lambda layers and classes of one's own are code and are refused; "
                "export a SavedModel where that code is (model.export) and import that",
            )
        case {"exported": str(by)}:
            return by
        case {"failed": str(reason)}:
            raise _failed(reason, source)
    raise _failed(f"the process ended with status {done.returncode}", source)


def _no_tensorflow(what: str, source: Path) -> Unavailable:
    return Unavailable(
        "keras.no_tensorflow",
        f"a Keras model needs TensorFlow to be imported: {what}",
        where=str(source),
        hint="pip install 'sealserve[tensorflow]', or name a Python that has it: "
        "--tensorflow-runtime=/path/to/python",
    )


def _failed(reason: str, source: Path) -> Unavailable:
    return Unavailable(
        "keras.failed", f"Keras cannot export the model: {reason}", where=str(source)
    )
