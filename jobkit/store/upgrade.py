"""From any database to this release's schema.

A fresh schema is created whole and stamped. Alembic is imported only where there is something to upgrade, so that a
worker that starts on a current database never pays for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import inspect, select

from jobkit.errors import SchemaMismatch, StoreUnavailable
from jobkit.store.schema import HEAD, VERSION_TABLE, jobkit_version, metadata

if TYPE_CHECKING:
    from sqlalchemy import Connection

MIGRATIONS: Final = Path(__file__).parent / "migrations"


def check_schema(connection: Connection, head: str = HEAD) -> str | None:
    """Find out which schema a database has, and whether this release can use it; changes nothing.

    Args:
        connection: Any connection.
        head: The newest revision that this release knows.

    Returns:
        Its revision; None if there is none yet.

    Raises:
        SchemaMismatch: A newer release wrote it.
        StoreUnavailable: Some of its tables have the names of jobkit's, and are somebody else's.
    """
    tables = set(inspect(connection).get_table_names())
    if VERSION_TABLE not in tables:
        if foreign := sorted(tables & metadata.tables.keys()):
            raise StoreUnavailable(
                f"the database has tables that jobkit needs and did not make: {', '.join(foreign)}",
                "give jobkit a database of its own, or rename them",
            )
        return None
    found = "+".join(connection.execute(select(jobkit_version.c.version_num)).scalars()) or "none"
    if found != head and not (found.isdecimal() and int(found) < int(head)):
        raise SchemaMismatch(found, head)
    return found


def prepare_schema(connection: Connection, migrations: Path = MIGRATIONS, head: str = HEAD) -> None:
    """Create or upgrade the schema, inside the caller's transaction.

    Args:
        connection: The writing connection, in a transaction.
        migrations: The folder of the migrations.
        head: The revision to reach.

    Raises:
        SchemaMismatch: A newer release wrote it.
        StoreUnavailable: Some of its tables have the names of jobkit's, and are somebody else's.
    """
    found = check_schema(connection, head)
    if found is None:
        metadata.create_all(connection)
        connection.execute(jobkit_version.insert().values(version_num=head))
    elif found != head:
        _upgrade(connection, migrations, head)


def _upgrade(connection: Connection, migrations: Path, head: str) -> None:
    from alembic.command import upgrade  # noqa: PLC0415  costs 100 ms, and is needed once in a release
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(migrations).replace("%", "%%"))
    config.attributes["connection"] = connection
    upgrade(config, head)
