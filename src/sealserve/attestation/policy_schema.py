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


def _prose(text: str) -> str:
    return " ".join(text.replace("``", "").split())
