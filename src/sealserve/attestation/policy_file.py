"""Policies as YAML files: read strictly, written readably.

An unknown field, a duplicate key, a wrong type and a wrong length are errors
that name the field. The fields and their meaning stand once, in
:mod:`sealserve.attestation.policy`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from sealserve import strict_yaml
from sealserve.attestation.policy import PlatformFlags, Policy, Release, RequiredEvent
from sealserve.errors import InputError
from sealserve.files import read_limited, write_atomically
from sealserve.tdx.quote import TdReport

__all__ = ["MAX_POLICY_BYTES", "dump", "from_report", "load", "parse", "write"]

MAX_POLICY_BYTES = 1 << 20

_MAX_NODES = 1 << 15  # 1024 releases, each with every register, are 13,000

_ADAPTER = TypeAdapter(Policy)


def load(path: Path | str) -> Policy:
    """Read a policy file.

    Raises:
        Unavailable: ``file.unreadable``.
        InputError: ``file.too_large``, or ``policy.malformed`` naming file and field.
    """
    raw = read_limited(path, MAX_POLICY_BYTES)
    try:
        return parse(raw)
    except InputError as error:
        where = f"{path}: {error.where}" if error.where else str(path)
        raise InputError("policy.malformed", error.message, where=where, hint=error.hint) from None


def parse(raw: bytes) -> Policy:
    """Read a policy from the bytes of a YAML document in UTF-8.

    Raises:
        InputError: ``policy.malformed``.
    """
    if len(raw) > MAX_POLICY_BYTES:
        raise InputError("policy.malformed", f"a policy has at most {MAX_POLICY_BYTES} bytes")
    try:
        document = strict_yaml.read(raw, max_nodes=_MAX_NODES)
    except strict_yaml.NotYaml as error:
        raise InputError("policy.malformed", f"not a YAML document: {error}") from None
    if not isinstance(document, dict):
        raise InputError(
            "policy.malformed",
            "a policy is a YAML mapping of rules; this document is empty or something else",
            hint="`sealserve policy init` writes one to begin with",
        )
    _refuse_empty_values(document, ())
    try:
        # In JSON mode strict tuples are written as lists, as they are in YAML.
        return _ADAPTER.validate_json(json.dumps(document))
    except RecursionError:
        raise InputError("policy.malformed", "values nest too deep") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        known = ", ".join(Policy.__dataclass_fields__)
        hint = f"the fields are: {known}" if "unexpected" in first["type"] else None
        raise InputError("policy.malformed", first["msg"], where=where, hint=hint) from None


def dump(policy: Policy) -> str:
    """The policy as a YAML document that :func:`parse` reads back as the same policy."""
    absent = Policy()
    document = {
        name: value
        for name, value in asdict(policy).items()
        # `[]` where absence means "no rule" accepts nothing: it must be written.
        if value is not None and not (value == () == getattr(absent, name))
    }
    return yaml.safe_dump(_plain(document), sort_keys=False, width=120)


def from_report(
    report: TdReport,
    *,
    label: str,
    events: tuple[str, ...] = (),
    server_platform: bool = False,
    simulation: bool = False,
) -> Policy:
    """The policy that accepts exactly the measurements in a report.

    Args:
        report: registers of a guest known to be good. RTMR3 is left to the
            event log.
        label: name of the release.
        events: runtime events to require, as ``name`` or ``name=hex payload``.
        server_platform: opt into all platform flags.
        simulation: allow simulated guests.

    Raises:
        InputError: ``policy.malformed``.
    """
    required = [event.partition("=") for event in events]
    return Policy(
        releases=(
            Release(
                label=label,
                mrtd=report.mrtd.hex(),
                rtmr0=report.rtmr0.hex(),
                rtmr1=report.rtmr1.hex(),
                rtmr2=report.rtmr2.hex(),
            ),
        ),
        platform_flags=PlatformFlags(
            dynamic_platform=server_platform, cached_keys=server_platform, smt=server_platform
        ),
        required_events=tuple(
            RequiredEvent(name=name, payload=payload if equals else None)
            for name, equals, payload in required
        ),
        simulation="allowed" if simulation else "denied",
    )


def write(policy: Policy, path: Path) -> None:
    """Write a new policy file, whole or not at all.

    Raises:
        InputError: ``file.exists``; a policy is not replaced by accident.
        Unavailable: ``file.unwritable``.
    """
    write_atomically(path, dump(policy).encode(), replace=False)


def _refuse_empty_values(value: Any, where: tuple[str, ...]) -> None:
    """An empty value is a half-written rule: it must not read as "no rule"."""
    if value is None:
        raise InputError(
            "policy.malformed",
            "the value is empty",
            where=".".join(where),
            hint="remove the field for no rule, or write [] to accept nothing",
        )
    children: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        children = value.items()
    elif isinstance(value, list):
        children = enumerate(value)
    for key, item in children:
        _refuse_empty_values(item, (*where, str(key)))


def _plain(value: Any) -> Any:
    """Tuples as lists and absent fields left out, for YAML."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
