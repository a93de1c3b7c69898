"""The broker's protocol by hand, and a relay that records what passes."""

from __future__ import annotations

import contextlib
import socket
import threading
from dataclasses import dataclass
from typing import Any

import grpc

from sealserve.attestation.binding import release_transcript, report_data_of
from sealserve.attestation.sealing import HpkeKey
from sealserve.broker.identity import SERVER_NAME
from sealserve.broker.protocol import CHALLENGE_METHOD, RELEASE_METHOD
from sealserve.simulator.td import SoftwareTd
from sealserve.wire.broker import v1_pb2
from tests.broker.conftest import BOOT_ID, RESOURCE, World


@dataclass(frozen=True)
class Answer:
    """What came over the wire: bytes, or a status with its details."""

    sealed: bytes | None
    status: str
    details: str


class Wire:
    """The protocol by hand, so that a test can send what no client sends."""

    def __init__(self, world: World, address: str | None = None) -> None:
        self.world = world
        root = world.broker.identity.certificate.encode()
        options = [("grpc.ssl_target_name_override", SERVER_NAME), ("grpc.enable_retries", 0)]
        self.channel = grpc.secure_channel(
            address or world.address, grpc.ssl_channel_credentials(root), options=options
        )

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def call(self, method: str, raw: bytes) -> Answer:
        try:
            answer = self.channel.unary_unary(
                method, request_serializer=bytes, response_deserializer=bytes
            )(raw, timeout=20)
        except grpc.RpcError as error:
            return Answer(None, error.code().name, error.details())
        return Answer(answer, "OK", "")

    def nonce(self, resource: str = RESOURCE) -> bytes:
        request = v1_pb2.ChallengeRequest(resource=resource)
        answer = self.call(CHALLENGE_METHOD, request.SerializeToString())
        assert answer.status == "OK", answer
        response = v1_pb2.ChallengeResponse.FromString(answer.sealed)
        assert response.lifetime_seconds == 60
        return response.nonce

    def request(
        self, key: HpkeKey, *, td: SoftwareTd | None = None, bind: dict[str, Any] | None = None,
        **sent: Any,
    ) -> v1_pb2.ReleaseRequest:  # fmt: skip
        """A request whose quote binds the true values unless ``bind`` says otherwise."""
        true = {
            "nonce": sent.get("nonce") or self.nonce(sent.get("resource", RESOURCE)),
            "hpke_public_key": key.public,
            "resource": RESOURCE,
            "boot_id": BOOT_ID,
        }
        bound = {"broker_spki_sha256": self.world.broker.identity.spki_sha256, **true}
        report_data = report_data_of(release_transcript(**{**bound, **(bind or {})}))
        quote = (td or self.world.td).quote(report_data)
        return v1_pb2.ReleaseRequest(**{"quote": quote, **true, **sent})

    def release(self, request: v1_pb2.ReleaseRequest) -> Answer:
        return self.call(RELEASE_METHOD, request.SerializeToString())


class Relay:
    """A TCP relay that records every byte in both directions."""

    def __init__(self, target_port: int, port: int = 0) -> None:
        self.recorded = bytearray()
        self._target = target_port
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._sockets: list[socket.socket] = []
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._target))
            self._sockets += [near, far]
            for source, sink in ((near, far), (far, near)):
                thread = threading.Thread(target=self._pump, args=(source, sink))
                thread.start()
                self._threads.append(thread)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                self.recorded += data
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join()
