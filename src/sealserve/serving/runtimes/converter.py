"""The process that converts one version for a server that has requests to answer.

Started by `converting`, with settings of JSON: ``path``, ``tags``, ``prefer_lite``,
``parent``, and ``lane``, the number of an inherited socket. On that it says ``definitions``
and ``is_file``, then for each byte that it is sent the next signature, and ``end`` after the
last; or ``failed``, whenever it comes to that.

Rules this module keeps:

* It ends with the thread that started it, and leaves no core.
* Where memory is short, it is this process that the kernel ends, and not the server.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Final

import openvino as ov

from sealserve.errors import SealserveError, Unavailable
from sealserve.hardening import end_with_parent, forbid_core_dumps
from sealserve.serving.runtimes import conversion_wire as wire
from sealserve.serving.runtimes.conversion import Converted, NotConverted, Reading, convert
from sealserve.serving.runtimes.graphs import reason_of
from sealserve.serving.servable import load_error

__all__ = ["main"]

_FIRST_TO_GO: Final = "500"


def main(settings: wire.Header) -> None:
    """Convert for as long as somebody asks."""
    Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_GO)
    end_with_parent(settings["parent"])
    forbid_core_dumps()
    path = Path(settings["path"])
    reading = Reading(tuple(settings["tags"]), settings["prefer_lite"])
    with socket.socket(fileno=settings["lane"]) as lane:
        try:
            _convert(lane, path, reading)
        except SealserveError as error:
            wire.send(lane, {"failed": wire.of_error(error)})
        except Exception as error:  # what it would have been told to the server itself
            wire.send(lane, {"failed": wire.of_error(load_error(error, path))})


def _convert(lane: socket.socket, path: Path, reading: Reading) -> None:
    conversion = convert(ov.Core(), path, reading)
    definitions = wire.of_definitions(conversion.definitions)
    wire.send(lane, {"definitions": definitions, "is_file": conversion.is_file})
    while lane.recv(1):
        each = next(conversion.signatures, None)
        if each is None:
            wire.send(lane, {"end": True})
            return
        with wire.memory_files(2) as files:
            header = _written(each, files)
            wire.send(lane, header, () if "error" in header else files)
        del each  # not while the next one is made


def _written(each: Converted | NotConverted, files: list[int]) -> wire.Header:
    try:
        return wire.write_outcome(each, files)
    except RuntimeError as error:
        refusal = Unavailable(
            "servable.runtime_cannot",
            f"OpenVINO cannot write the converted signature: {reason_of(error)}",
        )
        return wire.write_outcome(NotConverted(each.key, refusal, each.keeps_state), ())
