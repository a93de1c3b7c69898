"""The server as a whole: load, bind, serve, drain, stop.

Rules this module keeps:

* Nothing listens before the models are loaded (or have failed, each for itself)
  and TLS is in place; ``ready`` means that a request would be answered.
* ``stop`` says that no request is wanted any more, answers those that come all the same
  until the clients have gone elsewhere, lets those under way finish, and only then
  unloads the models. Within gRPC a request that arrives in the moment of closing is lost
  (it is told CANCELLED), so that moment is put off until nobody asks.
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Final

from sealserve import __version__
from sealserve.errors import InputError
from sealserve.logs import Log, make_log
from sealserve.serving.access import Gate
from sealserve.serving.admission import Admission
from sealserve.serving.batching.batched import Batching
from sealserve.serving.calls import Calls
from sealserve.serving.catalog import Catalog, Prepare
from sealserve.serving.config import ServerConfig
from sealserve.serving.dataplane import Dataplane
from sealserve.serving.grpc_front import GrpcFront
from sealserve.serving.grpc_method import Methods
from sealserve.serving.grpc_services import PredictionService
from sealserve.serving.health import Health
from sealserve.serving.memory import keep_weights_apart, settle_down
from sealserve.serving.metrics import Metrics
from sealserve.serving.model_service import ModelService
from sealserve.serving.rest_front import RestFront
from sealserve.serving.runtimes.base import Model
from sealserve.serving.runtimes.choice import ChoosingRuntime
from sealserve.serving.tls import TlsSource
from sealserve.serving.v2_grpc import InferenceService
from sealserve.serving.warmup import WarmUp
from sealserve.serving.watcher import Watcher
from sealserve.stopping import StopSignals

__all__ = ["Server", "run"]

# Clients and balancers that look at health go elsewhere within seconds; those that do
# not are served for so long, or for half of the time that draining may take.
_LEAVING_SECONDS: Final = 10.0
_QUIET_SECONDS: Final = 1.0


class Server:
    """A model server.

    Attributes:
        ports: what it listens on once started: ``{"grpc": 8500, "rest": 8501}``.
    """

    def __init__(self, config: ServerConfig, log: Log | None = None) -> None:
        self._config = config
        note = {"note": config.log_note} if config.log_note else {}
        self._log = log if log is not None else make_log(program="sealserve serve", **note)
        self._catalog: Catalog | None = None
        self._grpc: GrpcFront | None = None
        self._rest: RestFront | None = None
        self._watcher: Watcher | None = None
        self._health: Health | None = None
        self._calls: Calls | None = None
        self._batching: Batching | None = None
        self.ports: dict[str, int] = {}

    def start(self) -> None:
        """Load the models and serve them; returns when requests are answered.

        Raises:
            Refused: ``tls.no_identity``.
            InputError: a ``tls.*`` code, or ``flag.value``.
            Unavailable: ``serve.port_unavailable``, ``provenance.extra_missing``.
        """
        self._check_ready_fd()
        for flag, reason in self._config.ignored:
            self._log.warning("flag_without_effect", flag=flag, reason=reason)
        tls = self._tls()
        demanded = tls is not None and tls.current().client_verify
        gate = Gate(self._config.access_file, self._log, certificates=demanded)
        metrics = Metrics()
        admit = Admission(self._config.provenance_file, self._log).decide
        try:
            self._catalog = Catalog(
                self._config.models,
                ChoosingRuntime(self._config.runtime, self._log),
                self._log,
                self._config.life,
                admit=admit,
                prepare=self._prepare(metrics),
                metrics=metrics,
            )
            self._health = Health(self._catalog)
            self._bind(self._catalog, self._health, gate, metrics, tls)
            # Ports are bound before the long work of loading, so that a taken port is
            # told at once; nothing is accepted on them until all is loaded.
            self._catalog.load()
            self._start_fronts()
            self._health.open()
            self._watcher = Watcher(self._catalog, self._config.life, self._log)
            self._watcher.start()
        except BaseException:
            self.stop(0)
            raise
        self._tell_ready()

    def stop(self, grace: float | None = None) -> None:
        """Drain and end; may be called twice.

        Args:
            grace: seconds that requests under way may take; the configured ones if None.
        """
        if grace is None:
            grace = self._config.drain_seconds
        self._log.info("draining", seconds=grace)
        if self._health:
            self._health.drain()
        if self._catalog:
            self._catalog.give_up()
        if self._watcher:
            self._watcher.stop()
            self._watcher = None
        deadline = time.monotonic() + grace
        self._let_clients_leave(min(_LEAVING_SECONDS, grace / 2))
        grace = max(0.0, deadline - time.monotonic())
        if self._batching:
            self._batching.hurry()
        # Both fronts drain at the same time, within one grace period.
        rest = threading.Thread(target=self._rest.stop, args=(grace,)) if self._rest else None
        if rest:
            rest.start()
        if self._grpc:
            self._grpc.stop(grace)
        if rest:
            rest.join()
        if self._catalog:
            self._catalog.close()
        self._grpc = self._rest = self._catalog = None
        self._log.info("stopped")

    def _let_clients_leave(self, seconds: float) -> None:
        """Go on answering until nobody has asked for a while, or time is up."""
        deadline = time.monotonic() + seconds
        while self._calls and self._calls.quiet() < _QUIET_SECONDS:
            left = deadline - time.monotonic()
            if left <= 0:
                self._log.warning("still_asked", seconds=seconds)
                return
            time.sleep(min(0.05, left))

    def _bind(
        self, catalog: Catalog, health: Health, gate: Gate, metrics: Metrics, tls: TlsSource | None
    ) -> None:
        config, log = self._config, self._log
        metrics.known = catalog.is_configured
        metrics.present = lambda: {(name, str(number)) for name, number in catalog.available()}
        dataplane = Dataplane(catalog, metrics, method_name_check=config.method_name_check)
        self._calls = calls = Calls(metrics, log, log_all=config.log_requests)
        methods = Methods(gate, calls, log)
        handlers = [
            PredictionService(dataplane, config).handler(methods),
            ModelService(dataplane, catalog, config.life, log).handler(methods),
            InferenceService(dataplane, health).handler(methods),
        ]
        self._grpc = GrpcFront(handlers, config, tls, health)
        if self._grpc.port is not None:
            self.ports["grpc"] = self._grpc.port
        if config.rest_port is not None:
            self._rest = RestFront(
                dataplane, config, tls, log, gate=gate, calls=calls, health=health
            )
            self.ports["rest"] = self._rest.port

    def _prepare(self, metrics: Metrics) -> Prepare:
        """What is done with a version before it is served: warm-up, then a queue before it."""
        config = self._config
        batching = Batching(config.batching, metrics, self._log) if config.batching else None
        warm_up = WarmUp(config, metrics)
        self._batching = batching

        def prepare(name: str, version: int, path: Path, model: Model) -> Model:
            model = warm_up(name, version, path, model)
            return batching(name, version, path, model) if batching else model

        return prepare

    def _start_fronts(self) -> None:
        if self._grpc is not None:
            self._grpc.start()
        if self._rest is not None:
            self._rest.start()

    def _check_ready_fd(self) -> None:
        """Tell a wrong descriptor now, not after minutes of loading."""
        if self._config.ready_fd is None:
            return
        try:
            os.fstat(self._config.ready_fd)
        except OSError:
            raise InputError(
                "flag.value",
                f"{self._config.ready_fd} is not an open file descriptor",
                where="--ready_fd",
            ) from None

    def _tls(self) -> TlsSource | None:
        if self._config.tls.insecure:
            self._log.warning(
                "plaintext",
                reason="--insecure: whoever reaches the ports can read and change every request",
            )
            return None
        return TlsSource(self._config.tls, self._log)

    def _tell_ready(self) -> None:
        served = self._catalog.available() if self._catalog else []
        self._log.info(
            "serving",
            version=__version__,
            address=self._config.bind_address,
            tls=not self._config.tls.insecure,
            models=[f"{name}/{version}" for name, version in served],
            **self.ports,
        )
        if self._config.ready_fd is not None:
            with os.fdopen(self._config.ready_fd, "w") as ready:
                ready.write(json.dumps(self.ports) + "\n")


def run(config: ServerConfig) -> None:
    """Serve until SIGTERM or SIGINT, then drain.

    Raises:
        SealserveError: the server could not start.
    """
    keep_weights_apart()
    server = Server(config)
    with StopSignals() as stopping:
        server.start()
        settle_down()
        stopping.wait()
        server.stop()
