"""ONNX files through everything that a server does to load one.

OpenVINO reads them with native code, so they are read in a process of its own: whatever
ends that process is a finding like any other, and its input is kept.

`python -m fuzz.onnx_reader` is that process: for each path on a line of its standard input it
loads the version directory there, and answers on a line what became of it.
"""

from __future__ import annotations

import ctypes
import functools
import io
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, cast

from tests.onnx_files import field, onnx_bytes

from fuzz.target import Target, feed, promised
from sealserve.errors import InputError
from sealserve.model.onnx_model import FILE_NAME, parse_onnx

__all__ = ["TARGET", "end"]

_ACCEPTED, _REFUSED = "accepted", "refused"


class _Reader:
    """The other process; started again after it has been ended."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="fuzz-onnx-")
        self._process: subprocess.Popen[str] | None = None

    def load(self, data: bytes) -> str:
        """What became of a file."""
        (Path(self._directory.name) / FILE_NAME).write_bytes(data)
        process = self._process or self._start()
        try:
            there, back = cast("IO[str]", process.stdin), cast("IO[str]", process.stdout)
            there.write(self._directory.name + "\n")
            there.flush()
            answer = back.readline()
        except BaseException:  # it took too long
            self._end(process)
            raise
        if not answer:
            self._end(process)
            raise AssertionError(f"the process that read the model ended: {process.returncode}")
        return answer.strip()

    def close(self) -> None:
        """End it."""
        if self._process is not None:
            self._end(self._process)
        self._directory.cleanup()

    def _start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "fuzz.onnx_reader"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self._process

    def _end(self, process: subprocess.Popen[str]) -> None:
        process.kill()
        process.communicate()
        self._process = None


@functools.cache
def _reader() -> _Reader:
    return _Reader()


def end() -> None:
    """End the other process; the next input starts it again."""
    _reader().close()
    _reader.cache_clear()


def _onnx_file(data: bytes) -> None:
    """What may be imported names no file outside; and whatever it is, a server bears it."""
    loaded = _reader().load(data)
    promised(loaded in (_ACCEPTED, _REFUSED))
    paths = parse_onnx(data, "model").external
    promised(not any(path.is_absolute() or ".." in path.parts for path in paths))
    if loaded == _REFUSED:
        raise InputError("onnx.unsupported", "OpenVINO does not take it")


def _seeds() -> Sequence[bytes]:
    """A layer; weights beside it; in a graph within a graph; an index that depends on inputs."""
    return [
        onnx_bytes(),
        onnx_bytes(rows=2, activation=b"Softmax"),
        onnx_bytes("w.bin"),
        onnx_bytes("w.bin", nested=True),
        _gather(),
    ]


def _gather() -> bytes:
    def value(name: bytes, kind: int) -> bytes:
        dims = field(2, field(1, field(2, b"n")))
        return field(1, name) + field(2, field(1, field(1, kind) + dims))

    table = field(1, 3) + field(2, 1) + field(8, b"t") + field(9, bytes(12))
    axis = field(1, b"axis") + field(3, 0) + field(20, 2)
    node = field(1, b"t") + field(1, b"i") + field(2, b"y") + field(4, b"Gather") + field(5, axis)
    graph = field(1, node) + field(2, b"g") + field(5, table)
    graph += field(11, value(b"i", 6)) + field(12, value(b"y", 1))
    return field(1, 8) + field(7, graph) + field(8, field(2, 17))


TARGET = Target(_onnx_file, _seeds, 512)


def main() -> None:
    """Load what is named, until nothing more is."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    from sealserve.logs import make_log
    from sealserve.serving.config import RuntimeConfig
    from sealserve.serving.runtimes.openvino import OpenVinoRuntime

    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints
    runtime = OpenVinoRuntime(RuntimeConfig(), make_log(io.StringIO()))

    def load(data: bytes) -> None:
        runtime.load(Path(os.fsdecode(data))).close()

    target = Target(load, list)
    for line in sys.stdin:
        try:
            answer = _ACCEPTED if feed(target, os.fsencode(line.strip())) else _REFUSED
        except Exception as error:  # the other process calls it a finding
            answer = " ".join(f"{type(error).__name__}: {error}".split())
        answers.write(answer + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
