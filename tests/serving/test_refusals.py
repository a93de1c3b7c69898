"""Who gets in and who may do what: each service, asked under each identity, on both ports.

Clients come with a certificate of the operator's authority, with one of another, with an
expired one, with none, with API keys; roles are given by name and by key.
"""

from __future__ import annotations

import hashlib
import json
import socket
import ssl
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import grpc
import pytest

from sealserve.certificates import load_key_pair
from sealserve.wire.serving import api_pb2, v2_pb2
from tests.serving.conftest import Pair, Running, https_connection, make_pair, start_server
from tests.serving.hostile import GOOD

AUTHORITY = make_pair("authority", authority=True)
CLIENTS = {
    "predictor": make_pair("predictor.example", AUTHORITY),
    "watcher": make_pair("watcher.example", AUTHORITY),
    "operator": make_pair("operator.example", AUTHORITY),
    "stranger": make_pair("stranger.example", AUTHORITY),
    "impostor": make_pair("predictor.example", make_pair("authority", authority=True)),
    "selfmade": make_pair("predictor.example"),
    "expired": make_pair("predictor.example", AUTHORITY, expired=True),
}
SHUT_OUT = ("impostor", "selfmade", "expired")
KEYS = {"predict key": "predict", "metrics key": "metrics", "admin key": "admin"}


@pytest.fixture(scope="module")
def guarded(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    place = tmp_path_factory.mktemp("roles")
    (place / "monitoring.config").write_text("prometheus_config { enable: true path: '/metrics' }")
    (place / "one.config").write_text(
        f'model_config_list {{ config {{ name: "affine" base_path: "{models / "affine"}" }} }}'
    )
    access = {
        "predict": ["predictor.example"],
        "metrics": ["watcher.example"],
        "admin": ["operator.example"],
        "api_keys": [
            {"name": role, "sha256": hashlib.sha256(key.encode()).hexdigest(), "roles": [role]}
            for key, role in KEYS.items()
        ],
    }
    (place / "access.yaml").write_text(json.dumps(access))
    pem = AUTHORITY.certificate.decode().replace("\n", "\\n")
    running = start_server(
        models,
        place,
        f"--model_config_file={place / 'one.config'}",
        f"--access_file={place / 'access.yaml'}",
        f"--monitoring_config_file={place / 'monitoring.config'}",
        extra_ssl=f'custom_ca: "{pem}"\nclient_verify: true\n',
    )
    yield running
    running.server.stop(1)


_NAME = api_pb2.ModelSpec(name="affine")
_METADATA = api_pb2.GetModelMetadataRequest(model_spec=_NAME, metadata_field=["signature_def"])
_INFER = v2_pb2.ModelInferRequest(model_name="affine")
_INFER.inputs.add(name="x", datatype="FP32", shape=[1]).contents.fp32_contents.append(1)

# Service -> (request, the role it needs, the status of one who has it).
GRPC = {
    "tensorflow.serving.PredictionService/Predict": (GOOD, "predict", "OK"),
    "tensorflow.serving.PredictionService/GetModelMetadata": (
        _METADATA.SerializeToString(), "predict", "OK",
    ),
    "tensorflow.serving.PredictionService/Classify": (GOOD[:10], "predict", "INVALID_ARGUMENT"),
    "tensorflow.serving.PredictionService/Regress": (GOOD[:10], "predict", "INVALID_ARGUMENT"),
    "tensorflow.serving.PredictionService/MultiInference": (b"", "predict", "INVALID_ARGUMENT"),
    "tensorflow.serving.ModelService/GetModelStatus": (
        api_pb2.GetModelStatusRequest(model_spec=_NAME).SerializeToString(), "predict", "OK",
    ),
    "tensorflow.serving.ModelService/HandleReloadConfigRequest": (b"", "admin", "INVALID_ARGUMENT"),
    "inference.GRPCInferenceService/ModelInfer": (_INFER.SerializeToString(), "predict", "OK"),
    "grpc.health.v1.Health/Check": (b"", None, "OK"),
}  # fmt: skip

_V2 = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}]}
REST = {
    ("POST", "/v1/models/affine:predict"): ({"instances": [1.0]}, "predict"),
    ("GET", "/v1/models/affine"): (None, "predict"),
    ("GET", "/v1/models/affine/metadata"): (None, "predict"),
    ("POST", "/v2/models/affine/infer"): (_V2, "predict"),
    ("GET", "/v2/models/affine"): (None, "predict"),
    ("GET", "/metrics"): (None, "metrics"),
    ("GET", "/v1/health/ready"): (None, None),
    ("GET", "/v2/health/live"): (None, None),
}

ROLE_OF = {"predictor": "predict", "watcher": "metrics", "operator": "admin", "stranger": ""}


