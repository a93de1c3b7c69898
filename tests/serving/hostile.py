"""Requests that are wrong, each with the answer that it must get, and clients that are slow.

They ask the model ``affine``: ``x`` of shape ``[-1]``, and in its signature ``pairs`` ``u`` of
shape ``[-1, 2]``.
"""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np

from sealserve.wire.serving import api_pb2
from sealserve.wire.tensorflow import tensor_pb2 as pb
from sealserve.wire.tensors import to_proto

__all__ = ["BODY_SECONDS", "GOOD", "GRPC", "LIMIT", "REST", "SLOW", "Door", "Grpc", "Rest"]

LIMIT = 200_000
"""Bytes that the server is told to read at most."""

BODY_SECONDS = 2
"""How long it is told to wait for a body."""


@dataclass(frozen=True)
class Door:
    """A server's ports, and how to come to them."""

    ports: Mapping[str, int]
    certificate: bytes
    name: str

    def channel(self) -> grpc.Channel:
        return grpc.secure_channel(
            f"127.0.0.1:{self.ports['grpc']}",
            grpc.ssl_channel_credentials(self.certificate),
            [
                ("grpc.ssl_target_name_override", self.name),
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.max_send_message_length", -1),
            ],
        )

    def plain(self, port: str = "rest") -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.ports[port]), timeout=30)

    def tls(self) -> ssl.SSLSocket:
        context = ssl.create_default_context(cadata=self.certificate.decode())
        return context.wrap_socket(self.plain(), server_hostname=self.name)

    def http(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", self.ports["rest"])
        connection.sock = self.tls()
        return connection


@dataclass(frozen=True)
class Grpc:
    """A call, and the status that it must end with."""

    what: str
    status: str
    raw: bytes
    method: str = "PredictionService/Predict"
    packed: bool = False

    def send(self, channel: grpc.Channel) -> str:
        call = channel.unary_unary(f"/tensorflow.serving.{self.method}")
        compression = grpc.Compression.Gzip if self.packed else grpc.Compression.NoCompression
        try:
            call(self.raw, timeout=30, compression=compression)
        except grpc.RpcError as error:
            status: str = error.code().name
            return status
        return "OK"


@dataclass(frozen=True)
class Rest:
    """A request, and the status that it must get."""

    what: str
    status: int
    body: Any
    path: str = "/v1/models/affine:predict"
    headers: Mapping[str, str] = field(default_factory=dict)

    def send(self, connection: http.client.HTTPConnection) -> int:
        raw = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        connection.request("POST", self.path, raw, dict(self.headers))
        response = connection.getresponse()
        assert "error" in json.loads(response.read()), self.what
        return response.status


def _request(name: str = "affine", signature: str = "", **more: Any) -> bytes:
    request = api_pb2.PredictRequest()
    request.model_spec.name = name
    request.model_spec.signature_name = signature
    if "label" in more:
        request.model_spec.version_label = more["label"]
    if "version" in more:
        request.model_spec.version.value = more["version"]
    request.output_filter.extend(more.get("outputs", []))
    for key, proto in more.get("inputs", {"x": to_proto(np.array([1], "f4"))}).items():
        request.inputs[key].CopyFrom(proto)
    return request.SerializeToString()


def _x(array: Any) -> bytes:
    return _request(inputs={"x": to_proto(np.asarray(array))})


def _claims(*shape: int, dtype: int = pb.DT_FLOAT, **values: Any) -> bytes:
    """An ``x`` that says it has this shape."""
    proto = pb.TensorProto(dtype=dtype, **(values or {"float_val": [1.0]}))
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    return _request(inputs={"x": proto})


GOOD = _request()

_ONLY_A_NAME = api_pb2.PredictRequest(
    model_spec=api_pb2.ModelSpec(name="affine")
).SerializeToString()

GRPC = (
    Grpc("no message", "INVALID_ARGUMENT", b"\xff\xff\xff"),
    Grpc("half a message", "INVALID_ARGUMENT", GOOD[:-3]),
    Grpc("an empty message", "INVALID_ARGUMENT", b""),
    Grpc("another message", "INVALID_ARGUMENT", b"\x08\x01" * 1000),
    Grpc("a wrong dtype", "INVALID_ARGUMENT", _x(np.array([1], "i4"))),
    Grpc("strings", "INVALID_ARGUMENT", _x(["a"])),
    Grpc("a dtype that there is not", "INVALID_ARGUMENT", _claims(1, dtype=99)),
    Grpc("too few bytes", "INVALID_ARGUMENT", _claims(4, tensor_content=b"\0" * 8)),
    Grpc("too many values", "INVALID_ARGUMENT", _claims(1, float_val=[1.0] * 5)),
    Grpc("a negative dimension", "INVALID_ARGUMENT", _claims(-1)),
    Grpc("a huge dimension", "RESOURCE_EXHAUSTED", _claims(2**40)),
    Grpc("a huge product of dimensions", "RESOURCE_EXHAUSTED", _claims(2**20, 2**20)),
    Grpc("a product that overflows", "INVALID_ARGUMENT", _claims(*[2**62] * 3)),
    Grpc("a thousand dimensions", "INVALID_ARGUMENT", _claims(*[1] * 1000)),
    Grpc(
        "a wrong shape",
        "INVALID_ARGUMENT",
        _request(signature="pairs", inputs={"u": to_proto(np.zeros((1, 3), "f4"))}),
    ),
    Grpc("an unknown input", "INVALID_ARGUMENT", _request(inputs={"z": to_proto(np.ones(1))})),
    Grpc("no input", "INVALID_ARGUMENT", _request(inputs={})),
    Grpc("an unknown output", "INVALID_ARGUMENT", _request(outputs=["z"])),
    Grpc("an unknown model", "NOT_FOUND", _request("nope")),
    Grpc("a model with an odd name", "NOT_FOUND", _request("../\n\0é" * 50)),
    Grpc("a model that was refused", "NOT_FOUND", _request("trap_counter")),
    Grpc("an unknown version", "NOT_FOUND", _request(version=99)),
    Grpc("an unknown label", "INVALID_ARGUMENT", _request(label="nope")),
    Grpc("an unknown signature", "FAILED_PRECONDITION", _request(signature="nope")),
    Grpc("beyond the limit", "RESOURCE_EXHAUSTED", b"\0" * (LIMIT + 1)),
    Grpc("a bomb", "RESOURCE_EXHAUSTED", b"\0" * 20_000_000, packed=True),
    Grpc("no field", "INVALID_ARGUMENT", _ONLY_A_NAME, "PredictionService/GetModelMetadata"),
    Grpc("no examples", "INVALID_ARGUMENT", _ONLY_A_NAME, "PredictionService/Classify"),
    Grpc("the state of nothing", "INVALID_ARGUMENT", b"", "ModelService/GetModelStatus"),
    Grpc("nobody's reload", "UNAUTHENTICATED", b"", "ModelService/HandleReloadConfigRequest"),
    Grpc("no method", "UNIMPLEMENTED", GOOD, "PredictionService/SessionRun"),
)

_GZIP = {"Content-Encoding": "gzip"}
_V2 = "/v2/models/affine/infer"
_V2_X = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}


