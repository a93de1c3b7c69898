"""Stolen evidence: what a network attacker can build, and that it is not believed."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from sealserve.address import Address
from sealserve.attestation import ratls
from sealserve.errors import Refused, Unavailable
from sealserve.simulator.impostor import Impostor, forge, steal_evidence
from tests.children import Child
from tests.simulated import EVENTS, collateral, fitting_policy, platform, report, verifier


@pytest.fixture(scope="module")
def identity() -> ratls.TlsIdentity:
    return ratls.make_identity(
        lambda data: platform().quote(report(report_data=data)), EVENTS, simulated=True
    )


@contextmanager
def serving(context: ssl.SSLContext) -> Iterator[Address]:
    """A TLS server that ends each handshake and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                try:
                    with context.wrap_socket(connection, server_side=True) as tls:
                        tls.recv(1)
                except OSError:
                    connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield Address("127.0.0.1", listener.getsockname()[1])
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@contextmanager
def impostor(victim: x509.Certificate) -> Iterator[Impostor]:
    server = Impostor(victim, Address("127.0.0.1", 0))
    stop = threading.Event()
    thread = threading.Thread(target=server.serve, args=(stop.is_set,))
    thread.start()
    try:
        yield server
    finally:
        stop.set()
        thread.join()


def context_of(identity: ratls.TlsIdentity, tmp_path: Path) -> ssl.SSLContext:
    (tmp_path / "identity.pem").write_bytes(identity.key_pem + identity.certificate_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "identity.pem")
    return context


def fetch(address: Address) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection((address.host, address.port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=ratls.SERVER_NAME) as tls,
    ):
        return tls.getpeercert(binary_form=True) or b""


def test_stolen_evidence_is_refused_and_nothing_was_sent(
    identity: ratls.TlsIdentity, tmp_path: Path
) -> None:
    with serving(context_of(identity, tmp_path)) as victim:
        stolen = steal_evidence(victim)
        honest = fetch(victim)
    ratls.check_certificate(honest, verifier(), collateral(), fitting_policy(), datetime.now(UTC))
    with impostor(stolen) as server:
        shown = fetch(server.address)
        with pytest.raises(Refused) as caught:
            ratls.check_certificate(
                shown, verifier(), collateral(), fitting_policy(), datetime.now(UTC)
            )
    assert caught.value.code == "binding.key_mismatch"
    assert server.counts.to_dict() == {
        "connections": 1,
        "handshakes": 1,
        "application_bytes": 0,
    }


def test_a_pinned_client_does_not_shake_hands(identity: ratls.TlsIdentity) -> None:
    pinned = ssl.create_default_context(cadata=identity.certificate_pem.decode())
    with (
        impostor(x509.load_pem_x509_certificate(identity.certificate_pem)) as server,
        socket.create_connection((server.address.host, server.address.port)) as plain,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        pinned.wrap_socket(plain, server_hostname=ratls.SERVER_NAME)
    assert server.counts.application_bytes == 0


def test_it_counts_what_a_careless_client_sends(identity: ratls.TlsIdentity) -> None:
    careless = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    careless.check_hostname = False
    careless.verify_mode = ssl.CERT_NONE
    with (
        impostor(x509.load_pem_x509_certificate(identity.certificate_pem)) as server,
        socket.create_connection((server.address.host, server.address.port)) as plain,
        careless.wrap_socket(plain, server_hostname=ratls.SERVER_NAME) as tls,
    ):
        tls.sendall(b"tensor" * 1000)
    assert server.counts.application_bytes == 6000


def test_a_forged_certificate_differs_in_key_alone(identity: ratls.TlsIdentity) -> None:
    real = x509.load_pem_x509_certificate(identity.certificate_pem)
    _, pem = forge(real)
    forged = x509.load_pem_x509_certificate(pem)
    assert forged.subject == real.subject
    assert list(forged.extensions) == list(real.extensions)
    assert forged.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    ) != real.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def test_the_command_counts_and_reports(identity: ratls.TlsIdentity, tmp_path: Path) -> None:
    with serving(context_of(identity, tmp_path)) as victim:
        command = [sys.executable, "-m", "sealserve", "simulate", "impostor"]
        command += ["--victim", str(victim), "--listen", "127.0.0.1:0"]
        with Child(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            fetch(Address.parse(ready["address"], where="test"))
            process.send_signal(signal.SIGTERM)
            counts, log = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "SIMULATION" in log
    assert json.loads(counts) == {"connections": 1, "handshakes": 1, "application_bytes": 0}


def test_no_victim(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = Address("127.0.0.1", free.getsockname()[1])
    with pytest.raises(Unavailable) as caught:
        steal_evidence(address)
    assert caught.value.code == "simulator.victim"


def test_a_taken_port(identity: ratls.TlsIdentity) -> None:
    victim = x509.load_pem_x509_certificate(identity.certificate_pem)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(Unavailable) as caught:
        Impostor(victim, Address("127.0.0.1", taken.getsockname()[1]))
    assert caught.value.code == "simulator.listen"
