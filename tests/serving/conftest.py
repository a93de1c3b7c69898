"""Models made by TensorFlow, certificates, and servers that serve them."""

from __future__ import annotations

import datetime
import http.client
import io
import json
import socket
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from sealserve.certificates import load_key_pair
from sealserve.logs import make_log
from sealserve.serving import flags
from sealserve.serving.catalog import ModelSpec
from sealserve.serving.config import ServerConfig
from sealserve.serving.dataplane import Dataplane
from sealserve.serving.server import Server
from tests.background import PROCESSES

OWNER_NAME = "grpc.tf.service.com"
ATTESTED_NAME = "ratls.sealserve.internal"


@dataclass(frozen=True)
class Pair:
    """A certificate and its key; self-signed unless an authority issued it."""

    name: str
    key: bytes
    certificate: bytes

    @property
    def der(self) -> bytes:
        return ssl.PEM_cert_to_DER_cert(self.certificate.decode())


def make_pair(
    name: str, issuer: Pair | None = None, *, authority: bool = False, expired: bool = False
) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = issued_by = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signing = key
    if issuer is not None:
        issued_by = x509.load_pem_x509_certificate(issuer.certificate).subject
        loaded = serialization.load_pem_private_key(issuer.key, None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        signing = loaded
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issued_by)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(minutes=-1 if expired else 24 * 60))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    )
    if authority:
        builder = builder.add_extension(x509.BasicConstraints(True, None), critical=True)
    return Pair(
        name,
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
        builder.sign(signing, hashes.SHA256()).public_bytes(serialization.Encoding.PEM),
    )


def ssl_config(pair: Pair, extra: str = "") -> str:
    key, certificate = (pem.decode().replace("\n", "\\n") for pem in (pair.key, pair.certificate))
    return f'server_key: "{key}"\nserver_cert: "{certificate}"\n{extra}'


