"""Identities: chosen by name, renewed while serving, and never replaced by nothing."""

from __future__ import annotations

import io
import json
import os
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from sealserve.certificates import load_key_pair
from sealserve.errors import InputError, Refused, Unavailable
from sealserve.logs import make_log
from sealserve.serving import flags
from sealserve.serving.config import TlsConfig
from sealserve.serving.server import Server
from sealserve.serving.tls import Identity, TlsSource
from sealserve.wire.serving import api_pb2
from tests.serving.conftest import (
    ATTESTED_NAME,
    OWNER_NAME,
    Pair,
    Running,
    certificate_shown,
    make_pair,
    on_free_ports,
    ssl_config,
    start_server,
)

A, B = make_pair("a.example"), make_pair("b.example")


def source(config: TlsConfig, log: io.StringIO | None = None) -> TlsSource:
    return TlsSource(config, make_log(log or io.StringIO()))


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        (OWNER_NAME, "owner"),
        (ATTESTED_NAME, "attested"),
        ("other.example", "owner"),
        (None, "owner"),
    ],
)
@pytest.mark.parametrize("port", ["grpc_port", "rest_port"])
def test_the_identity_is_chosen_by_server_name(
    running: Running, asked: str | None, shown: str, port: str
) -> None:
    wanted: Pair = getattr(running, shown)
    assert certificate_shown(getattr(running, port), asked) == wanted.der


def test_rest_speaks_no_tls_below_1_3(running: Running) -> None:
    old = {"maximum_version": ssl.TLSVersion.TLSv1_2}
    with pytest.raises(ssl.SSLError):
        certificate_shown(running.rest_port, OWNER_NAME, **old)
    assert certificate_shown(running.grpc_port, OWNER_NAME, **old) == running.owner.der


def test_grpc_speaks_no_tls_below_1_2(running: Running) -> None:
    with pytest.raises(ssl.SSLError), pytest.warns(DeprecationWarning, match="TLSv1"):
        certificate_shown(
            running.grpc_port,
            OWNER_NAME,
            minimum_version=ssl.TLSVersion.TLSv1,
            maximum_version=ssl.TLSVersion.TLSv1_1,
        )


def test_plaintext_is_refused_on_both_ports(running: Running) -> None:
    with socket.create_connection(("127.0.0.1", running.rest_port), timeout=20) as plain:
        plain.sendall(b"GET /v1/models/affine HTTP/1.1\r\nHost: x\r\n\r\n")
        try:
            answer = plain.recv(4096)
        except ConnectionResetError:
            answer = b""
    assert b"HTTP" not in answer
    with grpc.insecure_channel(f"127.0.0.1:{running.grpc_port}") as channel:
        call = channel.unary_unary("/tensorflow.serving.ModelService/GetModelStatus")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", timeout=20)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.fixture
def own_server(models: Path, tmp_path: Path) -> Iterator[Running]:
    running = start_server(models, tmp_path)
    yield running
    running.server.stop(1)


def test_renewed_identities_take_effect_and_broken_ones_do_not(own_server: Running) -> None:
    def shown() -> list[bytes]:
        return [
            certificate_shown(port, name)
            for port in (own_server.grpc_port, own_server.rest_port)
            for name in (OWNER_NAME, ATTESTED_NAME)
        ]

    owner, attested = own_server.owner.der, own_server.attested.der
    assert shown() == [owner, attested] * 2

    new = make_pair(ATTESTED_NAME)
    own_server.identity_file.write_bytes(new.key + new.certificate)
    assert shown() == [owner, new.der] * 2

    # Another key, half a file, no file: the last good identities stay.
    own_server.identity_file.write_bytes(own_server.attested.key + new.certificate)
    assert shown() == [owner, new.der] * 2
    own_server.identity_file.write_bytes(new.key[:40])
    assert shown() == [owner, new.der] * 2
    own_server.identity_file.unlink()
    assert shown() == [owner, new.der] * 2
    own_server.ssl_file.write_text("nonsense")
    assert shown() == [owner, new.der] * 2

    newer = make_pair(OWNER_NAME)
    own_server.ssl_file.write_text(ssl_config(newer))
    own_server.identity_file.write_bytes(own_server.attested.key + own_server.attested.certificate)
    assert shown() == [newer.der, attested] * 2

    events = [json.loads(line) for line in own_server.log.getvalue().splitlines()]
    kept = [event for event in events if event["event"] == "tls_identity_kept"]
    assert [event["code"] for event in kept] == [
        "tls.identity_malformed",
        "tls.identity_malformed",
        "file.unreadable",
        "tls.config_malformed",
    ]
    assert "PRIVATE" not in own_server.log.getvalue()


