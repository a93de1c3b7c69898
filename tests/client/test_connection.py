"""Classic connections against a real model server over TLS, and every way they fail."""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest

from sealserve.address import Address
from sealserve.client import Connection, connect_classic, fetch_certificate
from sealserve.client.classify import classify_image
from sealserve.errors import InputError, Refused, Unavailable
from sealserve.logs import make_log
from sealserve.model.graphdef import GraphBuilder
from sealserve.model.importer import import_model
from sealserve.serving.config import ModelConfig, ServerConfig, TlsConfig
from sealserve.serving.server import Server
from sealserve.volume.tls_files import TlsFiles, make_tls_files

HOST = "models.example.com"


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return make_tls_files(HOST, tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def port(tls: TlsFiles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A server with one model, ``y = 2 x + 1``."""
    directory = tmp_path_factory.mktemp("model")
    builder = GraphBuilder()
    doubled = builder.multiply("twice", builder.placeholder("x", [None, 3]), _scalar(builder, 2))
    builder.add("y", doubled, _scalar(builder, 1))
    (directory / "line.pb").write_bytes(builder.graph.SerializeToString())
    import_model(directory / "line.pb", directory / "models", name="line")
    config = ServerConfig(
        models=(ModelConfig("line", directory / "models/line"),),
        tls=TlsConfig(ssl_config_file=tls.config),
        bind_address="127.0.0.1",
        grpc_port=0,
    )
    server = Server(config, make_log(io.StringIO()))
    server.start()
    yield server.ports["grpc"]
    server.stop()


def _scalar(builder: GraphBuilder, value: float) -> str:
    return builder.const(f"c{value}", np.float32(value))


@pytest.fixture
def connection(port: int, tls: TlsFiles) -> Iterator[Connection]:
    with connect(port, tls) as opened:
        yield opened


def connect(port: int, tls: TlsFiles, url: str = f"{HOST}:8500") -> Connection:
    return connect_classic(url, tls.certificate.read_bytes(), connect_to=f"127.0.0.1:{port}")


def test_numbers_go_there_and_come_back(connection: Connection) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    outputs = connection.predict("line", {"x": x})
    np.testing.assert_array_equal(outputs["y"], 2 * x + 1)
    assert connection.report is None


def test_version_signature_and_outputs_can_be_named(connection: Connection) -> None:
    x = np.zeros((1, 3), np.float32)
    answer = connection.predict(
        "line", {"x": x}, version=1, signature="serving_default", outputs=("y",)
    )
    assert list(answer) == ["y"]


def test_a_model_says_what_it_takes_and_how_it_is(connection: Connection) -> None:
    specs = connection.input_specs("line")
    assert (specs["x"].dtype, specs["x"].shape) == (np.float32, (None, 3))
    assert connection.status("line") == {1: "AVAILABLE"}


def test_the_servers_own_errors_arrive_typed_with_its_text(connection: Connection) -> None:
    x = np.zeros((1, 3), np.float32)
    with pytest.raises(InputError) as caught:
        connection.predict("other", {"x": x})
    assert caught.value.code == "server.not_found"
    assert caught.value.message == "Servable not found for request: Latest(other)"
    with pytest.raises(InputError) as caught:
        connection.predict("line", {"x": x}, signature="none")
    assert caught.value.code == "server.failed_precondition"
    with pytest.raises(InputError) as caught:
        connection.predict("line", {"x": np.zeros((1, 4), np.float32)})
    assert caught.value.code == "server.invalid_argument"


def test_a_signature_that_is_not_there(connection: Connection) -> None:
    with pytest.raises(InputError) as caught:
        connection.input_specs("line", signature="none")
    assert caught.value.code == "client.signature_unknown"
    assert "serving_default" in (caught.value.hint or "")


def test_a_model_that_is_no_classifier_gets_no_labels(
    connection: Connection, tmp_path: Path
) -> None:
    from PIL import Image

    Image.new("RGB", (300, 300)).save(tmp_path / "black.png")
    with pytest.raises(InputError):
        classify_image(connection, "line", tmp_path / "black.png")


def test_another_certificate_is_refused(port: int, tmp_path: Path) -> None:
    with (
        connect(port, make_tls_files(HOST, tmp_path / "other")) as connection,
        pytest.raises(Refused) as caught,
    ):
        connection.predict("line", {})
    assert caught.value.code == "server.certificate_untrusted"


def test_another_name_is_refused(port: int, tls: TlsFiles) -> None:
    with (
        connect(port, tls, url="evil.example.com:8500") as connection,
        pytest.raises(Refused) as caught,
    ):
        connection.predict("line", {})
    assert caught.value.code == "server.certificate_untrusted"


def _unused_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def test_a_server_that_is_not_there(tls: TlsFiles) -> None:
    port = _unused_port()
    with connect(port, tls) as connection, pytest.raises(Unavailable) as caught:
        connection.status("line", timeout=2)
    assert caught.value.code == "server.unavailable"
    with pytest.raises(Unavailable) as caught:
        fetch_certificate(Address("127.0.0.1", port), HOST)
    assert caught.value.code == "server.unreachable"


def test_a_port_without_tls() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:

        def greet() -> None:
            with suppress(OSError):
                peer, _ = listener.accept()
                peer.sendall(b"220 mail.example.com ready\r\n")
                peer.close()

        threading.Thread(target=greet, daemon=True).start()
        with pytest.raises(Unavailable) as caught:
            fetch_certificate(Address("127.0.0.1", listener.getsockname()[1]), HOST)
    assert caught.value.code == "server.no_tls"


def test_a_server_that_says_nothing_is_given_up() -> None:
    with (
        closing(socket.create_server(("127.0.0.1", 0))) as listener,
        pytest.raises(Unavailable) as caught,
    ):
        fetch_certificate(Address("127.0.0.1", listener.getsockname()[1]), HOST, timeout=0.3)
    assert caught.value.code == "server.no_tls"


def test_something_that_is_no_certificate_is_refused() -> None:
    for content in (b"", b"not a certificate", b"-----BEGIN PRIVATE KEY-----\n"):
        with pytest.raises(InputError) as caught:
            connect_classic(f"{HOST}:1", content)
        assert caught.value.code == "client.certificate_malformed"
