"""The database's own trouble in words: what is wrong, and what to do about it.

SQLite tells of one cause in many ways: a full disk is a log that can't grow, an index of it that can't, or a file that
can't be made, depending on what came first. So where it may be the disk, the disk itself is asked.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from sqlalchemy.exc import DBAPIError

from jobkit.errors import StoreUnavailable
from jobkit.store.disk import is_full, is_read_only
from jobkit.store.locks import holders

if TYPE_CHECKING:
    from pathlib import Path

AGAIN: Final = "jobs go on by themselves then, and what was refused can be tried again"

FULL: Final = ("the disk is full", f"free some space (df and df -i show what is left); {AGAIN}")
READ_ONLY: Final = ("the disk is read-only", f"mount it for writing; {AGAIN}")

_BY_NAME: Final = (
    ("SQLITE_NOTADB", "it is not a SQLite database", "give the path of another file; this one was left as it is"),
    ("SQLITE_READONLY", "it can't be written", f"give this user write permission to the file and its folder; {AGAIN}"),
    ("SQLITE_FULL", *FULL),
    ("SQLITE_BUSY", "it is locked", f"end that transaction, be it another program's or one of your own; {AGAIN}"),
    ("SQLITE_LOCKED", "it is locked", f"end that transaction, be it another program's or one of your own; {AGAIN}"),
    (
        "SQLITE_IOERR_FSYNC",
        "the disk did not confirm what was written",
        "check the disk; what was refused may be stored all the same, so repeat it with a key",
    ),
    ("SQLITE_IOERR", "the disk reports an error", f"check it, and any quota or limit on what may be written; {AGAIN}"),
    ("SQLITE_CANTOPEN", "it can't be opened", "check that the path exists and that this user may read and write it"),
    ("SQLITE_CORRUPT", "it is damaged", "stop all workers and restore a backup"),
    ("SQLITE_NOMEM", "there is not enough memory", f"free some; {AGAIN}"),
)
"""By the beginning of SQLite's name for an error; the first that fits."""

_MAYBE_THE_DISK: Final = ("SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_READONLY")

_BY_NUMBER: Final = {
    errno.ENOSPC: FULL[1],
    errno.EDQUOT: FULL[1],
    errno.EROFS: READ_ONLY[1],
    errno.EACCES: "give this user write permission to it and to its folder",
    errno.EPERM: "give this user write permission to it and to its folder",
    errno.EMFILE: "raise the limit of open files (ulimit -n), or close some",
    errno.ENFILE: "raise the limit of open files (ulimit -n), or close some",
}
"""By the system's number for an error."""

DISK_FULL: Final = ("SQLITE_FULL", "SQLITE_IOERR")
"""What SQLite calls it when the disk has no room, or may have none."""

LOCKED: Final = ("SQLITE_BUSY", "SQLITE_LOCKED")
"""What SQLite calls it when somebody else holds a lock of its own."""


def root_of(error: Exception) -> BaseException:
    """Find what came first: the driver's own error."""
    cause: BaseException = error
    while "no such savepoint" in str(cause) and cause.__context__ is not None:
        cause = cause.__context__  # SQLite gave up the whole transaction; what it was for came first
    return cause.orig if isinstance(cause, DBAPIError) and cause.orig is not None else cause


def name_of(error: Exception) -> str:
    """SQLite's name for an error; empty for one that isn't SQLite's."""
    return str(getattr(root_of(error), "sqlite_errorname", ""))


def unavailable(error: Exception, location: str, path: Path | None) -> StoreUnavailable:
    """Say an error of the database or of the system.

    Args:
        error: What was raised.
        location: The database, for people.
        path: Its file; None in memory.
    """
    if isinstance(error, OSError):
        advice = _BY_NUMBER.get(error.errno or 0, "check the path and the disk")
        return StoreUnavailable(f"{error.filename or location} can't be used ({error.strerror or error})", advice)
    cause, name = root_of(error), name_of(error)
    problem, advice = "the database reports an error", "try again; if it stays, stop all workers and check the file"
    for start, *words in _BY_NAME:
        if name.startswith(start):
            problem, advice = words
            break
    if path is not None:
        if name.startswith("SQLITE_BUSY"):
            problem += f" by {holders(path.with_name(f'{path.name}-shm')) or 'another program'}"
        elif name.startswith(_MAYBE_THE_DISK) and name != "SQLITE_IOERR_FSYNC":
            if is_read_only(path.parent):
                problem, advice = READ_ONLY
            elif is_full(path.parent):
                problem, advice = FULL
    return StoreUnavailable(f"{location}: {problem} ({cause})", advice)