def test_the_demand_for_client_certificates_cannot_be_renewed_away(tmp_path: Path) -> None:
    file = tmp_path / "ssl.cfg"
    ca = A.certificate.decode().replace("\n", "\\n")
    file.write_text(ssl_config(A, f'custom_ca: "{ca}" client_verify: true'))
    log = io.StringIO()
    tls = source(TlsConfig(file), log)
    file.write_text(ssl_config(B))
    assert tls.current().client_verify is True
    assert tls.current().all[0].names == ("a.example",)
    assert log.getvalue().count("tls.client_verify_changed") == 1


def test_an_identity_may_come_through_a_memfd() -> None:
    descriptor = os.memfd_create("identity")
    try:
        first, second = make_pair("a.example"), make_pair("b.example")
        os.pwrite(descriptor, first.key + first.certificate, 0)
        tls = source(TlsConfig(identity_files=(Path(f"/proc/self/fd/{descriptor}"),)))
        assert tls.current().all[0].names == ("a.example",)
        os.pwrite(descriptor, second.key + second.certificate, 0)
        os.ftruncate(descriptor, len(second.key + second.certificate))
        assert tls.current().all[0].names == ("b.example",)
    finally:
        os.close(descriptor)


def test_no_identity_and_no_insecure_is_refused() -> None:
    with pytest.raises(Refused) as caught:
        source(TlsConfig())
    assert caught.value.code == "tls.no_identity"
    assert "--insecure" in (caught.value.hint or "")


def test_ssl_config_takes_file_paths_beside_it(tmp_path: Path) -> None:
    pair = make_pair(OWNER_NAME)
    (tmp_path / "server.key").write_bytes(pair.key)
    (tmp_path / "server.crt").write_bytes(pair.certificate)
    file = tmp_path / "ssl.cfg"
    file.write_text('server_key: "server.key" server_cert: "server.crt" client_verify: false')
    assert source(TlsConfig(file)).current().all[0].names == (OWNER_NAME,)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("nonsense", "tls.config_malformed"),
        ("", "tls.config_malformed"),
        ('server_key: "x"', "tls.config_malformed"),
        ('server_key: "none.key" server_cert: "none.crt"', "tls.config_malformed"),
        ('server_key: "a\\000b" server_cert: "none.crt"', "tls.config_malformed"),
        (ssl_config(A, "client_verify: true"), "tls.config_malformed"),
        (ssl_config(Pair("", A.key, B.certificate)), "tls.identity_malformed"),
        (ssl_config(Pair("", A.certificate, A.certificate)), "tls.identity_malformed"),
        (ssl_config(Pair("", A.key, A.key)), "tls.identity_malformed"),
    ],
)
def test_a_bad_ssl_config_is_refused_and_not_quoted(tmp_path: Path, text: str, code: str) -> None:
    file = tmp_path / "ssl.cfg"
    file.write_text(text)
    with pytest.raises((InputError, Unavailable)) as caught:
        source(TlsConfig(file))
    assert caught.value.code == code
    assert "PRIVATE" not in str(caught.value)


def test_a_key_that_lost_its_first_line_is_not_quoted_as_a_path(tmp_path: Path) -> None:
    """Fuzzing found the neighbour of it: what is no PEM text was shown in full."""
    body = A.key.decode().replace("-----BEGIN PRIVATE KEY-----\n", "").replace("\n", "\\n")
    file = tmp_path / "ssl.cfg"
    for text in (body, body.split("\\n")[0]):
        file.write_text(f'server_key: "{text}" server_cert: "b.crt"')
        with pytest.raises(InputError) as caught:
            source(TlsConfig(file))
        whole = json.dumps(caught.value.to_dict()) + repr(caught.value)
        assert text[:20] not in whole
        assert "server_key is neither PEM text nor a file" in whole


def test_keys_are_in_no_repr(tmp_path: Path) -> None:
    (tmp_path / "a.pem").write_bytes(A.key + A.certificate)
    identities = source(TlsConfig(identity_files=(tmp_path / "a.pem",))).current()
    assert "a.example" in repr(identities)
    assert "PRIVATE" not in repr(identities)


