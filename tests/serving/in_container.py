"""Runs alone in namespaces of its own: two argument lines of TensorFlow Serving, as they stand.

``in_container.py MODEL PROGRAMS SSL_CONFIG CERTIFICATE NAME``: puts the model where KServe
puts it, starts what KServe and what TensorFlow Serving's image start - the fixed ports of
both lines are free here, whatever else runs on this machine -, asks each port for a
prediction over TLS, and prints the answers as JSON.
"""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import signal
import socket
import ssl
import struct
import subprocess
import sys
import time
from pathlib import Path

import grpc
import numpy as np

from sealserve.wire.serving import api_pb2
from sealserve.wire.tensors import to_proto

KSERVE = [
    "tensorflow_model_server",
    "--model_name=half-plus-two",
    "--port=9000",
    "--rest_api_port=8080",
    "--model_base_path=/mnt/models",
    "--rest_api_timeout_in_ms=60000",
]
DOCKER = ["tf_serving_entrypoint.sh", "--enable_batching=false"]
READY_SECONDS = 60
LOOPBACK_UP = 0x1 | 0x8 | 0x40  # IFF_UP, IFF_LOOPBACK, IFF_RUNNING


def bring_up_loopback() -> None:
    request = struct.pack("16sH14x", b"lo", LOOPBACK_UP)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, 0x8914, request)  # SIOCSIFFLAGS


def mount(model: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "none", "/mnt"], check=True)
    Path("/mnt/models").mkdir()
    subprocess.run(["mount", "--bind", model, "/mnt/models"], check=True)


def ask_rest(port: int, model: str, certificate: str, name: str) -> object:
    context = ssl.create_default_context(cafile=certificate)
    plain = socket.create_connection(("127.0.0.1", port), timeout=20)
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.sock = context.wrap_socket(plain, server_hostname=name)
    connection.request("POST", f"/v1/models/{model}:predict", b'{"instances": [1, 2]}')
    answer = connection.getresponse().read()
    connection.close()
    return json.loads(answer)


def ask_grpc(port: int, model: str, certificate: str, name: str) -> list[float]:
    request = api_pb2.PredictRequest()
    request.model_spec.name = model
    request.inputs["x"].CopyFrom(to_proto(np.array([1, 2], "f4")))
    credentials = grpc.ssl_channel_credentials(Path(certificate).read_bytes())
    options = [("grpc.ssl_target_name_override", name)]
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
        stub = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        raw = stub(request.SerializeToString(), timeout=20, wait_for_ready=True)
    return list(api_pb2.PredictResponse.FromString(raw).outputs["y"].float_val)


def wait_for(port: int, child: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=20).close()
            return
        except ConnectionRefusedError:
            if child.poll() is not None or time.monotonic() > deadline:
                raise TimeoutError(f"no server on {port}") from None
            time.sleep(0.05)


def main() -> None:
    model, programs, ssl_config, certificate, name = sys.argv[1:]
    bring_up_loopback()
    mount(model)
    tls = {"SEALSERVE_SSL_CONFIG_FILE": ssl_config}
    image = {"MODEL_NAME": "models", "MODEL_BASE_PATH": "/mnt"}
    path = f"{programs}:{os.environ['PATH']}"
    children = [
        subprocess.Popen(line, env={**os.environ, **more, **tls, "PATH": path})
        for line, more in ((KSERVE, {}), (DOCKER, image))
    ]
    answers = {}
    try:
        for child, ports, served in zip(
            children, ((9000, 8080), (8500, 8501)), ("half-plus-two", "models"), strict=True
        ):
            wait_for(ports[1], child)
            for port, ask in zip(ports, (ask_grpc, ask_rest), strict=True):
                answers[port] = ask(port, served, certificate, name)
        for child in children:
            child.send_signal(signal.SIGTERM)
        ended = [child.wait(30) for child in children]
    finally:
        for child in children:
            child.kill()
    print(json.dumps({"answers": answers, "ended": ended}))


main()
