"""TensorFlow Serving's ModelService: states of models, and the change of what is served.

Rules this module keeps:

* A reload is an administrator's. It may place base paths only within the allowed roots,
  after links are followed, and only as absolute paths: whoever may choose a directory
  chooses what this server reads.
* The answer comes when the change has been made, with its status, as the original's does.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import grpc

from sealserve.errors import InputError, Refused, SealserveError
from sealserve.logs import Log
from sealserve.serving.access import Role
from sealserve.serving.calls import Call
from sealserve.serving.catalog import Catalog
from sealserve.serving.config import LifeConfig, ModelConfig, model_configs
from sealserve.serving.dataplane import Dataplane
from sealserve.serving.grpc_method import Methods
from sealserve.serving.messages import spec_of, status_response
from sealserve.wire.serving import api_pb2

__all__ = ["ModelService"]


class ModelService:
    """GetModelStatus and HandleReloadConfigRequest."""

    def __init__(self, dataplane: Dataplane, catalog: Catalog, life: LifeConfig, log: Log) -> None:
        self._dataplane = dataplane
        self._catalog = catalog
        self._life = life
        self._log = log

    def handler(self, methods: Methods) -> grpc.GenericRpcHandler[bytes, bytes]:
        """What gRPC is to serve."""
        return grpc.method_handlers_generic_handler(
            "tensorflow.serving.ModelService",
            {
                "GetModelStatus": methods.make(
                    "GetModelStatus", api_pb2.GetModelStatusRequest, self._status
                ),
                "HandleReloadConfigRequest": methods.make(
                    "HandleReloadConfigRequest",
                    api_pb2.ReloadConfigRequest,
                    self._reload,
                    Role.ADMIN,
                ),
            },
        )

    def _status(
        self, request: api_pb2.GetModelStatusRequest, call: Call
    ) -> api_pb2.GetModelStatusResponse:
        spec = spec_of(request)
        call.model = spec.name
        return status_response(self._dataplane, spec)

    def _reload(
        self, request: api_pb2.ReloadConfigRequest, call: Call
    ) -> api_pb2.ReloadConfigResponse:
        if request.config.WhichOneof("config") != "model_config_list":
            raise InputError(
                "serve_config.model_list",
                "ServerModelConfig type not supported by HandleReloadConfigRequest. "
                "Only ModelConfigList is currently supported",
            )
        models = [
            self._confined(model) for model in model_configs(request.config, Path("/"), "config")
        ]
        self._log.info("reload", id=call.id, models=[model.name for model in models])
        try:
            self._catalog.reload(models)
        except SealserveError as error:
            self._log.error("reload_failed", id=call.id, **error.to_dict())
            raise
        return api_pb2.ReloadConfigResponse(status=api_pb2.StatusProto())

    def _confined(self, model: ModelConfig) -> ModelConfig:
        try:
            place = model.base_path.resolve()
        except (OSError, RuntimeError):  # a loop of links
            place = None
        if place is None or not any(place.is_relative_to(root) for root in self._life.roots):
            raise Refused(
                "reload.outside_roots",
                f"the base_path of model {model.name} is not within the directories "
                "that this server may serve from",
                hint="start it with --model_root=DIR",
            )
        return replace(model, base_path=place)
