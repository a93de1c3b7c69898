"""How connections and servers end, what the log keeps of requests, and what is not served."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sealserve.wire.serving import api_pb2
from sealserve.wire.tensors import to_proto
from tests.serving.conftest import Running, https_connection, start_server
from tests.serving.hostile import GOOD, Door

PREDICT = "/tensorflow.serving.PredictionService/Predict"
BODY = b'{"instances": [1.0]}'
_STATES = health_pb2.HealthCheckResponse


def own_tls(running: Running) -> ssl.SSLSocket:
    return Door(running.server.ports, running.owner.certificate, running.owner.name).tls()


@pytest.fixture
def own(models: Path, tmp_path: Path) -> Iterator[Running]:
    """A server whose connections live for a second, and that logs every request."""
    config = tmp_path / "models.config"
    config.write_text(
        f'model_config_list {{ config {{ name: "affine" base_path: "{models / "affine"}" }} }}'
    )
    flags = ("--max_connection_age_seconds=1", "--log_requests")
    running = start_server(models, tmp_path, f"--model_config_file={config}", *flags)
    yield running
    running.server.stop(1)


def test_a_connection_ends_when_it_is_old_and_no_request_with_it(own: Running) -> None:
    states: list[grpc.ChannelConnectivity] = []
    end = time.monotonic() + 2.5
    with own.channel() as channel, closing(https_connection(own.rest_port, own.owner)) as rest:
        channel.subscribe(states.append)
        call = channel.unary_unary(PREDICT)
        kept = True
        while time.monotonic() < end:
            assert call(GOOD, timeout=20)
            if kept:
                rest.request("POST", "/v1/models/affine:predict", BODY)
                response = rest.getresponse()
                assert (response.status, response.read()) == (200, b'{"predictions":[5.0]}')
                kept = response.headers.get("connection") != "close"
            time.sleep(0.02)
    assert not kept
    assert states.count(grpc.ChannelConnectivity.READY) >= 2


def test_a_server_that_ends_says_so_and_answers_what_still_comes(own: Running) -> None:
    with own.channel() as channel:
        call, health = channel.unary_unary(PREDICT), health_pb2_grpc.HealthStub(channel)

        def probe(path: str) -> int:
            with closing(https_connection(own.rest_port, own.owner)) as connection:
                connection.request("GET", path)
                return connection.getresponse().status

        assert call(GOOD, timeout=20)
        assert (probe("/v1/health/live"), probe("/v1/health/ready")) == (200, 200)
        stopping = threading.Thread(target=own.server.stop, args=(6,))
        stopping.start()
        while health.Check(health_pb2.HealthCheckRequest()).status == _STATES.SERVING:
            time.sleep(0.01)
        # Its clients have not gone yet: it is alive, wants nobody, and answers.
        assert (probe("/v1/health/live"), probe("/v1/health/ready")) == (200, 503)
        assert call(GOOD, timeout=20)
        with closing(https_connection(own.rest_port, own.owner)) as connection:
            connection.request("POST", "/v1/models/affine:predict", BODY)
            response = connection.getresponse()
            assert (response.status, response.headers["connection"]) == (200, "close")
            response.read()
        stopping.join(30)
    with pytest.raises(ConnectionRefusedError):
        https_connection(own.rest_port, own.owner)


def test_a_client_that_keeps_its_end_open_does_not_keep_the_server(own: Running) -> None:
    with own_tls(own) as connection:
        connection.sendall(b"GET /v1/models/affine HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 200"
        own.server.stop(2)
        while connection.recv(4096):
            pass


def test_the_log_has_an_id_for_every_request_and_nothing_that_was_in_it(own: Running) -> None:
    """Neither of what is answered nor of what is refused, in whatever form it came."""
    planted = np.array([8675309.25, 2718281.5], "f4")
    good, bad, half = api_pb2.PredictRequest(), api_pb2.PredictRequest(), api_pb2.PredictRequest()
    for request, array in ((good, planted), (bad, planted.astype("f8")), (half, planted)):
        request.model_spec.name = "affine"
        request.inputs["x"].CopyFrom(to_proto(array, typed_fields=request is good))
    with own.channel() as channel:
        call = channel.unary_unary(PREDICT)
        for number, raw in enumerate(
            (good.SerializeToString(), bad.SerializeToString(), half.SerializeToString()[:-2])
        ):
            metadata = [("x-request-id", f"grpc-{number}"), ("authorization", "Bearer s3cr3t")]
            asked = call.future(raw, timeout=20, metadata=metadata)
            error = asked.exception()
            assert (error is not None) == (number > 0)
            # It came back with errors only.
            assert ("x-request-id", f"grpc-{number}") in asked.trailing_metadata()
            assert "8675309" not in str(error)
    bodies = (
        {"instances": planted.tolist()},
        {"instances": [str(planted[0])]},
        {"instances": [[8675309.25], 2718281.5]},
        {"inputs": {"8675309.25": [1]}},
        {"signature_name": "8675309.25", "instances": [1]},
        b'{"instances": [8675309.25, 2718281.5',
    )
    for number, body in enumerate(bodies):
        headers = {"X-Request-Id": f"rest-{number}", "X-API-Key": "s3cr3t"}
        with closing(https_connection(own.rest_port, own.owner)) as connection:
            raw = body if isinstance(body, bytes) else json.dumps(body)
            connection.request("POST", "/v1/models/affine:predict", raw, headers)
            assert connection.getresponse().status == (200 if number == 0 else 400), number
    own.server.stop(1)
    text = own.log.getvalue()
    lines = [json.loads(line) for line in text.splitlines()]
    ids = {line["id"]: line["status"] for line in lines if line["event"] == "request"}
    assert {*ids} == {*(f"grpc-{n}" for n in range(3)), *(f"rest-{n}" for n in range(len(bodies)))}
    assert (ids["grpc-0"], ids["rest-0"]) == ("OK", "OK")
    for word in ("8675309", "2718281", "s3cr3t"):
        assert word not in text


@pytest.mark.parametrize(
    "method",
    [
        "tensorflow.ProfilerService/Profile",
        "tensorflow.ProfilerService/Monitor",
        "tensorflow.serving.SessionService/SessionRun",
        "tensorflow.serving.PredictionService/PredictStreamed",
    ],
)
def test_nothing_shows_what_runs_inside(running: Running, method: str) -> None:
    with running.channel() as channel:
        call = channel.unary_unary(f"/{method}").future(b"", timeout=20)
        error = call.exception()
    assert isinstance(error, grpc.RpcError)
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
