"""Run by alembic, on the connection and in the transaction that `database.migrate` hands over."""

from __future__ import annotations

from alembic import context

from warmline.vault.database import VERSION_TABLE
from warmline.vault.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
