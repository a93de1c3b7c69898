"""The server as a process: readiness, refusals, signals."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.serving.conftest import OWNER_NAME, https_connection, make_pair, ssl_config
from tests.serving.processes import process, refused


def test_sigterm_finishes_the_request_under_way_and_exits_0(models: Path, tmp_path: Path) -> None:
    owner = make_pair(OWNER_NAME)
    (tmp_path / "ssl.cfg").write_text(ssl_config(owner))
    log = tmp_path / "log"
    with process(
        log,
        f"--model_base_path={models / 'affine'}",
        "--model_name=m",
        f"--ssl_config_file={tmp_path / 'ssl.cfg'}",
        "--port=0",
        "--rest_api_port=0",
        "--enable_batching",
        "--skip_initialize_tpu",
    ) as (child, ports):
        assert set(ports) == {"grpc", "rest"}
        connection = https_connection(ports["rest"], owner)
        body = b'{"instances": [1, 2]}'
        connection.putrequest("POST", "/v1/models/m:predict")
        connection.putheader("Content-Length", str(len(body)))
        connection.putheader("Expect", "100-continue")
        connection.endheaders()
        wait_until_asked_for_the_body(connection)
        child.send_signal(signal.SIGTERM)
        wait_until_closed(ports["rest"])
        connection.send(body)
        response = connection.getresponse()
        assert (response.status, json.loads(response.read())) == (200, {"predictions": [5.0, 9.0]})
        connection.close()
        assert child.wait(30) == 0
    events = [json.loads(line) for line in log.read_text().splitlines()]
    names = [event["event"] for event in events]
    assert names[-3:] == ["draining", "model_unloaded", "stopped"]
    serving = events[names.index("serving")]
    assert {"grpc": serving["grpc"], "rest": serving["rest"]} == ports
    assert serving["tls"] is True
    assert serving["models"] == ["m/2"]
    warned = [event["flag"] for event in events if event["event"] == "flag_without_effect"]
    assert warned == ["--skip_initialize_tpu"]


def wait_until_asked_for_the_body(connection: http.client.HTTPConnection) -> None:
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += connection.sock.recv(1)
    assert answer.startswith(b"HTTP/1.1 100 ")


def wait_until_closed(port: int) -> None:
    while True:
        # Reset: the connection stood in the queue as that was closed.
        with contextlib.suppress(ConnectionResetError):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=20).close()
            except ConnectionRefusedError:
                return
        time.sleep(0.01)


def test_insecure_serves_plaintext_and_says_so(models: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    unix = tmp_path / "grpc.sock"
    with process(
        log,
        f"--model_base_path={models / 'affine'}",
        "--insecure",
        "--port=0",
        "--rest_api_port=0",
        f"--grpc_socket_path={unix}",
    ) as (child, ports):
        connection = http.client.HTTPConnection("127.0.0.1", ports["rest"], timeout=20)
        connection.request("GET", "/v1/models/default")
        assert connection.getresponse().status == 200
        connection.close()
        assert unix.is_socket()
        child.send_signal(signal.SIGINT)
        assert child.wait(30) == 0
    assert '"event": "plaintext"' in log.read_text()


def test_without_tls_the_server_does_not_start(models: Path) -> None:
    status, text = refused(f"--model_base_path={models / 'affine'}")
    assert status == 3
    assert "tls.no_identity" in text
    assert "--insecure" in text


def test_a_ready_fd_that_is_not_open_is_told(models: Path) -> None:
    status, text = refused(f"--model_base_path={models / 'affine'}", "--insecure", "--ready_fd=99")
    assert status == 2
    assert "--ready_fd" in text


def test_a_bad_model_config_file_ends_the_process(tmp_path: Path) -> None:
    file = tmp_path / "models.config"
    file.write_text("model_config_list { confg {} }")
    status, text = refused(f"--model_config_file={file}", "--insecure")
    assert status == 2
    assert "Error parsing text-format tensorflow.serving.ModelServerConfig" in text


@pytest.mark.parametrize("flag", ["--port", "--rest_api_port"])
def test_a_taken_port_is_told(models: Path, flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        flags = {"--port": 0, flag: taken.getsockname()[1]}
        status, text = refused(
            f"--model_base_path={models / 'affine'}",
            "--insecure",
            "--bind_address=127.0.0.1",
            "--ready_fd=2",  # for a free port in the place of the other
            *(f"{name}={port}" for name, port in flags.items()),
        )
    assert status == 4
    assert "serve.port_unavailable" in text
