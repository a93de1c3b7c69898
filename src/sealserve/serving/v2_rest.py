"""The Open Inference Protocol over REST: ``/v2``.

Tensors travel as JSON numbers, flat or nested; the binary extension is not spoken.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from sealserve import __version__
from sealserve.errors import InputError
from sealserve.serving import v2
from sealserve.serving.calls import Call
from sealserve.serving.catalog import ModelSpec
from sealserve.serving.dataplane import Dataplane
from sealserve.serving.rest_json import array_of, dump, parse_object, plain
from sealserve.wire.tensors import Array

__all__ = ["RestV2"]

Work = Callable[[bytes, Call], bytes]

_MODEL = r"/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?"
_PATHS = (
    ("GET", re.compile(r"/v2/?"), "ServerMetadata"),
    ("GET", re.compile(_MODEL + "/ready"), "ModelReady"),
    ("GET", re.compile(_MODEL), "ModelMetadata"),
    ("POST", re.compile(_MODEL + "/infer"), "ModelInfer"),
)


class RestV2:
    """Which work a path under ``/v2`` stands for."""

    def __init__(self, dataplane: Dataplane) -> None:
        self._dataplane = dataplane

    def find(self, method: str, path: str) -> tuple[str, Work] | None:
        """The API's name, and what gives the answer to a body; None for another path."""
        for wanted, pattern, api in _PATHS:
            match = pattern.fullmatch(path)
            if match is None or wanted != method:
                continue
            return api, self._work(api, match.groupdict())
        return None

    def _work(self, api: str, named: dict[str, str | None]) -> Work:
        name, version = unquote(named.get("name") or ""), unquote(named.get("version") or "")
        if api == "ServerMetadata":
            whole = {"name": v2.PLATFORM, "version": __version__, "extensions": []}
            return lambda _, __: dump(whole)
        work = {
            "ModelReady": self._ready,
            "ModelMetadata": self._metadata,
            "ModelInfer": self._infer,
        }[api]
        return lambda body, call: work(name, version, body, call)

    def _ready(self, name: str, version: str, _: bytes, call: Call) -> bytes:
        call.model = name
        if not v2.is_ready(self._dataplane, name, version):
            raise InputError("request.servable_not_found", f"model {name} is not ready")
        return dump({"name": name, "ready": True})

    def _metadata(self, name: str, version: str, _: bytes, call: Call) -> bytes:
        call.model = name
        call.version, definition = v2.described(self._dataplane, v2.spec_of(name, version))

        def tensors(infos: Any) -> list[dict[str, Any]]:
            return [
                {
                    "name": key,
                    "datatype": v2.datatype_of(int(info.dtype)),
                    "shape": [-1]
                    if info.tensor_shape.unknown_rank
                    else [dim.size for dim in info.tensor_shape.dim],
                }
                for key, info in sorted(infos.items())
            ]

        return dump(
            {
                "name": name,
                "versions": v2.versions_of(self._dataplane, name),
                "platform": v2.PLATFORM,
                "inputs": tensors(definition.inputs),
                "outputs": tensors(definition.outputs),
            }
        )

    def _infer(self, name: str, version: str, body: bytes, call: Call) -> bytes:
        spec: ModelSpec = v2.spec_of(name, version)
        call.model = name
        parsed = parse_object(body)
        tensors = parsed.get("inputs")
        if not isinstance(tensors, list) or not all(isinstance(each, dict) for each in tensors):
            raise InputError("request.json_form", "'inputs' must be a list of objects")
        inputs = dict(_tensor(each) for each in tensors)
        parameters = parsed.get("parameters")
        signature = parameters.get("signature_name", "") if isinstance(parameters, dict) else ""
        outputs = parsed.get("outputs", [])
        if not isinstance(outputs, list) or not isinstance(signature, str):
            raise InputError("request.json_form", "'outputs' must be a list of objects")
        wanted = [str(each.get("name")) for each in outputs if isinstance(each, dict)]
        prediction = v2.infer(self._dataplane, spec, signature, inputs, wanted, call)
        answer: dict[str, Any] = {"model_name": name, "model_version": str(prediction.version)}
        if isinstance(parsed.get("id"), str):
            answer["id"] = parsed["id"]
        answer["outputs"] = [
            {
                "name": key,
                "datatype": v2.datatype_of(array),
                "shape": list(array.shape),
                "data": plain(key, array.reshape(-1)),
            }
            for key, array in prediction.outputs.items()
        ]
        return dump(answer)


def _tensor(value: dict[str, Any]) -> tuple[str, Array]:
    name, datatype, shape = (value.get(key) for key in ("name", "datatype", "shape"))
    stated = isinstance(shape, list) and all(type(size) is int for size in shape)
    if not isinstance(name, str) or not isinstance(datatype, str) or not stated:
        raise InputError("request.json_form", "an input has a name, a datatype, a shape and data")
    _, count = v2.of_shape(name, datatype, shape or [])
    flat = array_of(name, v2.data_type(datatype), value.get("data", [])).reshape(-1)
    if len(flat) != count:
        raise v2.tensor_error(name, f"{len(flat)} values for {count} elements")
    return name, flat.reshape(shape or [])
