"""Who may do what: roles, by client certificate or by API key.

A file (``--access_file``, YAML) gives the roles. Without one, whoever can connect
may predict and read metrics - with ``client_verify``, only who has a certificate of
that CA - and nobody is an administrator.

    predict: any                          # every client that TLS lets in
    metrics: ["prometheus.example"]       # a DNS name, a URI or the common name
    admin: ["ops.example", "sha256:0f3a..."]   # or the certificate's fingerprint
    api_keys:
      - {name: nightly-job, sha256: 9b1c..., roles: [predict]}

Rules this module keeps:

* A role that the file does not name is nobody's. ``admin`` is never ``any``.
* Only certificates that TLS has verified against ``custom_ca`` count.
* Of API keys the file holds SHA-256 digests only; they are random and long, so no slow
  hash is needed. They are compared in constant time, all of them, whichever matches.
  A key is in no log and no message.
* A file that changed takes effect when it is whole; a broken one is told, and the last
  good one stays.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from sealserve import strict_yaml
from sealserve.certificates import UNREADABLE
from sealserve.errors import InputError, Refused, SealserveError
from sealserve.files import read_limited, stamp_of
from sealserve.logs import Log

__all__ = ["AccessRules", "Gate", "Peer", "Role", "read_access_file"]

_MAX_FILE_BYTES = 2**20
_MAX_NODES = 20_000
_LOOK_SECONDS = 1.0
_MAX_KEY_CHARS = 512
_FINGERPRINT = re.compile("sha256:[0-9a-f]{64}")


class Role(Enum):
    """What a caller may be."""

    PREDICT = "predict"
    ADMIN = "admin"
    METRICS = "metrics"


@dataclass(frozen=True)
class Peer:
    """Who calls.

    Attributes:
        certificate: the verified client certificate (DER), if there is one.
        key: the API key that was sent, if one was; not in the repr.
    """

    certificate: bytes | None = None
    key: str | None = field(default=None, repr=False)


_Sha256 = Field(pattern="^[0-9a-f]{64}$")


def _checked(name: str) -> str:
    if not name or (name.startswith("sha256:") and not _FINGERPRINT.fullmatch(name)):
        raise ValueError("a name is not empty; a fingerprint is sha256: and 64 digits of 0-9a-f")
    return name


_Name = Annotated[str, AfterValidator(_checked)]


class _Key(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str = Field(min_length=1, max_length=100)
    sha256: str = _Sha256
    roles: list[Literal["predict", "admin", "metrics"]] = Field(min_length=1)


class AccessRules(BaseModel):
    """The access file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    predict: Literal["any"] | list[_Name] = []
    metrics: Literal["any"] | list[_Name] = []
    admin: list[_Name] = []
    api_keys: list[_Key] = []

    def allows(self, role: Role, peer: Peer, *, anonymous: bool) -> bool:
        """Whether this caller has the role.

        Args:
            role: what is needed.
            peer: who calls.
            anonymous: ``any`` means also those without a certificate.
        """
        wanted = getattr(self, role.value)
        if wanted == "any" and (anonymous or peer.certificate is not None):
            return True
        if (
            wanted != "any"
            and peer.certificate is not None
            and not names_of(peer.certificate).isdisjoint(wanted)
        ):
            return True
        return peer.key is not None and role.value in self._roles_of(peer.key)

    def _roles_of(self, key: str) -> frozenset[str]:
        digest = hashlib.sha256(key.encode(errors="replace")).hexdigest()
        roles: frozenset[str] = frozenset()
        for known in self.api_keys:
            if hmac.compare_digest(known.sha256, digest):
                roles |= frozenset(known.roles)
        return roles


_OPEN = AccessRules(predict="any", metrics="any")


class Gate:
    """Decides about every call."""

    def __init__(self, file: Path | None, log: Log, *, certificates: bool = False) -> None:
        """Read the file.

        Args:
            file: the rules; None for those without a file.
            log: where a change is told.
            certificates: TLS demands certificates; who shows an API key instead has
                only what the key gives.

        Raises:
            InputError: ``access.file_malformed`` or ``file.too_large``.
            Unavailable: ``file.unreadable``.
        """
        self._file = file
        self._log = log
        self._anonymous = not certificates
        self._lock = threading.Lock()
        self._stamp = stamp_of(file) if file else None
        self._rules = read_access_file(file) if file else _OPEN
        self._look_at = time.monotonic() + _LOOK_SECONDS

    @property
    def takes_keys(self) -> bool:
        """Whether there are API keys, so that a client may come without a certificate."""
        return bool(self._current().api_keys)

    def check(self, role: Role, peer: Peer) -> None:
        """Let the call pass.

        Raises:
            Refused: ``access.unknown_caller``: there is neither a certificate nor a key
                that is known; ``access.role_missing``: the caller is known, but not for this.
        """
        rules = self._current()
        if rules.allows(role, peer, anonymous=self._anonymous):
            return
        if peer.certificate is None:
            raise Refused(
                "access.unknown_caller",
                f"this needs the role {role.value}, by client certificate or API key",
            )
        raise Refused("access.role_missing", f"this needs the role {role.value}")

    def _current(self) -> AccessRules:
        now = time.monotonic()
        if self._file is None or now < self._look_at:
            return self._rules
        with self._lock:
            self._look_at = now + _LOOK_SECONDS
            stamp = stamp_of(self._file)
            if stamp != self._stamp:
                self._stamp = stamp
                try:
                    self._rules = read_access_file(self._file)
                except SealserveError as error:
                    self._log.error("access_file_kept", **error.to_dict())
                else:
                    self._log.info("access_file_renewed", file=str(self._file))
            return self._rules


def read_access_file(file: Path) -> AccessRules:
    """Read the rules.

    Raises:
        InputError: ``access.file_malformed`` or ``file.too_large``.
        Unavailable: ``file.unreadable``.
    """
    raw = read_limited(file, _MAX_FILE_BYTES)
    try:
        document = strict_yaml.read(raw, max_nodes=_MAX_NODES)
        return AccessRules.model_validate({} if document is None else document)
    except strict_yaml.NotYaml as error:
        reason = str(error)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        reason = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    raise InputError(
        "access.file_malformed",
        reason,
        where=str(file),
        hint="roles are predict, metrics and admin, each a list of names; api_keys have name, "
        "sha256 and roles",
    )


def names_of(certificate: bytes) -> set[str]:
    """The names by which a certificate's holder may be meant; empty if it cannot be read."""
    try:
        parsed = x509.load_der_x509_certificate(certificate)
        names = {f"sha256:{parsed.fingerprint(hashes.SHA256()).hex()}"}
        common = parsed.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        names |= {str(each.value) for each in common}
        extension = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names |= set(extension.get_values_for_type(x509.DNSName))
        names |= set(extension.get_values_for_type(x509.UniformResourceIdentifier))
    except x509.ExtensionNotFound:
        pass
    except UNREADABLE:
        return set()
    return names


def key_in(headers: Sequence[tuple[str, Any]]) -> str | None:
    """The API key of a request: ``Authorization: Bearer KEY`` or ``X-API-Key: KEY``."""
    for name, value in headers:
        if not isinstance(value, str) or len(value) > _MAX_KEY_CHARS:
            continue
        if name == "x-api-key":
            return value
        scheme, _, rest = value.partition(" ")
        if name == "authorization" and scheme.lower() == "bearer":
            return rest.strip()
    return None
