"""``sealserve demo``: all roles end to end on this machine."""

from __future__ import annotations

import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sealserve.cli import console
from sealserve.errors import InputError

if TYPE_CHECKING:
    from sealserve.demo import DemoResult, Outcome

app = typer.Typer(help="See owner, broker, guest and client work together on this machine.")


@app.command()
def demo(
    keep: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Leave every file here, with commands.sh to repeat each step by hand.",
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the results as JSON.")
    ] = None,
    loop: Annotated[int, typer.Option(help="Requests of the benchmark.", min=1)] = 50,
) -> None:
    """Owner, broker, guest and client end to end, then three refusals.

    Real weights, a real sealed volume, real TLS; the TD is SIMULATED: its
    quotes are byte-exact, but signed by a test platform instead of Intel's.
    Takes one to three minutes.

    Example: sealserve demo --keep ./look
    """
    from sealserve.demo import Runner, run_demo

    with ExitStack() as stack:
        directory = _directory(keep, stack)
        status = stack.enter_context(console.ERR.status("starting"))
        runner = Runner(
            directory,
            on_start=lambda title: status.update(title),
            on_end=_print_step,
        )
        with runner:
            try:
                result = run_demo(runner, loops=loop)
            finally:
                status.update("ending the demo's processes")
                if keep:
                    script = directory / "commands.sh"
                    script.write_text(runner.script())
    _print_result(result, keep)
    if json_file:
        json_file.write_text(json.dumps(result.to_dict(), indent=2) + "\n")


def _directory(keep: Path | None, stack: ExitStack) -> Path:
    if keep is None:
        return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sealserve-demo-")))
    if keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        raise InputError(
            "demo.directory_not_empty",
            "this is not an empty directory, and nothing in it is overwritten",
            where=str(keep),
            hint="name a new one with --keep",
        )
    keep.mkdir(parents=True, exist_ok=True)
    return keep.resolve()


def _print_step(step: Outcome) -> None:
    mark = "[green]done[/]" if step.status == 0 else "[yellow]refused[/]"
    console.ERR.print(f"{step.seconds:6.1f} s  {mark}  {step.title}")
    for line in step.shown:
        console.ERR.print(f"            {line}", style="dim", markup=False)


def _print_result(result: DemoResult, keep: Path | None) -> None:
    seconds = sum(step.seconds for step in result.outcomes)
    stolen = result.impostor["application_bytes"]
    lines = [
        "",
        f"The photo shows: {result.label}, p = {result.probability:.3f}",
        f"ResNet50 v1.5 over TLS (seeded weights): {result.bench['summary']}",
        f"Refused, as it must be: {', '.join(result.refusals)}",
        f"Sent to the server with the foreign quote: {stolen} bytes",
        f"SIMULATION: the TD was simulated, all else was real. {seconds:.0f} s in all",
    ]
    if keep:
        lines.append(f"Everything is in {keep}; commands.sh repeats each step by hand.")
    console.OUT.print("\n".join(lines), markup=False)
