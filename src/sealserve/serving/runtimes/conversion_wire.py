"""What became of a signature, as a header of JSON and two files in memory, between processes.

The header says everything but the graph; the graph is OpenVINO IR, of which the XML and
the weights, at their own precision, are in a memfd each. On a socket a header is preceded
by ``u32 its size in bytes, u8 how many files come along``, little-endian.

Rules this module keeps:

* What is read here comes from a process that has read a model of somebody else's: all of
  it is checked, and what does not fit is `Malformed`, nothing else.
* The files are sealed: nobody can change or shorten one that is being read.
* The graph must have the ports that the header names, of the types that it says.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import socket
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import openvino as ov

from sealserve.errors import InputError, InternalError, Refused, SealserveError, Unavailable
from sealserve.serving.runtimes.base import Signature, TensorSpec
from sealserve.serving.runtimes.conversion import Converted, NotConverted
from sealserve.serving.runtimes.examples import DenseFeature, ExampleCut
from sealserve.serving.runtimes.graphs import ELEMENT_TYPES, Graph
from sealserve.wire.tensorflow import graph_pb2, tensor_pb2
from sealserve.wire.tensors import to_array, to_proto

__all__ = [
    "MAX_HEADER_BYTES",
    "Header",
    "Malformed",
    "definitions_of",
    "error_of",
    "memory_files",
    "of_definitions",
    "of_error",
    "read_outcome",
    "receive",
    "send",
    "write_outcome",
]

MAX_HEADER_BYTES: Final = 64 * 2**20
_HEAD: Final = struct.Struct("<IB")
_MAX_FILES: Final = 2
_MAX_XML_BYTES: Final = 2**28
_MAX_DEFAULT_BYTES: Final = 2**24
_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_ERRORS: Final = {kind.__name__: kind for kind in (InputError, InternalError, Refused, Unavailable)}

Header = dict[str, Any]


class Malformed(Exception):
    """This was not written by `write_outcome`."""


def send(lane: socket.socket, header: Header, files: Sequence[int] = ()) -> None:
    """Send a header, and copies of some descriptors with it."""
    raw = json.dumps(header).encode()
    socket.send_fds(lane, [_HEAD.pack(len(raw), len(files))], files)
    lane.sendall(raw)


def receive(lane: socket.socket, seconds: float) -> tuple[Header, list[int]]:
    """Receive a header and the descriptors that came with it, which are the caller's to close.

    Raises:
        EOFError, OSError: the other side has gone; TimeoutError: it takes longer.
        Malformed: these are not the words of `send`.
    """
    end = time.monotonic() + seconds
    _until(lane, end)
    head, files, flags, _ = socket.recv_fds(lane, _HEAD.size, _MAX_FILES, socket.MSG_CMSG_CLOEXEC)
    try:
        if not head:
            raise EOFError
        size, count = _HEAD.unpack(head + _exactly(lane, _HEAD.size - len(head), end))
        if size > MAX_HEADER_BYTES or count != len(files) or flags & socket.MSG_CTRUNC:
            raise Malformed
        header = json.loads(_exactly(lane, size, end))
        if not isinstance(header, dict):
            raise Malformed
    except BaseException as error:
        for file in files:
            os.close(file)
        if isinstance(error, ValueError | RecursionError):
            raise Malformed from None
        raise
    return header, files


@contextmanager
def memory_files(count: int) -> Iterator[list[int]]:
    """Descriptors of new files in memory, which are gone afterwards unless they were sent."""
    files = [os.memfd_create("graph", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING) for _ in range(count)]
    try:
        yield files
    finally:
        for file in files:
            os.close(file)


def write_outcome(each: Converted | NotConverted, files: Sequence[int]) -> Header:
    """The header of what became of a signature; a graph goes into the two files.

    Raises:
        RuntimeError: OpenVINO cannot write the graph.
    """
    if isinstance(each, NotConverted):
        return {"key": each.key, "error": of_error(each.error), "keeps_state": each.keeps_state}
    with tempfile.TemporaryDirectory(prefix="sealserve-") as directory:
        names = [Path(directory) / name for name in ("graph.xml", "graph.bin")]
        for name, file in zip(names, files, strict=True):
            name.symlink_to(f"/proc/self/fd/{file}")
        ov.serialize(each.graph.graph, *names)
    for file in files:
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
    return {
        "key": each.key,
        "signature": _of_signature(each.signature),
        "computes": _of_signature(each.graph.signature),
        "inputs": dict(each.graph.inputs),
        "outputs": dict(each.graph.outputs),
        "finite": each.graph.finite,
        "by_values": each.graph.by_values,
        "cut": _of_cut(each.cut) if each.cut else None,
        "where": each.where,
        "keeps_state": each.keeps_state,
    }


def read_outcome(core: ov.Core, header: Header, files: Sequence[int]) -> Converted | NotConverted:
    """What `write_outcome` wrote.

    Raises:
        Malformed: it did not write this.
    """
    with _checked():
        key, keeps_state = _text(header["key"]), _bool(header["keeps_state"])
        if "error" in header:
            return NotConverted(key, error_of(header["error"]), keeps_state)
        graph = Graph(
            _signature(header["computes"]),
            _read_graph(core, files),
            _names(header["inputs"]),
            _names(header["outputs"]),
            tuple(map(_text, header["finite"])),
            _bool(header["by_values"]),
        )
        _check_ports(graph)
        cut = _cut(header["cut"]) if header["cut"] is not None else None
        signature = _signature(header["signature"])
        if key != signature.name:
            raise Malformed
        return Converted(signature, graph, cut, _text(header["where"]), keeps_state)


def of_error(error: SealserveError) -> Header:
    """An error as JSON."""
    return {
        "kind": type(error).__name__,
        "code": error.code,
        "message": error.message,
        "where": error.where,
        "hint": error.hint,
    }


def error_of(header: Header) -> SealserveError:
    """The error that `of_error` wrote.

    Raises:
        Malformed: it did not write this.
    """
    with _checked():
        where, hint = (
            None if header[name] is None else _text(header[name]) for name in ("where", "hint")
        )
        kind = _ERRORS[header["kind"]]
        return kind(_text(header["code"]), _text(header["message"]), where=where, hint=hint)


def of_definitions(definitions: Mapping[str, graph_pb2.SignatureDef]) -> dict[str, str]:
    """SignatureDefs as JSON."""
    return {
        key: base64.b64encode(wire.SerializeToString()).decode()
        for key, wire in definitions.items()
    }


def definitions_of(header: Header) -> dict[str, graph_pb2.SignatureDef]:
    """The SignatureDefs that `of_definitions` wrote.

    Raises:
        Malformed: it did not write this.
    """
    with _checked():
        return {
            _text(key): graph_pb2.SignatureDef.FromString(base64.b64decode(raw, validate=True))
            for key, raw in header.items()
        }


@contextmanager
def _checked() -> Iterator[None]:
    try:
        yield
    except (Malformed, MemoryError):
        raise
    except Exception:  # whatever it is that does not fit
        raise Malformed from None


def _exactly(lane: socket.socket, size: int, end: float) -> bytes:
    buffer = memoryview(bytearray(size))
    filled = 0
    while filled < size:
        _until(lane, end)
        count = lane.recv_into(buffer[filled:])
        if not count:
            raise EOFError
        filled += count
    return bytes(buffer)


def _until(lane: socket.socket, end: float) -> None:
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    lane.settimeout(left)


def _read_graph(core: ov.Core, files: Sequence[int]) -> ov.Model:
    xml, weights = files
    for file in files:
        if fcntl.fcntl(file, fcntl.F_GET_SEALS) != _SEALS:
            raise Malformed
    if os.fstat(xml).st_size > _MAX_XML_BYTES:
        raise Malformed
    # Mapped, a model would keep the whole file for as long as it lives.
    return core.read_model(
        f"/proc/self/fd/{xml}", f"/proc/self/fd/{weights}", {"ENABLE_MMAP": False}
    )


def _check_ports(graph: Graph) -> None:
    for ports, specs, names in (
        (graph.graph.inputs, graph.signature.inputs, graph.inputs),
        (graph.graph.outputs, graph.signature.outputs, graph.outputs),
    ):
        if specs.keys() != names.keys():
            raise Malformed
        for key, spec in specs.items():
            (port,) = (port for port in ports if names[key] in port.get_names())
            if port.get_element_type() != ELEMENT_TYPES[spec.dtype]:
                raise Malformed


def _of_signature(signature: Signature) -> Header:
    return {
        "name": signature.name,
        "inputs": {key: [spec.dtype, spec.shape] for key, spec in signature.inputs.items()},
        "outputs": {key: [spec.dtype, spec.shape] for key, spec in signature.outputs.items()},
        "method_name": signature.method_name,
        "elementwise": signature.elementwise,
    }


def _signature(header: Header) -> Signature:
    return Signature(
        _text(header["name"]),
        {_text(key): _spec(*spec) for key, spec in header["inputs"].items()},
        {_text(key): _spec(*spec) for key, spec in header["outputs"].items()},
        _text(header["method_name"]),
        _bool(header["elementwise"]),
    )


def _spec(dtype: object, shape: Sequence[object] | None) -> TensorSpec:
    return TensorSpec(_int(dtype), None if shape is None else _shape(shape))


def _of_cut(cut: ExampleCut) -> Header:
    return {
        "examples": cut.examples,
        "wire": base64.b64encode(cut.wire.SerializeToString()).decode(),
        "features": [
            {
                "name": each.name,
                "input": each.input,
                "dtype": each.dtype,
                "shape": each.shape,
                "default": None
                if each.default is None
                else base64.b64encode(to_proto(each.default).SerializeToString()).decode(),
            }
            for each in cut.features
        ],
    }


def _cut(header: Header) -> ExampleCut:
    wire = graph_pb2.SignatureDef.FromString(base64.b64decode(header["wire"], validate=True))
    return ExampleCut(_text(header["examples"]), tuple(map(_feature, header["features"])), wire)


def _feature(header: Header) -> DenseFeature:
    default = None
    if header["default"] is not None:
        raw = base64.b64decode(header["default"], validate=True)
        default = to_array(tensor_pb2.TensorProto.FromString(raw), _MAX_DEFAULT_BYTES)
    return DenseFeature(
        _text(header["name"]),
        _text(header["input"]),
        _int(header["dtype"]),
        _shape(header["shape"]),
        default,
    )


def _names(header: Header) -> dict[str, str]:
    return {_text(key): _text(name) for key, name in header.items()}


def _shape(sizes: Sequence[object]) -> tuple[int, ...]:
    return tuple(map(_int, sizes))


def _is(kind: type) -> Callable[[object], Any]:
    def check(value: object) -> Any:
        if type(value) is not kind:
            raise Malformed
        return value

    return check


_text: Callable[[object], str] = _is(str)
_int: Callable[[object], int] = _is(int)
_bool: Callable[[object], bool] = _is(bool)
