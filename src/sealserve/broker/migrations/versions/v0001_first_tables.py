"""The first tables: keys, secrets, resources, leases, the audit chain, administration."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables and the head of an empty audit chain."""
    op.create_table(
        "broker_keys",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("wrapped", sa.LargeBinary, nullable=False),
        sa.Column("kek_id", sa.String(64), nullable=False),
    )
    op.create_table(
        "secrets",
        sa.Column("id", sa.String(128), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("wrapped", sa.LargeBinary),
        sa.Column("kek_id", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("created", sa.String(32), nullable=False),
        sa.Column("expires", sa.String(32)),
    )
    op.create_table(
        "resources",
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("secret_id", sa.String(128), nullable=False),
        sa.Column("secret_version", sa.Integer, nullable=False),
        sa.Column("policy", sa.LargeBinary, nullable=False),
        sa.Column("policy_sha256", sa.String(64), nullable=False),
        sa.Column("lease_seconds", sa.Integer, nullable=False),
        sa.ForeignKeyConstraint(["secret_id", "secret_version"], ["secrets.id", "secrets.version"]),
    )
    op.create_table(
        "resource_versions",
        sa.Column(
            "resource",
            sa.String(128),
            sa.ForeignKey("resources.name", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("secret_version", sa.Integer, primary_key=True),
        sa.Column("record", sa.LargeBinary, nullable=False),
        sa.Column("owner_public_key", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "challenges",
        sa.Column("nonce", sa.LargeBinary, primary_key=True),
        sa.Column("resource", sa.String(128), nullable=False),
        sa.Column("peer", sa.String(64), nullable=False, index=True),
        sa.Column("issued", sa.Float, nullable=False, index=True),
        sa.Column("used", sa.Boolean, nullable=False),
    )
    op.create_table(
        "leases",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("resource", sa.String(128), nullable=False, index=True),
        sa.Column("secret_version", sa.Integer, nullable=False),
        sa.Column("peer", sa.String(64), nullable=False),
        sa.Column("boot_id", sa.String(32), nullable=False),
        sa.Column("quote_sha256", sa.String(64), nullable=False),
        sa.Column("rtmr3", sa.String(96), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("issued", sa.Float, nullable=False),
        sa.Column("renewed", sa.Float, nullable=False),
        sa.Column("expires", sa.Float, nullable=False, index=True),
    )
    op.create_table(
        "rates",
        sa.Column("scope", sa.String(16), primary_key=True),
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("tokens", sa.Float, nullable=False),
        sa.Column("updated", sa.Float, nullable=False),
    )
    op.create_table(
        "audit_lines",
        sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("line", sa.Text, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
    )
    head = op.create_table(
        "audit_head",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("count", sa.Integer, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
    )
    op.bulk_insert(head, [{"id": 1, "count": 0, "sha256": "0" * 64}])
    op.create_table(
        "audit_checkpoints",
        sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("time", sa.String(32), nullable=False),
        sa.Column("signature", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "principals",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("certificate", sa.Text, nullable=False),
        sa.Column("spki_sha256", sa.String(64), nullable=False, unique=True),
        sa.Column("added", sa.String(32), nullable=False),
    )
    op.create_table(
        "proposals",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("arguments", sa.Text, nullable=False),
        sa.Column("proposer", sa.String(64), nullable=False),
        sa.Column("approver", sa.String(64)),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("created", sa.String(32), nullable=False),
        sa.Column("expires", sa.String(32), nullable=False),
    )


def downgrade() -> None:
    """There is nothing before the first tables."""
    raise NotImplementedError("the first tables cannot be undone; restore a backup")
