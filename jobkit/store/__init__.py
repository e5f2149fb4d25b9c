"""The database: the only room that knows SQL.

Enter by `SqlStore` (sqlstore.py). The tables are in schema.py, the statements of the write path in sql.py, one batch of
writes in writes.py, every question in queries.py, what differs between databases in dialects.py, the file locks in
locks.py, what a forked child may do in forks.py, and the way from an older schema in upgrade.py and migrations/.
"""

from jobkit.store.sqlstore import SqlStore

__all__ = ["SqlStore"]
