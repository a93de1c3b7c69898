"""The broker's tables. `sealserve.broker.migrations` makes them; a test compares the two."""

from __future__ import annotations

from sqlalchemy import ForeignKeyConstraint, Integer, LargeBinary, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

__all__ = ["AuditHeadRow", "AuditLineRow", "Base", "BrokerKeyRow", "ResourceRow", "SecretRow"]


class Base(DeclarativeBase):
    """The metadata that all tables share."""


class BrokerKeyRow(Base):
    """A private key of the broker itself, wrapped under the KEK."""

    __tablename__ = "broker_keys"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    version: Mapped[int] = mapped_column(Integer)
    wrapped: Mapped[bytes] = mapped_column(LargeBinary)


class SecretRow(Base):
    """One version of a secret, wrapped under the KEK."""

    __tablename__ = "secrets"

    id: Mapped[str] = mapped_column(String(128), primary_key=True)
    version: Mapped[int] = mapped_column(Integer, primary_key=True)
    wrapped: Mapped[bytes] = mapped_column(LargeBinary)
    state: Mapped[str] = mapped_column(String(16))
    created: Mapped[str] = mapped_column(String(32))


class ResourceRow(Base):
    """What a guest may ask for: a secret, its volume record, and the policy over both."""

    __tablename__ = "resources"
    __table_args__ = (
        ForeignKeyConstraint(["secret_id", "secret_version"], ["secrets.id", "secrets.version"]),
    )

    name: Mapped[str] = mapped_column(String(128), primary_key=True)
    secret_id: Mapped[str] = mapped_column(String(128))
    secret_version: Mapped[int] = mapped_column(Integer)
    record: Mapped[bytes] = mapped_column(LargeBinary)
    owner_public_key: Mapped[bytes] = mapped_column(LargeBinary)
    policy: Mapped[bytes] = mapped_column(LargeBinary)
    policy_sha256: Mapped[str] = mapped_column(String(64))
    lease_seconds: Mapped[int] = mapped_column(Integer)


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
