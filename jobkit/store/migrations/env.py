"""Runs migrations on the connection and in the transaction that `upgrade` was given."""

from alembic import context

from jobkit.store.schema import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    render_as_batch=True,
)
context.run_migrations()
