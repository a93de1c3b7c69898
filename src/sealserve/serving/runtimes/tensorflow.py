"""TensorFlow as a runtime: each loaded version in a worker process of its own.

It serves what OpenVINO cannot be shown to compute rightly: strings, tables, state,
unknown ranks. The process gives all its memory back when a version is unloaded,
and a model that brings TensorFlow down brings down nothing else.

Rules this module keeps:

* TensorFlow is never imported here. It may be installed beside sealserve or in
  another environment, named by its interpreter.
* Tensors travel over socket pairs; nothing of a model or a request is written to a file.
* A worker ends with this process. The kernel knows that by the *thread* that started it, so
  all are started from one that lasts.
* A worker that dies is started again at the next request, at most once in
  `_RESTART_PAUSE` seconds; requests in between are told so.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final

from sealserve.errors import InputError, SealserveError, Unavailable
from sealserve.logs import Log
from sealserve.serving.config import RuntimeConfig
from sealserve.serving.deadline import current
from sealserve.serving.gentle import give_way, is_gentle, raise_again
from sealserve.serving.runtimes import tensorflow_worker as worker
from sealserve.serving.runtimes.base import Model, Signature, Tuning
from sealserve.serving.status import RunFailed, Status
from sealserve.wire.tensorflow import graph_pb2
from sealserve.wire.tensors import Array

__all__ = ["TensorFlowRuntime", "find_interpreter"]

_LOAD_TIMEOUT: Final = 600.0
_LANE_TIMEOUT: Final = 60.0
_STOP_TIMEOUT: Final = 10.0
_RESTART_PAUSE: Final = 5.0


def find_interpreter(config: RuntimeConfig) -> tuple[Path | None, str]:
    """The Python that has TensorFlow, and how it was found or why there is none."""
    if config.tensorflow == "off":
        return None, "switched off by --tensorflow_runtime=off"
    if config.tensorflow != "auto":
        return Path(config.tensorflow), "named by --tensorflow_runtime"
    if importlib.util.find_spec("tensorflow") is None:
        return None, "TensorFlow is not installed (the extra [tensorflow])"
    return Path(sys.executable), "installed beside sealserve"


class TensorFlowRuntime:
    """Starts workers.

    Args:
        interpreter: a Python in whose environment TensorFlow can be imported.
        config: tags, threads and how many requests may run side by side.
        log: where a worker's start and end are told.
    """

    name = "tensorflow"

    def __init__(self, interpreter: Path, config: RuntimeConfig, log: Log) -> None:
        self._interpreter = interpreter
        self._config = config
        self._log = log
        self._starter = ThreadPoolExecutor(1, "start-worker")

    def load(
        self,
        path: Path,
        definitions: Mapping[str, graph_pb2.SignatureDef],
        keys: Collection[str],
    ) -> Model:
        """Load a version directory for some of its signatures.

        Raises:
            Unavailable: ``servable.worker_failed``.
        """
        signatures = {key: Signature.from_wire(key, definitions[key]) for key in sorted(keys)}
        process = _Worker(self._interpreter, path, self._config, self._log, self._starter)
        model = _TensorFlowModel(definitions, signatures, process)
        model.tuning = dict.fromkeys(signatures, _tuning(self._config))
        return model


class _TensorFlowModel(Model):
    def __init__(
        self,
        definitions: Mapping[str, graph_pb2.SignatureDef],
        signatures: Mapping[str, Signature],
        process: _Worker,
    ) -> None:
        self.definitions = definitions
        self.signatures = signatures
        self.refused = {}
        self._process = process

    def run(
        self, signature: str, inputs: Mapping[str, Array], outputs: Sequence[str]
    ) -> dict[str, Array]:
        return self._process.run(signature, inputs, outputs)

    def close(self) -> None:
        self._process.close()


class _Worker:
    """One worker process and its lanes; started again when it has died."""

    def __init__(
        self,
        interpreter: Path,
        path: Path,
        config: RuntimeConfig,
        log: Log,
        starter: ThreadPoolExecutor,
    ) -> None:
        self._starter = starter
        self._interpreter = interpreter
        self._path = path
        self._config = config
        self._log = log
        self._lock = threading.Lock()
        self._started = 0.0
        self._start()

    def run(
        self, signature: str, inputs: Mapping[str, Array], outputs: Sequence[str]
    ) -> dict[str, Array]:
        described, buffers = worker.pack_tensors(inputs)
        request = {"signature": signature, "inputs": described, "outputs": list(outputs)}
        lanes = self._living()
        try:
            lane = lanes.get(timeout=_LANE_TIMEOUT)
        except Empty:
            raise Unavailable(
                "servable.busy", "the TensorFlow worker is busy with earlier requests"
            ) from None
        deadline = current()
        if deadline.ended:
            lanes.put(lane)
            deadline.check()
        try:
            worker.send(lane, request, buffers)
            header, body = worker.receive(lane)
        except (OSError, EOFError):
            # The lane is not put back: the process behind it is gone, or as good as.
            self._broken = True
            raise self._gone() from None
        lanes.put(lane)
        if "error" in header:
            raise _failure(header)
        return worker.unpack_tensors(header["outputs"], body)

    def close(self) -> None:
        """End the process; nobody uses it any more."""
        for lane in self._sockets:
            lane.close()
        try:
            self._process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _living(self) -> SimpleQueue[socket.socket]:
        with self._lock:
            if self._process.poll() is not None or self._broken:
                if time.monotonic() - self._started < _RESTART_PAUSE:
                    raise self._gone()
                self._log.warning(
                    "worker_died", path=str(self._path), status=self._process.returncode
                )
                self._process.kill()
                self.close()
                self._start()
            return self._lanes

    def _gone(self) -> Unavailable:
        return Unavailable(
            "servable.worker_gone",
            "the TensorFlow worker of this model ended; it is started again",
            hint="try again in a few seconds",
        )

    def _start(self) -> None:
        count = _tuning(self._config).streams
        pairs = [socket.socketpair() for _ in range(count)]
        theirs = [pair[1] for pair in pairs]
        self._sockets = [pair[0] for pair in pairs]
        self._started = time.monotonic()
        self._broken = False
        lanes = [lane.fileno() for lane in theirs]
        settings = {
            "path": str(self._path),
            "tags": list(self._config.tags),
            "threads": self._config.threads,
            "bfloat16": self._config.precision == "bf16",
            "parent": os.getpid(),
            "lanes": lanes,
        }
        command = [str(self._interpreter), "-I", worker.__file__, json.dumps(settings)]
        try:
            self._process = self._starter.submit(
                subprocess.Popen,
                command,
                pass_fds=lanes,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            ).result()
        except OSError as error:
            self._close_sockets()
            raise Unavailable(
                "servable.worker_failed",
                f"cannot start the TensorFlow worker: {error.strerror}",
                where=str(self._interpreter),
            ) from None
        finally:
            for lane in theirs:
                lane.close()
        if is_gentle():
            give_way(self._process.pid)
        try:
            version = self._await_ready()
        except BaseException:
            self.close()
            raise
        if is_gentle():
            raise_again(self._process.pid)
        self._log.info(
            "worker_started", path=str(self._path), tensorflow=version, pid=self._process.pid
        )
        self._lanes: SimpleQueue[socket.socket] = SimpleQueue()
        for lane in self._sockets:
            self._lanes.put(lane)

    def _await_ready(self) -> str:
        first = self._sockets[0]
        first.settimeout(_LOAD_TIMEOUT)
        try:
            header, _ = worker.receive(first)
        except (OSError, EOFError):
            header = {"error": "the process ended before it had loaded the model"}
        first.settimeout(None)
        if "error" in header:
            raise Unavailable(
                "servable.worker_failed",
                f"TensorFlow cannot load the model: {header['error']}",
                where=str(self._path),
                hint=f"does `{self._interpreter} -c 'import tensorflow'` work?",
            )
        return str(header["ready"])

    def _close_sockets(self) -> None:
        for lane in self._sockets:
            lane.close()


def _tuning(config: RuntimeConfig) -> Tuning:
    cores = len(os.sched_getaffinity(0))
    given = config.threads or config.streams
    return Tuning(
        streams=config.streams or cores,
        threads=config.threads or cores,
        precision=config.precision,
        reason=f"set by flags, on {cores} cores"
        if given
        else f"TensorFlow shares {cores} cores out by itself",
    )


def _failure(header: Mapping[str, Any]) -> SealserveError:
    status = Status(header.get("status", Status.UNAVAILABLE))
    if status is Status.INVALID_ARGUMENT:
        return InputError("request.inference_failed", header["error"])
    if "status" in header:
        return RunFailed(status, f"TensorFlow failed: {header['error']}")
    return Unavailable("servable.worker_failed", f"TensorFlow failed: {header['error']}")
