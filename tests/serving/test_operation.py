"""Health, metrics, roles, reloads: what an operator sees and may do."""

from __future__ import annotations

import datetime
import gzip
import hashlib
import json
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtensionOID
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from sealserve.errors import InputError, Refused
from sealserve.logs import make_log
from sealserve.serving.access import Gate, Peer, Role, names_of
from sealserve.serving.config import LifeConfig, ModelConfig, ServerConfig
from sealserve.serving.metrics import Metrics
from sealserve.serving.rest_body import unzip
from sealserve.wire.serving import api_pb2
from tests.serving.conftest import Pair, Running, https_connection, make_pair, start_server
from tests.serving.fakes import FakeServer, make_versions

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def check(port: int, name: str = "") -> int:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        request = health_pb2.HealthCheckRequest(service=name)
        return int(health_pb2_grpc.HealthStub(channel).Check(request, timeout=20).status)


def test_health_tells_the_truth(tmp_path: Path) -> None:
    server = FakeServer(ModelConfig("m", make_versions(tmp_path / "m", 1)))
    names = ("", "PredictionService", "tensorflow.serving.ModelService")
    assert {check(server.grpc.port, name) for name in names} == {SERVING}
    with pytest.raises(grpc.RpcError) as caught:
        check(server.grpc.port, "no.such.Service")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    server.catalog.reload([])
    assert {check(server.grpc.port, name) for name in names} == {NOT_SERVING}
    server.catalog.reload([ModelConfig("m", tmp_path / "m")])
    assert check(server.grpc.port) == SERVING
    server.health.drain()
    assert {check(server.grpc.port, name) for name in names} == {NOT_SERVING}
    server.grpc.stop(1)
    server.catalog.close()


def test_a_watcher_of_health_hears_of_the_change(tmp_path: Path) -> None:
    server = FakeServer(ModelConfig("m", make_versions(tmp_path / "m", 1)))
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc.port}") as channel:
        heard = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(heard).status == SERVING
        server.catalog.reload([])
        assert next(heard).status == NOT_SERVING
        heard.cancel()
    server.health.drain()
    server.grpc.stop(1)
    server.catalog.close()


def test_reflection_knows_the_services(tmp_path: Path) -> None:
    config = ServerConfig((), bind_address="127.0.0.1", grpc_port=0, reflection=True)
    server = FakeServer(config=config)
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc.port}") as channel:
        ask = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        symbol = "tensorflow.serving.PredictionService"
        requests = iter(
            [
                reflection_pb2.ServerReflectionRequest(list_services=""),
                reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol),
            ]
        )
        listed, described = ask(requests, timeout=20)
    names = {each.name for each in listed.list_services_response.service}
    assert {symbol, "inference.GRPCInferenceService"} <= names
    assert described.file_descriptor_response.file_descriptor_proto
    server.health.drain()
    server.grpc.stop(1)


def reload_request(name: str, base_path: Path) -> bytes:
    request = api_pb2.ReloadConfigRequest()
    request.config.model_config_list.config.add(name=name, base_path=str(base_path))
    return request.SerializeToString()


def call(channel: grpc.Channel, method: str, raw: bytes, key: str = "") -> tuple[str, Any]:
    metadata = [("authorization", f"Bearer {key}")] if key else []
    stub = channel.unary_unary(f"/tensorflow.serving.{method}")
    try:
        return "OK", stub(raw, timeout=20, metadata=metadata)
    except grpc.RpcError as error:
        return error.code().name, error.details()


RELOAD = "ModelService/HandleReloadConfigRequest"


def access_file(place: Path, **keys: list[str]) -> Path:
    file = place / "access.yaml"
    entries = [
        {"name": name, "sha256": hashlib.sha256(name.encode()).hexdigest(), "roles": roles}
        for name, roles in keys.items()
    ]
    file.write_text(json.dumps({"predict": "any", "api_keys": entries}))
    return file


