"""The first schema.

Until the first release there is one revision, made anew from the tables themselves; from then on each is frozen.
"""

from alembic import op

from jobkit.store.schema import jobkit_version, metadata

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create every table but the one that alembic has just made."""
    tables = [table for table in metadata.sorted_tables if table is not jobkit_version]
    metadata.create_all(op.get_bind(), tables=tables)
