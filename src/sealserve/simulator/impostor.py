"""A server with a stolen passport: another's evidence in a certificate for its own key.

It shows that a client refuses before a tensor is sent: it counts what arrives.

Rules this module keeps:

* It has nothing that an attacker on the network would not have: the victim's
  public certificate.
* It counts application bytes only, after TLS is up.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from sealserve.address import Address
from sealserve.attestation.ratls import EVIDENCE_OID, SERVER_NAME
from sealserve.certificates import BACKDATE, key_pem, load_key_pair
from sealserve.errors import Unavailable

__all__ = ["Counts", "Impostor", "forge", "steal_evidence"]

_TIMEOUT = 10.0  # seconds for a handshake or a silent peer
_POLL = 0.2  # seconds between looks at the stop flag


@dataclass(slots=True)
class Counts:
    """What reached the impostor."""

    connections: int = 0
    handshakes: int = 0
    application_bytes: int = 0

    def to_dict(self) -> dict[str, int]:
        """The counts as a JSON object."""
        return {
            "connections": self.connections,
            "handshakes": self.handshakes,
            "application_bytes": self.application_bytes,
        }


def steal_evidence(victim: Address) -> x509.Certificate:
    """The certificate a server shows under the attested name.

    Raises:
        Unavailable: ``simulator.victim`` if it does not answer or shows no evidence.
    """
    # Nothing is trusted here, which is the point: anyone can fetch this.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((victim.host, victim.port), timeout=_TIMEOUT) as plain,
            context.wrap_socket(plain, server_hostname=SERVER_NAME) as tls,
        ):
            certificate = x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"")
        certificate.extensions.get_extension_for_oid(EVIDENCE_OID)
    except (OSError, ValueError, x509.ExtensionNotFound) as error:
        raise Unavailable(
            "simulator.victim",
            f"no attested certificate could be fetched: {type(error).__name__}",
            where=str(victim),
            hint=f"the victim must be an attested server that answers to {SERVER_NAME}",
        ) from None
    return certificate


def forge(victim: x509.Certificate) -> tuple[bytes, bytes]:
    """A certificate like the victim's, evidence included, for a key of our own.

    Returns:
        Private key and certificate, both PEM.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC).replace(microsecond=0)
    builder = (
        x509.CertificateBuilder()
        .subject_name(victim.subject)
        .issuer_name(victim.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + timedelta(days=1))
    )
    for extension in victim.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    certificate = builder.sign(key, hashes.SHA256())
    return key_pem(key), certificate.public_bytes(serialization.Encoding.PEM)


class Impostor:
    """A TLS server that presents a forged certificate and counts what it is sent.

    Args:
        victim: the certificate whose evidence it presents.
        listen: where to listen; port 0 lets the system choose.

    Raises:
        Unavailable: ``simulator.listen``.
    """

    def __init__(self, victim: x509.Certificate, listen: Address) -> None:
        self.counts = Counts()
        self._lock = threading.Lock()
        self._context = _server_context(*forge(victim))
        try:
            self._socket = socket.create_server((listen.host, listen.port))
        except OSError as error:
            raise Unavailable(
                "simulator.listen", f"cannot listen: {error.strerror}", where=str(listen)
            ) from None
        self._socket.settimeout(_POLL)

    @property
    def address(self) -> Address:
        """Where it listens."""
        host, port = self._socket.getsockname()[:2]
        return Address(host, port)

    def serve(self, stopped: Callable[[], bool]) -> None:
        """Accept connections until told to stop and none is waiting; what they sent is read."""
        threads = []
        with self._socket:
            while True:
                try:
                    connection, _ = self._socket.accept()
                except TimeoutError:
                    if stopped():
                        break
                    continue
                thread = threading.Thread(target=self._receive, args=(connection, stopped))
                thread.start()
                threads.append(thread)
        for thread in threads:
            thread.join()

    def _receive(self, connection: socket.socket, stopped: Callable[[], bool]) -> None:
        self._count(connections=1)
        with connection:
            connection.settimeout(_TIMEOUT)
            try:
                with self._context.wrap_socket(connection, server_side=True) as tls:
                    self._count(handshakes=1)
                    tls.settimeout(_POLL)
                    while True:
                        try:
                            data = tls.recv(65536)
                        except TimeoutError:
                            if stopped():
                                return
                            continue
                        if not data:
                            return
                        self._count(application_bytes=len(data))
            except OSError:
                # A client that refuses ends the handshake or the connection:
                # that is the outcome we are here to see.
                return

    def _count(
        self, *, connections: int = 0, handshakes: int = 0, application_bytes: int = 0
    ) -> None:
        with self._lock:
            self.counts.connections += connections
            self.counts.handshakes += handshakes
            self.counts.application_bytes += application_bytes


def _server_context(key: bytes, certificate: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2"])
    load_key_pair(context, key + certificate)
    return context
