"""What differs between databases: connections, transactions, time, locks, and how errors are said.

`Database` is all that the rest of the store knows. SQLite's rules, each for a measured reason:

* WAL with `synchronous=FULL`: NORMAL lost up to 22 acknowledged commits in a power-loss test, FULL none.
* `BEGIN IMMEDIATE` for every write: a deferred transaction that turns into a writer fails with "locked" at once.
* One writing connection a process, and processes queue on an `flock` before BEGIN: SQLite's own busy handler polls, and
  lets an unlucky process wait for seconds. WAL checkpoints run under the same lock, which also keeps releases before
  3.51.3 away from their WAL-reset bug.
* The database file is never opened but by SQLite: closing another descriptor of it would drop SQLite's own locks.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from sqlalchemy import bindparam, create_engine, event, make_url
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import QueuePool, StaticPool

from jobkit.errors import StoreUnavailable
from jobkit.store.locks import FileLock, is_free
from jobkit.store.sql import text_of, time_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from sqlalchemy import Connection, Dialect, Executable, Table

    from jobkit.interfaces import Hold, Life

log = logging.getLogger("jobkit.store")

BUSY_S: Final = 30.0
READERS: Final = 4
WAL_CHECKPOINT_ROWS: Final = 4_000
WAL_CHECKPOINT_BYTES: Final = 8 * 1024 * 1024
WAL_TRUNCATE_BYTES: Final = 64 * 1024 * 1024
FIXED_RELEASE: Final = (3, 51, 3)
NETWORK_FILE_SYSTEMS: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "fuse.sshfs"})


class Database(Protocol):
    """One database, as the store uses it."""

    location: str
    compiler: Dialect
    claim_hint: str

    def open(self) -> None: ...
    def close(self) -> None: ...
    def writing(self) -> contextlib.AbstractContextManager[Connection]:
        """One transaction on the only writing connection: committed on the way out, rolled back on an error."""
        ...

    def reading(self) -> contextlib.AbstractContextManager[Connection]: ...
    def wrote(self, rows: int, size: int) -> None:
        """Hear how much was committed, for upkeep that follows the amount."""
        ...

    def now(self, connection: Connection) -> datetime: ...
    def upsert(self, table: Table, *names: str, replace: bool = False) -> Executable: ...
    def hold(self, life: str) -> Hold | None: ...
    def prove_dead(self, life: Life) -> bool | None: ...
    def forget(self, life: str) -> None: ...


def boot_id() -> str:
    """Name this machine's present boot; empty where that can't be told."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


