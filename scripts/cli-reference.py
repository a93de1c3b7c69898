#!/usr/bin/env python3
"""Write docs/cli.md from the commands themselves; `make docs` runs it and a test compares."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from sealserve.cli.main import app

_HEAD = """\
# Commands

Written by `make docs` from the commands' own help. Every command also answers to `--help`;
those that have a result print it as JSON with `--json`. Exit status: 0 done, 2 malformed input,
3 refused, 4 something is missing, 70 a bug in sealserve ([errors](errors.md)).
"""


def _describe(command: Any, path: list[str]) -> Iterator[str]:
    if len(path) > 1:
        yield f"\n{'#' * len(path)} {' '.join(path)}\n"
        yield _paragraphs(command.help or "")
        rows = [row for parameter in command.params if (row := _row(parameter))]
        if rows:
            yield "\n| parameter | meaning | default |\n|---|---|---|"
            yield from rows
    if hasattr(command, "list_commands"):
        for name in command.list_commands(None):
            yield from _describe(command.get_command(None, name), [*path, name])


def _paragraphs(text: str) -> str:
    lines = [line.strip() for line in text.split("\n")]
    return "\n".join(lines).replace("Example: ", "Example: `").replace("<", "&lt;").strip() + (
        "`" if "Example: " in text else ""
    )


def _row(parameter: Any) -> str | None:
    if parameter.name == "help" or getattr(parameter, "hidden", False):
        return None
    names = ", ".join(f"`{name}`" for name in parameter.opts)
    if parameter.param_type_name == "argument":
        names = f"`{parameter.name.upper()}`"
    default = "required" if parameter.required else _default(parameter.default)
    return f"| {names} | {(parameter.help or '').replace('|', '/')} | {default} |"


def _default(value: Any) -> str:
    if value is None or callable(value) or value is False or value == [] or value == ():
        return ""
    return "yes" if value is True else f"`{value}`"


def reference() -> str:
    """The whole of docs/cli.md."""
    return "\n".join([_HEAD, *_describe(get_command(app), ["sealserve"])]) + "\n"


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("docs/cli.md")
    target.write_text(reference())
