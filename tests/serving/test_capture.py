"""What somebody sees who listens on the network: of a server's ports, nothing but TLS.

A raw socket on the loopback interface records every byte to and from the ports, while every
service is asked with a planted image. The control is the same over ``--insecure``, where the
same recorder finds the same bytes.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from sealserve.wire.serving import api_pb2, v2_pb2
from sealserve.wire.tensors import to_proto
from tests.children import Child
from tests.conftest import missing
from tests.serving.conftest import OWNER_NAME, https_connection, make_pair, ssl_config
from tests.serving.processes import command, process

_ETH_P_IP = 0x0800
_OUTGOING = 4  # the loopback interface shows each packet twice, as sent and as received

IMAGE = np.random.default_rng(3).random((1, 16, 16, 3), np.float32)
PLANTED = {
    "raw": IMAGE.tobytes()[256:320],
    "text": json.dumps([float(each) for each in IMAGE[0, 0, 1]])[1:-1].encode(),
    "flat": json.dumps([float(each) for each in IMAGE.ravel()[6:9]])[1:-1].encode(),
    "metrics": b":tensorflow:serving:request_count",
    "path": b"/v1/models/small",
    "method": b"PredictionService",
}


class Recorder:
    """Everything that TCP carries over the loopback interface to and from some ports."""

    def __init__(self, ports: set[int]) -> None:
        self.streams: dict[tuple[int, int], bytearray] = {}
        self._ports = ports
        try:
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_IP))
        except PermissionError:
            missing("the right to listen on the network", "run the tests as root")
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**24)
        self._socket.bind(("lo", 0))
        self._socket.settimeout(0.2)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._record)
        self._thread.start()

    def stop(self) -> dict[int, bytes]:
        """What was seen of each port, both directions."""
        time.sleep(0.3)
        self._ended.set()
        self._thread.join()
        self._socket.close()
        seen = dict.fromkeys(self._ports, b"")
        for (source, target), stream in sorted(self.streams.items()):
            seen[source if source in self._ports else target] += bytes(stream)
        return seen

    def _record(self) -> None:
        while not self._ended.is_set():
            try:
                frame, address = self._socket.recvfrom(2**17)
            except TimeoutError:
                continue
            packet = frame[14:]
            if address[2] == _OUTGOING or packet[9] != socket.IPPROTO_TCP:
                continue
            (total,) = struct.unpack(">H", packet[2:4])
            segment = packet[(packet[0] & 15) * 4 : total or len(packet)]
            pair = struct.unpack(">HH", segment[:4])
            if self._ports.isdisjoint(pair):
                continue
            self.streams.setdefault(pair, bytearray()).extend(segment[(segment[12] >> 4) * 4 :])


@contextmanager
def recorded(ports: dict[str, int]) -> Iterator[dict[str, bytes]]:
    """Filled, when the block ends, with what was seen of each port."""
    recorder = Recorder(set(ports.values()))
    seen: dict[str, bytes] = {}
    try:
        yield seen
    finally:
        streams = recorder.stop()
        seen |= {name: streams[port] for name, port in ports.items()}


def use(channel: grpc.Channel, connect: Callable[[], HTTPConnection]) -> None:
    """Ask each service, and get an answer from each."""
    request = api_pb2.PredictRequest()
    request.model_spec.name = "small"
    request.inputs["image"].CopyFrom(to_proto(IMAGE, typed_fields=False))
    infer = v2_pb2.ModelInferRequest(model_name="small")
    infer.inputs.add(name="image", datatype="FP32", shape=IMAGE.shape)
    infer.raw_input_contents.append(IMAGE.tobytes())
    for method, raw in (
        ("tensorflow.serving.PredictionService/Predict", request.SerializeToString()),
        ("inference.GRPCInferenceService/ModelInfer", infer.SerializeToString()),
        ("grpc.health.v1.Health/Check", b""),
    ):
        assert channel.unary_unary(f"/{method}")(raw, timeout=30)
    flat: dict[str, Any] = {"name": "image", "datatype": "FP32", "shape": IMAGE.shape}
    for path, body in (
        ("/v1/models/small:predict", {"instances": IMAGE.astype(float).tolist()}),
        ("/v2/models/small/infer", {"inputs": [flat | {"data": IMAGE.ravel().tolist()}]}),
        ("/metrics", None),
        ("/v1/health/ready", None),
    ):
        with closing(connect()) as connection:
            connection.request("POST" if body else "GET", path, body and json.dumps(body))
            response = connection.getresponse()
            assert response.status == 200, (path, response.read())
            assert response.read()


def listening(pid: int) -> set[int]:
    """The TCP ports on which a process listens."""
    sockets = {
        link.readlink().name.removeprefix("socket:[").removesuffix("]")
        for link in Path(f"/proc/{pid}/fd").iterdir()
        if str(link.readlink()).startswith("socket:[")
    }
    ports = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in sockets:
                ports.add(int(fields[1].rpartition(":")[2], 16))
    return ports


@pytest.fixture(scope="module")
def flags(models: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    place = tmp_path_factory.mktemp("capture")
    (place / "monitoring").write_text("prometheus_config { enable: true path: '/metrics' }")
    return place, [
        f"--model_base_path={models / 'small'}",
        "--model_name=small",
        f"--monitoring_config_file={place / 'monitoring'}",
        "--log_requests",
        "--port=0",
        "--rest_api_port=0",
    ]


def test_a_listener_on_the_network_sees_tls_alone(flags: tuple[Path, list[str]]) -> None:
    place, given = flags
    owner = make_pair(OWNER_NAME)
    (place / "ssl.cfg").write_text(ssl_config(owner))
    log = place / "log"
    with process(log, *given, f"--ssl_config_file={place / 'ssl.cfg'}") as (child, ports):
        assert listening(child.pid) == set(ports.values())
        credentials = grpc.ssl_channel_credentials(owner.certificate)
        options = [("grpc.ssl_target_name_override", OWNER_NAME)]
        with (
            recorded(ports) as seen,
            grpc.secure_channel(f"127.0.0.1:{ports['grpc']}", credentials, options) as channel,
        ):
            use(channel, lambda: https_connection(ports["rest"], owner))
    for name, stream in seen.items():
        assert len(stream) > 2 * IMAGE.nbytes, name
        assert [what for what, planted in PLANTED.items() if planted in stream] == [], name
    # Nor does the log of every request hold a piece of it.
    said = log.read_bytes()
    assert said.count(b'"event": "request"') == 4
    assert [what for what in ("raw", "text", "flat") if PLANTED[what] in said] == []


def test_a_server_on_its_unix_socket_alone_opens_no_port(
    flags: tuple[Path, list[str]], tmp_path: Path
) -> None:
    """As in the original, port 0 is no port; it used to be a free one, on every address."""
    _, given = flags
    owner = make_pair(OWNER_NAME)
    (tmp_path / "ssl.cfg").write_text(ssl_config(owner))
    own = (f"--ssl_config_file={tmp_path / 'ssl.cfg'}", f"--grpc_socket_path={tmp_path / 'sock'}")
    log = tmp_path / "log"
    with (
        log.open("wb") as stderr,
        Child(command(*given, *own), stderr=stderr) as child,
    ):
        try:
            end = time.monotonic() + 60
            while b'"event": "serving"' not in log.read_bytes() and time.monotonic() < end:
                time.sleep(0.05)
            assert (tmp_path / "sock").is_socket()
            assert listening(child.pid) == set()
        finally:
            child.kill()


def test_the_same_listener_sees_all_where_there_is_no_tls(flags: tuple[Path, list[str]]) -> None:
    place, given = flags
    with (
        process(place / "log", *given, "--insecure") as (_, ports),
        recorded(ports) as seen,
        grpc.insecure_channel(f"127.0.0.1:{ports['grpc']}") as channel,
    ):
        use(channel, lambda: HTTPConnection("127.0.0.1", ports["rest"], timeout=20))
    for what, name in (
        ("raw", "grpc"),
        ("method", "grpc"),
        ("text", "rest"),
        ("flat", "rest"),
        ("metrics", "rest"),
        ("path", "rest"),
    ):
        assert PLANTED[what] in seen[name], what
