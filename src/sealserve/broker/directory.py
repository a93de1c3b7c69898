"""A broker's directory: what `sealserve broker init` makes and `serve` opens.

| file | what it is |
|---|---|
| ``kek`` | the key-encryption key, mode 0600; back it up apart from the database (none if
an HSM or Vault holds it) |
| ``broker.yaml`` | what the operator chooses, such as another database |
| ``broker.db`` | secrets, the broker's own keys (all wrapped), resources, the audit chain |
| ``broker.json`` | the public identity, for owners and guests |

With PostgreSQL there is no ``broker.db``, and every replica has a directory of its own with
the other three.

Rules this module keeps: a directory appears complete or not at all, and no
private key stands in it unwrapped but the KEK.
"""

from __future__ import annotations

import base64
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy.orm import Session

from sealserve.attestation import policy_file
from sealserve.attestation.policy import Policy
from sealserve.attestation.sealing import HpkeKey, generate_key
from sealserve.broker import audit, config_file, secrets
from sealserve.broker.checkpoints import Signer
from sealserve.broker.config import BrokerConfig, StoreConfig
from sealserve.broker.deposit import open_deposit
from sealserve.broker.identity import NAME_PATTERN, BrokerIdentity, make_tls_identity
from sealserve.broker.kek_provider import CurrentKek, make_kek, settle
from sealserve.broker.keys import KeyEncryptionKey
from sealserve.broker.protocol import resource_name
from sealserve.broker.secrets import RETIRED_AT_ONCE, Kind, Previous
from sealserve.broker.store import NextVersion, Resource, Store
from sealserve.errors import InputError, Refused, Unavailable
from sealserve.files import sync_path, write_atomically
from sealserve.wire.limits import MAX_RECORD_BYTES

__all__ = [
    "DEFAULT_LEASE_SECONDS",
    "Broker",
    "Deposit",
    "WrappedDeposit",
    "create",
    "open_broker",
    "open_without_kek",
    "release_policy",
    "require_new_place",
]

DEFAULT_LEASE_SECONDS: Final = 24 * 3600

_IDENTITY: Final = "broker.json"
_TLS_KEY: Final = "broker/tls"
_DEPOSIT_KEY: Final = "broker/deposit"
_AUDIT_KEY: Final = "broker/audit"


@dataclass(frozen=True, slots=True)
class Deposit:
    """A deposit that was checked and opened; fields as `Broker.accept` has them."""

    resource: str
    secret: bytes = field(repr=False)
    record: bytes = field(repr=False)
    owner_public_key: bytes = field(repr=False)
    policy: bytes = field(repr=False)
    lease_seconds: int
    kind: Kind
    expires: str | None


@dataclass(frozen=True, slots=True)
class WrappedDeposit:
    """A deposit whose secret is wrapped: all that there is to do before it is kept."""

    deposit: Deposit
    version: NextVersion


