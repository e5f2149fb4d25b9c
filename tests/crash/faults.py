"""Planted bugs, to prove that the judge sees what they do: each of them was a real bug of some job system.

They are planted from inside, in a child that asks for one; nothing in jobkit knows of them.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Update, bindparam, literal_column, or_
from sqlalchemy.exc import IntegrityError

from jobkit.envelope import Envelope, unseal
from jobkit.executors import handler
from jobkit.interfaces import Change, Claim, Insert, Stored, Unloadable
from jobkit.lifecycle import Standing, Trigger
from jobkit.model import Failure
from jobkit.policy import STRIKES
from jobkit.registration import registry
from jobkit.runtime.clock import SystemClock
from jobkit.runtime.moving import PORTION
from jobkit.runtime.recovery import Recovery
from jobkit.runtime.runner import Running
from jobkit.runtime.supervisor import Supervisor
from jobkit.store import sql
from jobkit.store.dialects import Sqlite
from jobkit.store.schema import jobs
from jobkit.store.sqlstore import SqlStore
from jobkit.store.writes import Batch


class _Undo(Exception):
    pass


def _answered_and_undone(lies: Callable[[Any], bool], *, after: int = 0) -> None:
    """Answer writes of a kind, and roll them back: all but the first so many."""
    honest, seen = SqlStore._apply, 0

    def apply(self: SqlStore, batch: Sequence[Any], *rest: Any) -> list[Any]:
        nonlocal seen
        if not any(map(lies, batch)):
            return honest(self, batch, *rest)
        seen += 1
        if seen <= after:
            return honest(self, batch, *rest)
        answers: list[Any] = []
        try:
            with self._database.writing() as connection:
                work = Batch(connection, self._database.now(connection), self._statements, self._queues, self._keep)
                answers = work.together(batch)
                raise _Undo
        except _Undo:
            return answers

    SqlStore._apply = apply  # type: ignore[method-assign,assignment]


def _is(*triggers: Trigger) -> Callable[[Any], bool]:
    return lambda write: isinstance(write, Change) and write.cause.trigger in triggers


def dispatch_before_commit() -> None:
    """A dispatch is acknowledged, and its transaction never commits."""
    _answered_and_undone(lambda write: isinstance(write, Insert), after=1)


def checkpoint_before_commit() -> None:
    """Checkpoints are acknowledged, and from the third on their transactions never commit."""
    _answered_and_undone(_is(Trigger.CHECKPOINT), after=2)


def finish_before_commit() -> None:
    """An end is told to observers, and its transaction never commits."""
    _answered_and_undone(_is(Trigger.COMPLETE))


def state_of_the_one_before() -> None:
    """Each checkpoint stores the state of the checkpoint before."""
    honest, before = Running._checkpoint, dict[str, bytes]()

    def checkpoint(self: Running, state: bytes, spawns: Sequence[Any]) -> Change:
        stored = before.get(self.standing.id, state)
        before[self.standing.id] = state
        return honest(self, stored, spawns)

    Running._checkpoint = checkpoint  # type: ignore[method-assign]


def mixed_state() -> None:
    """A checkpoint stores one field as it was at the checkpoint before."""
    kind: Any = type(registry.get("count"))
    honest, before = kind.pack_state, dict[str, list[int]]()

    def pack_state(self: Any, job: Any) -> Any:
        trail = job.trail
        job.__dict__["trail"] = before.get(job.nonce, trail)
        packed = honest(self, job)
        job.__dict__["trail"], before[job.nonce] = trail, list(trail)
        return packed

    kind.pack_state = pack_state


def rescued_alive() -> None:
    """A living owner is taken for dead: the fence makes up for it."""
    Sqlite.fate = lambda self, life: "crashed"  # type: ignore[method-assign]  # noqa: ARG005


def _by_id_alone() -> None:
    """Have each write name its job by its id, whatever has become of it."""

    def update(*names: str, **computed: Any) -> Update:
        found = zip((jobs.c.id, jobs.c.attempt, jobs.c.status, jobs.c.event_seq), sql.GUARD, strict=True)
        (first, by_id), *rest = found
        loose = (or_(column == bindparam(name), literal_column("1 = 1")) for column, name in rest)
        values = [
            *((jobs.c[name], bindparam(name)) for name in names),
            *((jobs.c[name], computed[name]) for name in computed),
        ]
        return jobs.update().where(first == bindparam(by_id), *loose).ordered_values(*values)

    sql._update = update


def fence_dropped() -> None:
    """A living owner is taken for dead, and a write names its job by id alone."""
    rescued_alive()
    _by_id_alone()


def dead_not_proven() -> None:
    """Nobody is proven dead: a dead owner's jobs wait for its lease to run out."""
    Sqlite.fate = lambda self, life: "unknown"  # type: ignore[method-assign]  # noqa: ARG005


