"""Clients that begin and do not go on: no worker is theirs, nobody waits for them for ever."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sealserve.serving import grpc_front, rest_server
from sealserve.serving.config import ModelConfig
from sealserve.serving.grpc_patience import Patience
from sealserve.wire.serving import api_pb2
from tests.serving.conftest import Running, start_server
from tests.serving.fakes import FakeServer, make_versions
from tests.serving.hostile import Door

PREDICT = "/tensorflow.serving.PredictionService/Predict"
WATCH = "/grpc.health.v1.Health/Watch"
CHECK = "/grpc.health.v1.Health/Check"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeServer]:
    server = FakeServer(ModelConfig("m", make_versions(tmp_path / "m", 1)))
    yield server
    server.health.drain()
    server.grpc.stop(0)
    server.catalog.close()


@pytest.fixture
def channel(server: FakeServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc.port}") as channel:
        yield channel


_BODY = json.dumps({"signature_name": "pairs", "instances": [[1, 2]] * 20_000}).encode()
LARGE = (
    b"POST /v1/models/affine:predict HTTP/1.1\r\nHost: x\r\n"
    + f"Content-Length: {len(_BODY)}\r\n\r\n".encode()
    + _BODY
)
"""A request whose answer is of half a megabyte."""


def request() -> bytes:
    asked = api_pb2.PredictRequest()
    asked.model_spec.name = "m"
    x = asked.inputs["x"]
    x.dtype = 1
    x.tensor_shape.dim.add(size=1)
    x.float_val.append(1.0)
    return asked.SerializeToString()


def nothing(until: threading.Event) -> Iterator[bytes]:
    """The messages of a client that never sends one."""
    until.wait()
    yield from ()


@pytest.mark.parametrize("method", [PREDICT, CHECK, WATCH])
def test_calls_without_a_message_keep_no_worker(
    server: FakeServer, channel: grpc.Channel, method: str
) -> None:
    """gRPC-Python lets each of them hold a thread: as many as there are workers were enough."""
    ended = threading.Event()
    begin = channel.stream_stream(method)
    held = [begin(nothing(ended)) for _ in range(3 * server.config.grpc_threads)]
    assert channel.unary_unary(PREDICT)(request(), timeout=20)
    ended.set()
    for call in held:
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_call_whose_message_does_not_come_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_front, "Patience", lambda working: Patience(working, 0.2))
    server = FakeServer(ModelConfig("m", make_versions(tmp_path / "m", 1)))
    ended = threading.Event()
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc.port}") as channel:
        call = channel.stream_unary(PREDICT).future(nothing(ended))
        assert call.exception(20).code() is grpc.StatusCode.CANCELLED
        # What is worked on is not ended, however long it takes.
        model = server.runtime.models["m/1"]
        model.may_end.clear()
        slow = channel.unary_unary(PREDICT).future(request())
        assert model.begun.wait(20)
        time.sleep(0.6)
        model.may_end.set()
        assert slow.result(20)
    ended.set()
    server.health.drain()
    server.grpc.stop(1)
    server.catalog.close()


def test_what_a_client_waits_for_no_more_is_not_worked_on(
    server: FakeServer, channel: grpc.Channel
) -> None:
    model = server.runtime.models["m/1"]
    model.may_end.clear()
    ask = channel.unary_unary(PREDICT)
    worked_on = [ask.future(request()) for _ in range(server.config.grpc_threads)]
    while model.running < len(worked_on):
        time.sleep(0.01)
    given_up = [ask.future(request(), timeout=0.3) for _ in range(5)]
    for call in given_up:
        assert call.exception(20).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    time.sleep(0.5)  # the server counts from when the call came, and hears later that it is over
    model.may_end.set()
    for call in worked_on:
        assert call.result(20)
    assert ask(request(), timeout=20)
    assert model.runs == len(worked_on) + 1


def test_watchers_of_health_that_come_and_go_stop_nothing(
    server: FakeServer, channel: grpc.Channel
) -> None:
    """The servicer of grpcio-health-checking ends in a deadlock here, and gRPC with it."""
    watch = health_pb2_grpc.HealthStub(channel).Watch

    def come_and_go() -> None:
        for _ in range(100):
            heard = watch(health_pb2.HealthCheckRequest(), timeout=20)
            assert next(heard).status == health_pb2.HealthCheckResponse.SERVING
            heard.cancel()

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert channel.unary_unary(PREDICT)(request(), timeout=20)
    while server.health.watchers:
        time.sleep(0.01)


def test_a_name_that_a_watcher_made_up_is_unknown_and_not_remembered(
    server: FakeServer, channel: grpc.Channel
) -> None:
    watch = health_pb2_grpc.HealthStub(channel).Watch
    calls = [watch(health_pb2.HealthCheckRequest(service=f"made up {n}")) for n in range(3)]
    for call in calls:
        assert next(call).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    assert server.health.watchers == 0
    for call in calls:
        call.cancel()


@pytest.fixture
def impatient(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Running, Door]]:
    """A server that bears half a second of silence."""
    monkeypatch.setattr(rest_server, "_SILENCE_SECONDS", 0.5)
    config = tmp_path / "models.config"
    config.write_text(
        f'model_config_list {{ config {{ name: "affine" base_path: "{models / "affine"}" '
        "model_version_policy { specific { versions: 1 } } } }"
    )
    running = start_server(models, tmp_path, f"--model_config_file={config}")
    yield running, Door(running.server.ports, running.owner.certificate, running.owner.name)
    running.server.stop(1)


def test_a_rest_client_that_goes_silent_is_cut_off(impatient: tuple[Running, Door]) -> None:
    _, door = impatient
    with door.tls() as connection:
        connection.sendall(b"GET /v1/models/affine HTTP/1.1\r\nHost: ")
        assert connection.recv(10) == b""
    with door.tls() as connection:
        connection.sendall(b"GET /v1/models/affine HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(10).startswith(b"HTTP/1.1 2")


def test_a_rest_client_that_reads_nothing_is_cut_off(impatient: tuple[Running, Door]) -> None:
    _, door = impatient
    many = LARGE * 100  # the server reads no more either: waiting for it is a TimeoutError
    with door.tls() as connection, pytest.raises((ssl.SSLError, ConnectionError)):
        connection.sendall(many)


def test_a_rest_client_that_reads_slowly_gets_all(impatient: tuple[Running, Door]) -> None:
    _, door = impatient
    with door.tls() as connection:
        connection.sendall(LARGE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
        answer = b""
        while piece := connection.recv(2**14):
            answer += piece
            if len(answer) % 2**16 < 2**14:
                time.sleep(0.05)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert len(json.loads(body)["predictions"]) == 20_000
