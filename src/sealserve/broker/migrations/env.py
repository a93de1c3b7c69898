"""Alembic's entry: runs the migrations on the connection that `Store.open` hands over.

Alembic executes this file, so its module level acts; nothing else imports it.
"""

from __future__ import annotations

from alembic import context

from sealserve.broker.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
