"""What differs between databases: connections, transactions, time, locks, and how errors are said.

`Database` is all that the rest of the store knows. SQLite's rules, each for a measured reason:

* WAL with `synchronous=FULL`: NORMAL lost up to 22 acknowledged commits in a power-loss test, FULL none.
* `BEGIN IMMEDIATE` for every write: a deferred transaction that turns into a writer fails with "locked" at once.
* One writing connection a process, and processes queue on an `flock` before BEGIN: SQLite's own busy handler polls, and
  lets an unlucky process wait for seconds. WAL checkpoints run under the same lock, which also keeps releases before
  3.51.3 away from their WAL-reset bug.
* A read is one transaction too: its statements see one state of the database.
* The database file is never opened but by SQLite: closing another descriptor of it would drop SQLite's own locks.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import sqlite3
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from sqlalchemy import bindparam, create_engine, event, make_url
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    ProgrammingError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import QueuePool, StaticPool

from jobkit.errors import StoreUnavailable
from jobkit.store.forks import FORKS
from jobkit.store.locks import PRIVATE, FileLock, is_free
from jobkit.store.sql import text_of, time_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from sqlalchemy import ClauseElement, Connection, Dialect, Engine, Table

    from jobkit.interfaces import Hold, Life

log: logging.Logger = logging.getLogger("jobkit.store")

CLOSING_S: Final = 1.0
"""How long to queue for closing: tidying up is better done alone, but need not be."""

BUSY_S: Final = 30.0
READERS: Final = 4
WAL_CHECKPOINT_ROWS: Final = 4_000
WAL_CHECKPOINT_BYTES: Final = 8 * 1024 * 1024
WAL_TRUNCATE_BYTES: Final = 64 * 1024 * 1024
WAL_TRUNCATE_MS: Final = 50
FIXED_RELEASE: Final = (3, 51, 3)
NETWORK_FILE_SYSTEMS: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "glusterfs"}
    | {f"fuse.{name}" for name in ("sshfs", "glusterfs", "ceph", "s3fs", "rclone")}
)


class Database(Protocol):
    """One database, as the store uses it."""

    path: Path | None
    location: str
    compiler: Dialect
    claim_hint: str

    def open(self) -> None:
        """Connect; the schema is looked after by `reading` and `preparing`."""
        ...

    def close(self) -> None:
        """Let go of every connection and file; it may be opened again."""
        ...

    def preparing(self) -> contextlib.AbstractContextManager[Connection]:
        """One transaction that may make and rebuild tables."""
        ...

    def writing(self) -> contextlib.AbstractContextManager[Connection]:
        """One transaction on the only writing connection: committed on the way out, rolled back on an error."""
        ...

    def reading(self) -> contextlib.AbstractContextManager[Connection]:
        """One transaction that sees what was committed last, and changes nothing."""
        ...

    def wrote(self, rows: int, size: int) -> None:
        """Hear how much was committed, for upkeep that follows the amount."""
        ...

    def now(self, connection: Connection) -> datetime:
        """The database's time: one value for a whole transaction."""
        ...

    def upsert(self, table: Table, *names: str, replace: bool = False) -> ClauseElement:
        """Insert a row unless its key is there; or put it in that one's place."""
        ...

    def hold(self, life: str) -> Hold | None:
        """Take a life's lock; None where there is none."""
        ...

    def prove_dead(self, life: Life) -> bool | None:
        """Whether a life is over: None if it can't be told."""
        ...

    def forget(self, life: str) -> None:
        """Remove what proved that a life was alive."""
        ...


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
        self,
        url: str,
        *,
        now: Callable[[], datetime | None],
        durability: str = "full",
        network_ok: bool = False,
        busy_s: float = BUSY_S,
    ) -> None:
        """Describe the database; nothing is opened yet.

        Args:
            url: A SQLAlchemy URL; `sqlite://` is in memory.
            now: Tells the time to use, or None for the database's own.
            durability: `"full"` survives power loss, `"normal"` a crash of the process.
            network_ok: Whether a network file system is accepted.
            busy_s: How long to wait for others who write, in seconds.

        Raises:
            StoreUnavailable: It is not a URL.
        """
        try:
            self._url = make_url(url).set(drivername="sqlite+pysqlite")
        except ArgumentError:
            raise StoreUnavailable(f"{url!r} is not a database URL", "write it as sqlite:///path/to/jobs.db") from None
        name = self._url.database
        # Whoever opens the same file must come to the same locks, whatever links lead to it.
        self.path: Path | None = None if name in {None, "", ":memory:"} else Path(str(name)).resolve()
        if self.path is not None:
            self._url = self._url.set(database=str(self.path))
        self.location: str = self._url.render_as_string(hide_password=True).replace("+pysqlite", "")
        self.compiler: Dialect = sqlite.dialect(paramstyle="qmark")
        self._now = now
        self._durability, self._network_ok, self._busy_s = durability, network_ok, busy_s
        self._mutex = threading.RLock()
        self._connection: Connection | None = None
        self._engines: tuple[Engine, ...] = ()
        self._queue: FileLock | None = None
        self._rows = self._bytes = 0
        self._pid = 0

    # ── connections ──

    def open(self) -> None:
        """Make the connections; the database file is created if it is missing."""
        if self._connection is not None and self._pid == os.getpid():
            raise StoreUnavailable(f"{self.location} is open already", "close it first, or make another store for it")
        self._leave_to_parent()
        FORKS.opening(self, self.path)
        self._pid = os.getpid()
        try:
            self._connect()
        except BaseException:
            self.close()
            raise
        if sqlite3.sqlite_version_info < FIXED_RELEASE:
            log.info("SQLite %s has a bug that jobkit works around; 3.51.3 and later don't", sqlite3.sqlite_version)

    def _connect(self) -> None:
        options: dict[str, Any] = {
            "connect_args": {"isolation_level": None, "timeout": self._busy_s, "check_same_thread": False},
        }
        if self.path is not None:
            self._prepare_folder(self.path)
            self._queue = self._lock("writer")
        writer = create_engine(self._url, poolclass=StaticPool, **options)
        event.listen(writer, "connect", self._set_up_writer)
        event.listen(writer, "begin", self._begin_writing)
        self._engines = (writer,)
        if self.path is not None:
            reader = create_engine(self._url, poolclass=QueuePool, pool_size=READERS, max_overflow=READERS, **options)
            event.listen(reader, "connect", self._set_up_reader)
            event.listen(reader, "begin", self._begin_reading)
            self._engines = (writer, reader)
        with self._said(), self._queued():
            fresh = self.path is not None and _make_private(self.path)
            self._connection = writer.connect()
            if fresh and self.path is not None:
                self.path.chmod(PRIVATE)  # before there is a write-ahead log, which is made alike

    def close(self) -> None:
        """Close every connection; the last one to go tidies up the write-ahead log. May be called again."""
        if self._pid != os.getpid():
            self._leave_to_parent()
            return
        with self._mutex, FORKS.inside(), contextlib.ExitStack() as stack:
            with contextlib.suppress(StoreUnavailable):
                stack.enter_context(self._queued(CLOSING_S))
            if self._connection is not None:
                with contextlib.suppress(DBAPIError):
                    self._connection.close()
            for engine in self._engines:
                engine.dispose()
            self._connection, self._engines = None, ()
        FORKS.closed(self)
        if self._queue is not None:
            self._queue.close()
            self._queue = None

    def _leave_to_parent(self) -> None:
        """In a forked child: forget the parent's connections, without closing them."""
        if self._connection is not None:
            _inherited.append((self._connection, self._engines))
            self._mutex = threading.RLock()
        self._connection, self._engines, self._queue = None, (), None

    @property
    def _locks(self) -> Path:
        return Path(f"{self.path}.lives")

    def _lock(self, name: str) -> FileLock:
        path = self._locks / f"{name}.lock"
        try:
            return FileLock(path)
        except OSError as error:
            raise StoreUnavailable(
                f"{path} can't be opened ({error.strerror})", "give this user write permission to it and to its folder"
            ) from error

    def _prepare_folder(self, path: Path) -> None:
        if not path.parent.is_dir():
            raise StoreUnavailable(f"the folder {path.parent} does not exist", "create it, or give another path")
        if path.is_dir():
            raise StoreUnavailable(f"{path} is a folder", "give the path of a file in it")
        allowed = os.access(path, os.R_OK | os.W_OK, effective_ids=os.access in os.supports_effective_ids)
        if path.exists() and not allowed:  # SQLite would find out too, and leave a log that is as read-only
            raise StoreUnavailable(f"{path} can't be written", "give this user permission to read and write it")
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
        connection.execute("PRAGMA wal_autocheckpoint=0")
        connection.execute(f"PRAGMA synchronous={self._durability}")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA cache_size=-16000")

    @staticmethod
    def _set_up_reader(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("PRAGMA query_only=ON")

    @staticmethod
    def _begin_writing(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    @staticmethod
    def _begin_reading(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    def _opened(self) -> Connection:
        if self._connection is None:
            raise StoreUnavailable(f"{self.location} is not open", "start the manager, or open the store")
        if self._pid != os.getpid():
            raise StoreUnavailable(
                "this process was forked from the one that opened the database",
                "start managers after forking, each process its own; a SQLite connection must not cross a fork",
            )
        return self._connection

    @staticmethod
    def _driver(connection: Connection) -> sqlite3.Connection:
        driver = connection.connection.driver_connection
        assert isinstance(driver, sqlite3.Connection)  # noqa: S101  it was made by pysqlite
        return driver

    # ── transactions ──

    @contextlib.contextmanager
    def preparing(self) -> Iterator[Connection]:
        """One transaction that may rebuild tables: dropping one must not take along the rows that refer to it."""
        with self._alone() as connection, self._queued():
            driver = self._driver(connection)
            if self.path is not None:
                (mode,) = driver.execute("PRAGMA journal_mode=WAL").fetchone()
                if mode != "wal":
                    raise StoreUnavailable(f"{self.location} can't have a write-ahead log", "put it on a local disk")
            driver.execute("PRAGMA foreign_keys=OFF")
            try:
                with self._transaction(connection):
                    yield connection
            finally:
                driver.execute("PRAGMA foreign_keys=ON")

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        """One transaction on the only writing connection."""
        with self._alone() as connection, self._queued(), self._transaction(connection):
            yield connection

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection that sees what was committed last."""
        if self.path is None:
            with self._alone() as connection, self._transaction(connection):
                yield connection
        else:
            self._opened()
            with self._said(), self._engines[1].connect() as reader:
                yield reader

    @contextlib.contextmanager
    def _alone(self) -> Iterator[Connection]:
        """The writing connection, for one thread at a time."""
        self._opened()  # a forked child must not wait for a thread that is not there
        with self._mutex, self._said():
            yield self._opened()

    @contextlib.contextmanager
    def _transaction(self, connection: Connection) -> Iterator[None]:
        try:
            with connection.begin():
                yield
        except BaseException:
            # After a COMMIT that failed nobody else says ROLLBACK, and the next BEGIN would fail, for ever.
            with contextlib.suppress(sqlite3.Error, SQLAlchemyError):
                self._driver(connection).rollback()
            raise

    @contextlib.contextmanager
    def _queued(self, within_s: float | None = None) -> Iterator[None]:
        within_s = self._busy_s if within_s is None else within_s
        if self._queue is None:
            yield
            return
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._queue.held(within_s))
            except TimeoutError:
                raise StoreUnavailable(
                    f"{self.location}: another process has been writing for {within_s:g} s",
                    "look for one that is stopped or hangs; work goes on by itself once it does, or is ended",
                ) from None
            yield

    def wrote(self, rows: int, size: int) -> None:
        """Move the write-ahead log into the database now and then: seldom enough to be cheap, but in time."""
        self._rows += rows
        self._bytes += size
        if self.path is None or (self._rows < WAL_CHECKPOINT_ROWS and self._bytes < WAL_CHECKPOINT_BYTES):
            return
        self._rows = self._bytes = 0
        try:
            large = os.stat(f"{self.path}-wal").st_size > WAL_TRUNCATE_BYTES  # noqa: PTH116  a name, not a path
            with self._alone() as connection, self._queued():
                driver = self._driver(connection)
                driver.execute("PRAGMA wal_checkpoint(PASSIVE)")  # not in a transaction
                if large:  # waits for readers, with everybody else behind it: not for long
                    driver.execute(f"PRAGMA busy_timeout={WAL_TRUNCATE_MS}")
                    try:
                        driver.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                    finally:
                        driver.execute(f"PRAGMA busy_timeout={int(self._busy_s * 1000)}")
        except (OSError, sqlite3.Error, SQLAlchemyError, StoreUnavailable) as error:
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

    def upsert(self, table: Table, *names: str, replace: bool = False) -> ClauseElement:
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
        lock = self._lock(life)
        if not lock.take():
            lock.close()
            raise StoreUnavailable(f"the lock of life {life} is taken", "give each manager a life of its own")
        return lock

    def prove_dead(self, life: Life) -> bool | None:
        """Judge a life by its machine's boot and by its lock."""
        here = boot_id()
        if self.path is None or not life.boot_id or not here:
            return None
        if life.boot_id != here:
            return True if life.host == platform.node() else None
        return is_free(self._locks / f"{life.id}.lock")

    def forget(self, life: str) -> None:
        """Remove the lock of a life that is noted as over."""
        if self.path is not None:
            with contextlib.suppress(OSError):
                (self._locks / f"{life}.lock").unlink()

    # ── errors ──

    @contextlib.contextmanager
    def _said(self) -> Iterator[None]:
        """Use SQLite: say its own trouble as `StoreUnavailable`, and let pass what one value is to blame for."""
        try:
            with FORKS.inside():
                yield
        except (IntegrityError, DataError, InterfaceError, ProgrammingError):
            raise
        except (DBAPIError, sqlite3.Error, PoolTimeout) as error:
            raise self._translate(error) from error

    def _translate(self, error: Exception) -> StoreUnavailable:
        cause: BaseException = error
        while "no such savepoint" in str(cause) and cause.__context__ is not None:
            cause = cause.__context__  # SQLite gave up the whole transaction; what it was for came first
        if isinstance(cause, DBAPIError) and cause.orig is not None:
            cause = cause.orig
        name = getattr(cause, "sqlite_errorname", "")
        for start, problem, advice in _ERRORS:
            if name.startswith(start):
                return StoreUnavailable(f"{self.location}: {problem} ({cause})", advice)
        return StoreUnavailable(
            f"{self.location}: the database reports an error ({cause})",
            "try again; if it stays, stop all workers and check the file",
        )


_inherited: Final[list[object]] = []
"""Connections of a parent process: closing one in the child would meddle with a database that the parent works on."""


def _make_private(path: Path) -> bool:
    """Make the file if it is missing, for its owner alone, and without opening it; answer whether it was missing."""
    if path.exists():
        return False
    with contextlib.suppress(OSError, AttributeError):  # not for everyone everywhere: then SQLite makes it
        os.mknod(path, PRIVATE)
    return True


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
