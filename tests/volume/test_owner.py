"""The owner's key pair and the TLS files."""

from __future__ import annotations

import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from google.protobuf import text_format

from sealserve.errors import InputError, SealserveError, Unavailable
from sealserve.volume.owner import init_owner, load_owner_key, load_owner_public
from sealserve.volume.tls_files import make_tls_files
from sealserve.wire.serving import config_pb2
from tests.volume.conftest import tool

HOST = "grpc.tf.service.com"


def test_a_key_pair_that_openssl_reads(tmp_path: Path) -> None:
    private, public = init_owner(tmp_path / "owner")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert "ED25519 Private-Key" in tool("openssl", "pkey", "-in", str(private), "-text", "-noout")
    assert tool("openssl", "pkey", "-in", str(private), "-pubout") == public.read_text()
    message = b"to be signed"
    load_owner_public(public).verify(load_owner_key(private).sign(message), message)


@pytest.mark.parametrize("present", ["owner.key", "owner.pub"])
def test_keys_are_never_overwritten(tmp_path: Path, present: str) -> None:
    (tmp_path / present).write_text("precious")
    with pytest.raises(InputError) as caught:
        init_owner(tmp_path)
    assert caught.value.code == "file.exists"
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(present, "precious")]


def test_an_exposed_key_is_refused(tmp_path: Path) -> None:
    private, _ = init_owner(tmp_path)
    private.chmod(0o640)
    with pytest.raises(InputError) as caught:
        load_owner_key(private)
    assert caught.value.code == "owner.key_exposed"


def test_other_keys_are_refused(tmp_path: Path) -> None:
    files = make_tls_files(HOST, tmp_path)
    private, public = init_owner(tmp_path / "owner")
    rubbish = tmp_path / "rubbish"
    rubbish.write_bytes(b"\xff" * 100)
    rubbish.chmod(0o600)
    for path in (files.key, rubbish):
        with pytest.raises(InputError) as caught:
            load_owner_key(path)
        assert caught.value.code == "owner.key_malformed"
    public_of_tls = tmp_path / "tls.pub"
    key = serialization.load_pem_private_key(files.key.read_bytes(), None)
    public_of_tls.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    for path in (public_of_tls, rubbish, private):
        with pytest.raises(InputError) as caught:
            load_owner_public(path)
        assert caught.value.code == "owner.public_malformed"
    assert load_owner_public(public)


@pytest.mark.parametrize("load", [load_owner_key, load_owner_public])
def test_missing_and_endless_files(tmp_path: Path, load: object) -> None:
    assert callable(load)
    with pytest.raises(Unavailable) as missing:
        load(tmp_path / "none")
    assert missing.value.code == "file.unreadable"
    with pytest.raises(InputError) as endless:
        load(Path("/dev/zero"))
    assert endless.value.code == "file.too_large"


def test_the_certificate_is_a_modern_leaf(tmp_path: Path) -> None:
    files = make_tls_files(HOST, tmp_path / "tls")
    assert {path.name for path in (tmp_path / "tls").iterdir()} == {
        "server.key", "server.crt", "ssl.cfg",
    }  # fmt: skip
    for secret in (files.key, files.config):
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    verified = tool(
        "openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname", HOST,
        "-partial_chain", "-trusted", str(files.certificate), str(files.certificate),
    )  # fmt: skip
    assert verified.strip().endswith("OK")
    certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_tensorflow_servings_configuration(tmp_path: Path) -> None:
    files = make_tls_files(HOST, tmp_path)
    config = text_format.Parse(files.config.read_text(), config_pb2.SSLConfig())
    assert config.server_key == files.key.read_text()
    assert config.server_cert == files.certificate.read_text()
    assert not config.client_verify
    assert config.custom_ca == ""


def test_a_tls_client_that_trusts_only_this_certificate(tmp_path: Path) -> None:
    files = make_tls_files(HOST, tmp_path)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(files.certificate, files.key)
    trusting = ssl.create_default_context(cafile=str(files.certificate))

    def handshake(name: str) -> str | None:
        ours, theirs = socket.socketpair()

        def serve() -> None:
            with theirs:
                try:
                    with serving.wrap_socket(theirs, server_side=True) as peer:
                        peer.recv(1)
                except OSError:
                    return  # the client did not like us

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with ours, trusting.wrap_socket(ours, server_hostname=name) as session:
                session.sendall(b"x")
                return session.version()
        finally:
            thread.join()

    assert handshake(HOST) == "TLSv1.3"
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake("other.example.com")


@pytest.mark.parametrize(
    "name", ["", "a b", "-a", "a-", "a..b", ".a", "a.", "UPPER", "x" * 65, "*.a", "a\nb", "ä.de"]
)
def test_bad_host_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError) as caught:
        make_tls_files(name, tmp_path / "tls")
    assert caught.value.code == "tls.hostname"
    assert not (tmp_path / "tls").exists()


@pytest.mark.parametrize("present", ["server.key", "server.crt", "ssl.cfg"])
def test_tls_files_are_not_overwritten(tmp_path: Path, present: str) -> None:
    (tmp_path / present).write_text("precious")
    with pytest.raises(InputError) as caught:
        make_tls_files(HOST, tmp_path)
    assert caught.value.code == "file.exists"
    assert [path.name for path in tmp_path.iterdir()] == [present]


def test_a_directory_that_cannot_be_made() -> None:
    for make in (lambda path: make_tls_files(HOST, path), init_owner):
        with pytest.raises(SealserveError) as caught:
            make(Path("/proc/none/here"))
        assert caught.value.code == "file.unwritable"
