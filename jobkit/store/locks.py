"""File locks beside a SQLite database: the proof that a life is over, and the queue of writers.

Always `flock`, never POSIX `lockf`: a POSIX lock belongs to the process, so a second manager in one process would find
the first one dead, and closing any descriptor of the file would drop it. An `flock` belongs to the open file; the kernel
drops it when the process ends, however it ends, and not before. A forked child shares the open file and would keep a dead
parent's lock: it closes its copy at once.
"""

from __future__ import annotations

import contextlib
import os
import sys
import weakref
from typing import TYPE_CHECKING, Final

if sys.platform == "win32":  # pragma: no cover  no flock there: lives are judged by their leases alone
    fcntl = None
else:
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PRIVATE: Final = 0o600


class FileLock:
    """An exclusive lock on a small file of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE)
        _open_locks.add(self)

    def take(self) -> bool:
        """Take the lock if it is free; answer whether it was."""
        if fcntl is None:  # pragma: no cover
            return True
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Wait for the lock and hold it; the kernel queues those who wait."""
        if fcntl is None:  # pragma: no cover
            yield
            return
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Let go, for others to take."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        _open_locks.discard(self)

    def release(self) -> None:
        """Let go for good: the file goes too, while it is still locked, so that nobody locks a nameless file."""
        self._path.unlink(missing_ok=True)
        self.close()


_open_locks: weakref.WeakSet[FileLock] = weakref.WeakSet()


def _forget_in_child() -> None:
    for lock in list(_open_locks):
        lock.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


def is_free(path: Path) -> bool | None:
    """Probe a life's lock: True if nobody holds it, False if somebody does, None if it can't be told."""
    if fcntl is None:  # pragma: no cover
        return None
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    finally:
        os.close(fd)
    return True
