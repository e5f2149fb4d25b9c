"""Forks: what a child inherits of SQLite, and how little of it can be used.

A child has a copy of all that SQLite knew in its parent: which locks are held on the files that are open, some of them
by threads that the child doesn't have. Opening such a file there, even anew, counts those locks as the child's own.
Tried out, one child in nine then waited for ever, and the others wrote without a lock: once somebody else had tidied up
the write-ahead log, commits that were acknowledged to the child were lost. So a child can't open what its parent had
open.

It may open any other file, provided that no thread was inside SQLite when it was forked: the locks on SQLite itself
that such a thread held never come free (tried out, one child in thirty waited for ever). So a fork waits until all
threads have come out.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from jobkit.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATIENCE_S: Final = 5.0
"""How long a fork waits for threads to come out. If they don't, the child opens no database at all."""


class Forks:
    """Who is inside SQLite, what is open, and what was when this process was forked."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._mine = threading.local()
        self._inside = 0
        self._forking = self._quiet = False
        self._open: WeakKeyDictionary[object, Path | None] = WeakKeyDictionary()
        self._inherited: set[Path] = set()
        self._spoilt = False

    def opening(self, database: object, path: Path | None) -> None:
        """Note that a database is open from now on; None is one in memory.

        Raises:
            StoreUnavailable: It must not be opened in this process.
        """
        if path in self._inherited or self._spoilt:
            raise StoreUnavailable(
                f"{path or 'SQLite'} was in use when this process was forked, and can't be used on both sides of that",
                "start managers after forking, each process its own, or start this process afresh, as multiprocessing "
                'does with "spawn"',
            )
        self._open[database] = path

    def closed(self, database: object) -> None:
        """Note that it is closed."""
        self._open.pop(database, None)

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Use SQLite; nobody forks meanwhile, but for who is inside already."""
        depth = self._depth
        if not depth:
            with self._changed:
                self._changed.wait_for(lambda: not self._forking)
                self._inside += 1
        self._mine.depth = depth + 1
        try:
            yield
        finally:
            self._mine.depth = depth
            if not depth:
                with self._changed:
                    self._inside -= 1
                    self._changed.notify_all()

    @property
    def _depth(self) -> int:
        """How often this thread is inside."""
        depth: int = getattr(self._mine, "depth", 0)
        return depth

    def before(self) -> None:
        """Let nobody in, and wait until all are out but for this thread itself."""
        with self._changed:
            self._changed.wait_for(lambda: not self._forking)
            self._forking = True
            self._quiet = self._changed.wait_for(lambda: self._inside <= bool(self._depth), PATIENCE_S)

    def after_in_parent(self) -> None:
        """Let everybody in again."""
        with self._changed:
            self._forking = self._quiet = False
            self._changed.notify_all()

    def after_in_child(self) -> None:
        """Begin anew; where a program forks behind Python's back, `before` was never called."""
        self._changed = threading.Condition()
        self._inside = int(bool(self._depth))
        self._inherited.update(path for path in self._open.values() if path is not None)
        self._spoilt = self._spoilt or (len(self._open) > 0 and not self._quiet)
        self._open.clear()
        self._forking = self._quiet = False


FORKS: Final = Forks()
"""There is one SQLite in a process."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=FORKS.before, after_in_parent=FORKS.after_in_parent, after_in_child=FORKS.after_in_child)
