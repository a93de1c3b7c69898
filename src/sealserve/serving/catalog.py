"""How models come and go: found, loaded, swapped, tried again, unloaded.

Rules this module keeps:

* Availability comes first: what is new is loaded before what is old is unloaded,
  and an old version goes only when a wanted one is there to take its place.
* One bad version never takes another one down: its failure is its own state.
* A load that failed is tried again, and once more whenever its directory changes;
  what a model can never become right by waiting is not tried again.
* Loading while requests are served gives way to them: it runs in a thread of low
  priority (Linux gives each thread its own).
* All changes are made in one thread at a time; requests never wait for them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sealserve.errors import InputError, SealserveError, Unavailable
from sealserve.logs import Log
from sealserve.serving.config import LifeConfig, ModelConfig
from sealserve.serving.gentle import gentle
from sealserve.serving.labels import assign_labels
from sealserve.serving.memory import return_memory
from sealserve.serving.metrics import Metrics
from sealserve.serving.runtimes.base import Model, Runtime
from sealserve.serving.servable import (
    Handle,
    ModelSpec,
    Servable,
    State,
    VersionStatus,
    load_error,
    stamps,
)
from sealserve.serving.status import status_of
from sealserve.serving.table import Entry, Table
from sealserve.serving.versions import find_versions

Prepare = Callable[[str, int, Path, Model], Model]
Admit = Callable[[str, int, Path], None]

__all__ = ["Catalog", "Handle", "ModelSpec", "Prepare", "State", "VersionStatus"]

# The file as it is cannot be served; no pause changes that.
_FINAL = frozenset(
    f"servable.{name}"
    for name in (
        "differs", "inexact", "no_runtime", "no_signature", "precision", "runtime_cannot",
        "stateful", "tags_not_found",
    )
) | {
    "provenance.content_differs",
    "provenance.signature_invalid",
    "provenance.signature_malformed",
    "provenance.signature_missing",
    "provenance.signer_unknown",
}  # fmt: skip


class Catalog(Table):
    """All models of one server; every method may be called from any thread."""

    def __init__(
        self,
        models: Sequence[ModelConfig],
        runtime: Runtime,
        log: Log,
        life: LifeConfig = LifeConfig(),  # noqa: B008 - frozen
        *,
        admit: Admit | None = None,
        prepare: Prepare | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """Know what to serve; nothing is loaded before `load`.

        Args:
            models: what to serve.
            runtime: what loads it.
            log: where changes are told.
            life: how versions come and go.
            admit: asked before a version is loaded; its error fails the load.
            prepare: gives what is to be served of a loaded version; its error fails the load.
            metrics: where loads are counted.
        """
        super().__init__()
        self._admit = admit
        self._prepare = prepare
        self._metrics = metrics or Metrics()
        self._configs = {model.name: model for model in models}
        self._runtime = runtime
        self._log = log
        self._life = life
        self._changing = threading.Lock()
        self._gentle = False
        self._told: dict[str, str] = {}
        self._retiring: list[threading.Thread] = []
        self._closed = False

    def load(self) -> None:
        """Find and load every version that the policies ask for; failures become states."""
        with self._changing:
            self._settle_all()
            self._gentle = True

    def refresh(self) -> None:
        """Look at the base paths again, and make true what they and the policies ask for."""
        with self._changing:
            if not self._closed:
                self._settle_all()

    def reload(self, models: Sequence[ModelConfig]) -> None:
        """Serve these models and no others; returns when that is so.

        Raises:
            InputError: ``servable.label_unavailable``; everything else is in force.
            Unavailable: ``servable.not_available``: a model has no version that can serve.
        """
        with self._changing:
            if self._closed:
                raise Unavailable("serve.stopping", "the server is stopping")
            self._configs = {model.name: model for model in models}
            refused = self._settle_all()
            lacking = self._lacking()
        if lacking:
            raise Unavailable(
                "servable.not_available",
                f"{len(lacking)} model(s) did not become available: {{{', '.join(lacking)}}}",
            )
        if refused:
            raise refused[0]

    def retry_due(self) -> float | None:
        """Monotonic time of the next attempt at a load that failed; None: there is none."""
        with self._lock:
            times = [
                each.retry_at
                for entry in self._entries.values()
                for each in entry.versions.values()
                if each.retry_at is not None
            ]
        return min(times, default=None)

    def give_up(self) -> None:
        """Let a load that is under way fail, so that `close` need not wait for it."""
        self._runtime.give_up()

    def close(self) -> None:
        """Unload everything; waits for the handles that are out."""
        with self._changing:
            self._closed = True
            for name, entry in self._entries.items():
                for servable in entry.versions.values():
                    servable.retry_at = None
                    self._retire(name, servable)
            retiring, self._retiring = self._retiring, []
        for thread in retiring:
            thread.join()

    def _settle_all(self) -> list[InputError]:
        """Make the table what the configuration asks for; gives the labels it had to refuse."""
        with self._lock:
            for name in self._configs:
                self._entries.setdefault(name, Entry())
            gone = [name for name in self._entries if name not in self._configs]
        for name in gone:
            self._settle_gone(name)
        self._retiring = [thread for thread in self._retiring if thread.is_alive()]
        configs = list(self._configs.values())
        if self._life.load_threads > 1 and len(configs) > 1:
            with ThreadPoolExecutor(self._life.load_threads, "settle") as pool:
                refused = list(pool.map(self._settle, configs))
        else:
            refused = [self._settle(config) for config in configs]
        return [each for one in refused for each in one]

    def _settle(self, config: ModelConfig) -> list[InputError]:
        entry = self._entries[config.name]
        entry.wanted = True
        try:
            wanted = find_versions(config)
        except SealserveError as error:
            self._tell_once(config.name, error)
            wanted = None
        if wanted is not None:
            if wanted:
                self._told.pop(config.name, None)
            else:
                self._tell_once(config.name, None, str(config.base_path))
            # The newest first: it is what most requests ask for.
            for version in sorted(wanted, reverse=True):
                if self._needs_load(entry, version, wanted[version]):
                    self._load(config.name, entry, version, wanted[version])
        # A label follows its new version before the old one is unloaded.
        with self._lock:
            refused = assign_labels(config, entry, early=self._life.early_labels)
        for refusal in refused:
            self._tell_label(config.name, refusal)
        if wanted is not None:
            self._unload_unwanted(config.name, entry, wanted)
        return refused

    def _settle_gone(self, name: str) -> None:
        entry = self._entries[name]
        with self._lock:
            entry.wanted = False
            entry.labels = {}
        self._unload_unwanted(name, entry, {})

    def _needs_load(self, entry: Entry, version: int, path: Path) -> bool:
        servable = entry.versions.get(version)
        if servable is None or servable.path != path:
            return True
        if servable.failed:
            due = servable.retry_at is not None and time.monotonic() >= servable.retry_at
            return due or stamps(path) != servable.seen
        return servable.model is None

    def _load(self, name: str, entry: Entry, version: int, path: Path) -> None:
        before = entry.versions.get(version)
        servable = Servable(path, VersionStatus(version, State.START))
        same_path = before is not None and before.path == path
        servable.failures = before.failures if before is not None and same_path else 0
        servable.seen = stamps(path)
        replaces = before is not None and before.model is not None
        with self._lock:
            # A version whose directory has moved serves on from the old one until then.
            if not replaces:
                entry.versions[version] = servable
            servable.move(State.LOADING)
        begun = time.perf_counter()
        try:
            model = self._load_aside(name, version, path)
        except Exception as error:  # whatever a model does to its runtime, the others serve on
            failure = error if isinstance(error, SealserveError) else load_error(error, path)
            self._metrics.loaded(name, version, "fail", time.perf_counter() - begun)
            self._note_failure(name, servable, failure)
            if replaces and before is not None:
                before.path, before.seen = path, servable.seen  # not again until it changes
            return
        self._metrics.loaded(name, version, "success", time.perf_counter() - begun)
        with self._lock:
            servable.failures = 0
            servable.model = model
            servable.move(State.AVAILABLE)
            entry.versions[version] = servable
        if before is not None:
            self._retire(name, before)
        self._log.info(
            "model_available",
            model=name,
            version=version,
            runtime=self._runtime.name,
            signatures=sorted(model.signatures),
            refused=sorted(model.refused),
        )

    def _note_failure(self, name: str, servable: Servable, failure: SealserveError) -> None:
        again = servable.failures < self._life.load_retries and failure.code not in _FINAL
        with self._lock:
            servable.failures += 1
            servable.retry_at = time.monotonic() + self._life.retry_seconds if again else None
            servable.move(State.END, status_of(failure), failure.message)
        self._log.error(
            "model_failed",
            model=name,
            version=servable.status.version,
            attempt=servable.failures,
            tried_again=again,
            **failure.to_dict(),
        )

    def _load_now(self, name: str, version: int, path: Path) -> Model:
        if self._admit is not None:
            self._admit(name, version, path)
        model = self._runtime.load(path)
        if self._prepare is not None:
            try:
                return self._prepare(name, version, path, model)
            except BaseException:
                model.close()
                raise
        return model

    def _load_aside(self, name: str, version: int, path: Path) -> Model:
        """Load in a thread of its own, which gives way to those that serve."""
        if not self._gentle:
            return self._load_now(name, version, path)
        answer: list[Model] = []
        failure: list[Exception] = []

        def work() -> None:
            try:
                with gentle():
                    answer.append(self._load_now(name, version, path))
            except Exception as error:
                failure.append(error)

        thread = threading.Thread(target=work, name="load")
        thread.start()
        thread.join()
        if failure:
            raise failure[0]
        return answer[0]

    def _unload_unwanted(self, name: str, entry: Entry, wanted: dict[int, Path]) -> None:
        with self._lock:
            served = {n for n, each in entry.versions.items() if each.model is not None}
            replaced = not wanted or bool(served & set(wanted))
            old = [entry.versions[n] for n in served - set(wanted)] if replaced else []
            for number, each in list(entry.versions.items()):
                if number not in wanted and each.failed:
                    each.retry_at = None
                    each.failures = 0
        for servable in old:
            self._retire(name, servable)
        with self._lock:
            entry.forget_old()

    def _retire(self, name: str, servable: Servable) -> None:
        """Take a version from the clients now, and from memory when its handles are back."""
        with self._lock:
            model, servable.model = servable.model, None
            if model is None:
                return
            servable.move(State.UNLOADING)
        model.hurry()
        thread = threading.Thread(target=self._unload, args=(name, servable, model), name="unload")
        self._retiring.append(thread)
        thread.start()

    def _unload(self, name: str, servable: Servable, model: Model) -> None:
        with self._released:
            self._released.wait_for(lambda: servable.users == 0)
        model.close()
        del model
        return_memory()
        with self._lock:
            servable.move(State.END)
        self._log.info("model_unloaded", model=name, version=servable.status.version)

    def _lacking(self) -> list[str]:
        lacking = []
        with self._lock:
            for name in self._configs:
                versions = self._entries[name].versions
                if any(each.model is not None for each in versions.values()):
                    continue
                newest = max(versions, default=None)
                why = versions[newest].status.message if newest is not None else "no versions"
                lacking.append(f"{{name: {name} version: {newest}}} due to error: {why}")
        return lacking

    def _tell_once(self, name: str, error: SealserveError | None, base_path: str = "") -> None:
        """A base path that stays empty or unreadable is told once, not at every poll."""
        text = str(error)
        if self._told.get(name) == text:
            return
        self._told[name] = text
        if error is None:
            self._log.warning("no_versions", model=name, base_path=base_path)
        else:
            self._log.warning("no_versions", model=name, **error.to_dict())

    def _tell_label(self, name: str, refusal: InputError) -> None:
        key = f"{name} label"
        if self._told.get(key) != refusal.message:
            self._told[key] = refusal.message
            self._log.warning("label_not_assigned", model=name, **refusal.to_dict())
