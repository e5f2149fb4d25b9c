"""Planted bugs, to prove that the judge sees what they do: each of them was a real bug of some job system.

They are planted from inside, in a child that asks for one; nothing in jobkit knows of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Update, bindparam, literal_column, or_

from jobkit.executors import handler
from jobkit.interfaces import Change, Insert, Stored, Unloadable
from jobkit.lifecycle import Trigger
from jobkit.model import Failure
from jobkit.policy import STRIKES
from jobkit.registration import registry
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

    def checkpoint(self: Running, state: bytes) -> Change:
        stored = before.get(self.standing.id, state)
        before[self.standing.id] = state
        return honest(self, stored)

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


def fence_dropped() -> None:
    """A living owner is taken for dead, and a write names its job by id alone."""
    rescued_alive()

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


def keys_ignored() -> None:
    """A key is looked up by nobody, and not unique."""
    honest = SqlStore.open

    def open_(self: SqlStore) -> None:
        honest(self)
        with self._database.writing() as connection:
            connection.exec_driver_sql("DROP INDEX IF EXISTS ix_jobs_key")

    def insert(self: Batch, new: Any) -> tuple[Stored, ...]:
        plans: Any = {statement: [] for statement in (self._sql.insert, self._sql.insert_label)}
        events: Any = []
        self._plan_inserts(new, plans, events)
        self._run(plans)
        self._tell(events)
        return tuple(Stored(job.id, created=True) for job in new)

    SqlStore.open = open_  # type: ignore[method-assign]
    Batch._insert = insert  # type: ignore[method-assign]


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

    def orphaned(self: Recovery, job: Any, ends: Any) -> Any:
        cause = honest_cause(self, job, ends)
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


FAULTS: dict[str, Callable[[], None]] = {
    fault.__name__: fault
    for fault in (
        dispatch_before_commit, checkpoint_before_commit, finish_before_commit, state_of_the_one_before, mixed_state,
        rescued_alive, fence_dropped, dead_not_proven, finished_requeued, keys_ignored, starts_untold, end_untold,
        strikes_after_loading, requests_by_feed_alone,
    )
}  # fmt: skip