@dataclass(frozen=True, slots=True)
class Broker:
    """An open broker directory; a context manager that closes its store.

    Attributes:
        root: the directory.
        config: what the operator chose.
        identity: the public document.
        kek: wraps and unwraps what the store holds.
        store: the database.
    """

    root: Path
    config: BrokerConfig
    identity: BrokerIdentity
    kek: KeyEncryptionKey
    store: Store

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.kek.close()
        self.store.close()

    @property
    def audit(self) -> audit.AuditLog:
        """The audit chain."""
        return audit.AuditLog(self.store, self.identity)

    def audit_signer(self) -> Signer:
        """Signs statements about the audit chain."""
        return Signer(self.identity, self.store.broker_key(_AUDIT_KEY, self.kek))

    def tls_private_key(self) -> bytes:
        """The TLS private key, PEM, for gRPC to hold in memory."""
        return self.store.broker_key(_TLS_KEY, self.kek)

    def accept(
        self,
        resource: str,
        sealed_key: bytes,
        *,
        record: bytes,
        owner_public_key: bytes,
        policy: bytes,
        lease_seconds: int = DEFAULT_LEASE_SECONDS,
        kind: str = "",
        expires: str = "",
    ) -> Deposit:
        """Check a deposit and open it. The caller checks that key and record belong together.

        Args:
            resource: the name guests ask for, such as ``"models/demo"``.
            sealed_key: made by `deposit.seal_for` for this broker.
            record: signed volume record, or empty if the secret opens no volume.
            owner_public_key: who signed the record.
            policy: the policy, a YAML document.
            lease_seconds: how long a guest may keep the secret, from 1 on.
            kind: one of `secrets.Kind`; by the record if empty.
            expires: from when on it is not released, ISO 8601; never if empty.

        Raises:
            InputError: ``resource.name_invalid``, ``resource.record_too_large``,
                ``resource.lease_invalid``, ``deposit.malformed``, ``policy.malformed``,
                ``resource.policy_needs_events``, ``secret.kind_*``,
                ``secret.expires_invalid``, ``secret.not_a_tls_key``.
            Refused: ``sealing.not_opened``.
            Unavailable: ``store.unavailable``.
        """
        resource_name(resource)
        if len(record) > MAX_RECORD_BYTES:
            raise InputError(
                "resource.record_too_large",
                f"the volume record has {len(record)} bytes, more than {MAX_RECORD_BYTES}",
                hint="put fewer models into one volume",
            )
        if not 1 <= lease_seconds < 2**31:
            raise InputError("resource.lease_invalid", f"a lease of {lease_seconds} s is no lease")
        release_policy(policy)
        read = secrets.kind_of(kind, record)
        until = secrets.read_expiry(expires)
        secret = open_deposit(self._deposit_key(), self.identity, sealed_key)
        secrets.check(read, secret)
        return Deposit(
            resource, secret, record, owner_public_key, policy, lease_seconds, read, until
        )

    def wrap(self, deposit: Deposit) -> WrappedDeposit:
        """Wrap a deposit's secret as the next version.

        Raises:
            Unavailable, Refused: ``kek.*``.
        """
        version = self.store.wrap_next(deposit.resource, deposit.secret, self.kek)
        return WrappedDeposit(deposit, version)

    def keep(
        self, session: Session, wrapped: WrappedDeposit, previous: Previous = RETIRED_AT_ONCE
    ) -> Resource:
        """Store a deposit as the secret's next version, with no audit line of its own.

        Raises:
            Unavailable, Refused: as `Store.put_secret`.
        """
        deposit = wrapped.deposit
        return self.store.put_secret(
            session,
            wrapped.version,
            record=deposit.record,
            owner_public_key=deposit.owner_public_key,
            policy=deposit.policy,
            lease_seconds=deposit.lease_seconds,
            kind=deposit.kind,
            expires=deposit.expires,
            previous=previous,
        )

    def put_secret(self, resource: str, sealed_key: bytes, **given: Any) -> Resource:
        """`accept`, `wrap` and `keep` in one step, for a broker that nobody administers yet."""
        wrapped = self.wrap(self.accept(resource, sealed_key, **given))
        with self.store.writing() as session:
            stored = self.keep(session, wrapped)
            audit.append(
                session,
                {
                    "event": "secret.put",
                    "resource": resource,
                    "secret_version": stored.secret_version,
                    "policy_sha256": stored.policy_sha256,
                },
            )
        return stored

    def _deposit_key(self) -> HpkeKey:
        return HpkeKey.from_private_bytes(self.store.broker_key(_DEPOSIT_KEY, self.kek))


def release_policy(raw: bytes) -> Policy:
    """Read a policy over a resource.

    Raises:
        InputError: ``policy.malformed``, ``resource.policy_needs_events``.
    """
    policy = policy_file.parse(raw)
    if policy.required_events:
        raise InputError(
            "resource.policy_needs_events",
            "the policy requires runtime events, which no guest has before it has the key",
            where="required_events",
            hint="leave them out here; they belong in the policy of the clients",
        )
    return policy


