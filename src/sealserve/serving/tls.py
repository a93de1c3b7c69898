"""TLS identities: where they come from, which one a client gets, and how they change.

Rules this module keeps:

* Fail closed: no identity and no explicit ``--insecure`` means no server.
* The identity of ``ssl_config_file`` is the default one; those of
  ``tls_identity_file`` are chosen by the server name the client asks for (SNI).
* Files are looked at on each handshake. A changed file takes effect when it is
  whole: a key that does not belong to its certificate, or a file that cannot be
  read, is logged, and the last good identities stay.
* No session is resumed: a client whose certificate is no longer accepted has no other way in.
* Keys live in memory only. Python's ssl module reads them from a file; that
  file is a memfd. They are in no message, log or repr.
"""

from __future__ import annotations

import ssl
import threading
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import (
    CertificatePublicKeyTypes,
    PublicKeyTypes,
)
from google.protobuf import text_format

from sealserve.certificates import UNREADABLE, load_key_pair
from sealserve.errors import InputError, Refused, SealserveError
from sealserve.files import Stamp, read_limited, stamp_of
from sealserve.logs import Log
from sealserve.serving.config import MAX_CONFIG_BYTES, TlsConfig
from sealserve.wire.serving import config_pb2

__all__ = ["Identities", "Identity", "TlsSource"]

_MAX_PEM_BYTES = 2**20
_PEM_START = "-----BEGIN "


@dataclass(frozen=True)
class Identity:
    """A private key with the certificate chain that it belongs to.

    Attributes:
        key_pem: the key; not in the repr.
        chain_pem: the server's certificate first.
        names: the DNS names of the certificate.
    """

    key_pem: bytes = field(repr=False)
    chain_pem: bytes = field(repr=False)
    names: tuple[str, ...]

    def is_for(self, server_name: str) -> bool:
        """Whether the certificate has this name (RFC 6125: a wildcard is one whole label)."""
        wanted = server_name.lower().rstrip(".")
        parent = "*." + wanted.partition(".")[2]
        return any(name.lower() in (wanted, parent) for name in self.names)


@dataclass(frozen=True)
class Identities:
    """What a server shows, at one moment; the first identity is the default.

    Attributes:
        client_ca: PEM certificates that client certificates must chain to.
        client_verify: a client without a certificate is refused.
    """

    all: tuple[Identity, ...]
    client_ca: bytes | None = None
    client_verify: bool = False

    def for_name(self, server_name: str | None) -> int:
        """The position of the identity for a server name; 0, the default, if none fits."""
        matches = (n for n, each in enumerate(self.all) if server_name and each.is_for(server_name))
        return next(matches, 0)


class TlsSource:
    """The identities of a server, as their files have them now."""

    def __init__(self, config: TlsConfig, log: Log) -> None:
        """Read the files.

        Raises:
            InputError: ``file.too_large``, ``tls.config_malformed`` or
                ``tls.identity_malformed``.
            Unavailable: ``file.unreadable``.
            Refused: ``tls.no_identity``.
        """
        if config.ssl_config_file is None and not config.identity_files:
            raise Refused(
                "tls.no_identity",
                "there is no TLS identity, and plaintext was not asked for",
                hint="give --ssl_config_file=FILE or --tls_identity_file=FILE; "
                "--insecure serves plaintext to anyone who can reach the ports",
            )
        self._config = config
        self._log = log
        self._lock = threading.Lock()
        self._identities, self._stamps = _read_all(config)
        self._failed: object = None

    def current(self) -> Identities:
        """The identities to show now; re-reads files that changed."""
        with self._lock:
            if all(stamp_of(path) == stamp for path, stamp in self._stamps.items()):
                return self._identities
            try:
                identities, stamps = _read_all(self._config)
                self._check_demand(identities)
                self._identities, self._stamps = identities, stamps
            except SealserveError as error:
                # The same failure is met on every handshake until the file is whole
                # again, and is told once.
                now = tuple(stamp_of(path) for path in self._stamps)
                if now != self._failed:
                    self._failed = now
                    self._log.error("tls_identity_kept", **error.to_dict())
            else:
                self._failed = None
                self._log.info(
                    "tls_identity_renewed", names=[each.names for each in self._identities.all]
                )
            return self._identities

    def _check_demand(self, renewed: Identities) -> None:
        """Neither front can begin, or cease, to demand client certificates while it serves."""
        if renewed.client_verify != self._identities.client_verify:
            raise InputError(
                "tls.client_verify_changed",
                "client_verify cannot change while the server runs",
                where=str(self._config.ssl_config_file),
                hint="restart the server",
            )

    def ssl_context(self, *, optional: bool = False) -> ssl.SSLContext:
        """A context for TLS 1.3 whose every handshake shows the current identities.

        Args:
            optional: a client may come without a certificate where one is demanded
                otherwise, because it can show an API key; one that it shows is verified.
        """
        state = _ContextCache(optional)

        def choose(
            connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext
        ) -> None:
            identities = self.current()
            contexts = state.contexts_of(identities)
            connection.context = contexts[identities.for_name(name)]

        # OpenSSL takes protocol versions and the demand for a client certificate
        # from this context, certificates from the one that `choose` sets.
        context = state.contexts_of(self.current())[0]
        context.sni_callback = choose
        return context


