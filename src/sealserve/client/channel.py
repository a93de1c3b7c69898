"""gRPC channels to a server that has been verified first.

Rules this module keeps:

* **Verify, then pin.** gRPC for Python has no hook to check a peer's evidence
  inside the handshake. So the certificate is fetched on a connection that
  carries no request, its quote is verified, and the channel trusts exactly that
  certificate. What the second connection has to prove is possession of the
  pinned key, so nothing is won by swapping servers in between. (BoringSSL would
  also accept a certificate issued *by* the pinned key: only its holder can make
  one.)
* Not one byte of a request leaves before the verdict is yes.
"""

from __future__ import annotations

import datetime as dt
import socket
import ssl
from dataclasses import dataclass

import grpc

from sealserve.address import Address
from sealserve.attestation import ratls
from sealserve.attestation.collateral import Collateral
from sealserve.attestation.policy import Policy
from sealserve.attestation.verifier import Verifier
from sealserve.errors import InputError, Unavailable

__all__ = ["Trust", "attested_channel", "classic_channel", "fetch_certificate"]

# TensorFlow Serving takes messages up to 2 GiB; gRPC's own default for answers
# is 4 MiB, which a batch of float images passes at once.
_MAX_MESSAGE_BYTES = 1 << 30


@dataclass(frozen=True)
class Trust:
    """What a client believes before it talks to anyone.

    Attributes:
        verifier: checks quotes against one anchor (Intel's, or a simulation's).
        collateral: Intel's signed word on platforms: TCB info, QE identity, CRLs.
        policy: which of the genuine TDs the client is willing to talk to.
    """

    verifier: Verifier
    collateral: Collateral
    policy: Policy


def fetch_certificate(address: Address, server_name: str, *, timeout: float = 10.0) -> bytes:
    """The certificate that a server presents for a name, believed by no one yet.

    Args:
        address: where the server listens.
        server_name: sent as SNI, which chooses among a server's identities.
        timeout: seconds for connecting and again for the handshake.

    Returns:
        The leaf certificate, DER.

    Raises:
        Unavailable: ``server.unreachable`` or ``server.no_tls``.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Nothing is believed here: the quote inside the certificate decides.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    try:
        with socket.create_connection((address.host, address.port), timeout) as plain:
            try:
                with context.wrap_socket(plain, server_hostname=server_name) as tls:
                    certificate = tls.getpeercert(binary_form=True)
            except (ssl.SSLError, OSError) as error:
                raise Unavailable(
                    "server.no_tls",
                    f"the TLS handshake failed: {_reason(error)}",
                    where=str(address),
                    hint="check that this is the server's TLS port",
                ) from None
    except OSError as error:
        raise Unavailable(
            "server.unreachable",
            f"cannot connect: {_reason(error)}",
            where=str(address),
            hint="check the address and that the server is up",
        ) from None
    if certificate is None:
        raise Unavailable(
            "server.no_tls", "the server presented no certificate", where=str(address)
        )
    return certificate


def attested_channel(
    address: Address, trust: Trust, *, now: dt.datetime | None = None, timeout: float = 10.0
) -> tuple[grpc.Channel, ratls.TrustReport]:
    """Verify the server at ``address``, then open a channel pinned to its certificate.

    Returns:
        The channel and the report of everything that was verified.

    Raises:
        Refused: the evidence, its binding to the TLS key, or the policy said no.
        Unavailable: ``server.unreachable`` or ``server.no_tls``.
    """
    certificate = fetch_certificate(address, ratls.SERVER_NAME, timeout=timeout)
    report = ratls.check_certificate(
        certificate,
        trust.verifier,
        trust.collateral,
        trust.policy,
        now or dt.datetime.now(dt.UTC),
    )
    pinned = ssl.DER_cert_to_PEM_cert(certificate).encode()
    return _channel(address, pinned, ratls.SERVER_NAME), report


def classic_channel(
    address: Address, certificate_pem: bytes, *, connect_to: Address | None = None
) -> grpc.Channel:
    """A channel that trusts one certificate and no evidence, as TensorFlow Serving's clients do.

    Args:
        address: the server as its certificate names it.
        certificate_pem: the server's certificate, or the authority that issued it.
        connect_to: dial this instead of ``address``; the certificate's name stays.

    Raises:
        InputError: ``client.certificate_malformed``.
    """
    if b"-----BEGIN CERTIFICATE-----" not in certificate_pem:
        raise InputError(
            "client.certificate_malformed",
            "this is not a PEM certificate",
            hint="give the server.crt that `sealserve owner tls` made",
        )
    return _channel(connect_to or address, certificate_pem, address.host)


def _channel(address: Address, root_pem: bytes, server_name: str) -> grpc.Channel:
    return grpc.secure_channel(
        str(address),
        grpc.ssl_channel_credentials(root_certificates=root_pem),
        options=[
            ("grpc.ssl_target_name_override", server_name),
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
            # Two clients in one process may pin different certificates.
            ("grpc.use_local_subchannel_pool", 1),
        ],
    )


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__