def finished_requeued() -> None:
    """A start puts what is finished back in the line."""
    honest = SqlStore.open

    def open_(self: SqlStore) -> None:
        honest(self)
        with self._database.writing() as connection:
            connection.exec_driver_sql("UPDATE jobs SET status = 'queued', rank = 0 WHERE status = 'completed'")

    SqlStore.open = open_  # type: ignore[method-assign]


def _keys_not_unique() -> None:
    """Have the database take the same key twice: its index would refuse what the plants around it do."""
    honest = SqlStore.open

    def open_(self: SqlStore) -> None:
        honest(self)
        with self._database.writing() as connection:
            connection.exec_driver_sql("DROP INDEX IF EXISTS ix_jobs_key")

    SqlStore.open = open_  # type: ignore[method-assign]


def _inserted(self: Batch, new: Any) -> tuple[Stored, ...]:
    """Insert jobs whose keys nobody looks up."""
    plans: Any = {statement: [] for statement in (self._sql.insert, self._sql.insert_label)}
    events: Any = []
    self._plan_inserts(new, plans, events)
    self._run(plans)
    self._tell(events)
    return tuple(Stored(job.id, created=True) for job in new)


def keys_ignored() -> None:
    """A key is looked up by nobody, and not unique."""
    _keys_not_unique()
    Batch._insert = _inserted  # type: ignore[method-assign]


def _events(change: Callable[[list[Any]], list[Any]]) -> None:
    honest = Batch._tell
    Batch._tell = lambda self, events: honest(self, change(events))  # type: ignore[method-assign]


def starts_untold() -> None:
    """No event is stored of a start."""
    _events(lambda events: [event for event in events if event[2] != "started"])


def end_untold() -> None:
    """No event is stored of an end."""
    _events(lambda events: [event for event in events if event[2] != "completed"])


def strikes_after_loading() -> None:
    """A death is counted by the attempt after it, once its stored bytes were made into a job, and not before that."""
    honest_cause, honest_play = Recovery._orphaned, handler._Performance.play

    def orphaned(self: Recovery, job: Any) -> Any:
        cause = honest_cause(self, job)
        return cause and replace(cause, strike=False)

    async def play(self: Any) -> Any:
        with self.link._around.writer._store._database.writing() as connection:
            count = "UPDATE jobs SET crash_count = crash_count + 1 WHERE id = ? AND attempt > 1 RETURNING crash_count"
            counted = connection.exec_driver_sql(count, (self.work.job_id,)).scalar()
        if counted == STRIKES:
            return Unloadable("crash_loop", Failure("Crash", "it ended its process"))  # type: ignore[arg-type]
        return await honest_play(self)

    Recovery._orphaned = orphaned  # type: ignore[method-assign]
    handler._Performance.play = play  # type: ignore[method-assign]


def requests_by_feed_alone() -> None:
    """What is asked of a running job is told by what this process commits, and by nothing that others commit."""
    honest = Batch._standing

    def standing(self: Batch, change: Change) -> Any:
        job = honest(self, change)
        return job if change.expected is None else job._replace(wanted=change.expected.wanted)

    async def look(self: Supervisor) -> None:
        pass

    Batch._standing = standing  # type: ignore[method-assign]
    Supervisor._look = look  # type: ignore[method-assign]


def events_apart() -> None:
    """Events are stored in a transaction of their own, after that of the change they tell of."""
    honest, told = SqlStore.commit, list[Any]()

    def commit(self: SqlStore, batch: Sequence[Any]) -> list[Any]:
        answers = honest(self, batch)
        with self._database.writing() as connection:
            for event in told:
                self._statements.insert_event.one(connection, event)
        told.clear()
        return answers

    SqlStore.commit = commit  # type: ignore[method-assign]
    Batch._tell = lambda self, events: told.extend(events)  # type: ignore[method-assign]  # noqa: ARG005


def checksum_skipped() -> None:
    """A stored state is read without a look at its checksum."""

    def unchecked(data: bytes) -> Envelope:
        start = 4 + data[3] + 6  # of the checksum's four bytes
        right = zlib.crc32(data[start + 4 :], zlib.crc32(data[:start]))
        return unseal(data[:start] + right.to_bytes(4) + data[start + 4 :])

    handler.unseal = unchecked  # type: ignore[attr-defined]


