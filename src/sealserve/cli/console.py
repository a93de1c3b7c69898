"""What every command shares on the terminal: results, errors, progress, JSON."""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)

from sealserve.errors import InternalError, SealserveError

__all__ = [
    "ERR",
    "OUT",
    "JsonFlag",
    "byte_progress",
    "emit",
    "print_error",
    "step_progress",
    "unexpected",
    "wants_json",
]

OUT = Console(highlight=False, soft_wrap=True)
ERR = Console(stderr=True, highlight=False, soft_wrap=True)

JsonFlag = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON object, for scripts.")
]


def emit(result: dict[str, Any], *, as_json: bool, text: str) -> None:
    """Print a command's result: the JSON object, or the sentence for people."""
    if as_json:
        sys.stdout.write(json.dumps(result, indent=2, sort_keys=True) + "\n")
        # A command that goes on running after its answer may be read through a pipe.
        sys.stdout.flush()
    else:
        OUT.print(text, markup=False)


def print_error(error: SealserveError) -> None:
    """Print one error on stderr; as JSON when the command was asked for JSON."""
    if wants_json():
        sys.stderr.write(json.dumps({"error": error.to_dict()}) + "\n")
        return
    place = f"{error.where}: " if error.where else ""
    ERR.print(f"[bold red]error:[/] {_plain(place + error.message)} [dim]\\[{error.code}][/]")
    if error.hint:
        ERR.print(f"[bold]next:[/]  {_plain(error.hint)}")


def wants_json() -> bool:
    """Whether the command was asked for JSON, as far as a command line shows that fails."""
    # `demo --json FILE` writes a file; its errors are for people.
    return "--json" in sys.argv and sys.argv[1:2] != ["demo"]


def unexpected(error: Exception, stack: traceback.StackSummary) -> InternalError:
    """Turn a bug into a report without its values, which could hold secrets."""
    frames = [frame for frame in stack if "sealserve" in frame.filename]
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "unknown place"
    return InternalError(
        "internal.unexpected",
        f"unexpected {type(error).__name__} at {place}",
        hint="this is a bug in sealserve; please report it with this line and the command",
    )


def byte_progress() -> Progress:
    """A progress bar for work that is counted in bytes; drawn on stderr."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        console=ERR,
        transient=not ERR.is_terminal,
    )


def step_progress() -> Progress:
    """A spinner with the time gone by, for work that has no count; on stderr."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=ERR,
        transient=True,
    )


def _plain(text: str) -> str:
    return text.replace("[", "\\[")
