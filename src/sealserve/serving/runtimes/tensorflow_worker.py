"""The process that runs a model with TensorFlow, one for each loaded version.

    python -I tensorflow_worker.py SETTINGS

SETTINGS is JSON: ``path``, ``tags``, ``threads``, ``parent`` and ``lanes``, the numbers of
inherited sockets. The process says ``ready`` on the first one and then answers one
request at a time on each.

Rules this module keeps:

* It imports nothing of sealserve, so that TensorFlow may live in another
  interpreter's environment, and its protobuf messages never meet ours.
* It ends with its parent, leaves no core, and prints nothing of what it computes.
* A graph is run as TensorFlow Serving runs it: a session over the SavedModel's own
  feeds and fetches, so that TensorFlow 1 and 2 models behave alike.

A frame is ``u32 size of the header, u64 size of the body, header, body``, little-endian;
the header is JSON, the body holds the tensors one after another. A numeric tensor is its
elements, row-major, little-endian; a string tensor is ``u64`` lengths, then the bytes.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import socket
import struct
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["FRAME", "pack_tensors", "receive", "send", "unpack_tensors"]

FRAME = struct.Struct("<IQ")
"""The head of a frame: sizes of header and body in bytes."""

MAX_HEADER_BYTES = 16 * 2**20
MAX_BODY_BYTES = 2**32

_STRING = "string"
_MAX_REASON_CHARS = 300
_INVALID_ARGUMENT = 3


def send(lane: socket.socket, header: Mapping[str, Any], body: Sequence[Any] = ()) -> None:
    """Write one frame; ``body`` is a sequence of buffers."""
    raw = json.dumps(header).encode()
    parts = [memoryview(part).cast("B") for part in body]
    lane.sendall(FRAME.pack(len(raw), sum(map(len, parts))) + raw)
    for part in parts:
        lane.sendall(part)


def receive(lane: socket.socket) -> tuple[dict[str, Any], memoryview]:
    """Read one frame.

    Raises:
        EOFError: the other side has gone, or sends no frames.
    """
    header_size, body_size = FRAME.unpack(_exactly(lane, FRAME.size))
    if header_size > MAX_HEADER_BYTES or body_size > MAX_BODY_BYTES:
        raise EOFError("not a frame")
    header = json.loads(bytes(_exactly(lane, header_size)))
    return header, _exactly(lane, body_size)


def pack_tensors(arrays: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
    """Describe arrays for a header, and give the buffers of the body.

    Returns:
        ``[name, dtype, shape, size in bytes]`` for each array, and buffers.
    """
    described, buffers = [], []
    for name, array in arrays.items():
        if array.dtype == object:
            items = [bytes(item) for item in array.ravel()]
            lengths = np.array([len(item) for item in items], "<u8")
            raw: Any = lengths.tobytes() + b"".join(items)
            described.append([name, _STRING, array.shape, len(raw)])
        else:
            raw = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1)
            described.append([name, array.dtype.name, array.shape, raw.nbytes])
        if len(raw):
            buffers.append(raw)
    return described, buffers


def unpack_tensors(described: Sequence[Any], body: memoryview) -> dict[str, Any]:
    """The arrays of a frame; numeric ones share the body's memory."""
    arrays, offset = {}, 0
    for name, dtype, shape, size in described:
        piece = body[offset : offset + size]
        offset += size
        if dtype == _STRING:
            arrays[name] = _strings(piece, shape)
        else:
            wire = np.dtype(dtype).newbyteorder("<")
            arrays[name] = np.frombuffer(piece, wire).reshape(shape)
    return arrays


def _strings(piece: memoryview, shape: Sequence[int]) -> Any:
    count = int(np.prod(shape, dtype=np.int64))
    lengths = np.frombuffer(piece[: 8 * count], "<u8")
    items = np.empty(count, object)
    offset = 8 * count
    for position, length in enumerate(lengths.tolist()):
        items[position] = bytes(piece[offset : offset + length])
        offset += length
    return items.reshape(shape)