def rescued_all_or_none() -> None:
    """A sweep rescues all jobs of dead owners in one transaction, and gives up if that fails."""
    honest = Recovery._move

    async def move(self: Recovery, find: Any, cause: Any) -> int:
        store: Any = self._store
        if find != self._orphans:
            return await honest(self, find, cause)

        def rescue() -> int:
            changes = [Change(job.id, cause(job), job) for job in find(PORTION)]
            try:
                with store._database.writing() as connection:
                    now = store._database.now(connection)
                    Batch(connection, now, store._statements, store._queues, store._keep).together(changes)
            except IntegrityError:
                return 0
            return len(changes)

        return int(await self._read(rescue))

    Recovery._move = move  # type: ignore[method-assign]


def _numbered_anew(batch: Batch, job: Standing) -> Standing:
    """Take of a job's standing what was read before, but the numbers as they are: an event's number is unique."""
    now = sql.standing_of(batch._sql.standing.one(batch._connection, (job.id,)).one())
    return job._replace(event_seq=now.event_seq, checkpoint_seq=now.checkpoint_seq)


def rescued_by_id() -> None:
    """A sweep puts back whatever has the id of a job that it found.

    With its guard dropped, the uniqueness of events' numbers still saves jobkit: so the plant gives its event another.
    """
    _by_id_alone()
    honest = Batch.together

    def together(self: Batch, writes: Sequence[Any]) -> list[Any]:
        rescues = _is(Trigger.OWNER_GONE)
        anew = [
            write._replace(expected=_numbered_anew(self, write.expected)) if rescues(write) else write
            for write in writes
        ]
        return honest(self, anew)

    Batch.together = together  # type: ignore[method-assign]


def key_read_before() -> None:
    """A key is looked up in another transaction than the one that inserts; and it is not unique."""
    _keys_not_unique()
    honest, known = SqlStore.commit, dict[tuple[str, str | None], str]()

    def commit(self: SqlStore, batch: Sequence[Any]) -> list[Any]:
        known.clear()
        with self._database.reading() as connection:
            for write in batch:
                for job in write.jobs if isinstance(write, Insert) else ():
                    for row in self._statements.by_key.one(connection, (job.name, job.key)):
                        known[job.name, job.key] = row.id
        return honest(self, batch)

    def insert(self: Batch, new: Any) -> tuple[Stored, ...]:
        found = [(job, known.get((job.name, job.key))) for job in new]
        return tuple(Stored(taken, created=False) if taken else _inserted(self, [job])[0] for job, taken in found)

    SqlStore.commit = commit  # type: ignore[method-assign]
    Batch._insert = insert  # type: ignore[method-assign]


def claimed_as_read_before() -> None:
    """A claim looks for jobs before its transaction has the lock to write, and starts them by their ids alone.

    So does a deferred BEGIN on a database that lets both go on. SQLite would refuse the second one as "locked", and the
    uniqueness of events' numbers would save jobkit: so the plant looks in a transaction that ends, and counts anew.
    """
    _by_id_alone()
    honest, look, seen = SqlStore.commit, Batch._candidates, list[Any]()

    def commit(self: SqlStore, batch: Sequence[Any]) -> list[Any]:
        with self._database.reading() as connection:
            work = Batch(connection, self._database.now(connection), self._statements, self._queues, self._keep)
            seen[:] = [row for write in batch if isinstance(write, Claim) for row in look(work, write)]
        return honest(self, batch)

    def candidates(self: Batch, claim: Claim) -> list[Any]:
        at = Standing._fields.index("event_seq")
        numbers = [_numbered_anew(self, sql.standing_of(row[: len(Standing._fields)])).event_seq for row in seen]
        return [(*row[:at], number, *row[at + 1 :]) for row, number in zip(seen, numbers, strict=True)]

    SqlStore.commit = commit  # type: ignore[method-assign]
    Batch._candidates = candidates  # type: ignore[method-assign]


def own_clock_for_leases() -> None:
    """Whether a lease has run out is judged by a process's own clock."""
    SqlStore.now = lambda self: SystemClock().wall()  # type: ignore[method-assign]  # noqa: ARG005


FAULTS: dict[str, Callable[[], None]] = {
    fault.__name__: fault
    for fault in (
        dispatch_before_commit, checkpoint_before_commit, finish_before_commit, state_of_the_one_before, mixed_state,
        rescued_alive, fence_dropped, dead_not_proven, finished_requeued, keys_ignored, starts_untold, end_untold,
        strikes_after_loading, requests_by_feed_alone,
        events_apart, checksum_skipped, rescued_all_or_none, rescued_by_id, key_read_before, claimed_as_read_before,
        own_clock_for_leases,
    )
}  # fmt: skip
