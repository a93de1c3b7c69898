"""Clients that ask without a pause, in a process of their own, and what failed of it.

    python -m tests.serving.load SETTINGS

SETTINGS is JSON: ``grpc`` and ``rest``, the ports of one server or of several replicas;
``roots``, a file of PEM certificates to trust; ``name``, the server's; ``connections`` of each
kind; ``renew``, how many requests a connection lives for.

A line on stdin is answered with a line of JSON: what was asked since the last one, what
failed of it, and which versions answered. The end of stdin is the end.

What counts as a failure is strict: anything but the right answer to a request that was sent.
Over gRPC the clients watch the server's health, as clients of several replicas should, and
wait for a replica that is ready. Over REST they only go to the next replica when one
takes no connection, and when they are told that this connection ends.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import sys
import threading
import time
from pathlib import Path
from typing import Any

import grpc

from sealserve.wire.serving import api_pb2
from sealserve.wire.tensorflow import tensor_pb2 as pb

_PAUSE = 0.002
_TIMEOUT = 30.0
_BODY = b'{"instances": [1.0]}'


class Load:
    """The clients, and their book."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._book: dict[str, Any] = {}
        self._empty()

    def start(self) -> None:
        for number in range(self.settings["connections"]):
            for work in (self._grpc, self._rest):
                threading.Thread(target=work, args=(number,), daemon=True).start()

    def report(self) -> str:
        with self._lock:
            said = json.dumps(self._book)
            self._empty()
        return said

    def end(self) -> None:
        self._ended.set()

    def _empty(self) -> None:
        self._book = {"grpc": 0, "rest": 0, "connections": 0, "failures": [], "versions": []}

    def _note(self, kind: str, failure: str | None, version: int | None = None) -> None:
        with self._lock:
            self._book[kind] += 1
            if failure is not None:
                self._book["failures"].append(f"{kind}: {failure}")
            if version is not None and version not in self._book["versions"]:
                self._book["versions"].append(version)
        time.sleep(_PAUSE)

    def _connected(self) -> None:
        with self._lock:
            self._book["connections"] += 1

    def _grpc(self, _: int) -> None:
        request = api_pb2.PredictRequest()
        request.model_spec.name = "m"
        x = request.inputs["x"]
        x.dtype = pb.DT_FLOAT
        x.tensor_shape.dim.add(size=1)
        x.float_val.append(1.0)
        raw = request.SerializeToString()
        while not self._ended.is_set():
            self._connected()
            with self._channel() as channel:
                call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
                for _ in range(self.settings["renew"]):
                    try:
                        answer = call(raw, timeout=_TIMEOUT, wait_for_ready=True)
                    except grpc.RpcError as error:
                        self._note("grpc", f"{error.code().name}: {error.details()}")
                        continue
                    response = api_pb2.PredictResponse.FromString(answer)
                    values = list(response.outputs["y"].float_val)
                    wrong = None if values == [5.0] else f"{values}"
                    self._note("grpc", wrong, response.model_spec.version.value)

    def _channel(self) -> grpc.Channel:
        config = {
            "loadBalancingConfig": [{"round_robin": {}}],
            "healthCheckConfig": {"serviceName": ""},
        }
        addresses = ",".join(f"127.0.0.1:{port}" for port in self.settings["grpc"])
        return grpc.secure_channel(
            f"ipv4:{addresses}",
            grpc.ssl_channel_credentials(Path(self.settings["roots"]).read_bytes()),
            [
                ("grpc.ssl_target_name_override", self.settings["name"]),
                ("grpc.service_config", json.dumps(config)),
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.max_reconnect_backoff_ms", 500),
            ],
        )

    def _rest(self, number: int) -> None:
        ports = self.settings["rest"]
        at = number
        while not self._ended.is_set():
            try:
                connection = self._connection(ports[at % len(ports)])
            except OSError:
                at += 1
                time.sleep(0.01)
                continue
            self._connected()
            for _ in range(self.settings["renew"]):
                try:
                    connection.request("POST", "/v1/models/m:predict", _BODY)
                    response = connection.getresponse()
                    status, body = response.status, response.read()
                except (OSError, http.client.HTTPException) as error:
                    self._note("rest", f"{type(error).__name__}: {error}")
                    break
                right = status == 200 and json.loads(body) == {"predictions": [5.0]}
                self._note("rest", None if right else f"{status} {body!r}")
                if response.headers.get("connection") == "close":
                    at += 1
                    break
            connection.close()

    def _connection(self, port: int) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT)
        context = ssl.create_default_context(cafile=self.settings["roots"])
        plain = socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT)
        connection.sock = context.wrap_socket(plain, server_hostname=self.settings["name"])
        return connection


def main() -> None:
    load = Load(json.loads(sys.argv[1]))
    load.start()
    for _ in sys.stdin:
        print(load.report(), flush=True)
    load.end()


if __name__ == "__main__":
    main()
