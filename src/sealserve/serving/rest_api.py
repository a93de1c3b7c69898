"""TensorFlow Serving's HTTP API over the dataplane.

``POST /v1/models/M[/versions/N|/labels/L]:(predict|classify|regress)``, ``GET`` of the
same path for its status, and ``GET .../metadata``. Names are case-insensitive but for
the model's and the label's, which may be URL-encoded.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from google.protobuf.json_format import MessageToDict

from sealserve.errors import InputError
from sealserve.serving.calls import Call
from sealserve.serving.catalog import ModelSpec
from sealserve.serving.dataplane import Dataplane, Task
from sealserve.serving.inference import CLASSIFY, REGRESS
from sealserve.serving.rest_examples import classes_body, parse_examples_request, values_body
from sealserve.serving.rest_json import dump, parse_request, response_body
from sealserve.serving.runtimes.base import DEFAULT_SIGNATURE
from sealserve.wire.serving import api_pb2

__all__ = ["RestApi", "no_such_path"]

_MODEL = r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>[0-9]+)|/labels/(?P<label>[^/:]+))?"
_ASK = re.compile(_MODEL + ":(?P<method>predict|classify|regress)", re.IGNORECASE)
_METADATA = re.compile(_MODEL + "/metadata", re.IGNORECASE)
_STATUS = re.compile(_MODEL, re.IGNORECASE)
_MODELS = re.compile("/v1/models", re.IGNORECASE)
_MAX_VERSION = 2**63 - 1
_MAX_DIGITS = 1000  # Python reads no number of more than 4300 digits

Work = Callable[[bytes, Call], bytes]


class RestApi:
    """Which work a path stands for."""

    def __init__(self, dataplane: Dataplane) -> None:
        self._dataplane = dataplane
        self._methods = {
            "predict": self._predict,
            "classify": self._classify,
            "regress": self._regress,
        }

    def find(self, method: str, path: str) -> tuple[str, Work]:
        """The API's name, and what gives the answer to a body.

        Args:
            method: ``GET`` or ``POST``.
            path: as it was sent, still URL-encoded.

        Raises:
            InputError: as `no_such_path`, or ``request.version_invalid``.
        """
        if method == "POST" and (match := _ASK.fullmatch(path)):
            api = match["method"].lower()  # what the original's metrics call it, too
            ask, spec = self._methods[api], _spec(match)
            return api, lambda body, call: ask(spec, body, call)
        if method == "GET" and (match := _METADATA.fullmatch(path)):
            spec = _spec(match)
            return "GetModelMetadata", lambda _, call: self._metadata(spec, call)
        if method == "GET" and (match := _STATUS.fullmatch(path)):
            spec = _spec(match)
            return "GetModelStatus", lambda _, call: self._status(spec, call)
        if method == "GET" and _MODELS.fullmatch(path):
            raise InputError("request.model_name_missing", "Missing model name in request.")
        raise no_such_path(method, path)

    def _predict(self, spec: ModelSpec, body: bytes, call: Call) -> bytes:
        call.model = spec.name
        request = parse_request(body)
        try:
            prediction = self._dataplane.predict(spec, request.signature, request.decode)
        except InputError as error:
            raise _as_rest_says_it(error, request.signature) from None
        call.version = prediction.version
        return response_body(prediction.outputs, row=request.row)

    def _classify(self, spec: ModelSpec, body: bytes, call: Call) -> bytes:
        call.model = spec.name
        signature, examples = parse_examples_request(body)
        inferred = self._dataplane.infer(spec, [Task(CLASSIFY, signature)], examples)
        call.version = inferred.version
        return classes_body(inferred.results[0])  # type: ignore[arg-type]

    def _regress(self, spec: ModelSpec, body: bytes, call: Call) -> bytes:
        call.model = spec.name
        signature, examples = parse_examples_request(body)
        inferred = self._dataplane.infer(spec, [Task(REGRESS, signature)], examples)
        call.version = inferred.version
        return values_body(inferred.results[0])  # type: ignore[arg-type]

    def _metadata(self, spec: ModelSpec, call: Call) -> bytes:
        call.model = spec.name
        version, definitions = self._dataplane.definitions(spec)
        call.version = version
        return dump(
            {
                "model_spec": {"name": spec.name, "signature_name": "", "version": str(version)},
                "metadata": {"signature_def": _to_dict(definitions)},
            }
        )

    def _status(self, spec: ModelSpec, call: Call) -> bytes:
        call.model = spec.name
        return dump(
            {
                "model_version_status": [
                    {
                        "version": str(each.version),
                        "state": each.state.name,
                        "status": {"error_code": each.code.name, "error_message": each.message},
                    }
                    for each in self._dataplane.status(spec)
                ]
            }
        )


def no_such_path(method: str, path: str) -> InputError:
    """Nothing answers this; only below ``/v1/`` does the original call it malformed.

    Returns:
        ``request.path_unknown`` or ``request.path_not_served``.
    """
    if path[:4].lower() == "/v1/":
        return InputError("request.path_unknown", f"Malformed request: {method} {path}")
    return InputError("request.path_not_served", f"Not Found: {method} {path}")


def _to_dict(message: api_pb2.SignatureDefMap) -> dict[str, Any]:
    """The message as proto-JSON; what has names in it is in their order."""
    whole: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    signatures = whole["signature_def"]
    for signature in signatures.values():
        for key in ("inputs", "outputs", "defaults"):
            signature[key] = dict(sorted(signature[key].items()))
    return {**whole, "signature_def": dict(sorted(signatures.items()))}


def _as_rest_says_it(error: InputError, signature: str) -> InputError:
    """The original's REST looks the signature up itself, and has words of its own for it."""
    if error.code != "request.signature_not_found":
        return error
    name = signature or DEFAULT_SIGNATURE
    return InputError(
        "request.signature_not_found",
        f'Serving signature name: "{name}" not found in signature def',
    )


def _spec(match: re.Match[str]) -> ModelSpec:
    digits = match["version"] or "0"
    if len(digits) > _MAX_DIGITS or int(digits) > _MAX_VERSION:
        raise InputError(
            "request.version_invalid", f"Failed to convert version: {digits} to numeric."
        )
    label = unquote(match["label"]) if match["label"] else None
    return ModelSpec(unquote(match["name"]), int(digits) if match["version"] else None, label)
