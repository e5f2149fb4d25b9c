"""What this disk and SQLite give at best: rows of eight columns written by the standard library's `sqlite3` alone.

A table with the claim index and nothing else: no events, no checkpoints, no other index, no second representation of
anything, no tasks and no threads. Durable as jobkit is: write-ahead log, `synchronous=FULL`. Ids are random UUIDs, as a
program without jobkit would make them. Times don't include making the rows.
"""

from __future__ import annotations

import sqlite3
import time
import uuid
from pathlib import Path
from typing import Final

BATCH: Final = 500

Row = tuple[str, str, str, str, int, int, bytes, str]

INSERT: Final = "INSERT INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?, ?)"


def R1(folder: Path, size: int) -> dict[str, float]:  # noqa: N802  its name everywhere
    """Dispatch at best: one row a transaction."""
    database, rows = _open(folder), _rows(size)
    began = time.perf_counter()
    for row in rows:
        database.execute("BEGIN IMMEDIATE")
        database.execute(INSERT, row)
        database.execute("COMMIT")
    took = time.perf_counter() - began
    _check(database, "queued", size)
    return {"R1": size / took}


def RB(folder: Path, size: int) -> dict[str, float]:  # noqa: N802  its name everywhere
    """Dispatch in bulk at best: 500 rows a transaction."""
    database, rows = _open(folder), _rows(size)
    took = _insert(database, rows)
    _check(database, "queued", size)
    return {"RB": size / took}


def RC(folder: Path, size: int) -> dict[str, float]:  # noqa: N802  its name everywhere
    """A drain at best: 500 are claimed in one transaction and completed in the next."""
    database = _open(folder)
    _insert(database, _rows(size))
    began = time.perf_counter()
    while ids := _claim(database):
        database.execute("BEGIN IMMEDIATE")
        database.executemany("UPDATE jobs SET status = 'completed' WHERE id = ? AND status = 'running'", ids)
        database.execute("COMMIT")
    took = time.perf_counter() - began
    _check(database, "completed", size)
    return {"RC": size / took}


def _open(folder: Path) -> sqlite3.Connection:
    database = sqlite3.connect(folder / "limit.db", isolation_level=None)
    assert database.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
    database.execute("PRAGMA synchronous=FULL")
    database.execute(
        "CREATE TABLE jobs (id TEXT PRIMARY KEY, name TEXT, status TEXT, queue TEXT, attempt INTEGER, rank INTEGER,"
        " params BLOB, created_at TEXT)"
    )
    database.execute("CREATE INDEX ix_jobs_claim ON jobs (queue, rank) WHERE rank IS NOT NULL")
    return database


def _rows(size: int) -> list[Row]:
    at, params = "2026-01-01T00:00:00.000000Z", b"x" * 100
    return [(str(uuid.uuid4()), "noop", "queued", "default", 0, rank, params, at) for rank in range(size)]


def _insert(database: sqlite3.Connection, rows: list[Row]) -> float:
    began = time.perf_counter()
    for start in range(0, len(rows), BATCH):
        database.execute("BEGIN IMMEDIATE")
        database.executemany(INSERT, rows[start : start + BATCH])
        database.execute("COMMIT")
    return time.perf_counter() - began


def _claim(database: sqlite3.Connection) -> list[tuple[str]]:
    database.execute("BEGIN IMMEDIATE")
    found = database.execute(
        "SELECT id, name, params FROM jobs INDEXED BY ix_jobs_claim WHERE queue = ? AND rank IS NOT NULL"
        f" ORDER BY rank LIMIT {BATCH}",
        ("default",),
    ).fetchall()
    ids = [(row[0],) for row in found]
    database.executemany(
        "UPDATE jobs SET status = 'running', attempt = attempt + 1, rank = NULL WHERE id = ? AND status = 'queued'", ids
    )
    database.execute("COMMIT")
    return ids


def _check(database: sqlite3.Connection, status: str, size: int) -> None:
    """A figure counts only if the work was done."""
    assert database.execute("SELECT status, count(*) FROM jobs GROUP BY status").fetchall() == [(status, size)]
    database.close()