def test_a_reload_needs_the_role_and_stays_within_the_roots(tmp_path: Path) -> None:
    root = tmp_path / "root"
    good, outside = make_versions(root / "good", 1), make_versions(tmp_path / "outside", 1)
    (root / "link").symlink_to(outside)
    config = ServerConfig(
        (),
        bind_address="127.0.0.1",
        grpc_port=0,
        access_file=access_file(tmp_path, boss=["admin"], user=["predict", "metrics"]),
        life=LifeConfig(roots=(root.resolve(),)),
    )
    server = FakeServer(config=config)
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc.port}") as channel:
        assert call(channel, RELOAD, reload_request("m", good))[0] == "UNAUTHENTICATED"
        assert call(channel, RELOAD, reload_request("m", good), "user")[0] == "UNAUTHENTICATED"
        for place in (outside, root / "link", root / ".." / "outside", Path("/")):
            status, words = call(channel, RELOAD, reload_request("m", place), "boss")
            assert (status, "not within" in words) == ("PERMISSION_DENIED", True), place
        assert server.catalog.available() == []
        assert call(channel, RELOAD, b"", "boss") == (
            "INVALID_ARGUMENT",
            (
                "ServerModelConfig type not supported by HandleReloadConfigRequest. "
                "Only ModelConfigList is currently supported"
            ),
        )
        status, raw = call(channel, RELOAD, reload_request("m", good), "boss")
        assert status == "OK"
        assert api_pb2.ReloadConfigResponse.FromString(raw).HasField("status")
        assert server.catalog.available() == [("m", 1)]
        status, words = call(channel, RELOAD, reload_request("m", root / "none"), "boss")
        assert status == "OK"  # an unreadable base path leaves what is served
        assert server.catalog.available() == [("m", 1)]
    assert "boss" not in server.log.getvalue()
    server.health.drain()
    server.grpc.stop(1)
    server.catalog.close()


def test_without_an_access_file_nobody_reloads(tmp_path: Path) -> None:
    gate = Gate(None, make_log())
    gate.check(Role.PREDICT, Peer())
    gate.check(Role.METRICS, Peer())
    for peer in (Peer(), Peer(make_pair("ops").der), Peer(key="x")):
        with pytest.raises(Refused):
            gate.check(Role.ADMIN, peer)


def test_roles_follow_names_and_fingerprints(tmp_path: Path) -> None:
    named, pinned, other = make_pair("ops.example"), make_pair("b"), make_pair("c")
    finger = hashlib.sha256(pinned.der).hexdigest()
    file = tmp_path / "access.yaml"
    file.write_text(f'admin: ["ops.example", "sha256:{finger}"]\n')
    gate = Gate(file, make_log())
    gate.check(Role.ADMIN, Peer(named.der))
    gate.check(Role.ADMIN, Peer(pinned.der))
    for role, peer in ((Role.ADMIN, Peer(other.der)), (Role.PREDICT, Peer(named.der))):
        with pytest.raises(Refused) as caught:
            gate.check(role, peer)
        assert caught.value.code == "access.role_missing"
    with pytest.raises(Refused) as caught:
        gate.check(Role.PREDICT, Peer())
    assert caught.value.code == "access.unknown_caller"


def test_a_certificate_with_names_of_an_unknown_kind_means_nobody() -> None:
    """TLS may have verified it; the error of its names was a bug's to the caller."""
    key, nobody = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.datetime.now(datetime.UTC)
    x400 = x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, b"\x30\x02\xa3\x00")
    certificate = (
        x509.CertificateBuilder(nobody, nobody, key.public_key(), 1)
        .not_valid_before(now)
        .not_valid_after(now)
        .add_extension(x400, critical=False)
        .sign(key, hashes.SHA256())
    )
    assert names_of(certificate.public_bytes(serialization.Encoding.DER)) == set()


