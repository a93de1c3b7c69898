"""``broker.yaml`` as a file: read, written, and changed where something has to change.

Rules this module keeps: an operator's own lines and comments stay as they are, wherever
what he wrote can be changed line by line; what was written is read again before it counts.
"""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from sealserve import strict_yaml
from sealserve.broker.config import BrokerConfig
from sealserve.broker.endpoints import PASSWORD
from sealserve.errors import InputError, Refused
from sealserve.files import read_limited

__all__ = [
    "CONFIG_FILE",
    "MAX_CONFIG_BYTES",
    "load",
    "parse",
    "render",
    "revise",
    "with_kek",
    "with_store",
]

CONFIG_FILE: Final = "broker.yaml"
"""The file's name in the broker's directory."""
MAX_CONFIG_BYTES: Final = 64 * 1024
"""How much of it is read."""

_MAX_NODES: Final = 1024
_WIDTH: Final = 98
_VALUE: Final = r"""("[^"]*"|'[^']*'|[^\s#"'\[{&*!|>]+|\[[^\]#]*\])"""


def load(root: Path) -> BrokerConfig:
    """Read a broker directory's file; the defaults if there is none.

    Raises:
        InputError: ``broker.config_invalid`` naming the field, ``file.too_large``.
        Refused: ``broker.config_has_password``.
        Unavailable: ``file.unreadable``.
    """
    path = root / CONFIG_FILE
    if not path.exists():
        return BrokerConfig()
    return parse(read_limited(path, MAX_CONFIG_BYTES), where=str(path))


def parse(raw: bytes, *, where: str = CONFIG_FILE) -> BrokerConfig:
    """Read the file's content.

    Args:
        raw: at most 64 KiB of YAML; sections and fields left out have their defaults.
        where: the file's name, for errors.

    Raises:
        InputError: ``broker.config_invalid`` naming the field.
        Refused: ``broker.config_has_password``.
    """
    if len(raw) > MAX_CONFIG_BYTES:
        raise _invalid(f"has more than {MAX_CONFIG_BYTES} bytes", where)
    try:
        document = strict_yaml.read(raw, max_nodes=_MAX_NODES)
    except strict_yaml.NotYaml as error:
        raise _invalid(f"is not a YAML document: {error}", where) from None
    if document is None:
        document = {}
    if not isinstance(document, dict):
        raise _invalid("is no mapping of sections", where)
    # A section whose every line is a comment is empty, and that means its defaults.
    given = {name: {} if part is None else part for name, part in document.items()}
    return _checked(given, where)


def with_store(url: str, *, where: str) -> BrokerConfig:
    """The defaults with this database.

    Raises:
        InputError: ``broker.config_invalid``.
        Refused: ``broker.config_has_password``.
    """
    return _checked({"store": {"url": url}}, where)


def with_kek(
    config: BrokerConfig, provider: str, settings: Sequence[str], *, where: str
) -> BrokerConfig:
    """A configuration with another key-encryption key.

    Args:
        config: all that stays.
        provider: such as ``"vault"``.
        settings: ``NAME=VALUE`` for fields of the section ``kek``.
        where: for errors.

    Raises:
        InputError: ``broker.config_invalid``.
    """
    given: dict[str, Any] = {"provider": provider}
    for setting in settings:
        name, separator, value = setting.partition("=")
        if not separator or name in given:
            raise _invalid("a setting is NAME=VALUE, each name once", where)
        given[name] = int(value) if value.isascii() and value.isdecimal() else value
    kept = config.model_dump(mode="json", exclude_defaults=True, exclude={"kek"})
    return _checked({**kept, "kek": given}, where)


def render(config: BrokerConfig) -> bytes:
    """The file for `broker init` to write: what is set, and every default as a comment."""
    lines = [
        "# What this broker is told. A line that is a comment shows the default;",
        "# remove the # to change it. The broker reads this file when it starts.",
    ]
    for name in type(config).model_fields:
        section = getattr(config, name)
        summary = inspect.cleandoc(type(section).__doc__ or "").partition("\n")[0]
        lines += ["", f"# {summary}", f"{name}:"]
        default = type(section)()
        for key, part in type(section).model_fields.items():
            value = getattr(section, key)
            mark = "# " if value == getattr(default, key) else ""
            lines += textwrap.wrap(
                part.description or "", _WIDTH, initial_indent="  # ", subsequent_indent="  # ",
                break_long_words=False, break_on_hyphens=False,
            )  # fmt: skip
            lines.append(f"  {mark}{key}: {json.dumps(_plain(value))}")
    return ("\n".join(lines) + "\n").encode()


def _checked(given: dict[str, Any], where: str) -> BrokerConfig:
    try:
        return BrokerConfig.model_validate_json(json.dumps(given))
    except (ValidationError, ValueError, RecursionError) as error:
        raise _explained(error, where) from None


def revise(raw: bytes, chosen: BrokerConfig) -> bytes | None:
    """The file's content with the lines changed that have to be.

    Args:
        raw: what stands there, which can be read.
        chosen: what shall.

    Returns:
        What `parse` reads as ``chosen``; ``None`` if that takes more than changing lines.

    Raises:
        InputError, Refused: as `parse`: what stands there cannot be read.
    """
    before = parse(raw)
    lines = raw.decode().splitlines()
    for name in type(chosen).model_fields:
        section, old = getattr(chosen, name), getattr(before, name)
        default = type(section)()
        for field in reversed(type(section).model_fields):  # each new one goes before the others
            value = getattr(section, field)
            if value != getattr(old, field):
                mark = "# " if value == getattr(default, field) else ""
                _set(lines, name, field, f"{mark}{field}: {json.dumps(_plain(value))}")
    revised = ("\n".join(lines) + "\n").encode()
    try:
        return revised if parse(revised) == chosen else None
    except (InputError, Refused):
        return None


def _set(lines: list[str], section: str, field: str, text: str) -> None:
    """Put one field of one section where it stands, or stood as a comment, or else first."""
    header = re.compile(rf"{section}:\s*(#.*)?")
    start = next((n for n, line in enumerate(lines) if header.fullmatch(line)), None)
    if start is None:
        lines += ["", f"{section}:", f"  {text}"]
        return
    length = next((n for n, line in enumerate(lines[start + 1 :]) if line[:1] not in " #"), None)
    block = range(start + 1, len(lines) if length is None else start + 1 + length)
    for prefix in ("", "# ?"):
        stands = re.compile(rf"(\s+){prefix}{field}:\s+{_VALUE}(\s+#.*)?\s*")
        for number in block:
            if found := stands.fullmatch(lines[number]):
                indent, _, comment = found.groups()
                lines[number] = f"{indent}{text}{comment or ''}"
                return
    indents = (re.match(r"\s+(?=[a-z])", lines[number]) for number in block)
    indent = next((found.group() for found in indents if found), "  ")
    lines.insert(start + 1, f"{indent}{text}")


def _explained(error: Exception, where: str) -> InputError | Refused:
    if not isinstance(error, ValidationError):
        return _invalid("holds a value that is none", where)
    first = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    place = f"{where}: {field}" if field else where
    message = first["msg"].removeprefix("Value error, ")
    if message == PASSWORD:
        return Refused("broker.config_has_password", message, where=place)
    return _invalid(message, place)


def _invalid(message: str, where: str) -> InputError:
    return InputError(
        "broker.config_invalid",
        message,
        where=where,
        hint="`sealserve broker init` writes a file with every field and its default",
    )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
