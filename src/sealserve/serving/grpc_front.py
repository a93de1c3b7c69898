"""gRPC: ports, sockets and TLS of the server.

Rules this module keeps:

* What is served comes as handlers from `grpc_services` and its neighbours; here is
  only where and under which identity.
* TLS 1.2 or newer; gRPC-Python offers no switch for 1.3 alone. Which identity a
  client gets is gRPC's own choice by server name, the first being the default.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_reflection.v1alpha import reflection

from sealserve.errors import Unavailable
from sealserve.serving.config import ServerConfig
from sealserve.serving.grpc_patience import WAITING, Patience
from sealserve.serving.health import SERVICES, Health
from sealserve.serving.tls import Identities, TlsSource
from sealserve.wire import private_pool

__all__ = ["GrpcFront"]


class GrpcFront:
    """The gRPC server.

    Attributes:
        port: the TCP port it listens on; None for a UNIX socket alone.
    """

    def __init__(
        self,
        handlers: Sequence[grpc.GenericRpcHandler[bytes, bytes]],
        config: ServerConfig,
        tls: TlsSource | None,
        health: Health | None = None,
    ) -> None:
        """Bind the port; nothing is served before `start`.

        Raises:
            Unavailable: ``serve.port_unavailable``.
        """
        self._patience = Patience(config.grpc_threads)
        threads = config.grpc_threads + WAITING  # started when they are needed
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="grpc")
        self._server = grpc.server(
            self._pool,
            handlers=list(handlers),
            interceptors=[self._patience],
            options=[
                ("grpc.max_receive_message_length", config.max_request_bytes),
                ("grpc.max_send_message_length", -1),
                # Two servers on one port would each get some of the requests.
                ("grpc.so_reuseport", 0),
                *_age(config),
                *config.grpc_options,
            ],
        )
        if health is not None and config.health_service:
            health.add_to(self._server)
        if config.reflection:
            names = (*SERVICES, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server, private_pool.Default())
        host = f"[{config.bind_address}]" if ":" in config.bind_address else config.bind_address
        self.port: int | None = None
        if config.grpc_port is not None:
            self.port = self._bind(f"{host}:{config.grpc_port}", tls)
        if config.grpc_socket is not None:
            self._bind(f"unix:{config.grpc_socket}", tls)

    def start(self) -> None:
        """Begin to serve."""
        self._patience.start()
        self._server.start()

    def stop(self, grace: float) -> None:
        """Take no more requests, let those under way finish for ``grace`` seconds."""
        self._server.stop(grace).wait()
        self._patience.stop()
        self._pool.shutdown()

    def _bind(self, address: str, tls: TlsSource | None) -> int:
        try:
            if tls is None:
                return self._server.add_insecure_port(address)
            return self._server.add_secure_port(address, _credentials(tls))
        except RuntimeError:
            raise Unavailable(
                "serve.port_unavailable",
                "cannot listen for gRPC",
                where=address,
                hint="another program has the port, or the address is not of this machine",
            ) from None


def _age(config: ServerConfig) -> list[tuple[str, int]]:
    if not config.max_connection_age:
        return []
    milliseconds = int(config.max_connection_age * 1000)
    grace = int(config.drain_seconds * 1000)
    return [
        ("grpc.max_connection_age_ms", milliseconds),
        ("grpc.max_connection_age_grace_ms", grace),
    ]


def _credentials(tls: TlsSource) -> grpc.ServerCredentials:
    shown = tls.current()

    def configuration(identities: Identities) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration(
            [(each.key_pem, each.chain_pem) for each in identities.all],
            root_certificates=identities.client_ca,
        )

    def renew() -> grpc.ServerCertificateConfiguration | None:
        """Asked by gRPC on each new connection; None means: as before."""
        nonlocal shown
        identities = tls.current()
        if identities is shown:
            return None
        shown = identities
        return configuration(identities)

    return grpc.dynamic_ssl_server_credentials(
        configuration(shown),
        renew,  # type: ignore[arg-type]  # the stubs do not know of None
        require_client_authentication=shown.client_verify,
    )