def create(
    root: Path, *, name: str, hosts: Sequence[str] = (), chosen: BrokerConfig | None = None
) -> BrokerIdentity:
    """Make a new broker.

    Args:
        root: the directory to make; it may exist if it is empty.
        name: the broker's name for people, up to 64 characters.
        hosts: DNS names and IP addresses for its certificate.
        chosen: what goes into ``broker.yaml``; the defaults if not given.

    Returns:
        The public identity, which also stands in ``broker.json``.

    Raises:
        InputError: ``broker.directory_exists``, ``broker.name_invalid``,
            ``identity.host_invalid``.
        Refused: ``broker.database_in_use``, ``store.version_unknown``.
        Unavailable: ``broker.directory_unwritable``, ``store.*``.
    """
    require_new_place(root)
    if not re.fullmatch(NAME_PATTERN, name):
        raise InputError(
            "broker.name_invalid",
            f"{name[:64]!r} is no name for a broker",
            hint="use up to 64 letters, digits, spaces, '.', '_' and '-'",
        )
    tls_key, certificate = make_tls_identity(name, hosts)
    deposit_key, audit_key = generate_key(), Ed25519PrivateKey.generate()
    identity = BrokerIdentity(
        name=name,
        certificate=certificate,
        deposit_key=base64.b64encode(deposit_key.public).decode(),
        audit_key=base64.b64encode(audit_key.public_key().public_bytes_raw()).decode(),
    )
    private = {
        _TLS_KEY: tls_key,
        _DEPOSIT_KEY: deposit_key.private_bytes(),
        _AUDIT_KEY: audit_key.private_bytes_raw(),
    }
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
        try:
            _fill(scratch, identity, chosen or BrokerConfig(), private)
            scratch.rename(root)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        sync_path(root.parent)
    except OSError as error:
        raise Unavailable(
            "broker.directory_unwritable",
            f"the broker's directory cannot be made: {error.strerror}",
            where=str(root),
            hint="check the place's owner and free space",
        ) from None
    return identity


def require_new_place(root: Path) -> None:
    """A broker is made where nothing is.

    Raises:
        InputError: ``broker.directory_exists``.
    """
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise InputError(
            "broker.directory_exists",
            "there is something at this place already",
            where=str(root),
            hint="give a new directory; a broker is never overwritten",
        )


def open_broker(root: Path) -> Broker:
    """Open a broker's directory.

    Raises:
        Unavailable: ``broker.directory_missing``, ``kek.unreadable``, ``store.unavailable``.
        Refused: ``kek.*``; ``broker.key_mismatch`` if identity and database belong to
            different brokers; ``store.version_unknown``.
        InputError: ``identity.malformed``, ``broker.config_invalid``.
    """
    identity, chosen, store = open_without_kek(root)
    with ExitStack() as undo:
        undo.callback(store.close)
        settle(root, store)
        kek = CurrentKek(root, config_file.load(root).kek, store)
        undo.callback(kek.close)
        broker = Broker(root, chosen, identity, kek, store)
        if (
            broker._deposit_key().public != identity.deposit_public_key
            or broker.audit_signer().public != identity.audit_public_key
        ):
            raise Refused(
                "broker.key_mismatch",
                "broker.json and the database belong to different brokers",
                where=str(root),
                hint="restore both from the same backup",
            )
        undo.pop_all()
    return broker


def open_without_kek(root: Path) -> tuple[BrokerIdentity, BrokerConfig, Store]:
    """Open what needs no key: for looking at a broker that may not be fit to serve.

    The caller closes the store.

    Raises:
        Unavailable: ``broker.directory_missing``, ``broker.database_missing``,
            ``store.unavailable``.
        Refused: ``store.version_unknown``, ``broker.config_has_password``.
        InputError: ``identity.malformed``, ``broker.config_invalid``.
    """
    if not (root / _IDENTITY).is_file():
        raise Unavailable(
            "broker.directory_missing",
            "this is no broker's directory",
            where=str(root),
            hint="make one with `sealserve broker init DIR --name NAME`",
        )
    chosen = config_file.load(root)
    _require_database(root, chosen.store)
    return BrokerIdentity.load(root / _IDENTITY), chosen, Store.open(chosen.store, root)


def _require_database(root: Path, store: StoreConfig) -> None:
    # An empty database made in its place would hide that the old one is gone.
    if not store.shared and not (root / str(store.location.database)).is_file():
        raise Unavailable(
            "broker.database_missing",
            f"the broker's database {store.location.database} is not in its directory",
            where=str(root),
            hint="restore it from your backup",
        )


def _fill(
    scratch: Path, identity: BrokerIdentity, chosen: BrokerConfig, private: Mapping[str, bytes]
) -> None:
    write_atomically(scratch / config_file.CONFIG_FILE, config_file.render(chosen))
    write_atomically(scratch / _IDENTITY, identity.to_json())
    kek = make_kek(chosen.kek, scratch)
    sync_path(scratch)
    store = Store.open(chosen.store, scratch)
    try:
        if store.has_broker_keys():
            raise Refused(
                "broker.database_in_use",
                "the database holds a broker already",
                hint="for a replica copy the first broker's kek, broker.json and broker.yaml;"
                " for a new broker, or after an interrupted `init`, give an empty database",
            )
        store.put_broker_keys(private, kek)
    finally:
        store.close()
        kek.close()
    sync_path(scratch)
