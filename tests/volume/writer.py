"""Writes files and says which are safe: ``python writer.py DIRECTORY SEED``.

Each file is synced, then its directory, and only then its name and digest are
printed. A second thread keeps writing what nobody was told is safe. Needs nothing
but the standard library, so that it runs in a guest as well.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import sys
import threading
from collections.abc import Callable
from pathlib import Path


def write_for_ever(directory: Path, seed: int, report: Callable[[str, str], None]) -> None:
    """Until an error: whoever wants it to end takes away what it writes to."""
    dice = random.Random(seed)
    threading.Thread(target=_disturb, args=(directory / "unsafe", seed), daemon=True).start()
    place = os.open(directory, os.O_RDONLY)
    for number in range(1_000_000):
        content = dice.randbytes(dice.choice((1, 4096, 70_000, 300_000)))
        path = directory / f"file-{number}"
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.fsync(place)
        report(path.name, hashlib.sha256(content).hexdigest())


def _disturb(path: Path, seed: int) -> None:
    dice = random.Random(seed)
    with contextlib.suppress(OSError):
        while True:
            with path.open("wb") as file:
                for _ in range(50):
                    file.write(dice.randbytes(30_000))
                    file.flush()


if __name__ == "__main__":
    write_for_ever(Path(sys.argv[1]), int(sys.argv[2]), lambda *line: print(*line, flush=True))