class _ContextCache:
    """One SSLContext for each identity, made when the identities change."""

    def __init__(self, optional: bool) -> None:
        self._optional = optional
        self._identities: Identities | None = None
        self._contexts: list[ssl.SSLContext] = []

    def contexts_of(self, identities: Identities) -> list[ssl.SSLContext]:
        if self._identities is not identities:
            self._contexts = [_context(each, identities, self._optional) for each in identities.all]
            self._identities = identities
        return self._contexts


def _context(identity: Identity, identities: Identities, optional: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0  # a resumed session shows no certificate, and is asked for none
    context.set_alpn_protocols(["http/1.1"])
    load_key_pair(context, identity.key_pem + identity.chain_pem)
    if identities.client_ca is not None:
        context.load_verify_locations(cadata=identities.client_ca.decode())
    if identities.client_verify:
        context.verify_mode = ssl.CERT_OPTIONAL if optional else ssl.CERT_REQUIRED
    return context


def _read_all(config: TlsConfig) -> tuple[Identities, dict[Path, Stamp]]:
    stamps: dict[Path, Stamp] = {}

    def read(path: Path) -> bytes:
        stamps[path] = stamp_of(path)
        return read_limited(path, _MAX_PEM_BYTES)

    all_: list[Identity] = []
    client_ca, client_verify = None, False
    if config.ssl_config_file is not None:
        file = config.ssl_config_file
        stamps[file] = stamp_of(file)
        wire = _read_ssl_config(file)

        def pem(field: str) -> bytes:
            text: str = getattr(wire, field)
            if _PEM_START in text:
                return text.encode()
            try:
                return read(file.resolve().parent / text)
            except (SealserveError, ValueError):
                # A key that lost its first line would be taken for a path: it is not quoted.
                raise InputError(
                    "tls.config_malformed",
                    f"{field} is neither PEM text nor a file that can be read",
                    where=str(file),
                    hint="a relative path starts at the directory of the file",
                ) from None

        all_.append(_identity(pem("server_key"), pem("server_cert"), str(file)))
        client_verify = wire.client_verify
        client_ca = pem("custom_ca") if wire.custom_ca else None
        if client_verify and client_ca is None:
            raise InputError(
                "tls.config_malformed", "client_verify needs a custom_ca", where=str(file)
            )
        if client_ca is not None:
            _certificates(client_ca, str(file))
    for path in config.identity_files:
        both = read(path)
        all_.append(_identity(both, both, str(path)))
    return Identities(tuple(all_), client_ca, client_verify), stamps


def _read_ssl_config(file: Path) -> config_pb2.SSLConfig:
    text = read_limited(file, MAX_CONFIG_BYTES)
    try:
        wire = text_format.Parse(text, config_pb2.SSLConfig())
    except (text_format.ParseError, UnicodeError):
        # The parser's own message could quote a line of the key.
        raise InputError(
            "tls.config_malformed",
            "Error parsing text-format tensorflow.serving.SSLConfig",
            where=str(file),
            hint='write server_key: "-----BEGIN ...\\n" with \\n for line ends, or file names',
        ) from None
    if not wire.server_key or not wire.server_cert:
        raise InputError(
            "tls.config_malformed", "server_key and server_cert are both needed", where=str(file)
        )
    return wire


def _identity(key_source: bytes, chain_source: bytes, where: str) -> Identity:
    """Take the key out of one PEM text and the chain out of another, and match them."""
    try:
        key = serialization.load_pem_private_key(_pem_blocks(key_source, b"KEY"), password=None)
    except UNREADABLE:
        raise _bad_identity("there is no unencrypted PEM private key", where) from None
    chain = _certificates(chain_source, where)
    try:
        fits = _spki(key.public_key()) == _spki(chain[0].public_key())
        dns_names = _dns_names(chain[0])
    except UNREADABLE:
        raise _bad_identity("the certificate cannot be read", where) from None
    if not fits:
        raise _bad_identity("the key does not belong to the first certificate", where)
    return Identity(
        key_pem=_pem_blocks(key_source, b"KEY"),
        chain_pem=b"".join(each.public_bytes(serialization.Encoding.PEM) for each in chain),
        names=dns_names,
    )


def _spki(key: PublicKeyTypes | CertificatePublicKeyTypes) -> bytes:
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _dns_names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(names.get_values_for_type(x509.DNSName))


def _certificates(source: bytes, where: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(_pem_blocks(source, b"CERTIFICATE"))
    except UNREADABLE:
        raise _bad_identity("there is no PEM certificate", where) from None


def _pem_blocks(source: bytes, kind: bytes) -> bytes:
    """The PEM blocks whose label ends in ``kind``."""
    kept: list[bytes] = []
    inside = False
    for line in source.splitlines():
        if line.startswith(b"-----BEGIN ") and line.rstrip().endswith(kind + b"-----"):
            inside = True
        if inside:
            kept.append(line.rstrip() + b"\n")
        if line.startswith(b"-----END "):
            inside = False
    return b"".join(kept)


def _bad_identity(message: str, where: str) -> InputError:
    return InputError("tls.identity_malformed", message, where=where)
