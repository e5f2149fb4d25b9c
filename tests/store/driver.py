"""A driver whose calls fail as the disk would have it: SQLite itself, with errors put in front of its statements."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Any

import pytest
from sqlalchemy import create_engine

from jobkit.store import dialects


class Trouble:
    """Lets one call of the driver fail, and those that follow for a while; it is planned anew for each try.

    A ROLLBACK never fails: SQLite's, with a write-ahead log, only forgets what is in memory.

    Attributes:
        name: SQLite's name for the error.
        undoes: Whether the transaction is gone with it, as it may be when a disk is full.
        calls: How many calls there were since it was planned.
    """

    def __init__(self, name: str = "SQLITE_IOERR_WRITE", *, undoes: bool = False) -> None:
        self.name, self.undoes = name, undoes
        self.calls = 0
        self._first = self._last = 0

    def plan(self, first: int, length: int = 1) -> None:
        """Let the so-many-th call from now on fail, and as many in all."""
        self.calls, self._first, self._last = 0, first, first + length - 1

    @property
    def over(self) -> bool:
        """Whether all calls that were to fail have failed."""
        return self.calls >= self._last

    def meet(self, connection: sqlite3.Connection) -> None:
        """Before a call: let it be, or have it fail."""
        self.calls += 1
        if self._first <= self.calls <= self._last:
            if self.undoes:
                connection.rollback()
            error = sqlite3.OperationalError("as planned")
            error.sqlite_errorname = self.name
            raise error


def with_trouble(monkeypatch: pytest.MonkeyPatch, trouble: Trouble) -> None:
    """Have the stores that are made from now on meet with trouble."""

    class Cursor(sqlite3.Cursor):
        def execute(self, sql: str, parameters: Any = ()) -> Cursor:
            trouble.meet(self.connection)
            return super().execute(sql, parameters)

        def executemany(self, sql: str, parameters: Iterable[Any]) -> Cursor:
            trouble.meet(self.connection)
            return super().executemany(sql, parameters)

    class Connection(sqlite3.Connection):
        def cursor(self, factory: Any = Cursor) -> Any:
            return super().cursor(factory)

        def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
            trouble.meet(self)
            return super().execute(sql, parameters)

        def commit(self) -> None:
            trouble.meet(self)
            super().commit()

    def make(url: Any, *, connect_args: dict[str, Any], **options: Any) -> Any:
        return create_engine(url, connect_args={**connect_args, "factory": Connection}, **options)

    monkeypatch.setattr(dialects, "create_engine", make)