@dataclass(frozen=True)
class Running:
    """A server, and how to reach it."""

    server: Server
    log: io.StringIO
    owner: Pair
    attested: Pair
    ssl_file: Path
    identity_file: Path

    @property
    def grpc_port(self) -> int:
        return self.server.ports["grpc"]

    @property
    def rest_port(self) -> int:
        return self.server.ports["rest"]

    def channel(self, pair: Pair | None = None) -> grpc.Channel:
        pair = pair or self.owner
        return grpc.secure_channel(
            f"127.0.0.1:{self.grpc_port}",
            grpc.ssl_channel_credentials(pair.certificate),
            [("grpc.ssl_target_name_override", pair.name)],
        )

    def call(self, method: str, request: bytes) -> bytes:
        with self.channel() as channel:
            reply: bytes = channel.unary_unary(f"/tensorflow.serving.{method}")(request, timeout=20)
            return reply

    def rest(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """Status and parsed JSON of a request; a body that is not bytes is sent as JSON."""
        connection = https_connection(self.rest_port, self.owner)
        raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(method, path, raw, headers or {})
        response = connection.getresponse()
        answer = response.read()
        connection.close()
        assert response.headers["content-type"] == "application/json"
        return response.status, json.loads(answer)


def https_connection(
    port: int, pair: Pair, client: Pair | None = None
) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    context = ssl.create_default_context(cadata=pair.certificate.decode())
    if client is not None:
        load_key_pair(context, client.key + client.certificate)
    connection.sock = context.wrap_socket(
        socket.create_connection(("127.0.0.1", port), timeout=20), server_hostname=pair.name
    )
    return connection


def certificate_shown(port: int, name: str | None, **limits: ssl.TLSVersion) -> bytes:
    """The certificate (DER) a server shows to a client that asks for a name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    for limit, version in limits.items():
        setattr(context, limit, version)
    with (
        socket.create_connection(("127.0.0.1", port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname=name) as connection,
    ):
        der = connection.getpeercert(binary_form=True)
    assert der is not None
    return der


@dataclass(frozen=True)
class Making:
    """TensorFlow, making models in a process of its own; `made` waits for its end."""

    root: Path
    process: subprocess.Popen[str]
    complaints: Path

    def made(self) -> Path:
        status = self.process.wait(110)
        assert status == 0, self.complaints.read_text()[-2000:]
        return self.root


@pytest.fixture(scope="session")
def making_models(oracle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Making]:
    """The models of `models`, while they are being made beside the tests that follow."""
    root = tmp_path_factory.mktemp("models")
    complaints = tmp_path_factory.mktemp("making") / "complaints"
    script = Path(__file__).with_name("make_models.py")
    with (
        complaints.open("w") as output,
        subprocess.Popen(
            [oracle, script, root], stdout=output, stderr=output, text=True
        ) as process,
    ):
        PROCESSES.add(process.pid)
        yield Making(root, process, complaints)
        process.kill()


@pytest.fixture(scope="session")
def models(making_models: Making) -> Path:
    """A directory of SavedModels with TensorFlow's own answers beside them."""
    root = making_models.made()
    names = sorted(path.name for path in root.iterdir() if (path / "1").is_dir())
    entries = "\n".join(
        f'  config {{ name: "{name}" base_path: "{name}" model_platform: "tensorflow" '
        "model_version_policy { all {} } "
        + ("version_labels { key: 'stable' value: 1 } }" if name == "affine" else "}")
        for name in names
    )
    (root / "models.config").write_text(f"model_config_list {{\n{entries}\n}}\n")
    return root


@dataclass(frozen=True)
class Question:
    """Inputs for one signature, and TensorFlow's own answer to them."""

    model: str
    signature: str
    inputs: dict[str, Any]
    outputs: dict[str, Any]


def arrays_of(file: Path) -> dict[str, Any]:
    """The arrays of an .npz file that TensorFlow's side of the tests wrote."""
    with np.load(file, allow_pickle=True) as stored:
        return dict(stored)


def questions(place: Path) -> list[Question]:
    """Every question that make_models.py left in a directory."""
    found = []
    for file in sorted(place.glob("*.npz")):
        name, signature = file.stem.split(".")
        arrays = arrays_of(file)
        inputs = {key[3:]: array for key, array in arrays.items() if key.startswith("in_")}
        outputs = {key[4:]: array for key, array in arrays.items() if key.startswith("out_")}
        found.append(Question(name, signature, inputs, outputs))
    return found


def question_of(place: Path, model: str) -> Question:
    """The first question to a model."""
    return next(each for each in questions(place) if each.model == model)


def check_answer(plane: Dataplane, asked: Question) -> None:
    """The dataplane's answer is TensorFlow's, to 1e-4 of each number."""
    spec = ModelSpec(asked.model)
    answer = plane.predict(spec, asked.signature, lambda _: asked.inputs)
    assert set(answer.outputs) == set(asked.outputs)
    for key, array in answer.outputs.items():
        wanted = asked.outputs[key]
        assert array.dtype == wanted.dtype, (asked.model, key)
        if array.dtype == object:
            assert array.tolist() == wanted.tolist()
        else:
            np.testing.assert_allclose(array, wanted, rtol=1e-4, atol=1e-5)


def on_free_ports(config: ServerConfig) -> ServerConfig:
    return replace(config, grpc_port=0, rest_port=0)


def start_server(models: Path, directory: Path, *more_flags: str, extra_ssl: str = "") -> Running:
    owner, attested = make_pair(OWNER_NAME), make_pair(ATTESTED_NAME)
    ssl_file, identity_file = directory / "ssl.cfg", directory / "attested.pem"
    ssl_file.write_text(ssl_config(owner, extra_ssl))
    identity_file.write_bytes(attested.key + attested.certificate)
    config = flags.parse(
        [
            f"--model_config_file={models / 'models.config'}",
            f"--ssl_config_file={ssl_file}",
            f"--tls_identity_file={identity_file}",
            "--bind_address=127.0.0.1",
            "--max_request_bytes=4000000",
            *more_flags,
        ]
    )
    log = io.StringIO()
    server = Server(on_free_ports(config), make_log(log))
    server.start()
    return Running(server, log, owner, attested, ssl_file, identity_file)


@pytest.fixture(scope="session")
def running(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One server over all the models, shared by the tests that only ask it."""
    running = start_server(models, tmp_path_factory.mktemp("tls"))
    yield running
    running.server.stop(5)