@pytest.mark.parametrize(
    ("names", "asked", "fits"),
    [
        (("a.example",), "A.Example.", True),
        (("*.example",), "a.example", True),
        (("*.example",), "b.a.example", False),
        (("*.example",), "example", False),
        (("a.example",), "b.example", False),
        ((), "a.example", False),
    ],
)
def test_names_match_as_rfc_6125_says(names: tuple[str, ...], asked: str, fits: bool) -> None:
    assert Identity(b"", b"", names).is_for(asked) is fits


def test_mutual_tls_on_both_ports(models: Path, tmp_path: Path) -> None:
    client = make_pair("client.example")
    running = start_server(models, tmp_path)
    running.server.stop(0)
    ca = client.certificate.decode().replace("\n", "\\n")
    second = start_server_with(running, models, f'custom_ca: "{ca}" client_verify: true')
    try:
        # TLS 1.3 tells a client of the refusal on its first read.
        assert speaks(second.rest_port, None) is False
        assert speaks(second.rest_port, client) is True
        options = [("grpc.ssl_target_name_override", OWNER_NAME)]
        request = api_pb2.GetModelStatusRequest()
        request.model_spec.name = "affine"
        for key, chain, allowed in ((None, None, False), (client.key, client.certificate, True)):
            credentials = grpc.ssl_channel_credentials(second.owner.certificate, key, chain)
            with grpc.secure_channel(
                f"127.0.0.1:{second.grpc_port}", credentials, options
            ) as channel:
                call = channel.unary_unary("/tensorflow.serving.ModelService/GetModelStatus")
                if allowed:
                    assert call(request.SerializeToString(), timeout=20)
                else:
                    with pytest.raises(grpc.RpcError):
                        call(request.SerializeToString(), timeout=20)
    finally:
        second.server.stop(1)


def test_a_session_does_not_outlive_the_authority_that_let_its_client_in(
    models: Path, tmp_path: Path
) -> None:
    """A client that came back with its session was served after the CA had been replaced."""
    client, successor = make_pair("client.example"), make_pair("successor.example")
    running = start_server(models, tmp_path)
    running.server.stop(0)

    def verified_by(authority: Pair) -> str:
        ca = authority.certificate.decode().replace("\n", "\\n")
        return f'custom_ca: "{ca}" client_verify: true'

    second = start_server_with(running, models, verified_by(client))
    context = ssl.create_default_context(cadata=second.owner.certificate.decode())
    load_key_pair(context, client.key + client.certificate)

    def ask(session: ssl.SSLSession | None) -> tuple[bytes, ssl.SSLSession | None]:
        with (
            socket.create_connection(("127.0.0.1", second.rest_port), timeout=20) as plain,
            context.wrap_socket(plain, server_hostname=OWNER_NAME, session=session) as tls,
        ):
            try:
                tls.sendall(b"GET /v1/models/affine HTTP/1.1\r\nHost: x\r\n\r\n")
                return tls.recv(12), tls.session
            except OSError:
                return b"", None

    try:
        answer, session = ask(None)
        assert answer == b"HTTP/1.1 200"
        second.ssl_file.write_text(ssl_config(second.owner, verified_by(successor)))
        assert speaks(second.rest_port, successor)
        assert ask(session)[0] == b""
    finally:
        second.server.stop(1)


def start_server_with(running: Running, models: Path, extra: str) -> Running:
    running.ssl_file.write_text(ssl_config(running.owner, extra))
    config = flags.parse(
        [
            f"--model_base_path={models / 'affine'}",
            "--model_name=affine",
            f"--ssl_config_file={running.ssl_file}",
            "--bind_address=127.0.0.1",
        ]
    )
    log = io.StringIO()
    server = Server(on_free_ports(config), make_log(log))
    server.start()
    return Running(
        server, log, running.owner, running.attested, running.ssl_file, running.identity_file
    )


def speaks(port: int, client: Pair | None) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if client is not None:
        descriptor = os.memfd_create("client")
        os.write(descriptor, client.key + client.certificate)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
        os.close(descriptor)
    with (
        socket.create_connection(("127.0.0.1", port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname=OWNER_NAME) as connection,
    ):
        try:
            connection.sendall(b"GET /v1/models/affine HTTP/1.1\r\nHost: x\r\n\r\n")
            return connection.recv(4096).startswith(b"HTTP/1.1 200")
        except (ssl.SSLError, OSError):
            return False