@pytest.mark.parametrize(
    "text",
    [
        "admin: any",
        "admins: [a]",
        "predict: some",
        'admin: ["sha256:0f3a"]',  # was a name that nobody has
        "predict: ['']",
        "api_keys: [{name: a, sha256: abc, roles: [predict]}]",
        "api_keys: [{name: a, sha256: '" + 64 * "0" + "', roles: [root]}]",
        "api_keys: [{name: a, sha256: '" + 64 * "0" + "', roles: []}]",
        "- a",
        "a: b: c",
    ],
)
def test_bad_access_files(tmp_path: Path, text: str) -> None:
    file = tmp_path / "access.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        Gate(file, make_log())
    assert caught.value.code == "access.file_malformed"


@pytest.fixture(scope="module")
def guarded(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with metrics, CORS, a client CA and API keys."""
    place = tmp_path_factory.mktemp("guarded")
    client = make_pair("client.example")
    CLIENTS.append(client)
    pem = client.certificate.decode().replace("\n", "\\n")
    (place / "monitoring.config").write_text("prometheus_config { enable: true path: '/metrics' }")
    access = {
        "predict": ["client.example"],
        "metrics": ["client.example"],
        "api_keys": [
            {"name": "k", "sha256": hashlib.sha256(b"secret").hexdigest(), "roles": ["predict"]}
        ],
    }
    (place / "access.yaml").write_text(json.dumps(access))
    (place / "one.config").write_text(
        f'model_config_list {{ config {{ name: "affine" base_path: "{models / "affine"}" }} }}'
    )
    running = start_server(
        models,
        place,
        f"--model_config_file={place / 'one.config'}",
        f"--access_file={place / 'access.yaml'}",
        f"--monitoring_config_file={place / 'monitoring.config'}",
        "--rest_api_enable_cors_support",
        "--log_requests",
        extra_ssl=f'custom_ca: "{pem}"\nclient_verify: true\n',
    )
    yield running
    running.server.stop(2)


CLIENTS: list[Pair] = []


def ask(
    running: Running,
    path: str,
    body: Any = None,
    *,
    method: str = "",
    client: Pair | None = None,
    **headers: str,
) -> tuple[int, dict[str, str], bytes]:
    connection = https_connection(running.rest_port, running.owner, client)
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request(method or ("POST" if body else "GET"), path, body, names)
        response = connection.getresponse()
        raw = response.read()
    finally:
        connection.close()
    return response.status, {key.lower(): value for key, value in response.getheaders()}, raw


PREDICT = "/v1/models/affine:predict"
BODY = b'{"instances": [1.0]}'


def test_a_certificate_or_a_key_opens_rest(guarded: Running) -> None:
    client = CLIENTS[0]
    assert ask(guarded, PREDICT, BODY, client=client)[0] == 200
    assert ask(guarded, PREDICT, BODY, x_api_key="secret")[0] == 200
    assert ask(guarded, PREDICT, BODY, authorization="Bearer secret")[0] == 200
    for headers in ({}, {"x_api_key": "Secret"}, {"authorization": "Basic secret"}):
        status, _, raw = ask(guarded, PREDICT, BODY, **headers)
        assert status == 401
        assert "role predict" in json.loads(raw)["error"]
    assert ask(guarded, "/metrics", x_api_key="secret")[0] == 401
    with pytest.raises((ssl.SSLError, ConnectionError, OSError)):
        ask(guarded, PREDICT, BODY, client=make_pair("client.example"))
    assert "secret" not in guarded.log.getvalue()


def test_probes_are_for_everybody(guarded: Running) -> None:
    assert ask(guarded, "/v1/health/live")[::2] == (200, b'{"live":true}')
    assert ask(guarded, "/v1/health/ready")[::2] == (200, b'{"ready":true}')


def test_metrics_have_the_originals_names_and_a_version(guarded: Running) -> None:
    client = CLIENTS[0]
    for path in (PREDICT, "/v1/models/made-up:predict"):
        ask(guarded, path, BODY, client=client)
    status, headers, raw = ask(guarded, "/metrics", client=client)
    assert status == 200
    assert headers["content-type"].startswith("text/plain")
    families = {each.name: each for each in text_string_to_metric_families(raw.decode())}
    counted = {
        (each.labels["model_name"], each.labels["model_version"], each.labels["status"])
        for each in families[":tensorflow:serving:request_count"].samples
    }
    assert ("affine", "2", "OK") in counted
    assert ("", "", "NOT_FOUND") in counted
    assert not any(name == "made-up" for name, _, _ in counted)
    latency = families[":tensorflow:serving:request_latency"]
    assert latency.type == "histogram"
    buckets = [each for each in latency.samples if each.name.endswith("_bucket")]
    assert len(buckets) % 34 == 0
    assert {each.labels["entrypoint"] for each in buckets} == {"REST"}
    assert {each.labels["API"] for each in buckets} >= {"predict"}
    assert ":tensorflow:serving:runtime_latency" in families


def test_metrics_have_the_originals_labels() -> None:
    """Dashboards select by them: REST's methods in small letters, and examples by ``model``."""
    metrics = Metrics()
    metrics.examples("m", 1, 3)
    text = metrics.text()
    assert ':tensorflow:serving:request_example_count_total{model="m",model_version="1"} 3' in text
    assert ':tensorflow:serving:request_example_counts_sum{model="m",model_version="1"} 3' in text


def test_cors(guarded: Running) -> None:
    status, headers, _ = ask(guarded, PREDICT, method="OPTIONS", origin="https://a.example")
    assert status == 200
    assert headers["access-control-allow-origin"] == "*"
    assert headers["access-control-allow-methods"] == "POST, GET"
    assert ask(guarded, PREDICT, method="OPTIONS")[0] == 400
    for method in ("GET", "PUT"):  # an error that a browser may not read is none
        assert "access-control-allow-origin" in ask(guarded, PREDICT, method=method)[1]


def test_gzip_bodies(guarded: Running) -> None:
    packed = gzip.compress(BODY)
    good = ask(guarded, PREDICT, packed, content_encoding="gzip", x_api_key="secret")
    assert (good[0], json.loads(good[2])) == (200, {"predictions": [5.0]})
    bomb = gzip.compress(b" " * 50_000_000)
    assert ask(guarded, PREDICT, bomb, content_encoding="gzip", x_api_key="secret")[0] == 413
    for damaged in (packed[:-4], packed + b"x", b"\x1f\x8b", packed + packed):
        status, _, _ = ask(guarded, PREDICT, damaged, content_encoding="gzip", x_api_key="secret")
        assert status == 400
    assert ask(guarded, PREDICT, b"x", content_encoding="br", x_api_key="secret")[0] == 400
    assert unzip(gzip.compress(b"abc"), 3) == b"abc"


def test_a_request_is_known_by_its_id_and_never_by_its_values(guarded: Running) -> None:
    _, headers, _ = ask(
        guarded, PREDICT, b'{"instances": [8675309.0]}', x_api_key="secret", x_request_id="mine-1"
    )
    assert headers["x-request-id"] == "mine-1"
    _, headers, _ = ask(guarded, PREDICT, BODY, x_api_key="secret", x_request_id='"odd" {}')
    assert len(headers["x-request-id"]) == 16
    lines = [json.loads(line) for line in guarded.log.getvalue().splitlines()]
    mine = [line for line in lines if line.get("id") == "mine-1"]
    assert [(line["api"], line["model"], line["status"]) for line in mine] == [
        ("predict", "affine", "OK")
    ]
    assert "8675309" not in guarded.log.getvalue()


def test_concurrent_counting_loses_nothing(tmp_path: Path) -> None:
    server = FakeServer(ModelConfig("m", make_versions(tmp_path / "m", 1)))

    def count() -> None:
        for _ in range(500):
            server.metrics.request("m", 1, "Predict", "GRPC", "OK", 0.001)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    line = ':tensorflow:serving:request_count{model_name="m",model_version="1",status="OK"} 2000\n'
    assert line in server.metrics.text()
    server.health.drain()
    server.grpc.stop(1)
    server.catalog.close()
