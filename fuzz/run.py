"""Fuzz: `python -m fuzz.run --seconds 60 [TARGET ...]`; exit status 1 after a finding.

Coverage-guided by atheris where it is installed (`requirements/fuzz.txt`),
else by hypothesis. An input that was a finding is kept under `--artifacts`;
`python -m fuzz.run --input FILE TARGET` runs it again.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from fuzz.engines import ENGINES, SECONDS_PER_INPUT, default_engine
from fuzz.targets import TARGETS, feed
from fuzz.world import WORLD_VARIABLE

__all__ = ["Outcome", "fuzz", "main"]

_RUNS = re.compile(r"^Done (\d+) runs", re.MULTILINE)
_EXCEPTION = re.compile("Uncaught Python exception|^Traceback")
_START_SECONDS = 60
_REPORT_LINES = 25


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one target.

    Attributes:
        target: its name.
        inputs: how many were fed; 0 if a finding came before any was counted.
        seconds: how long it took, with the start of the process.
        finding: the end of the engine's report; empty without a finding.
        kept: the input that was the finding, if there is one.
    """

    target: str
    inputs: int
    seconds: float
    finding: str
    kept: Path | None


def fuzz(name: str, engine: str, seconds: float, artifacts: Path) -> Outcome:
    """Fuzz one target in a process of its own."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"fuzz-{name}-") as directory:
        work = Path(directory)
        command = [sys.executable, "-m", "fuzz.one", name, engine, str(seconds), directory]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=seconds + SECONDS_PER_INPUT + _START_SECONDS,
            )
            report, failed = done.stdout + done.stderr, done.returncode != 0
        except subprocess.TimeoutExpired:
            report, failed = "the engine did not end in time", True
        runs = _RUNS.search(report)
        # An engine that ends well without a count has not done its work.
        failed = failed or runs is None
        return Outcome(
            target=name,
            inputs=int(runs[1]) if runs else 0,
            seconds=time.monotonic() - begin,
            finding=_told(report) if failed else "",
            kept=_keep(name, work, artifacts) if failed else None,
        )


def _told(report: str) -> str:
    """The part about the exception; the end of the report if there is none."""
    lines = report.splitlines()
    starts = [number for number, line in enumerate(lines) if _EXCEPTION.search(line)]
    return "\n".join(lines[starts[0] :][:_REPORT_LINES] if starts else lines[-_REPORT_LINES:])


def _keep(name: str, work: Path, artifacts: Path) -> Path | None:
    found = [path for path in sorted(work.iterdir()) if path.is_file()]
    if not found:
        return None
    artifacts.mkdir(parents=True, exist_ok=True)
    kept = artifacts / f"{name}-{found[-1].name[:60]}"
    kept.write_bytes(found[-1].read_bytes())
    return kept


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m fuzz.run", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=float, default=60, help="for each target")
    parser.add_argument("--engine", choices=sorted(ENGINES), default=default_engine())
    parser.add_argument("--artifacts", type=Path, default=Path(".fuzz"))
    parser.add_argument("--input", type=Path, help="feed this one file instead")
    asked = parser.parse_args(arguments)
    unknown = set(asked.targets) - set(TARGETS)
    if unknown:
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    names = asked.targets or list(TARGETS)
    # The same keys and quotes in every process, and again when a finding is repeated.
    os.environ.setdefault(WORLD_VARIABLE, str((asked.artifacts / "world.json").absolute()))
    if asked.input is not None:
        for name in names:
            accepted = feed(TARGETS[name], asked.input.read_bytes())
            print(f"{name}: {'accepted' if accepted else 'refused'}")
        return 0
    findings = 0
    for name in names:
        outcome = fuzz(name, asked.engine, asked.seconds, asked.artifacts)
        findings += bool(outcome.finding)
        verdict = "FINDING" if outcome.finding else "ok"
        print(
            f"{name:20} {verdict:8} {outcome.inputs:9} inputs in {outcome.seconds:5.1f} s "
            f"({asked.engine})",
            flush=True,
        )
        if outcome.finding:
            print(outcome.finding)
            print(f"kept as {outcome.kept}" if outcome.kept else "no input was kept", flush=True)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