def channel(running: Running, client: Pair | None, roots: bytes | None = None) -> grpc.Channel:
    pair = (client.key, client.certificate) if client else (None, None)
    return grpc.secure_channel(
        f"127.0.0.1:{running.grpc_port}",
        grpc.ssl_channel_credentials(roots or running.owner.certificate, *pair),
        [
            ("grpc.ssl_target_name_override", running.owner.name),
            ("grpc.use_local_subchannel_pool", 1),
        ],
    )


def called(channel: grpc.Channel, method: str, raw: bytes, key: str = "") -> str:
    metadata = [("authorization", f"Bearer {key}")] if key else []
    try:
        channel.unary_unary(f"/{method}")(raw, timeout=20, metadata=metadata)
    except grpc.RpcError as error:
        status: str = error.code().name
        return status
    return "OK"


def asked(running: Running, what: tuple[str, str], client: Pair | None, key: str = "") -> int:
    body = REST[what][0]
    with closing(https_connection(running.rest_port, running.owner, client)) as connection:
        headers = {"X-API-Key": key} if key else {}
        connection.request(*what, body and json.dumps(body), headers)
        return connection.getresponse().status


@pytest.mark.parametrize("who", ROLE_OF)
def test_a_certificate_opens_what_its_role_needs_and_nothing_else(
    guarded: Running, who: str
) -> None:
    with channel(guarded, CLIENTS[who]) as open_channel:
        for method, (raw, role, good) in GRPC.items():
            wanted = good if role in (None, ROLE_OF[who]) else "PERMISSION_DENIED"
            assert called(open_channel, method, raw) == wanted, method
    for what, (_, role) in REST.items():
        wanted = 200 if role in (None, ROLE_OF[who]) else 403
        assert asked(guarded, what, CLIENTS[who]) == wanted, what


@pytest.mark.parametrize("key", [*KEYS, "no key"])
def test_a_key_opens_what_its_role_needs_and_nothing_else(guarded: Running, key: str) -> None:
    """Over REST it stands for a certificate; over gRPC it comes beside one."""
    given = KEYS.get(key, "")
    with channel(guarded, CLIENTS["stranger"]) as open_channel:
        for method, (raw, role, good) in GRPC.items():
            wanted = good if role in (None, given) else "PERMISSION_DENIED"
            assert called(open_channel, method, raw, key) == wanted, method
    for what, (_, role) in REST.items():
        wanted = 200 if role in (None, given) else 401
        assert asked(guarded, what, None, key) == wanted, what


@pytest.mark.parametrize("who", SHUT_OUT)
def test_another_authoritys_certificate_is_no_certificate(guarded: Running, who: str) -> None:
    with channel(guarded, CLIENTS[who]) as shut:
        for method, (raw, _, _) in GRPC.items():
            assert called(shut, method, raw) == "UNAVAILABLE", method
    for what in REST:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            asked(guarded, what, CLIENTS[who], "predict key")


def test_without_a_certificate_grpc_answers_nobody_and_rest_probes_and_keys_alone(
    guarded: Running,
) -> None:
    with channel(guarded, None) as shut:
        for method, (raw, _, _) in GRPC.items():
            assert called(shut, method, raw, "predict key") == "UNAVAILABLE", method
    for what, (_, role) in REST.items():
        assert asked(guarded, what, None) == (200 if role is None else 401), what


def test_a_client_that_trusts_another_authority_sends_nothing(guarded: Running) -> None:
    with channel(guarded, CLIENTS["predictor"], AUTHORITY.certificate) as distrusting:
        method = "tensorflow.serving.PredictionService/Predict"
        assert called(distrusting, method, GOOD) == "UNAVAILABLE"
    other = Pair(guarded.owner.name, b"", AUTHORITY.certificate)
    with pytest.raises(ssl.SSLCertVerificationError):
        https_connection(guarded.rest_port, other, CLIENTS["predictor"])


@pytest.mark.parametrize(
    ("port", "floor", "below"),
    [
        ("grpc_port", ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_1),
        ("rest_port", ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2),
    ],
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1:DeprecationWarning")
def test_tls_below_the_floor_is_refused_with_the_best_certificate(
    guarded: Running, port: str, floor: ssl.TLSVersion, below: ssl.TLSVersion
) -> None:
    def handshake(version: ssl.TLSVersion) -> str | None:
        context = ssl.create_default_context(cadata=guarded.owner.certificate.decode())
        load_key_pair(context, CLIENTS["operator"].key + CLIENTS["operator"].certificate)
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.set_alpn_protocols(["h2", "http/1.1"])
        context.minimum_version = context.maximum_version = version
        with (
            socket.create_connection(("127.0.0.1", getattr(guarded, port)), timeout=20) as plain,
            context.wrap_socket(plain, server_hostname=guarded.owner.name) as connection,
        ):
            return connection.version()

    assert handshake(floor) == floor.name.replace("_", ".")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        handshake(below)
