"""`SqlStore`: the store on a SQL database.

It opens the database and its schema, applies batches (`writes`), and answers questions (`queries`). Synchronous: the
runtime's writer decides when a batch is committed, and in which thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobkit.errors import InvalidSettings, SerializationError, StoreUnavailable
from jobkit.interfaces import Change, Claim, Insert, Leave, Register, Renew, Retire, Send
from jobkit.lifecycle import Trigger
from jobkit.points import reach
from jobkit.store.dialects import BUSY_S, Sqlite
from jobkit.store.queries import Queries
from jobkit.store.sql import Statements
from jobkit.store.upgrade import check_schema, prepare_schema
from jobkit.store.writes import CULPRIT, Batch, Mismatch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime
    from pathlib import Path

    from jobkit.interfaces import Fate, Hold, Life, Transaction, Write
    from jobkit.store.dialects import Database

_POINT = {
    Trigger.CHECKPOINT: "checkpoint",
    Trigger.REPORT: "report",
    Trigger.SUSPEND: "finish",
    Trigger.COMPLETE: "finish",
    Trigger.FAIL: "finish",
    Trigger.STOPPED: "give_back",
    Trigger.GRACE_OVER: "give_back",
    Trigger.OWNER_GONE: "recovery",
}


class SqlStore(Queries):
    """Jobs in a SQL database.

    Args:
        url: A SQLAlchemy URL; `sqlite://` keeps everything in memory.
        keep_checkpoints: How many of each job's checkpoints are kept.
        durability: `"full"` survives power loss, `"normal"` a crash of the process.
        allow_network_fs: Whether SQLite may be used on a network file system.
        now: Tells the time to use, or None for the database's own; for simulated time.
        busy_s: How long a write waits for others who write, in seconds, before it is an error.

    Raises:
        StoreUnavailable: The URL names no database that jobkit knows.
        InvalidSettings: A value that can't be meant.
    """

    def __init__(
        self,
        url: str,
        *,
        keep_checkpoints: int = 5,
        durability: str = "full",
        allow_network_fs: bool = False,
        now: Callable[[], datetime | None] = lambda: None,
        busy_s: float = BUSY_S,
    ) -> None:
        kind = url.partition(":")[0]
        if kind.partition("+")[0] != "sqlite":
            raise StoreUnavailable(f"{kind!r} is no database that this release can use", "give a sqlite:/// URL")
        if durability not in {"full", "normal"}:  # SQLite would take any word, and be less careful
            raise InvalidSettings({"durability": 'give "full" or "normal"'})
        if keep_checkpoints < 0:
            raise InvalidSettings({"keep_checkpoints": "give 0 or more"})
        self._database: Database = Sqlite(
            url, now=now, durability=durability, network_ok=allow_network_fs, busy_s=busy_s
        )
        self._keep = keep_checkpoints
        self._statements = Statements(self._database)
        self._queues: set[str] = set()

    @property
    def location(self) -> str:
        """Where it is, for people; passwords masked."""
        return self._database.location

    @property
    def path(self) -> Path | None:
        """The file, if it is one."""
        return self._database.path

    def open(self) -> None:
        """Connect, and create or upgrade the schema.

        Raises:
            StoreUnavailable: It can't be reached, read or written.
            SchemaMismatch: A newer release wrote it.
        """
        self._database.open()
        self._queues.clear()  # in memory, it is another database now
        try:
            with self._database.reading() as connection:
                check_schema(connection)  # before anything is changed, even the mode of somebody else's file
            with self._database.preparing() as connection:
                prepare_schema(connection)
                reach("schema.before_commit")
        except BaseException:
            self._database.close()
            raise
        reach("schema.after_commit")

    def close(self) -> None:
        """Let go of every connection and file."""
        self._database.close()

    def hurry(self) -> None:
        """Wait for others who write no longer than a moment from now on, until it is opened again; from any thread."""
        self._database.hurry()

    def commit(self, batch: Sequence[Write]) -> list[Any]:
        """Apply the writes in their order, in one transaction.

        Args:
            batch: The writes; no two for one job.

        Returns:
            For each write its answer, or the exception that it alone has earned.

        Raises:
            StoreUnavailable: Nothing of the batch was applied.
        """
        points = {_point(write) for write in batch}
        try:
            answers = self._apply(batch, points, Batch.together)
        except (Mismatch, SerializationError, *CULPRIT):
            answers = self._apply(batch, points, Batch.singly)
        for point in points:
            reach(f"{point}.after_commit")
        for write in batch:
            if isinstance(write, Retire):
                self._database.forget(write.life)
        return answers

    def within(self, transaction: Transaction, write: Insert | Change) -> Any:
        """Apply a write inside a transaction of the user's; see `Store.within`."""
        with self._database.joined(transaction) as connection:
            work = Batch(connection, self._database.now(connection), self._statements, set(), self._keep)
            return work.do(write)

    def _apply(
        self, batch: Sequence[Write], points: set[str], how: Callable[[Batch, Sequence[Write]], list[Any]]
    ) -> list[Any]:
        with self._database.writing() as connection:
            work = Batch(connection, self._database.now(connection), self._statements, self._queues, self._keep)
            answers = how(work, batch)
            for point in points:
                reach(f"{point}.before_commit")
        self._queues |= work.new_queues
        self._database.wrote(work.rows, work.size)
        return answers

    def hold(self, life: str) -> Hold | None:
        """Take hold of a new life's lock; None where lives are judged by their leases alone."""
        return self._database.hold(life)

    def fate(self, life: Life) -> Fate:
        """What can be told from here of a life's process."""
        return self._database.fate(life)


def _point(write: Write) -> str:
    """The name of the crash points around a write."""
    match write:
        case Change():
            return _POINT.get(write.cause.trigger, "control")
        case Send():
            return "control"
        case Insert():
            return "dispatch"
        case Claim():
            return "claim"
        case Register():
            return "register"
        case Renew():
            return "renew"
        case Leave():
            return "leave"
        case Retire():
            return "retire"
