"""The documents against the program: references, commands and links."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.main import get_command

from sealserve.cli.main import app
from tests.conftest import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def _script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("script", "page"), [("cli-reference", "cli.md"), ("error-reference", "errors.md")]
)
def test_a_reference_is_as_the_source_says(script: str, page: str) -> None:
    written = (ROOT / "docs" / page).read_text()
    assert written == _script(script).reference(), "run `make docs`"


def test_a_code_has_one_class() -> None:
    """A script that matches on a code may rely on its exit status."""
    raised = _script("error-reference").codes_raised()
    assert {code: classes for code, classes in raised.items() if len(classes) > 1} == {}


def _commands() -> Iterator[tuple[str, str]]:
    """Every `sealserve ...` line in the documents' code, with where it stands."""
    for page in PAGES:
        text = re.sub(r"\\\n\s*", "", page.read_text())
        for line in text.splitlines():
            code = line.strip().strip("`")
            if line.startswith(("    ", "`sealserve")) or "`sealserve " in line:
                for match in re.findall(r"(?:^|`)((?:\.venv/bin/)?sealserve [^`#&>|]*)", code):
                    yield page.name, match.removeprefix(".venv/bin/").strip()


def test_every_command_in_the_documents_exists() -> None:
    """Names and options, as far as a line gives them; `...` stands for what is left out."""
    checked = 0
    for page, line in _commands():
        where = f"{page}: {line}"
        words = shlex.split(re.sub(r"\$\([^)]*\)", "VALUE", line))[1:]
        command: Any = get_command(app)
        while words and hasattr(command, "list_commands"):
            name = words.pop(0)
            if name.startswith("-") or name in ("...",):
                break
            command = command.get_command(None, name)
            assert command is not None, where
        known = {option for parameter in command.params for option in parameter.opts}
        if "--" in words:
            words = words[: words.index("--")]
        if command.name == "serve":
            continue  # TensorFlow Serving's flags, in its own syntax; see test_flags
        for word in words:
            if word.startswith("-"):
                assert word.partition("=")[0] in known | {"--help", "--json"}, where
        checked += 1
    assert checked > 30


def test_links_between_documents_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_no_document_or_source_names_this_machine() -> None:
    """No machine path and no package index stands in what is published."""
    forbidden = re.compile(r"/work/|/root/|pythonhosted|pypi\.org|index-url", re.IGNORECASE)
    tracked = [
        path
        for folder in ("src", "docs", "scripts", "requirements", "bench", ".ci")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    for path in [*tracked, *ROOT.glob("*.md"), ROOT / "Makefile", ROOT / "pyproject.toml"]:
        text = path.read_text(errors="replace")
        allowed = "--no-emit-index-url" if path.name == "lock.sh" else "\0"
        assert not forbidden.search(text.replace(allowed, "")), path


def test_the_changelog_and_the_decisions_are_listed() -> None:
    listed = (ROOT / "docs/adr/README.md").read_text()
    for record in (ROOT / "docs/adr").glob("0*.md"):
        assert f"({record.name})" in listed, record.name


def test_the_guides_of_the_readme_exist() -> None:
    assert {path.name for path in Path(ROOT / "docs").glob("guide-*.md")} == {
        "guide-owner.md",
        "guide-broker.md",
        "guide-guest.md",
        "guide-client.md",
    }
