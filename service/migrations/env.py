"""Alembic's entry. It runs on the connection that `service.database.migrate` gives it, and on no other."""

from alembic import context

from auth.tables import metadata as auth_metadata
from observability.ledger.table import metadata as ledger_metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=[auth_metadata, ledger_metadata],
    # SQLite changes a table only by copying it.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
