"""The broker's tables. `sealserve.broker.migrations` makes them; a test compares the two.

Times are ISO 8601 in UTC where people read them, and seconds since 1970 (REAL)
where replicas compare them: those come from the database's own clock.
"""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    LargeBinary,
    String,
    Text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

__all__ = [
    "AuditCheckpointRow",
    "AuditHeadRow",
    "AuditLineRow",
    "Base",
    "BrokerKeyRow",
    "ChallengeRow",
    "LeaseRow",
    "PrincipalRow",
    "ProposalRow",
    "RateRow",
    "ResourceRow",
    "ResourceVersionRow",
    "SecretRow",
]


class Base(DeclarativeBase):
    """The metadata that all tables share."""


class BrokerKeyRow(Base):
    """A private key of the broker itself, wrapped under the KEK named by ``kek_id``."""

    __tablename__ = "broker_keys"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    version: Mapped[int] = mapped_column(Integer)
    wrapped: Mapped[bytes] = mapped_column(LargeBinary)
    kek_id: Mapped[str] = mapped_column(String(64))


class SecretRow(Base):
    """One version of a secret, wrapped under the KEK named by ``kek_id``.

    ``state`` is ``live``, ``retired`` (replaced), ``disabled`` (an operator can enable
    it again) or ``destroyed`` (``wrapped`` is then NULL). Past ``expires`` a live
    version is not released either.
    """

    __tablename__ = "secrets"

    id: Mapped[str] = mapped_column(String(128), primary_key=True)
    version: Mapped[int] = mapped_column(Integer, primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    wrapped: Mapped[bytes | None] = mapped_column(LargeBinary)
    kek_id: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16))
    created: Mapped[str] = mapped_column(String(32))
    expires: Mapped[str | None] = mapped_column(String(32))


class ResourceRow(Base):
    """What a guest may ask for: a secret at its current version, and the policy over it."""

    __tablename__ = "resources"
    __table_args__ = (
        ForeignKeyConstraint(["secret_id", "secret_version"], ["secrets.id", "secrets.version"]),
    )

    name: Mapped[str] = mapped_column(String(128), primary_key=True)
    secret_id: Mapped[str] = mapped_column(String(128))
    secret_version: Mapped[int] = mapped_column(Integer)
    policy: Mapped[bytes] = mapped_column(LargeBinary)
    policy_sha256: Mapped[str] = mapped_column(String(64))
    lease_seconds: Mapped[int] = mapped_column(Integer)


class ResourceVersionRow(Base):
    """The signed volume record that one version of a resource's secret opens.

    During a rotation two versions are live, each with the record of its own volume.
    """

    __tablename__ = "resource_versions"

    resource: Mapped[str] = mapped_column(
        String(128), ForeignKey("resources.name", ondelete="CASCADE"), primary_key=True
    )
    secret_version: Mapped[int] = mapped_column(Integer, primary_key=True)
    record: Mapped[bytes] = mapped_column(LargeBinary)
    owner_public_key: Mapped[bytes] = mapped_column(LargeBinary)


class ChallengeRow(Base):
    """A nonce that several replicas share."""

    __tablename__ = "challenges"

    nonce: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    resource: Mapped[str] = mapped_column(String(128))
    peer: Mapped[str] = mapped_column(String(64), index=True)
    issued: Mapped[float] = mapped_column(Float, index=True)
    used: Mapped[bool] = mapped_column(Boolean)


class LeaseRow(Base):
    """Who may keep which version of a secret, and until when.

    ``rtmr3`` is what stood in that register at the release, in hex. ``state`` is
    ``active`` or ``revoked``; an active lease past ``expires`` has ended.
    """

    __tablename__ = "leases"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    resource: Mapped[str] = mapped_column(String(128), index=True)
    secret_version: Mapped[int] = mapped_column(Integer)
    peer: Mapped[str] = mapped_column(String(64))
    boot_id: Mapped[str] = mapped_column(String(32))
    quote_sha256: Mapped[str] = mapped_column(String(64))
    rtmr3: Mapped[str] = mapped_column(String(96))
    state: Mapped[str] = mapped_column(String(16))
    issued: Mapped[float] = mapped_column(Float)
    renewed: Mapped[float] = mapped_column(Float)
    expires: Mapped[float] = mapped_column(Float, index=True)


class RateRow(Base):
    """A token bucket that several replicas share: one for each peer, one for each resource."""

    __tablename__ = "rates"

    scope: Mapped[str] = mapped_column(String(16), primary_key=True)
    name: Mapped[str] = mapped_column(String(128), primary_key=True)
    tokens: Mapped[float] = mapped_column(Float)
    updated: Mapped[float] = mapped_column(Float)


class AuditLineRow(Base):
    """One line of the audit chain, exactly as it was hashed."""

    __tablename__ = "audit_lines"

    sequence: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    line: Mapped[str] = mapped_column(Text)
    sha256: Mapped[str] = mapped_column(String(64))


class AuditHeadRow(Base):
    """Where the chain ends: one row, so that a cut-off end shows."""

    __tablename__ = "audit_head"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    count: Mapped[int] = mapped_column(Integer)
    sha256: Mapped[str] = mapped_column(String(64))


class AuditCheckpointRow(Base):
    """The broker's signature over the chain as it was at one line."""

    __tablename__ = "audit_checkpoints"

    sequence: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    sha256: Mapped[str] = mapped_column(String(64))
    time: Mapped[str] = mapped_column(String(32))
    signature: Mapped[bytes] = mapped_column(LargeBinary)


class PrincipalRow(Base):
    """Who may administer: a client certificate's key, by its SPKI digest, and a role."""

    __tablename__ = "principals"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    role: Mapped[str] = mapped_column(String(16))
    certificate: Mapped[str] = mapped_column(Text)
    spki_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    added: Mapped[str] = mapped_column(String(32))


class ProposalRow(Base):
    """An act that waits for a second person.

    ``state`` is ``open``, ``done``, ``withdrawn`` or ``void``; an open one past ``expires``
    is void too.
    """

    __tablename__ = "proposals"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    action: Mapped[str] = mapped_column(String(32))
    arguments: Mapped[str] = mapped_column(Text)
    proposer: Mapped[str] = mapped_column(String(64))
    approver: Mapped[str | None] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16))
    created: Mapped[str] = mapped_column(String(32))
    expires: Mapped[str] = mapped_column(String(32))
