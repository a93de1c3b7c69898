"""The error tree, and docs/errors.md against the source."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from sealserve import errors
from tests.conftest import ROOT

_CLASSES = {"InputError", "Refused", "Unavailable", "InternalError"}
_ROW = re.compile(r"^\| `([a-z0-9_.]+)` \| (\w+) \|", re.MULTILINE)
# Families whose last part is filled in at run time, each documented by one row.
_OPEN_FAMILIES = ("server.",)


def _raised() -> dict[str, set[str]]:
    """Code -> classes, from every call of an error class with a literal code."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and node.args):
                continue
            name = node.func.id if isinstance(node.func, ast.Name) else ""
            first = node.args[0]
            if name in _CLASSES and isinstance(first, ast.Constant):
                found.setdefault(first.value, set()).add(name)
    return found


def _documented() -> dict[str, str]:
    return dict(_ROW.findall((ROOT / "docs" / "errors.md").read_text()))


def test_every_code_in_the_source_is_documented() -> None:
    undocumented = set(_raised()) - set(_documented())
    assert not undocumented, f"add to docs/errors.md: {sorted(undocumented)}"


def test_every_documented_code_is_in_the_source() -> None:
    text = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    gone = [
        code
        for code in _documented()
        if f'"{code}"' not in text and not code.startswith(_OPEN_FAMILIES)
    ]
    assert not gone, f"remove from docs/errors.md: {gone}"


def test_a_code_belongs_to_the_class_that_the_table_names() -> None:
    documented = _documented()
    wrong = {
        code: (documented[code], classes)
        for code, classes in _raised().items()
        if documented.get(code) not in classes
    }
    assert not wrong


@pytest.mark.parametrize("code", ["", "x", "Tcb.out", "tcb.", "tcb out", "tcb.out-of-date"])
def test_a_malformed_code_is_a_bug(code: str) -> None:
    with pytest.raises(ValueError, match="not an error code"):
        errors.InputError(code, "message")


def test_an_error_reads_as_one_line_with_place_hint_and_code() -> None:
    error = errors.Refused("quote.too_large", "70000 bytes", where="q.bin", hint="cut it")
    assert str(error) == "q.bin: 70000 bytes (cut it) [quote.too_large]"
    assert error.to_dict() == {
        "code": "quote.too_large",
        "message": "70000 bytes",
        "where": "q.bin",
        "hint": "cut it",
    }
    assert Path(error.where or "").name == "q.bin"
