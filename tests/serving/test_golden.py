"""REST, byte for byte: each form and each error status, as `golden/` has them."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import json
import socket
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from sealserve.errors import InputError, InternalError, Refused, SealserveError, Unavailable
from sealserve.logs import make_log
from sealserve.serving.access import Gate
from sealserve.serving.calls import Calls
from sealserve.serving.catalog import Catalog
from sealserve.serving.config import ModelConfig, ServerConfig
from sealserve.serving.dataplane import Dataplane
from sealserve.serving.health import Health
from sealserve.serving.metrics import Metrics
from sealserve.serving.rest_front import RestFront
from sealserve.serving.runtimes.base import Model, Signature, TensorSpec
from sealserve.serving.status import HTTP_STATUS
from sealserve.wire.tensorflow import tensor_pb2 as pb
from sealserve.wire.tensors import Array
from tests.serving.conftest import Pair, Running, https_connection, make_pair, start_server
from tests.serving.fakes import VECTOR, FakeModel, FakeRuntime, make_versions

GOLDEN = Path(__file__).with_name("golden")
PACK: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}


@dataclass
class Exchange:
    """A request and the answer that it must get."""

    arranged: list[str] = field(default_factory=list)
    request: list[str] = field(default_factory=list)
    body: bytes | None = None
    status: int = 0
    content_type: str = ""
    answer: bytes = b""

    @classmethod
    def of(cls, file: Path) -> Exchange:
        found = cls()
        before, _, after = file.read_bytes().partition(b"\n< ")
        lines = before.split(b"\n")
        for text in (line.decode() for line in lines if line[:2] in (b"! ", b"> ")):
            (found.arranged if text[0] == "!" else found.request).append(text[2:])
        rest = lines[len(found.arranged) + len(found.request) :]
        found.body = b"\n".join(rest) if rest else None
        result, _, answer = after.partition(b"\n")
        status, found.content_type = result.decode().split(" ", 1)
        found.status, found.answer = int(status), answer.removesuffix(b"\n")
        return found

    def check(self, connection: http.client.HTTPConnection) -> None:
        method, path = self.request[0].split()
        fields = dict(line.split(": ") for line in self.request[1:])
        body = self.body
        if body is not None:
            body = PACK.get(fields.get("Content-Encoding", ""), bytes)(body)
        connection.request(method, path, body, fields)
        response = connection.getresponse()
        answer = response.read()
        connection.close()
        shown = (response.status, response.headers["content-type"], answer)
        assert shown == (self.status, self.content_type, self.answer)


def exchanges(place: str) -> pytest.MarkDecorator:
    files = sorted((GOLDEN / place).glob("*.http"))
    return pytest.mark.parametrize("file", files, ids=[file.stem for file in files])


@exchanges("served")
def test_models_that_tensorflow_made(running: Running, file: Path) -> None:
    Exchange.of(file).check(https_connection(running.rest_port, running.owner))


class ToldModel(FakeModel):
    """Has outputs of every awkward kind, and ends as it is told."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        strings = TensorSpec(pb.DT_STRING, None)
        self.failure: Exception | None = None
        definition = self.definitions["serving_default"]
        for name, inputs, outputs in (
            ("strings", {"s": strings}, {"text": strings, "raw_bytes": strings}),
            ("scalar", {"x": VECTOR}, {"y": TensorSpec(pb.DT_FLOAT, ())}),
            ("uneven", {"x": VECTOR}, {"a": VECTOR, "b": VECTOR}),
            ("complex", {"x": VECTOR}, {"y": TensorSpec(pb.DT_COMPLEX64, (-1,))}),
        ):
            self.definitions[name] = definition
            self.signatures[name] = Signature(name, inputs, outputs, "")

    def run(
        self, signature: str, inputs: Mapping[str, Array], outputs: Sequence[str]
    ) -> dict[str, Array]:
        if self.failure is not None:
            raise self.failure
        match signature:
            case "strings":
                return {"text": inputs["s"], "raw_bytes": inputs["s"]}
            case "scalar":
                return {"y": np.float32(3.0) * np.ones((), "f4")}
            case "uneven":
                return {"a": np.zeros(2, "f4"), "b": np.zeros(3, "f4")}
            case "complex":
                return {"y": inputs["x"].astype("c8")}
        return super().run(signature, inputs, outputs)


