"""A runtime whose models do what a test tells them, without any machine learning."""

from __future__ import annotations

import io
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from sealserve.errors import InputError, SealserveError
from sealserve.logs import make_log
from sealserve.serving.access import Gate
from sealserve.serving.calls import Calls
from sealserve.serving.catalog import Catalog
from sealserve.serving.config import ModelConfig, ServerConfig
from sealserve.serving.dataplane import Dataplane
from sealserve.serving.grpc_front import GrpcFront
from sealserve.serving.grpc_method import Methods
from sealserve.serving.grpc_services import PredictionService
from sealserve.serving.health import Health
from sealserve.serving.metrics import Metrics
from sealserve.serving.model_service import ModelService
from sealserve.serving.rest_front import RestFront
from sealserve.serving.runtimes.base import Model, Runtime, Signature, TensorSpec
from sealserve.serving.tls import TlsSource
from sealserve.wire.tensorflow import graph_pb2
from sealserve.wire.tensorflow import tensor_pb2 as pb
from sealserve.wire.tensors import Array

VECTOR = TensorSpec(pb.DT_FLOAT, (-1,))


class FakeModel(Model):
    """Adds its version's number to ``x``."""

    def __init__(self, path: Path) -> None:
        definition = graph_pb2.SignatureDef(method_name="tensorflow/serving/predict")
        self.definitions = {"serving_default": definition}
        self.refused: Mapping[str, SealserveError] = {}
        self.signatures = {
            "serving_default": Signature("serving_default", {"x": VECTOR}, {"y": VECTOR}, "")
        }
        self.version = int(path.name)
        self.closed = False
        self.begun = threading.Event()
        self.may_end = threading.Event()
        self.may_end.set()
        self.running = 0
        self.runs = 0

    def run(
        self, signature: str, inputs: Mapping[str, Array], outputs: Sequence[str]
    ) -> dict[str, Array]:
        assert not self.closed, "a model was used after it had been unloaded"
        self.running += 1
        self.runs += 1
        self.begun.set()
        assert self.may_end.wait(60)
        self.running -= 1
        return {"y": inputs["x"] + self.version}

    def close(self) -> None:
        self.closed = True


class FakeRuntime(Runtime):
    """Loads a directory; one that holds a file ``bad`` cannot be loaded."""

    name = "fake"

    def __init__(self) -> None:
        self.loads: list[str] = []
        self.models: dict[str, FakeModel] = {}
        self.may_load = threading.Event()
        self.may_load.set()

    def load(self, path: Path) -> Model:
        key = f"{path.parent.name}/{path.name}"
        self.loads.append(key)
        assert self.may_load.wait(60)
        bad = path / "saved_model.pb"
        if bad.exists():
            raise InputError(bad.read_text().strip(), "this version is bad")
        self.models[key] = FakeModel(path)
        return self.models[key]


def make_versions(base: Path, *versions: object, bad: str = "") -> Path:
    """Version directories; ``bad`` is the error code with which their load fails."""
    for version in versions:
        directory = base / str(version)
        directory.mkdir(parents=True, exist_ok=True)
        if bad:
            (directory / "saved_model.pb").write_text(bad)
    return base


class FakeServer:
    """A server of fake models on a plaintext gRPC port, and on a REST port if one is configured."""

    def __init__(
        self,
        *models: ModelConfig,
        config: ServerConfig | None = None,
        tls: TlsSource | None = None,
    ) -> None:
        self.config = config or ServerConfig(models, bind_address="127.0.0.1", grpc_port=0)
        self.runtime = FakeRuntime()
        self.log = io.StringIO()
        log = make_log(self.log)
        self.catalog = Catalog(models, self.runtime, log, self.config.life)
        self.catalog.load()
        self.health = Health(self.catalog)
        self.metrics = Metrics()
        gate, calls = Gate(self.config.access_file, log), Calls(self.metrics, log)
        methods = Methods(gate, calls, log)
        dataplane = Dataplane(self.catalog, self.metrics)
        services = [
            PredictionService(dataplane, self.config).handler(methods),
            ModelService(dataplane, self.catalog, self.config.life, log).handler(methods),
        ]
        self.grpc = GrpcFront(services, self.config, None, self.health)
        self.grpc.start()
        self.rest: RestFront | None = None
        if self.config.rest_port is not None:
            self.rest = RestFront(
                dataplane, self.config, tls, log, gate=gate, calls=calls, health=self.health
            )
            self.rest.start()
        self.health.open()