class Sqlite:
    """SQLite, in a file or in memory."""

    claim_hint = "INDEXED BY ix_jobs_claim"

    def __init__(
        self, url: str, *, now: Callable[[], datetime | None], durability: str = "full", network_ok: bool = False
    ) -> None:
        """Describe the database; nothing is opened yet.

        Args:
            url: A SQLAlchemy URL; `sqlite://` is in memory.
            now: Tells the time to use, or None for the database's own.
            durability: `"full"` survives power loss, `"normal"` a crash of the process.
            network_ok: Whether a network file system is accepted.
        """
        self._url = make_url(url).set(drivername="sqlite+pysqlite")
        name = self._url.database
        self.path = None if name in {None, "", ":memory:"} else Path(str(name)).absolute()
        if self.path is not None:
            self._url = self._url.set(database=str(self.path))
        self.location = self._url.render_as_string(hide_password=True).replace("+pysqlite", "")
        self.compiler: Dialect = sqlite.dialect(paramstyle="qmark")
        self._now = now
        self._durability, self._network_ok = durability, network_ok
        self._mutex = threading.RLock()
        self._queue: FileLock | None = None
        self._rows = self._bytes = 0
        self._pid = 0

    # ── connections ──

    def open(self) -> None:
        """Make the connections; the database file is created if it is missing."""
        self._pid = os.getpid()
        if self.path is not None:
            self._prepare_folder(self.path)
            self._queue = FileLock(self._locks / "writer.lock")
        options: dict[str, Any] = {
            "connect_args": {"isolation_level": None, "timeout": BUSY_S, "check_same_thread": False},
        }
        self._writer = create_engine(self._url, poolclass=StaticPool, **options)
        event.listen(self._writer, "connect", self._set_up_writer)
        event.listen(self._writer, "begin", self._begin)
        if self.path is None:
            self._reader = self._writer
        else:
            self._reader = create_engine(self._url, poolclass=QueuePool, pool_size=READERS, max_overflow=READERS, **options)
            event.listen(self._reader, "connect", self._set_up_reader)
        with self._said(), self._queued():
            fresh = self.path is not None and not self.path.exists()
            self._connection = self._writer.connect()
            if fresh and self.path is not None:
                self.path.chmod(0o600)
        if sqlite3.sqlite_version_info < FIXED_RELEASE:
            log.info("SQLite %s has a bug that jobkit works around; 3.51.3 and later are free of it", sqlite3.sqlite_version)

    def close(self) -> None:
        """Close every connection; the last one to go tidies up the write-ahead log."""
        with self._mutex, contextlib.suppress(DBAPIError), self._queued():
            self._connection.close()
            self._writer.dispose()
            self._reader.dispose()
        if self._queue is not None:
            self._queue.close()

    @property
    def _locks(self) -> Path:
        return Path(f"{self.path}.lives")

    def _prepare_folder(self, path: Path) -> None:
        if not path.parent.is_dir():
            raise StoreUnavailable(f"the folder {path.parent} does not exist", "create it, or give another path")
        if (kind := _file_system(path.parent)) in NETWORK_FILE_SYSTEMS and not self._network_ok:
            raise StoreUnavailable(
                f"{path.parent} is on a network file system ({kind}), where SQLite's locks are not reliable",
                "use a local disk, PostgreSQL or MariaDB, or set allow_network_fs to take the risk",
            )
        try:
            self._locks.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise StoreUnavailable(
                f"{self._locks} can't be made ({error.strerror})", "make the database's folder writable"
            ) from error

    def _set_up_writer(self, connection: sqlite3.Connection, _: object) -> None:
        if self.path is not None:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA wal_autocheckpoint=0")
        connection.execute(f"PRAGMA synchronous={self._durability}")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA cache_size=-16000")

    @staticmethod
    def _set_up_reader(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("PRAGMA query_only=ON")

    @staticmethod
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    # ── transactions ──

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        """One transaction on the only writing connection."""
        self._refuse_fork()
        with self._mutex, self._said(), self._queued(), self._connection.begin():
            yield self._connection

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection that sees what was committed last."""
        self._refuse_fork()
        if self.path is None:
            with self._mutex, self._said(), self._connection.begin():
                yield self._connection
        else:
            with self._said(), self._reader.connect() as connection:
                yield connection

    @contextlib.contextmanager
    def _queued(self) -> Iterator[None]:
        if self._queue is None:
            yield
        else:
            with self._queue.held():
                yield

    def _refuse_fork(self) -> None:
        if self._pid != os.getpid():
            raise StoreUnavailable(
                "this process was forked from the one that opened the database",
                "make and start a manager in the child; a SQLite connection must not cross a fork",
            )

    def wrote(self, rows: int, size: int) -> None:
        """Move the write-ahead log into the database now and then: seldom enough to be cheap, often enough to stay small."""
        self._rows += rows
        self._bytes += size
        if self.path is None or (self._rows < WAL_CHECKPOINT_ROWS and self._bytes < WAL_CHECKPOINT_BYTES):
            return
        self._rows = self._bytes = 0
        try:
            large = os.stat(f"{self.path}-wal").st_size > WAL_TRUNCATE_BYTES  # noqa: PTH116  a name, not a path that is used
            with self._mutex, self._queued():
                driver: sqlite3.Connection = self._connection.connection.driver_connection  # type: ignore[assignment]
                driver.execute(f"PRAGMA wal_checkpoint({'TRUNCATE' if large else 'PASSIVE'})")  # not in a transaction
        except (OSError, sqlite3.Error) as error:
            log.warning("the write-ahead log could not be moved into the database: %s", error)

    # ── time, statements, lives ──

    def now(self, connection: Connection) -> datetime:
        """The database's time: one value for a whole transaction."""
        text = connection.exec_driver_sql(
            "SELECT COALESCE(?, strftime('%Y-%m-%dT%H:%M:%f000Z', 'now'))", (text_of(self._now()),)
        ).scalar_one()
        at = time_of(text)
        assert at is not None  # noqa: S101  COALESCE of a constant
        return at

    def upsert(self, table: Table, *names: str, replace: bool = False) -> Executable:
        """Insert a row unless its key is there; or put it in that one's place."""
        insert = sqlite.insert(table).values({name: bindparam(name) for name in names})
        keys = [column.name for column in table.primary_key]
        if not replace:
            return insert.on_conflict_do_nothing(index_elements=keys)
        rest = {name: insert.excluded[name] for name in names if name not in keys}
        return insert.on_conflict_do_update(index_elements=keys, set_=rest)

    def hold(self, life: str) -> Hold | None:
        """Take a life's lock, the proof that it is alive."""
        if self.path is None:
            return None
        lock = FileLock(self._locks / f"{life}.lock")
        lock.take()
        return lock

    def prove_dead(self, life: Life) -> bool | None:
        """Judge a life by its machine's boot and by its lock."""
        if self.path is None:
            return None
        if not life.boot_id or life.boot_id != boot_id():
            return True if life.boot_id and life.host == os.uname().nodename else None
        return is_free(self._locks / f"{life.id}.lock")

    def forget(self, life: str) -> None:
        """Remove the lock of a life that is noted as over."""
        if self.path is not None:
            with contextlib.suppress(OSError):
                (self._locks / f"{life}.lock").unlink()

    # ── errors ──

    @contextlib.contextmanager
    def _said(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            raised = self._translate(error)
            if raised is None:
                raise
            raise raised from error

    def _translate(self, error: DBAPIError) -> StoreUnavailable | None:
        name = getattr(error.orig, "sqlite_errorname", "")
        for start, problem, advice in _ERRORS:
            if name.startswith(start):
                return StoreUnavailable(f"{self.location}: {problem} ({error.orig})", advice)
        return None


_ERRORS: Final = (
    ("SQLITE_NOTADB", "it is not a SQLite database", "give the path of another file; this one was left as it is"),
    ("SQLITE_READONLY", "it can't be written", "give this user write permission to the file and its folder"),
    ("SQLITE_FULL", "the disk is full", "free some space; work goes on by itself"),
    ("SQLITE_BUSY", "it is locked", "another program, or a transaction of your own that is still open, holds it"),
    ("SQLITE_LOCKED", "it is locked", "another program, or a transaction of your own that is still open, holds it"),
    ("SQLITE_IOERR", "the disk reports an error", "check the disk and its free space; work goes on by itself"),
    ("SQLITE_CANTOPEN", "it can't be opened", "check that the path exists and that this user may read and write it"),
    ("SQLITE_CORRUPT", "it is damaged", "stop all workers and restore a backup"),
    ("SQLITE_NOMEM", "there is not enough memory", "free some; work goes on by itself"),
)


def _file_system(folder: Path) -> str:
    """The type of the file system that a folder is on, as Linux says it; empty elsewhere."""
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    found = ("", "")
    target = str(folder.resolve())
    for line in mounts:
        point, kind = line.split(" ")[1:3]
        point = point.replace("\\040", " ")
        inside = target == point or target.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(found[0]):
            found = (point, kind)
    return found[1]