class ToldRuntime(FakeRuntime):
    """Loads such models."""

    def load(self, path: Path) -> Model:
        model = ToldModel(path)
        self.models[f"{path.parent.name}/{path.name}"] = model
        return model


@dataclass(frozen=True)
class Told:
    """A REST server of one such model, in plaintext."""

    model: ToldModel
    front: RestFront
    log: io.StringIO

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.front.port, timeout=20)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    models = (ModelConfig("m", make_versions(tmp_path_factory.mktemp("told") / "m", 1)),)
    config = ServerConfig(
        models, bind_address="127.0.0.1", rest_port=0, rest_timeout=2.0, max_request_bytes=256
    )
    runtime, text = ToldRuntime(), io.StringIO()
    log = make_log(text)
    catalog = Catalog(models, runtime, log, config.life)
    catalog.load()
    metrics = Metrics()
    front = RestFront(
        Dataplane(catalog, metrics),
        config,
        None,
        log,
        gate=Gate(None, log),
        calls=Calls(metrics, log),
        health=Health(catalog),
    )
    front.start()
    model = runtime.models["m/1"]
    assert isinstance(model, ToldModel)
    yield Told(model, front, text)
    model.may_end.set()
    front.stop(2)
    catalog.close()


CLASSES: dict[str, type[SealserveError]] = {
    "reload.outside_roots": Refused,
    "servable.load_unexpected": InternalError,
    "servable.busy": Unavailable,
}


@exchanges("fake")
def test_a_model_that_does_what_it_is_told(told: Told, file: Path) -> None:
    exchange = Exchange.of(file)
    for arranged in exchange.arranged:
        _, _, code = arranged.partition("fails ")
        if code == "with a bug":
            told.model.failure = RuntimeError("its text is nobody's business")
        elif code:
            told.model.failure = CLASSES.get(code, InputError)(code, "told to fail")
        else:
            told.model.may_end.clear()
    try:
        exchange.check(told.connection())
    finally:
        told.model.failure = None
        told.model.may_end.set()


def test_a_client_that_goes_away_is_noted_as_cancelled(told: Told) -> None:
    """499 is nobody's to read: it stands in the log."""
    with socket.create_connection(("127.0.0.1", told.front.port), timeout=20) as client:
        client.sendall(b"POST /v1/models/m:predict HTTP/1.1\r\nHost: a\r\nContent-Length: 50\r\n")
        client.sendall(b"x-request-id: gone\r\n\r\n{")
    deadline = time.monotonic() + 20
    while '"gone"' not in told.log.getvalue() and time.monotonic() < deadline:
        time.sleep(0.01)
    lines = [json.loads(line) for line in told.log.getvalue().splitlines()]
    assert [line["status"] for line in lines if line.get("id") == "gone"] == ["CANCELLED"]


@pytest.fixture(scope="module")
def guarded(
    models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Running, Pair]]:
    """A server with roles; the client's certificate is good for none of them."""
    place = tmp_path_factory.mktemp("guarded")
    client = make_pair("client.example")
    pem = client.certificate.decode().replace("\n", "\\n")
    key = {"name": "k", "sha256": hashlib.sha256(b"right").hexdigest(), "roles": ["predict"]}
    (place / "access.yaml").write_text(json.dumps({"api_keys": [key]}))
    (place / "one.config").write_text(
        f'model_config_list {{ config {{ name: "affine" base_path: "{models / "affine"}" }} }}'
    )
    running = start_server(
        models,
        place,
        f"--model_config_file={place / 'one.config'}",
        f"--access_file={place / 'access.yaml'}",
        extra_ssl=f'custom_ca: "{pem}"\nclient_verify: true\n',
    )
    yield running, client
    running.server.stop(2)


@exchanges("guarded")
def test_a_server_with_roles(guarded: tuple[Running, Pair], file: Path) -> None:
    running, client = guarded
    exchange = Exchange.of(file)
    shown = client if exchange.arranged else None
    exchange.check(https_connection(running.rest_port, running.owner, shown))


def test_every_status_that_can_be_given_has_a_golden() -> None:
    """409 and 499 cannot: nothing here exists already, and who cancels reads no answer."""
    files = GOLDEN.glob("*/*.http")
    shown = {Exchange.of(file).status for file in files} | {409, 499}
    assert shown == {*HTTP_STATUS.values(), 413}
