"""The models and versions this server has: found, loaded, handed out, unloaded.

Rules this module keeps:

* Each version goes START -> LOADING -> AVAILABLE -> UNLOADING -> END, as in
  TensorFlow Serving's ``ServableState``; a load that fails goes to END with its
  error. One bad version never takes another one down.
* A version is used through a handle. Unloading waits for the handles, so that a
  model never vanishes under a request.
* A version directory has a number for a name; ``00000123`` is version 123.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

from sealserve.errors import InputError, InternalError, SealserveError, Unavailable
from sealserve.logs import Log
from sealserve.serving.config import Latest, ModelConfig, Specific
from sealserve.serving.runtimes.base import Model, Runtime
from sealserve.serving.status import Status, status_of

__all__ = ["Catalog", "Handle", "ModelSpec", "State", "VersionStatus"]

_MAX_VERSION = 2**63 - 1


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


@dataclass
class _Servable:
    status: VersionStatus
    model: Model | None = None
    users: int = 0


@dataclass
class _Entry:
    labels: dict[str, int]
    versions: dict[int, _Servable] = field(default_factory=dict)


class Catalog:
    """All models of one server; every method may be called from any thread."""

    def __init__(self, models: tuple[ModelConfig, ...], runtime: Runtime, log: Log) -> None:
        self._configs = models
        self._runtime = runtime
        self._log = log
        self._lock = threading.Lock()
        self._released = threading.Condition(self._lock)
        self._entries = {model.name: _Entry(dict(model.labels)) for model in models}

    def load(self) -> None:
        """Find and load every version that the policies ask for; failures become states."""
        for config in self._configs:
            versions = _find_versions(config)
            if not versions:
                self._log.warning("no_versions", model=config.name, base_path=str(config.base_path))
            for version, path in versions.items():
                self._load(config.name, version, path)

    @contextmanager
    def acquire(self, spec: ModelSpec) -> Iterator[Handle]:
        """Hold a loaded version.

        Raises:
            InputError: ``request.servable_not_found`` or ``request.label_unknown``.
        """
        with self._lock:
            version, servable, model = self._find(spec)
            servable.users += 1
        try:
            yield Handle(spec.name, version, model)
        finally:
            with self._released:
                servable.users -= 1
                self._released.notify_all()

    def statuses(self, spec: ModelSpec) -> list[VersionStatus]:
        """The states of a model's versions, newest first.

        Raises:
            InputError: ``request.versions_not_found`` or ``request.label_unknown``.
        """
        with self._lock:
            entry = self._entries.get(spec.name)
            known = entry.versions if entry else {}
            version = self._version_of(entry, spec) if entry else spec.version
            if version is None:
                wanted = sorted(known, reverse=True)
            else:
                wanted = [version] if version in known else []
            if not wanted:
                what = "any versions" if version is None else f"version {version}"
                raise InputError(
                    "request.versions_not_found", f"Could not find {what} of model {spec.name}"
                )
            return [known[number].status for number in wanted]

    def available(self) -> list[tuple[str, int]]:
        """The name and version of everything that can be served now."""
        with self._lock:
            return [
                (name, version)
                for name, entry in self._entries.items()
                for version, servable in sorted(entry.versions.items())
                if servable.model is not None
            ]

    def close(self) -> None:
        """Unload everything; waits for the handles that are out."""
        with self._released:
            servables = [
                servable for entry in self._entries.values() for servable in entry.versions.values()
            ]
            models = []
            for servable in servables:
                if servable.model is not None:
                    models.append(servable.model)
                    servable.model = None
                    servable.status = VersionStatus(servable.status.version, State.UNLOADING)
            self._released.wait_for(lambda: all(servable.users == 0 for servable in servables))
        for model in models:
            model.close()
        with self._lock:
            for servable in servables:
                if servable.status.state is State.UNLOADING:
                    servable.status = VersionStatus(servable.status.version, State.END)

    def _load(self, name: str, version: int, path: Path) -> None:
        servable = _Servable(VersionStatus(version, State.START))
        with self._lock:
            self._entries[name].versions[version] = servable
            servable.status = VersionStatus(version, State.LOADING)
        try:
            model = self._runtime.load(path)
        except Exception as error:  # whatever a model does to its runtime, the others serve on
            failure = error if isinstance(error, SealserveError) else _load_error(error, path)
            self._log.error("model_failed", model=name, version=version, **failure.to_dict())
            with self._lock:
                servable.status = VersionStatus(
                    version, State.END, status_of(failure), failure.message
                )
            return
        with self._lock:
            servable.model = model
            servable.status = VersionStatus(version, State.AVAILABLE)
        self._log.info(
            "model_available",
            model=name,
            version=version,
            runtime=self._runtime.name,
            signatures=sorted(model.signatures),
            refused=sorted(model.refused),
        )

    def _find(self, spec: ModelSpec) -> tuple[int, _Servable, Model]:
        entry = self._entries.get(spec.name)
        if entry:
            version = self._version_of(entry, spec)
            for number in sorted(entry.versions, reverse=True):
                servable = entry.versions[number]
                if servable.model is not None and version in (None, number):
                    return number, servable, servable.model
        else:
            version = spec.version
        wanted = f"Latest({spec.name})" if version is None else f"Specific({spec.name}, {version})"
        raise InputError("request.servable_not_found", f"Servable not found for request: {wanted}")

    @staticmethod
    def _version_of(entry: _Entry, spec: ModelSpec) -> int | None:
        if spec.label is None:
            return spec.version
        if spec.label not in entry.labels:
            raise InputError(
                "request.label_unknown", f"Unrecognized servable version label: {spec.label}"
            )
        return entry.labels[spec.label]


def _find_versions(config: ModelConfig) -> dict[int, Path]:
    """The version directories that the policy selects, oldest first."""
    found: dict[int, Path] = {}
    try:
        children = sorted(config.base_path.iterdir())
    except OSError:
        children = []
    for child in children:
        if child.name.isascii() and child.name.isdigit() and child.is_dir():
            version = int(child.name)
            if version <= _MAX_VERSION:
                found.setdefault(version, child)
    numbers = sorted(found)
    match config.policy:
        case Latest(count):
            numbers = numbers[-count:]
        case Specific(versions):
            numbers = [number for number in numbers if number in versions]
    return {number: found[number] for number in numbers}


def _load_error(error: Exception, path: Path) -> SealserveError:
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
