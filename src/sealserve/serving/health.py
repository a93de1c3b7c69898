"""Whether this server can be asked: gRPC health, and what REST answers to probes.

Rules this module keeps:

* The truth: SERVING only between the end of loading and the beginning of draining, and
  only while some version is available. The same for ``""`` and for each service.
* Watchers hear of a change within `_LOOK_SECONDS`; whoever asks is told the state of
  this moment.
"""

from __future__ import annotations

import threading
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from sealserve.serving.catalog import Catalog

__all__ = ["SERVICES", "Health"]

SERVICES = (
    "tensorflow.serving.PredictionService",
    "tensorflow.serving.ModelService",
    "inference.GRPCInferenceService",
)
# Those under which the original answers, and the full names that others ask for.
_NAMES = ("", "PredictionService", "ModelService", *SERVICES)
_LOOK_SECONDS = 0.5


class Health(health.HealthServicer):
    """Health of the server as a whole; states of single models are GetModelStatus'."""

    def __init__(self, catalog: Catalog) -> None:
        super().__init__()
        self._catalog = catalog
        self._open = False
        self._ending = threading.Event()
        self._shown: bool | None = None
        self._thread = threading.Thread(target=self._follow, name="health", daemon=True)
        self._show()

    @property
    def ready(self) -> bool:
        """Whether requests can be answered now."""
        return self._open and bool(self._catalog.available())

    def open(self) -> None:
        """Loading is over, requests are taken."""
        self._open = True
        self._show()
        self._thread.start()

    def drain(self) -> None:
        """No request is wanted any more; for good."""
        self._open = False
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join()
        self._show()

    def add_to(self, server: grpc.Server) -> None:
        """Serve it."""
        health_pb2_grpc.add_HealthServicer_to_server(self, server)

    def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - the service's name
        """grpc.health.v1.Health/Check."""
        self._show()
        return super().Check(request, context)

    def _follow(self) -> None:
        while not self._ending.wait(_LOOK_SECONDS):
            self._show()

    def _show(self) -> None:
        ready = self.ready
        if ready == self._shown:
            return
        self._shown = ready
        states = health_pb2.HealthCheckResponse
        for name in _NAMES:
            self.set(name, states.SERVING if ready else states.NOT_SERVING)
