"""Who may look over HTTPS: principals, by the key of their client certificate.

Rules this module keeps:

* Only a certificate that is registered gets through a handshake; there is no
  certificate authority. Which ones are is read anew at each handshake, and who
  is behind a connection is looked up anew at each request: a principal who is
  removed is out at once, also on a connection that is open.
* TLS 1.3 only, and no resumption, so that every connection shows its certificate.
* Without principals nobody gets in.
"""

from __future__ import annotations

import ssl
import threading
from typing import Final, get_args

from cryptography import x509
from sqlalchemy import select
from starlette.types import Scope

from sealserve.broker.principals import Role, spki_sha256
from sealserve.broker.store import Store
from sealserve.broker.tables import PrincipalRow
from sealserve.certificates import load_key_pair
from sealserve.errors import SealserveError
from sealserve.logs import Log

__all__ = ["PEER_CERTIFICATE", "ROLES", "PrincipalAccess"]

ROLES: Final = frozenset(get_args(Role))
"""Each may look."""

PEER_CERTIFICATE: Final = "peer_certificate"
"""Where in a request's state the client's certificate (DER) stands."""


class PrincipalAccess:
    """Handshakes and requests of principals.

    Args:
        store: where principals are registered.
        identity_pem: the server's private key and certificate, PEM. Secret.
        log: where a handshake that could not look up principals is reported.
    """

    def __init__(self, store: Store, identity_pem: bytes, log: Log) -> None:
        self._store = store
        self._identity_pem = identity_pem
        self._log = log
        self._lock = threading.Lock()
        self._certificates: tuple[str, ...] | None = None
        self._context = self._make(())

    def context(self) -> ssl.SSLContext:
        """The server's context; each handshake goes on with the principals of its moment."""
        context = self._make(())
        context.sni_callback = self._at_handshake
        return context

    def guard(self, scope: Scope) -> str | None:
        """Why the peer of a request may not look; ``None`` if it may."""
        der = scope.get("state", {}).get(PEER_CERTIFICATE)
        if der is None:
            return "no client certificate"
        try:
            key = spki_sha256(x509.load_der_x509_certificate(der))
            with self._store.reading() as session:
                wanted = select(PrincipalRow.role).where(PrincipalRow.spki_sha256 == key)
                role = session.scalar(wanted)
        except SealserveError as error:
            return f"principals cannot be looked up now [{error.code}]"
        except ValueError:
            return "the client certificate cannot be read"
        return None if role in ROLES else "this key is no principal's"

    def _at_handshake(
        self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext
    ) -> None:
        del name, context
        connection.context = self._current()

    def _current(self) -> ssl.SSLContext:
        try:
            with self._store.reading() as session:
                certificates = tuple(session.scalars(select(PrincipalRow.certificate)))
        except SealserveError as error:
            self._log.error("principals not read", **error.to_dict())
            return self._make(())
        with self._lock:
            if certificates != self._certificates:
                self._context = self._make(certificates)
                self._certificates = certificates
            return self._context

    def _make(self, certificates: tuple[str, ...]) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        # A registered certificate is trusted by itself, whoever issued it.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.num_tickets = 0
        load_key_pair(context, self._identity_pem)
        if certificates:
            context.load_verify_locations(cadata="\n".join(certificates))
        return context
