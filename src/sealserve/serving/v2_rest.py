"""The Open Inference Protocol over REST: ``/v2``.

Tensors travel as JSON numbers, flat or nested, or raw behind the JSON (`v2_binary`).
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
from sealserve.serving.rest_json import array_of, dump, may_hold_truths, parse_object, plain
from sealserve.serving.v2_binary import (
    EXTENSION,
    Packed,
    RawTensors,
    outputs_wanted_raw,
    size_of,
    split,
)
from sealserve.wire.tensors import Array

__all__ = ["RestV2"]

Work = Callable[[bytes, Call], bytes | Packed]

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

    def find(self, method: str, path: str, json_size: str | None = None) -> tuple[str, Work] | None:
        """The API's name, and what gives the answer to a body; None for another path.

        Args:
            method: ``GET`` or ``POST``.
            path: as it was sent, still URL-encoded.
            json_size: what the request says of how much of its body is JSON.
        """
        for wanted, pattern, api in _PATHS:
            match = pattern.fullmatch(path)
            if match is None or wanted != method:
                continue
            return api, self._work(api, match.groupdict(), json_size)
        return None

    def _work(self, api: str, named: dict[str, str | None], json_size: str | None) -> Work:
        name, version = unquote(named.get("name") or ""), unquote(named.get("version") or "")
        if api == "ServerMetadata":
            whole = {"name": v2.PLATFORM, "version": __version__, "extensions": [EXTENSION]}
            return lambda _, __: dump(whole)
        if api == "ModelInfer":
            return lambda body, call: self._infer(name, version, *split(body, json_size), call)
        work = {"ModelReady": self._ready, "ModelMetadata": self._metadata}[api]
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

    def _infer(
        self, name: str, version: str, body: bytes, raw: RawTensors, call: Call
    ) -> bytes | Packed:
        spec: ModelSpec = v2.spec_of(name, version)
        call.model = name
        parsed = parse_object(body)
        truths = may_hold_truths(body)
        inputs = v2.by_name(_tensor(each, raw, truths) for each in _objects(parsed, "inputs"))
        raw.end()
        parameters = parsed.get("parameters")
        signature = parameters.get("signature_name", "") if isinstance(parameters, dict) else ""
        if not isinstance(signature, str):
            raise InputError("request.json_form", "'signature_name' must be a string")
        outputs = _objects({"outputs": [], **parsed}, "outputs")
        for each in outputs:
            v2.check_parameters(str(each.get("name")), _names_in(each.get("parameters")))
        usual, otherwise = outputs_wanted_raw(parsed, outputs)
        wanted = [str(each.get("name")) for each in outputs]
        prediction = v2.infer(self._dataplane, spec, signature, inputs, wanted, call)
        answer: dict[str, Any] = {"model_name": name, "model_version": str(prediction.version)}
        if isinstance(parsed.get("id"), str):
            answer["id"] = parsed["id"]
        behind: list[bytes] = []
        answer["outputs"] = []
        for key, array in prediction.outputs.items():
            entry: dict[str, Any] = {
                "name": key,
                "datatype": v2.datatype_of(array),
                "shape": list(array.shape),
            }
            if usual is not (key in otherwise):
                behind.append(v2.to_raw(array))
                entry["parameters"] = size_of(behind[-1])
            else:
                entry["data"] = plain(key, array.reshape(-1))
            answer["outputs"].append(entry)
        return Packed.of(dump(answer), behind) if behind else dump(answer)


def _names_in(parameters: Any) -> list[str]:
    return [str(each) for each in parameters] if isinstance(parameters, dict) else []


def _objects(parsed: dict[str, Any], key: str) -> list[dict[str, Any]]:
    found = parsed.get(key)
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise InputError("request.json_form", f"'{key}' must be a list of objects")
    return found


def _tensor(value: dict[str, Any], raw: RawTensors, truths: bool) -> tuple[str, Array]:
    name, datatype, shape = (value.get(key) for key in ("name", "datatype", "shape"))
    stated = isinstance(shape, list) and all(type(size) is int for size in shape)
    if not isinstance(name, str) or not isinstance(datatype, str) or not stated:
        raise InputError("request.json_form", "an input has a name, a datatype, a shape and data")
    sizes: list[int] = shape or []
    _, count = v2.of_shape(name, datatype, sizes)
    behind = raw.take(value.get("parameters"))
    if behind is not None:
        if "data" in value:
            raise v2.tensor_error(name, "its data stand both in the JSON and behind it")
        return name, v2.from_raw(name, datatype, sizes, behind)
    values = value.get("data", [])
    flat = array_of(name, v2.data_type(datatype), values, truths=truths).reshape(-1)
    if len(flat) != count:
        raise v2.tensor_error(name, f"{len(flat)} values for {count} elements")
    return name, flat.reshape(sizes)
