"""The models and versions that there are: looked up, handed out, their states told.

Rules this module keeps:

* A version is used through a handle. Unloading waits for the handles, so that a
  model never vanishes under a request.
* What has ended is remembered, as many versions as `_REMEMBERED` of a model, so
  that clients can ask why; no series of swaps makes the table grow for ever.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sealserve.errors import InputError
from sealserve.serving.runtimes.base import Model
from sealserve.serving.servable import Handle, ModelSpec, Servable, State, VersionStatus

__all__ = ["Entry", "Table"]

_REMEMBERED = 32


@dataclass
class Entry:
    """One model: its versions, and the labels in force."""

    labels: dict[str, int] = field(default_factory=dict)
    versions: dict[int, Servable] = field(default_factory=dict)
    wanted: bool = True

    def forget_old(self) -> None:
        """Drop the oldest of the versions that have ended and are wanted no more."""
        ended = [
            number
            for number, each in self.versions.items()
            if each.status.state is State.END and not each.failed
        ]
        for number in sorted(ended)[:-_REMEMBERED]:
            del self.versions[number]


class Table:
    """What can be asked for; every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._released = threading.Condition(self._lock)
        self._entries: dict[str, Entry] = {}

    @classmethod
    def of(cls, name: str, version: int, model: Model) -> Table:
        """A table of one version, which nobody else sees."""
        table = cls()
        servable = Servable(Path(), VersionStatus(version, State.AVAILABLE), model)
        table._entries[name] = Entry(versions={version: servable})
        return table

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
            version = self._version_of(entry, spec)
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

    def is_configured(self, name: str) -> bool:
        """Whether there is, or was, a model of this name."""
        return name in self._entries

    def _find(self, spec: ModelSpec) -> tuple[int, Servable, Model]:
        if not spec.name:
            raise InputError("request.model_name_missing", "ModelSpec has no name specified.")
        entry = self._entries.get(spec.name)
        version = self._version_of(entry, spec)
        if entry:
            for number in sorted(entry.versions, reverse=True):
                servable = entry.versions[number]
                if servable.model is not None and version in (None, number):
                    return number, servable, servable.model
        wanted = f"Latest({spec.name})" if version is None else f"Specific({spec.name}, {version})"
        raise InputError("request.servable_not_found", f"Servable not found for request: {wanted}")

    @staticmethod
    def _version_of(entry: Entry | None, spec: ModelSpec) -> int | None:
        if spec.label is None:
            return spec.version
        if entry is None or spec.label not in entry.labels:
            raise InputError(
                "request.label_unknown", f"Unrecognized servable version label: {spec.label}"
            )
        return entry.labels[spec.label]