def _v2(**changes: Any) -> dict[str, Any]:
    return {"inputs": [_V2_X | changes]}


REST = (
    Rest("no JSON", 400, b'{"instances": [1'),
    Rest("no text", 400, b"\xff\xfe"),
    Rest("an empty body", 400, b""),
    Rest("no object", 400, [1]),
    Rest("neither form", 400, {"x": [1]}),
    Rest("both forms", 400, {"instances": [1], "inputs": [1]}),
    Rest("a wrong type", 400, {"instances": ["a"]}),
    Rest("a ragged list", 400, {"inputs": [[1], [1, 2]]}),
    Rest("a wrong shape", 400, {"signature_name": "pairs", "instances": [[1, 2, 3]]}),
    Rest("an endless depth", 400, b'{"instances": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"),
    Rest("an endless number", 400, b'{"instances": [' + b"9" * 100_000 + b"]}"),
    Rest("an unknown input", 400, {"inputs": {"z": [1]}}),
    Rest("an unknown signature", 400, {"signature_name": "nope", "instances": [1]}),
    Rest("an unknown model", 404, {"instances": [1]}, "/v1/models/nope:predict"),
    Rest("an unknown version", 404, {"instances": [1]}, "/v1/models/affine/versions/9:predict"),
    Rest("a version of no number", 400, {"instances": [1]}, "/v1/models/affine/versions/x:predict"),
    Rest("an unknown label", 400, {"instances": [1]}, "/v1/models/affine/labels/x:predict"),
    Rest("no path", 400, {"instances": [1]}, "/v1/model/affine"),
    Rest("a path upwards", 400, {"instances": [1]}, "/v1/models/../../etc/passwd"),
    Rest("beyond the limit", 413, b" " * (LIMIT + 1)),
    Rest("a bomb", 413, gzip.compress(b" " * 20_000_000), headers=_GZIP),
    Rest("a damaged body", 400, gzip.compress(b"{}")[:-4], headers=_GZIP),
    Rest("no gzip", 400, b"{}", headers=_GZIP),
    Rest("another encoding", 400, b"{}", headers={"Content-Encoding": "br"}),
    Rest("v2: no inputs", 400, {}, _V2),
    Rest("v2: an unknown datatype", 400, _v2(datatype="FP99"), _V2),
    Rest("v2: another datatype", 400, _v2(datatype="INT32", data=[1]), _V2),
    Rest("v2: a shape of another size", 400, _v2(shape=[4]), _V2),
    Rest("v2: a huge shape", 400, _v2(shape=[2**62]), _V2),
    Rest("v2: an unknown model", 404, _v2(), "/v2/models/nope/infer"),
)


# Slow clients: each begins something and is held open until the context is left.

Held = contextlib.AbstractContextManager[None]


@contextlib.contextmanager
def _no_handshake(door: Door) -> Iterator[None]:
    with door.plain():
        yield


@contextlib.contextmanager
def _no_grpc_handshake(door: Door) -> Iterator[None]:
    with door.plain("grpc") as plain:
        plain.sendall(b"\x16\x03\x01")
        yield


@contextlib.contextmanager
def _plaintext(door: Door) -> Iterator[None]:
    with door.plain() as plain:
        plain.sendall(b"POST /v1/models/affine:predict HTTP/1.1\r\n")
        yield


@contextlib.contextmanager
def _half_a_header(door: Door) -> Iterator[None]:
    with door.tls() as connection:
        connection.sendall(b"POST /v1/models/affine:predict HTTP/1.1\r\nX-Half: ")
        yield


@contextlib.contextmanager
def _half_a_body(door: Door) -> Iterator[None]:
    with door.tls() as connection:
        connection.sendall(
            b"POST /v1/models/affine:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"
        )
        yield


@contextlib.contextmanager
def _unread_answers(door: Door) -> Iterator[None]:
    """Ask for much, again and again, and read nothing of it."""
    body = json.dumps({"signature_name": "pairs", "instances": [[1, 2]] * 10_000}).encode()
    head = f"POST /v1/models/affine:predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}"
    with door.tls() as connection:
        connection.settimeout(0.2)
        with contextlib.suppress(OSError):
            for _ in range(20):
                connection.sendall(head.encode() + b"\r\n\r\n" + body)
        yield


@contextlib.contextmanager
def _half_a_call(door: Door) -> Iterator[None]:
    ended = threading.Event()

    def nothing() -> Iterator[bytes]:
        ended.wait()
        yield from ()

    with door.channel() as channel:
        calls = [
            channel.stream_stream(method)(nothing())
            for method in (
                "/tensorflow.serving.PredictionService/Predict",
                "/grpc.health.v1.Health/Check",
                "/grpc.health.v1.Health/Watch",
            )
        ]
        try:
            yield
        finally:
            for call in calls:
                call.cancel()
            ended.set()


SLOW: tuple[Callable[[Door], Held], ...] = (
    _no_handshake,
    _no_grpc_handshake,
    _plaintext,
    _half_a_header,
    _half_a_body,
    _unread_answers,
    _half_a_call,
)
