"""One target in this process: `python -m fuzz.one TARGET ENGINE SECONDS ARTIFACTS`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Run it; the last line on standard output is the number of inputs."""
    name, engine, seconds, artifacts = sys.argv[1:]
    if engine == "atheris":
        # Only what is imported inside is watched for coverage.
        atheris: Any = importlib.import_module("atheris")
        with atheris.instrument_imports(include=["sealserve"]):
            importlib.import_module("fuzz.targets")
    from fuzz.engines import ENGINES
    from fuzz.targets import TARGETS

    count = ENGINES[engine](TARGETS[name], float(seconds), Path(artifacts))
    print(f"Done {count} runs")  # libFuzzer's own words, so that both are read alike


if __name__ == "__main__":
    main()
