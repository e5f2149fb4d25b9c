"""File locks beside a SQLite database: the proof that a life is over, and the queue of writers.

Always `flock`, never POSIX `lockf`: a POSIX lock belongs to the process, so a second manager in one process would find
the first one dead, and closing any descriptor of the file would drop it. An `flock` belongs to the open file; the
kernel drops it when the process ends, however it ends, and not before. A forked child shares the open file and would
keep a dead parent's lock: it closes its copy at once.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Final

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PRIVATE: Final = 0o600

SLICE_S: Final = 0.25
"""How long to wait at a time, before looking whether there is still patience for more."""


LEAST_S: Final = 0.01
"""How long to wait without any patience: for a thread that stands in the queue already to have its turn."""


class Patience:
    """How long to wait for others who write: so long each time, and next to no longer once told to hurry."""

    def __init__(self, busy_s: float) -> None:
        self._busy_s = busy_s
        self._end = math.inf

    def hurry(self, within_s: float) -> None:
        """Let all waiting, that under way and any to come, end by then; from any thread."""
        self._end = min(self._end, time.monotonic() + within_s)

    def slices(self, within_s: float | None = None) -> Iterator[float]:
        """Say how long to wait next, in seconds, for as long as there is patience; at least once.

        Args:
            within_s: How long in all; what is usual by default.
        """
        end = time.monotonic() + (self._busy_s if within_s is None else within_s)
        left = math.inf
        while left > 0:
            left = min(end, self._end) - time.monotonic()
            yield min(max(left, LEAST_S), SLICE_S)


class FileLock:
    """An exclusive lock on a small file of its own. On Windows it locks nothing: lives are judged by leases alone.

    Args:
        path: The file; it is made if it is missing.
        suffices: Whether whoever may look for a life's lock can see this one, so that it proves the life by itself.

    Raises:
        OSError: It can't be opened for writing.
    """

    def __init__(self, path: Path, *, suffices: bool = False) -> None:
        self.suffices: bool = suffices
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE)
        self._turn = threading.Condition()
        self._asking = self._wanted = self._came = False
        _open_locks.add(self)

    def take(self) -> bool:
        """Take the lock if it is free; answer whether it was."""
        if sys.platform == "win32":
            return True
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    @contextlib.contextmanager
    def held(self, slices: Iterable[float]) -> Iterator[None]:
        """Wait for the lock and hold it, for one thread at a time; the kernel queues the processes that wait.

        Args:
            slices: How long to wait, in seconds, again and again: who holds it may be stopped, and then it never comes.

        Raises:
            TimeoutError: It did not come.
        """
        if self._asking or not self.take():
            self._wait(slices)
        try:
            yield
        finally:
            self._let_go()

    def _wait(self, slices: Iterable[float]) -> None:
        """Have a thread stand in the kernel's queue, which nothing but the lock's coming can end."""
        with self._turn:
            self._wanted = True
            if not self._asking:
                self._asking = True
                threading.Thread(target=self._ask, args=(self._fd,), name="jobkit lock", daemon=True).start()
            came = any(self._turn.wait_for(lambda: self._came, seconds) for seconds in slices)
            self._wanted = self._came = False
        if not came:
            raise TimeoutError

    def _ask(self, fd: int) -> None:
        if sys.platform != "win32":
            with contextlib.suppress(OSError):  # closed meanwhile
                fcntl.flock(fd, fcntl.LOCK_EX)
        with self._turn:
            self._asking, self._came = False, self._wanted
            if not self._wanted:
                self._let_go()
            self._turn.notify_all()

    def _let_go(self) -> None:
        if sys.platform != "win32" and self._fd >= 0:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Let go, for others to take; the file stays, since a free lock is the proof that its holder is gone."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        _open_locks.discard(self)

    def release(self) -> None:
        """Let go, and remove the file too: of a lock that proves nothing, since its life was never entered."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                self._path.unlink()
        self.close()


_open_locks: weakref.WeakSet[FileLock] = weakref.WeakSet()


def _forget_in_child() -> None:
    for lock in list(_open_locks):
        lock.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


def is_free(path: Path) -> bool | None:
    """Probe a life's lock: True if nobody holds it, False if somebody does, None if it can't be told."""
    if sys.platform == "win32":
        return None
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two who probe at once must not take each other for it
    except BlockingIOError:
        return False
    except OSError:
        return None
    finally:
        os.close(fd)
    return True


def holders(path: Path) -> str:
    """Name the processes that have locked a file for writing; empty if there is none or it can't be told.

    Only Linux tells, in `/proc/locks`: `1: POSIX ADVISORY WRITE 123 fe:00:4711 120 120`, with `->` before who waits.
    """
    try:
        stat = path.stat()
        file = f"{os.major(stat.st_dev):02x}:{os.minor(stat.st_dev):02x}:{stat.st_ino}"
        locks = [line.split() for line in Path("/proc/locks").read_text(encoding="ascii").splitlines()]
        return " and ".join({_process(lock[4]) for lock in locks if (lock[3], lock[5]) == ("WRITE", file)})
    except (OSError, IndexError, ValueError, AttributeError):
        return ""


def _process(pid: str) -> str:
    if pid == str(os.getpid()):
        return "this very process"
    return f"process {pid} ({Path(f'/proc/{pid}/comm').read_text(encoding='utf-8', errors='replace').strip()})"