def _exactly(lane: socket.socket, size: int) -> memoryview:
    buffer = memoryview(bytearray(size))
    filled = 0
    while filled < size:
        count = lane.recv_into(buffer[filled:])
        if not count:
            raise EOFError("the other side has gone")
        filled += count
    return buffer


class _Graph:
    """The loaded model: one callable for each set of feeds and fetches."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        import tensorflow as tf

        tf1 = tf.compat.v1
        self.version: str = tf.__version__
        self._errors = tf.errors
        options = tf1.ConfigProto(intra_op_parallelism_threads=settings["threads"])
        if settings["bfloat16"]:
            rewriting = options.graph_options.rewrite_options
            rewriting.auto_mixed_precision_onednn_bfloat16 = rewriting.ON
        self._session = tf1.Session(graph=tf.Graph(), config=options)
        meta = tf1.saved_model.loader.load(self._session, settings["tags"], settings["path"])
        self._signatures = {
            key: (
                {
                    name: (info.name, tf.as_dtype(info.dtype).as_numpy_dtype)
                    for name, info in wire.inputs.items()
                },
                {name: info.name for name, info in wire.outputs.items()},
            )
            for key, wire in meta.signature_def.items()
        }
        self._callables: dict[tuple[str, ...], Any] = {}
        self._lock = threading.Lock()

    def run(
        self, signature: str, inputs: Mapping[str, Any], outputs: Sequence[str]
    ) -> dict[str, Any]:
        names = sorted(inputs)
        call = self._callable(signature, names, outputs)
        dtypes = {name: dtype for name, (_, dtype) in self._signatures[signature][0].items()}
        # numpy has no bfloat16: such tensors travel as float32, which holds their values.
        feeds = [inputs[name].astype(dtypes[name], copy=False) for name in names]
        return {
            name: _portable(np.asarray(value))
            for name, value in zip(outputs, call(*feeds), strict=True)
        }

    def _callable(self, signature: str, names: list[str], outputs: Sequence[str]) -> Any:
        key = (signature, *names, "", *outputs)
        with self._lock:
            if key not in self._callables:
                feeds, fetches = self._signatures[signature]
                self._callables[key] = self._session.make_callable(
                    [fetches[name] for name in outputs], [feeds[name][0] for name in names]
                )
            return self._callables[key]

    def failure(self, error: Exception) -> dict[str, Any]:
        """What to tell of a failure: why, and the canonical status if it has one."""
        if isinstance(error, self._errors.OpError):
            reason = " ".join(str(error.message).split())[:_MAX_REASON_CHARS]
            return {"error": reason, "status": int(error.error_code)}
        if isinstance(error, (ValueError, TypeError)):
            return {"error": type(error).__name__, "status": _INVALID_ARGUMENT}
        return {"error": type(error).__name__}


def _portable(array: Any) -> Any:
    return array.astype("f4") if array.dtype.name == "bfloat16" else array


def _serve(graph: _Graph, lane: socket.socket) -> None:
    while True:
        try:
            header, body = receive(lane)
        except (EOFError, OSError):
            return
        try:
            inputs = unpack_tensors(header["inputs"], body)
            answer = graph.run(header["signature"], inputs, header["outputs"])
            described, buffers = pack_tensors(answer)
            send(lane, {"outputs": described}, buffers)
        except OSError:
            return
        except Exception as error:  # whatever a model does, the lane goes on
            send(lane, graph.failure(error))


def _protect(parent: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None)
    libc.prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE
    libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        raise SystemExit(1)


def main(settings: Mapping[str, Any]) -> None:
    """Load the model, say so, and answer until the lanes are closed."""
    _protect(settings["parent"])
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    lanes = [socket.socket(fileno=number) for number in settings["lanes"]]
    try:
        graph = _Graph(settings)
    except Exception as error:
        text = " ".join(str(error).split())[:_MAX_REASON_CHARS] or type(error).__name__
        send(lanes[0], {"error": text})
        return
    send(lanes[0], {"ready": graph.version})
    threads = [threading.Thread(target=_serve, args=(graph, lane)) for lane in lanes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
