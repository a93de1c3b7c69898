"""Conversion in a process of its own, while requests are served in this one.

Parsing and converting a model holds the interpreter's lock, for half a second where it has
a hundred megabytes of weights, and every request waits for that lock (docs/adr/0029).

Rules this module keeps:

* The caller does not see which way it was: the same signatures, reasons and numbers.
* A process that fails, whatever it does, is one error of the model that it converted.
* It inherits one socket and no environment but what Python needs, gives way to everything
  here, and ends with the thread that started it, which is to be the one that asks.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import openvino as ov

from sealserve.errors import Unavailable
from sealserve.serving.gentle import give_way
from sealserve.serving.runtimes import conversion_wire as wire
from sealserve.serving.runtimes.conversion import Conversion, Converted, NotConverted, Reading

__all__ = ["Converters"]

_SECONDS: Final = 600.0
"""That one signature may take."""

_END_SECONDS: Final = 5.0
_ENVIRONMENT: Final = ("LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "PATH", "TMPDIR")
# Whatever this process can import, the other one can too, from wherever it comes.
_BEGIN: Final = (
    "import json, sys; settings = json.loads(sys.argv[1]); sys.path[:] = settings['modules']; "
    "from sealserve.serving.runtimes.converter import main; main(settings)"
)


class Converters:
    """Starts processes that convert, and ends them.

    Args:
        core: OpenVINO, which reads what they send.
    """

    def __init__(self, core: ov.Core) -> None:
        self._core = core
        self._lock = threading.Lock()
        self._running: set[_Converter] = set()
        self._given_up = False

    @contextlib.contextmanager
    def convert(self, path: Path, reading: Reading) -> Iterator[Conversion]:
        """Convert a version directory, as `conversion.convert` does.

        Raises:
            InputError, Unavailable: there is no model to look at.
            Unavailable: ``servable.conversion_failed``, also while signatures are asked for;
                ``serve.stopping``: everything has been given up.
        """
        with self._lock:
            if self._given_up:
                raise _stopping()
            process = _Converter(self._core, path, reading)
            self._running.add(process)
        try:
            yield process.begin()
        finally:
            process.close()
            with self._lock:
                self._running.discard(process)

    def give_up(self) -> None:
        """End every process, and start no more."""
        with self._lock:
            self._given_up = True
            for process in self._running:
                process.give_up()


class _Converter(Iterator[Converted | NotConverted]):
    def __init__(self, core: ov.Core, path: Path, reading: Reading) -> None:
        self._core = core
        self._path = path
        self._given_up = False
        self._lane, theirs = socket.socketpair()
        settings = {
            "path": str(path),
            "tags": list(reading.tags),
            "prefer_lite": reading.prefer_lite,
            "parent": os.getpid(),
            "lane": theirs.fileno(),
            "modules": sys.path,
        }
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", _BEGIN, json.dumps(settings)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                # Not a session of its own: within one its priority would count for nothing here.
                process_group=0,
            )
        except OSError as error:
            self._lane.close()
            raise self._failure(f"cannot be started: {error.strerror}") from None
        finally:
            theirs.close()
        give_way(self._process.pid)

    def begin(self) -> Conversion:
        """What it says of the whole model, and itself for the signatures."""
        with self._answer() as (header, _):
            definitions = wire.definitions_of(header["definitions"])
            return Conversion(definitions, header["is_file"] is True, self)

    def __next__(self) -> Converted | NotConverted:
        with contextlib.suppress(OSError):  # the answer, or none, will tell
            self._lane.send(b"+")
        with self._answer() as (header, files):
            if "end" not in header:
                return wire.read_outcome(self._core, header, files)
        raise StopIteration

    def give_up(self) -> None:
        """End it at once; whoever waits for it is told."""
        self._given_up = True
        self._process.kill()

    def close(self) -> None:
        """End it, if it has not ended by itself."""
        self._lane.close()
        self._process.kill()
        self._process.wait()

    @contextlib.contextmanager
    def _answer(self) -> Iterator[tuple[wire.Header, list[int]]]:
        """Its next header, and the descriptors that came along, for as long as they are read."""
        files: list[int] = []
        try:
            header, files = wire.receive(self._lane, _SECONDS)
            if "failed" in header:
                raise wire.error_of(header["failed"])
            yield header, files
        except (wire.Malformed, KeyError):
            raise self._failure("gave a malformed answer") from None
        except TimeoutError:
            raise self._failure(f"took longer than {_SECONDS:.0f} s for one signature") from None
        except (OSError, EOFError):
            raise _stopping() if self._given_up else self._failure(self._end()) from None
        finally:
            for file in files:
                os.close(file)

    def _failure(self, what: str) -> Unavailable:
        """The one error of all that can go wrong with it."""
        return Unavailable(
            "servable.conversion_failed",
            f"the process that converts the model {what}",
            where=str(self._path),
            hint="the model may be damaged, or there may be too little memory to convert it",
        )

    def _end(self) -> str:
        try:
            status = self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            return "does not answer any more"
        if status >= 0:
            return f"ended with status {status}"
        return f"was ended by {signal.Signals(-status).name}"


def _stopping() -> Unavailable:
    return Unavailable("serve.stopping", "the server is stopping")
