"""The JSON schema of policy files, out of the classes that read them.

Field by field it is what pydantic makes of :mod:`sealserve.attestation.policy`;
the descriptions are the docstrings of that module. An editor that knows it
completes and checks a policy while it is written. What a schema cannot say
(no name twice, no bit outside a mask) ``sealserve policy check`` says.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

from pydantic import TypeAdapter

from sealserve.attestation import policy
from sealserve.attestation.policy import Policy

__all__ = ["schema"]

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_ENTRY = re.compile(r"^(\w+(?:, \w+)*): ", re.MULTILINE)


def schema() -> dict[str, Any]:
    """The schema, in the dialect of 2020-12."""
    found = TypeAdapter(Policy).json_schema(mode="validation")
    _describe(found, Policy)
    for name, part in found.get("$defs", {}).items():
        _describe(part, getattr(policy, name))
    for part in (found, *found.get("$defs", {}).values()):
        part["properties"] = {n: _without_null(p) for n, p in part["properties"].items()}
    return {"$schema": _DIALECT, **found, "title": "sealserve policy"}


def _describe(part: dict[str, Any], of: type) -> None:
    """Put the class's docstring beside its schema."""
    summary, _, attributes = inspect.cleandoc(of.__doc__ or "").partition("Attributes:\n")
    part["description"] = _prose(summary)
    # "name: text", with the lines that follow one indented deeper.
    pieces = _ENTRY.split(inspect.cleandoc(attributes))[1:]
    for names, text in zip(pieces[::2], pieces[1::2], strict=True):
        for name in names.split(", "):
            if name in part["properties"]:
                part["properties"][name]["description"] = _prose(text)


def _without_null(part: dict[str, Any]) -> dict[str, Any]:
    """A field without a value is absent: a file that has it empty is refused."""
    if "default" in part:
        part = {**part, "default": _stated(part["default"])}
    if "anyOf" not in part:
        return part
    (only,) = (each for each in part["anyOf"] if each != {"type": "null"})
    rest = {name: value for name, value in part.items() if name not in ("anyOf", "default")}
    return {**only, **rest}


def _stated(value: Any) -> Any:
    """A default without the fields that it leaves absent."""
    if isinstance(value, dict):
        return {name: _stated(item) for name, item in value.items() if item is not None}
    return [_stated(item) for item in value] if isinstance(value, list) else value


def _prose(text: str) -> str:
    return " ".join(text.replace("``", "").split())
