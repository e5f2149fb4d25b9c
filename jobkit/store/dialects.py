"""What differs between databases: connections, transactions, time and locks.

`Database` is all that the rest of the store knows. SQLite's rules, each for a measured reason:

* WAL with `synchronous=FULL`: NORMAL lost up to 22 acknowledged commits in a power-loss test, FULL none.
* `BEGIN IMMEDIATE` for every write: a deferred transaction that turns into a writer fails with "locked" at once.
* One writing connection a process, and processes queue on an `flock` before BEGIN: SQLite's own busy handler polls, and
  lets an unlucky process wait for seconds. WAL checkpoints run under the same lock, which also keeps releases before
  3.51.3 away from their WAL-reset bug.
* The log is moved into the database before it takes more than the disk has left: a disk that the log alone has filled
  has no room to move it any more, and would stay full for ever.
* A read is one transaction too: its statements see one state of the database.
* The database file is never opened but by SQLite: closing another descriptor of it would drop SQLite's own locks.
* A forked child never opens what its parent has open: SQLite would take the locks of the parent, whose books it has
  inherited, for its own, and the child's commits are lost once the parent's close tidies up the write-ahead log.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import sqlite3
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from sqlalchemy import Connection, bindparam, create_engine, event, make_url
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    ProgrammingError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import QueuePool, StaticPool

from jobkit.errors import InvalidOption, StoreUnavailable
from jobkit.store import disk
from jobkit.store.forks import FORKS
from jobkit.store.locks import PRIVATE, SLICE_S, FileLock, Patience, holders, is_free
from jobkit.store.sql import text_of, time_of
from jobkit.store.trouble import AGAIN, DISK_FULL, LOCKED, READ_ONLY, name_of, unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from sqlalchemy import ClauseElement, Dialect, Engine, Table

    from jobkit.interfaces import Fate, Hold, Life, Transaction

T = TypeVar("T")

log: logging.Logger = logging.getLogger("jobkit.store")

TIDYING_S: Final = 1.0
"""How long to queue for tidying up: it is better done alone, but need not be, or not now."""

HURRY_S: Final = 1.0
"""How long a store that is told to hurry still waits for others who write, in all."""

BUSY_S: Final = 30.0
READERS: Final = 4
WAL_CHECKPOINT_ROWS: Final = 4_000
WAL_CHECKPOINT_BYTES: Final = 8 * 1024 * 1024
WAL_TRUNCATE_BYTES: Final = 64 * 1024 * 1024
WAL_TRUNCATE_MS: Final = 50
FIXED_RELEASE: Final = (3, 51, 3)


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

    def hurry(self) -> None:
        """Wait for others who write no longer than a moment from now on, until it is opened again; from any thread."""
        ...

    def preparing(self) -> contextlib.AbstractContextManager[Connection]:
        """One transaction that may make and rebuild tables."""
        ...

    def writing(self) -> contextlib.AbstractContextManager[Connection]:
        """One transaction on the only writing connection: committed on the way out, rolled back on an error."""
        ...

    def joined(self, transaction: Transaction) -> contextlib.AbstractContextManager[Connection]:
        """A transaction of the user's, if it is one on this database; its commit is the user's."""
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

    def fate(self, life: Life) -> Fate:
        """What can be told from here of a life's process."""
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
        self._patience = Patience(busy_s)
        self._waits: Iterator[float] = iter(())
        self._mutex = threading.RLock()
        self._connection: Connection | None = None
        self._engines: tuple[Engine, ...] = ()
        self._queue: FileLock | None = None
        self._rows = self._bytes = 0
        self._untidy = self._is_remote = False
        self._pid = 0

    # ── connections ──

    def open(self) -> None:
        """Make the connections; the database file is created if it is missing."""
        if self._connection is not None and self._pid == os.getpid():
            raise StoreUnavailable(f"{self.location} is open already", "close it first, or make another store for it")
        self._leave_to_parent()
        FORKS.opening(self, self.path)
        self._pid = os.getpid()
        self._patience = Patience(self._busy_s)
        try:
            self._connect()
        except BaseException:
            self.close()
            raise
        if sqlite3.sqlite_version_info < FIXED_RELEASE:
            log.info("SQLite %s has a bug that jobkit works around; 3.51.3 and later don't", sqlite3.sqlite_version)

    def _connect(self) -> None:
        if self.path is not None:
            with self._said():
                self._prepare_folder(self.path)
                self._queue = FileLock(self._locks / "writer.lock")
        writer = self._engine(self._slice_s, poolclass=StaticPool)
        event.listen(writer, "connect", self._set_up_writer)
        event.listen(writer, "begin", self._begin_writing)
        self._engines = (writer,)
        if self.path is not None:
            reader = self._engine(self._busy_s, poolclass=QueuePool, pool_size=READERS, max_overflow=READERS)
            event.listen(reader, "connect", self._set_up_reader)
            event.listen(reader, "begin", self._begin_reading)
            self._engines = (writer, reader)
        with self._said(), self._queued():
            fresh = self.path is not None and _make_private(self.path)
            self._connection = self._insist(writer.connect)
            if fresh and self.path is not None:
                self.path.chmod(PRIVATE)  # before there is a write-ahead log, which is made alike

    def _engine(self, timeout_s: float, **options: Any) -> Engine:
        arguments = {"isolation_level": None, "timeout": timeout_s, "check_same_thread": False}
        return create_engine(self._url, connect_args=arguments, **options)

    def close(self) -> None:
        """Close every connection; the last one to go tidies up the write-ahead log. May be called again."""
        if self._pid != os.getpid():
            self._leave_to_parent()
            return
        with self._mutex, FORKS.inside(), contextlib.ExitStack() as stack:
            with contextlib.suppress(StoreUnavailable):
                stack.enter_context(self._queued(TIDYING_S))
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

    def hurry(self) -> None:
        """Wait for others who write no longer than a moment from now on, until it is opened again."""
        self._patience.hurry(HURRY_S)

    def _leave_to_parent(self) -> None:
        """In a forked child: forget the parent's connections, without closing them."""
        if self._connection is not None:
            _inherited.append((self._connection, self._engines))
            self._mutex = threading.RLock()
        self._connection, self._engines, self._queue = None, (), None

    @property
    def _locks(self) -> Path:
        return Path(f"{self.path}.lives")

    @property
    def _slice_s(self) -> float:
        """How long SQLite itself waits for a lock of its own before it is asked again."""
        return min(self._busy_s, SLICE_S)

    def _prepare_folder(self, path: Path) -> None:
        if not path.parent.is_dir():
            raise StoreUnavailable(f"the folder {path.parent} does not exist", "create it, or give another path")
        if path.is_dir():
            raise StoreUnavailable(f"{path} is a folder", "give the path of a file in it")
        allowed = os.access(path, os.R_OK | os.W_OK, effective_ids=os.access in os.supports_effective_ids)
        if path.exists() and not allowed:  # SQLite would find out too, and leave a log that is as read-only
            if disk.is_read_only(path.parent):
                raise StoreUnavailable(f"{path} can't be written: {READ_ONLY[0]}", READ_ONLY[1])
            raise StoreUnavailable(f"{path} can't be written", "give this user permission to read and write it")
        kind = disk.file_system(path.parent)
        self._is_remote = kind in disk.NETWORK_FILE_SYSTEMS
        if self._is_remote and not self._network_ok:
            raise StoreUnavailable(
                f"{path.parent} is on a network file system ({kind}), where SQLite's locks are not reliable",
                "use a local disk, PostgreSQL or MariaDB, or set allow_network_fs to take the risk",
            )
        self._locks.mkdir(mode=0o700, exist_ok=True)

    def _set_up_writer(self, connection: sqlite3.Connection, _: object) -> None:
        connection.execute("PRAGMA wal_autocheckpoint=0")
        connection.execute(f"PRAGMA synchronous={self._durability}")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA cache_size=-16000")

    @staticmethod
    def _set_up_reader(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("PRAGMA query_only=ON")

    def _begin_writing(self, connection: Connection) -> None:
        self._insist(lambda: connection.exec_driver_sql("BEGIN IMMEDIATE"))

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
                (mode,) = self._insist(lambda: driver.execute("PRAGMA journal_mode=WAL").fetchone())
                if mode != "wal":
                    raise StoreUnavailable(f"{self.location} can't have a write-ahead log", "put it on a local disk")
                # A process that was killed may have written a commit and not synced it. Recovery shows it as committed,
                # and whoever finds it builds on it: it has to be safe before that. A checkpoint syncs the log first.
                driver.execute("PRAGMA wal_checkpoint(PASSIVE)")
            driver.execute("PRAGMA foreign_keys=OFF")
            try:
                with self._transaction(connection):
                    yield connection
            finally:
                driver.execute("PRAGMA foreign_keys=ON")

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        """One transaction on the only writing connection."""
        with self._alone() as connection, self._queued():
            try:
                with self._transaction(connection):
                    yield connection
            except OperationalError as error:
                if name_of(error).startswith(DISK_FULL):  # by the log, perhaps: then the next try goes well
                    with contextlib.suppress(sqlite3.Error):
                        self._driver(connection).execute("PRAGMA wal_checkpoint(PASSIVE)")
                raise

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
    def joined(self, transaction: Transaction) -> Iterator[Connection]:
        """A transaction of the user's, if it is one on this very file that holds until it is committed."""
        self._opened()
        connection = _connection_of(transaction)
        if connection.dialect.name != "sqlite" or self.path is None:
            raise InvalidOption("session", transaction, f"it is not on jobkit's database, {self.location}")
        with self._said():
            found = connection.exec_driver_sql("PRAGMA database_list").all()
            file = next((row[2] for row in found if row[1] == "main"), "")
            if not file or Path(file).resolve() != self.path:
                raise InvalidOption(
                    "session", transaction, f"it is on {file or 'a database in memory'}, not {self.path}"
                )
            driver: Any = connection.connection.driver_connection
            holds = driver.isolation_level is not None or getattr(driver, "autocommit", True) is False
            if connection.get_isolation_level() == "AUTOCOMMIT" or not (driver.in_transaction or holds):
                problem = "it commits each statement by itself: give a session whose engine begins transactions"
                raise InvalidOption("session", transaction, problem)
            yield connection

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
        """The turn of this process among all that write; what patience is left of it is for other programs."""
        self._waits = self._patience.slices(within_s)
        if self._queue is None:
            yield
            return
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._queue.held(self._waits))
            except TimeoutError:
                who = holders(self._locks / "writer.lock") or "another process"
                raise StoreUnavailable(
                    f"{self.location}: {who} keeps all others from writing",
                    f"look whether that one is stopped or hangs, and let it go on or end it; {AGAIN}",
                ) from None
            yield

    def _insist(self, statement: Callable[[], T]) -> T:
        """Run a statement that may find another program's lock: SQLite waits for a little, and is asked again."""
        while True:
            try:
                return statement()
            except (OperationalError, sqlite3.OperationalError) as error:
                if not name_of(error).startswith(LOCKED) or next(self._waits, None) is None:
                    raise

    def wrote(self, rows: int, size: int) -> None:
        """Move the write-ahead log into the database now and then: seldom enough to be cheap, but in time."""
        self._rows += rows
        self._bytes += size
        if self.path is None:
            return
        try:
            length = os.stat(f"{self.path}-wal").st_size  # noqa: PTH116  a name, not a path
            due = self._rows >= WAL_CHECKPOINT_ROWS or self._bytes >= WAL_CHECKPOINT_BYTES
            if due or length > disk.room(self.path.parent):
                self._rows = self._bytes = 0
                self._move_log(shorten=length > WAL_TRUNCATE_BYTES)
                self._untidy = False
        except (OSError, sqlite3.Error, SQLAlchemyError, StoreUnavailable) as error:
            if not self._untidy and not disk.is_full(self.path.parent):  # of which the next write tells
                log.warning(
                    "the write-ahead log can't be moved into the database, which will be tried again: %s", error
                )
            self._untidy = True

    def _move_log(self, *, shorten: bool) -> None:
        with self._alone() as connection, self._queued(TIDYING_S):
            driver = self._driver(connection)
            driver.execute("PRAGMA wal_checkpoint(PASSIVE)")  # not in a transaction
            if shorten:  # waits for readers, with everybody else behind it: not for long
                driver.execute(f"PRAGMA busy_timeout={WAL_TRUNCATE_MS}")
                try:
                    driver.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                finally:
                    driver.execute(f"PRAGMA busy_timeout={int(self._slice_s * 1000)}")

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
        with self._said():
            lock = FileLock(self._locks / f"{life}.lock", suffices=self._locks_are_seen())
        if not lock.take():
            lock.close()
            raise StoreUnavailable(f"the lock of life {life} is taken", "give each manager a life of its own")
        return lock

    def _locks_are_seen(self) -> bool:
        """Whether all who may open the database can see its lives' locks, and need no lease to judge them."""
        return sys.platform != "win32" and bool(boot_id()) and not self._is_remote

    def fate(self, life: Life) -> Fate:
        """Judge a life by its machine's boot and by its lock."""
        here = boot_id()
        if self.path is None or not life.boot_id or not here:
            return "unknown"
        if life.boot_id != here:
            return "rebooted" if life.host == platform.node() else "unknown"
        match is_free(self._locks / f"{life.id}.lock"):
            case True:
                return "crashed"
            case False:
                return "alive"
            case None:
                return "unknown"

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
        except (DBAPIError, sqlite3.Error, PoolTimeout, OSError) as error:
            raise unavailable(error, self.location, self.path) from error


def _connection_of(transaction: Any) -> Connection:
    """The connection behind a `Session` or a `Connection`."""
    orm: Any = sys.modules.get("sqlalchemy.orm")  # who has a Session has loaded it; others need not
    if orm is not None and isinstance(transaction, orm.Session):
        connection: Connection = transaction.connection()
        return connection
    if isinstance(transaction, Connection):
        return transaction
    if hasattr(transaction, "run_sync"):
        problem = (
            "it is asynchronous, and what joins it must run inside it: "
            "await session.run_sync(lambda sync: manager.dispatch_within(sync, job))"
        )
    else:
        problem = "give an SQLAlchemy Session or Connection"
    raise InvalidOption("session", transaction, problem)


_inherited: Final[list[object]] = []
"""Connections of a parent process: closing one in the child would meddle with a database that the parent works on."""


def _make_private(path: Path) -> bool:
    """Make the file if it is missing, for its owner alone, and without opening it; answer whether it was missing."""
    if path.exists():
        return False
    with contextlib.suppress(OSError, AttributeError):  # not for everyone everywhere: then SQLite makes it
        os.mknod(path, PRIVATE)
    return True
