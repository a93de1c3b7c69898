#!/usr/bin/env python3
"""Write docs/errors.md from the places that raise; `make docs` runs it and a test compares."""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sealserve.errors import InputError, InternalError, Refused, Unavailable

_SOURCE = Path(__file__).resolve().parent.parent / "src" / "sealserve"
_CLASSES = {each.__name__: each for each in (InputError, Refused, Unavailable, InternalError)}
_CODE = re.compile(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)*(?:\.[a-z0-9]+(?:_[a-z0-9]+)*)+")

# Families in which some codes stand in tables and rules instead of beside a sentence.
_RULE_FAMILIES = (
    "policy.", "eventlog.", "quote.", "chain.", "crl.", "tcb.", "qe.", "td.", "collateral.",
)  # fmt: skip

_HEAD = """\
# Error codes

Written by `make docs` from the source. Every error that sealserve raises on purpose has a
stable code. Scripts match on the code; sentences may improve. `...` stands for a value. With
`--json` an error is one JSON object on stderr:
`{"error": {"code": ..., "message": ..., "where": ..., "hint": ...}}`.

| class | exit status | meaning |
|---|---|---|
| InputError | 2 | what the user or a peer gave is malformed |
| Refused | 3 | well-formed, but not trusted: the answer is no |
| Unavailable | 4 | a device, program, package, peer or file is missing |
| InternalError | 70 | sealserve itself is wrong; please report it |

Errors of a model server reach a client as `server.` and the name of the gRPC status, such as
`server.not_found`, with the server's own sentence.
"""

_TABLES_HEAD = """
## Codes of rules

These are not written beside a sentence of their own: a policy's rules (`policy.*`,
`eventlog.*`; `sealserve policy explain` shows expected and actual values) and what the
verification library found (its own words follow the code).

| code | class |
|---|---|
"""


def _text(node: ast.expr | None) -> str:
    """A message as the source writes it, with values as ``...``."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = node.values
        return "".join(_text(part) if isinstance(part, ast.Constant) else "..." for part in parts)
    if isinstance(node, ast.BinOp):
        return _text(node.left) + _text(node.right)
    return "..." if node is not None else ""


def _cell(texts: set[str]) -> str:
    return " / ".join(sorted(text for text in texts if text.strip(". "))).replace("|", "\\|")


def codes_raised() -> dict[str, set[str]]:
    """Code -> the classes it is raised with, from every literal in the source."""
    raised: dict[str, set[str]] = defaultdict(set)
    for node in _nodes():
        if _is_raise(node):
            raised[node.args[0].value].add(node.func.id)
    return raised


def _nodes() -> Iterator[Any]:
    for path in sorted(_SOURCE.rglob("*.py")):
        yield from ast.walk(ast.parse(path.read_text()))


def _is_raise(node: Any) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in _CLASSES
        and bool(node.args)
        and isinstance(node.args[0], ast.Constant)
    )


def reference() -> str:
    """The whole of docs/errors.md."""
    raised = codes_raised()
    says: dict[str, set[str]] = defaultdict(set)
    advice: dict[str, set[str]] = defaultdict(set)
    literals: set[str] = set()
    for node in _nodes():
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            literals.add(node.value)
        if _is_raise(node):
            code = node.args[0].value
            keywords = {keyword.arg: keyword.value for keyword in node.keywords}
            says[code].add(_text(node.args[1] if len(node.args) > 1 else None))
            advice[code].add(_text(keywords.get("hint")))
    lines = [_HEAD]
    families: dict[str, list[str]] = defaultdict(list)
    for code in sorted(raised):
        families[code.partition(".")[0]].append(code)
    for family, codes in families.items():
        lines += [f"## {family}", "", "| code | class | says | do next |", "|---|---|---|---|"]
        for code in codes:
            classes = ", ".join(sorted(raised[code]))
            lines.append(f"| `{code}` | {classes} | {_cell(says[code])} | {_cell(advice[code])} |")
        lines.append("")
    rules = sorted(
        each
        for each in literals - set(raised)
        if _CODE.fullmatch(each)
        and each.startswith(_RULE_FAMILIES)
        and not each.endswith((".json", ".yaml"))
    )
    return (
        "\n".join(lines).rstrip()
        + "\n"
        + _TABLES_HEAD
        + "".join(f"| `{rule}` | Refused |\n" for rule in rules)
    )


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("docs/errors.md")
    target.write_text(reference())
