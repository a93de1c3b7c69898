"""JSON of classify and regress: examples in, results out (``util/json_tensor.cc``)."""

from __future__ import annotations

from typing import Any

import numpy as np

from sealserve.errors import InputError
from sealserve.serving.inference import Classes
from sealserve.serving.rest_json import bytes_in, dump, is_bytes, parse_object, signature_in
from sealserve.wire.tensorflow import example_pb2

__all__ = ["classes_body", "parse_examples_request", "values_body"]

_KINDS = {"bytes_list": "bytes", "float_list": "float", "int64_list": "int64"}
_MAX_INT64 = 2**63 - 1


def parse_examples_request(body: bytes) -> tuple[str, list[bytes]]:
    """Read the body of a classify or regress request.

    Returns:
        The signature's key, empty for the default, and the serialized examples, each
        with the context in it.

    Raises:
        InputError: ``request.json_malformed``, ``request.json_form`` or ``request.json_values``.
    """
    parsed = parse_object(body)
    signature = signature_in(parsed)
    context = _example(parsed["context"]) if "context" in parsed else b""
    if "examples" not in parsed:
        raise InputError(
            "request.json_form",
            "When method is classify, key 'examples' is expected and was not found",
        )
    examples = parsed["examples"]
    if not isinstance(examples, list):
        raise InputError("request.json_form", "Expecting 'examples' value to be an list/array")
    if not examples:
        raise InputError("request.json_form", "'examples' value is an empty array")
    return signature, [context + _example(each) for each in examples]


def classes_body(rows: Classes) -> bytes:
    """What classify answers: for each example a list of ``[label, score]``."""
    return dump({"results": [[[label, np.float32(score)] for label, score in row] for row in rows]})


def values_body(values: list[float]) -> bytes:
    """What regress answers: a number for each example."""
    return dump({"results": np.array(values, "f4")})


def _example(value: Any) -> bytes:
    if not isinstance(value, dict):
        raise _values(f"Example must be JSON object but got JSON {_type(value)}")
    example = example_pb2.Example()
    for name, content in value.items():
        feature = example.features.feature[name]
        for item in content if isinstance(content, list) else [content]:
            _add(feature, name, item)
    return example.SerializeToString()


def _add(feature: example_pb2.Feature, name: str, item: Any) -> None:
    if isinstance(item, bool | int):
        field, value = "int64_list", int(item)
        if not -_MAX_INT64 - 1 <= value <= _MAX_INT64:
            raise _values(f"Feature: {name} has uint64_t element. Only int64_t is supported.")
    elif isinstance(item, float):
        field, value = "float_list", item  # type: ignore[assignment]
    elif isinstance(item, str):
        field, value = "bytes_list", item.encode()  # type: ignore[assignment]
    elif is_bytes(item):
        field, value = "bytes_list", bytes_in(item)  # type: ignore[assignment]
    else:
        raise _values(f"Feature: {name} has element with unexpected JSON type: {_type(item)}")
    kind = feature.WhichOneof("kind")
    if kind not in (None, field):
        raise _values(f"Unexpected element type in feature: {name} expecting type: {_KINDS[kind]}")
    getattr(feature, field).value.append(value)


def _type(value: Any) -> str:
    if value is None:
        return "Null"
    names = {bool: "Boolean", int: "Number", float: "Number", str: "String", list: "Array"}
    return names.get(type(value), "Object")


def _values(message: str) -> InputError:
    return InputError("request.json_values", message)
