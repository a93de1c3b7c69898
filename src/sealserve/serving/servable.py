"""What a version is while it lives: its states, its handle, and how a request names it.

Each version goes START -> LOADING -> AVAILABLE -> UNLOADING -> END, as in TensorFlow
Serving's ``ServableState``; a load that fails goes to END with its error.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from sealserve.errors import InternalError, SealserveError, Unavailable
from sealserve.files import Stamp, stamp_of
from sealserve.provenance import SIGNATURE_NAME
from sealserve.serving.runtimes.base import Model
from sealserve.serving.status import Status

__all__ = ["Handle", "ModelSpec", "Servable", "State", "VersionStatus", "load_error", "stamps"]


class State(IntEnum):
    """ModelVersionStatus.State."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclass(frozen=True)
class ModelSpec:
    """Which model a request means: its newest version, that version, or that label."""

    name: str
    version: int | None = None
    label: str | None = None


@dataclass(frozen=True)
class VersionStatus:
    """One version's state; ``code`` and ``message`` say why it ended."""

    version: int
    state: State
    code: Status = Status.OK
    message: str = ""


@dataclass(frozen=True)
class Handle:
    """A loaded version, kept loaded while the handle lives."""

    name: str
    version: int
    model: Model


@dataclass(eq=False)
class Servable:
    """One version of one model.

    Attributes:
        path: the directory it is, or was, loaded from.
        status: what clients are told.
        model: what answers requests; only while AVAILABLE.
        users: handles that are out.
        failures: loads that have failed.
        retry_at: monotonic time of the next attempt; None when there is none to come.
        seen: what the directory looked like before the load that failed.
    """

    path: Path
    status: VersionStatus
    model: Model | None = None
    users: int = 0
    failures: int = 0
    retry_at: float | None = None
    seen: tuple[Stamp, ...] = ()

    def move(self, state: State, code: Status = Status.OK, message: str = "") -> None:
        """Change the state."""
        self.status = VersionStatus(self.status.version, state, code, message)

    @property
    def failed(self) -> bool:
        """Whether the last load failed."""
        return self.failures > 0 and self.status.state is State.END


def stamps(path: Path) -> tuple[Stamp, ...]:
    """What changes when a version directory that was half copied is completed."""
    files = (
        "saved_model.pb",
        "variables",
        "variables/variables.index",
        "variables/variables.data-00000-of-00001",
        "model.tflite",
        "model.onnx",
        "model.xml",
        "model.bin",
        SIGNATURE_NAME,
    )
    places = (path, *(path / name for name in files))
    return tuple(stamp_of(place) for place in places)


def load_error(error: Exception, path: Path) -> SealserveError:
    """What to tell of a load that failed with an exception that is not ours."""
    if isinstance(error, OSError | MemoryError):
        return Unavailable(
            "servable.load_failed",
            f"the model cannot be loaded: {getattr(error, 'strerror', None) or 'out of memory'}",
            where=str(path),
        )
    return InternalError(
        "servable.load_unexpected",
        f"unexpected {type(error).__name__} while loading the model",
        where=str(path),
    )
