"""Self-signed server certificates, judged by OpenSSL's own rules."""

from __future__ import annotations

import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from sealserve.certificates import BACKDATE, key_pem, load_key_pair, server_certificate

NAME = "server.example"


def made(**options: object) -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = server_certificate(
        key, "for people", [x509.DNSName(NAME)], timedelta(hours=1), **options
    )
    return key_pem(key), certificate.public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize(
    ("trusted", "name", "accepted"),
    [("own", NAME, True), ("own", "other.example", False), ("another", NAME, False)],
)
def test_a_client_that_pins_it_accepts_it_and_no_other(
    trusted: str, name: str, accepted: bool
) -> None:
    key, certificate = made()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    load_key_pair(server, key + certificate)
    client = ssl.create_default_context(
        cadata=(certificate if trusted == "own" else made()[1]).decode()
    )
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    here, there = socket.socketpair()

    def answer() -> None:
        try:
            with server.wrap_socket(there, server_side=True) as tls:
                tls.sendall(b"hello")
        except OSError:
            there.close()  # the client refused

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        if accepted:
            with client.wrap_socket(here, server_hostname=name) as tls:
                assert tls.recv(5) == b"hello"
        else:
            with pytest.raises(ssl.SSLCertVerificationError):
                client.wrap_socket(here, server_hostname=name)
    finally:
        here.close()
        thread.join()


def test_it_says_what_it_was_told() -> None:
    oid = x509.ObjectIdentifier("2.23.133.5.4.9")
    _, pem = made(organization="house", evidence=x509.UnrecognizedExtension(oid, b"proof"))
    certificate = x509.load_pem_x509_certificate(pem)
    assert certificate.subject == certificate.issuer
    assert certificate.subject.rfc4514_string() == "CN=for people,O=house"
    found = certificate.extensions.get_extension_for_oid(oid)
    assert found.value.public_bytes() == b"proof"
    assert not found.critical
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert not constraints.value.ca
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    assert ends - begins == BACKDATE + timedelta(hours=1)
    assert begins < datetime.now(UTC) < ends


def test_a_key_that_does_not_belong_is_refused() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with pytest.raises(ssl.SSLError):
        load_key_pair(context, made()[0] + made()[1])


def test_private_keys_are_read_back() -> None:
    for key in (ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256R1())):
        again = serialization.load_pem_private_key(key_pem(key), password=None)
        assert again.public_key() == key.public_key()
