"""Health, reflection and TLS versions on the guest port."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from sealserve.broker.config import AdminConfig, BrokerConfig
from sealserve.broker.config_file import render
from sealserve.broker.directory import open_broker
from sealserve.broker.protocol import SERVICE
from tests.broker.admin import Person
from tests.broker.conftest import BOTH_STORES, World
from tests.broker.postgres import Postgres
from tests.broker.test_process import Process, process
from tests.broker.wire import Wire

__all__ = ["process"]  # a fixture

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def check(wire: Wire, service: str = "") -> int:
    stub = health_pb2_grpc.HealthStub(wire.channel)
    request = health_pb2.HealthCheckRequest(service=service)
    return int(stub.Check(request, timeout=20).status)


@BOTH_STORES
def test_a_broker_that_can_answer_is_healthy(world: World) -> None:
    with Wire(world) as wire:
        assert check(wire) == check(wire, SERVICE) == SERVING
        with pytest.raises(grpc.RpcError) as caught:
            check(wire, "another.Service")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        stream = health_pb2_grpc.HealthStub(wire.channel).Watch(health_pb2.HealthCheckRequest())
        with pytest.raises(grpc.RpcError) as watching:
            next(stream)
        assert watching.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("store_kind", ["postgresql"], indirect=True)
def test_health_follows_the_database(
    world: World, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sealserve.broker.introspection._FRESH_SECONDS", 0.0)
    with Wire(world) as wire:
        assert check(wire) == SERVING
        postgres.stop()
        try:
            assert check(wire) == NOT_SERVING
        finally:
            postgres.start()
        assert check(wire) == SERVING


def test_reflection_describes_the_guests_service(world: World) -> None:
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE),
    ]
    with Wire(world) as wire:
        stub = reflection_pb2_grpc.ServerReflectionStub(wire.channel)
        listed, described = stub.ServerReflectionInfo(iter(asked), timeout=20)
    assert [each.name for each in listed.list_services_response.service] == [SERVICE]
    raw = described.file_descriptor_response.file_descriptor_proto[0]
    (service,) = FileDescriptorProto.FromString(raw).service
    assert [method.name for method in service.method] == ["Challenge", "Release", "Renew"]


def test_a_reflection_stream_that_stays_open_is_ended(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sealserve.broker.introspection._REFLECTION_SECONDS", 0.5)
    open_end = threading.Event()

    def forever() -> object:
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        open_end.wait(30)

    with Wire(world) as wire:
        stub = reflection_pb2_grpc.ServerReflectionStub(wire.channel)
        stream = stub.ServerReflectionInfo(forever(), timeout=20)
        next(stream)
        with pytest.raises(grpc.RpcError) as second:
            next(stub.ServerReflectionInfo(forever(), timeout=20))
        assert second.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        began = time.monotonic()
        with pytest.raises(grpc.RpcError):
            next(stream)
        assert time.monotonic() - began < 10
        assert bytes(world.ask().secret) == world.key
        open_end.set()


def _version(address: str, context: ssl.SSLContext) -> str | None:
    host, _, port = address.rpartition(":")
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((host, int(port)), timeout=20) as raw,
        context.wrap_socket(raw) as tls,
    ):
        return tls.version()


def test_a_broker_process_speaks_tls_1_3_only(process: Process, tmp_path: Path) -> None:
    """On the guests' port, and on the administration's with a key that is welcome there."""
    alice = Person.make("alice", tmp_path)
    with open_broker(process.root) as broker:
        alice.add_to(broker, "admin")
    chosen = BrokerConfig(admin=AdminConfig(listen="127.0.0.1:0"))
    (process.root / "broker.yaml").write_bytes(render(chosen))
    process.start()
    for address in (process.address, process.ready["admin"]):
        new, old = (ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) for _ in range(2))
        for context in (new, old):
            context.load_cert_chain(alice.file)
        assert _version(address, new) == "TLSv1.3"
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises((ssl.SSLError, ConnectionError)):
            _version(address, old)
    assert process.ask()
    process.stop()
    assert all(line.startswith("{") for line in process.stderr.read_text().splitlines())
