"""The history of the broker's tables, run by Alembic when a store is opened."""
