"""The statements of the write path, and how values become rows.

Written once with SQLAlchemy, compiled once for the database at hand, and run with tuples from then on: compiling and
processing parameters anew for each batch costs more than SQLite's own work. Each statement knows the order of its
parameters; the functions beside it make the tuples.

Invariant: every UPDATE of a job names its id, attempt, status and the number of its latest event, so that it changes
exactly the row it was decided on, or none; where that matters and its writer may not know, its latest checkpoint too.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Update, bindparam, case, exists, false, func, literal_column, select
from sqlalchemy.sql.compiler import SQLCompiler

from jobkit.errors import SerializationError
from jobkit.lifecycle import Standing
from jobkit.model import TERMINAL, JobStatus, Progress
from jobkit.policy import rank
from jobkit.store.schema import (
    job_blockers,
    job_checkpoints,
    job_events,
    job_signals,
    jobs,
    labels,
    lives,
    queues,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import ClauseElement, Connection, CursorResult, Dialect, Table

    from jobkit.interfaces import Change, LogLine, NewJob
    from jobkit.lifecycle import Transition
    from jobkit.model import Json
    from jobkit.store.dialects import Database

Row = tuple[Any, ...]


class Statement(NamedTuple):
    """A statement's text; its parameters stand in the order in which `prepare` was told."""

    text: str

    def one(self, connection: Connection, row: Row) -> CursorResult[*tuple[Any, ...]]:
        """Run it once."""
        return connection.exec_driver_sql(self.text, row)

    def many(self, connection: Connection, rows: list[Row]) -> int:
        """Run it for each tuple; answer how many rows changed."""
        return connection.exec_driver_sql(self.text, rows).rowcount


def prepare(statement: ClauseElement, dialect: Dialect, *order: str) -> Statement:
    """Compile a statement, and see to it that its parameters stand in the order in which tuples will be made."""
    compiled = statement.compile(dialect=dialect)
    assert isinstance(compiled, SQLCompiler)  # noqa: S101  what else should SQL be compiled by
    found = tuple(compiled.positiontup or ())
    if found != order:
        message = f"parameters stand as {found}, not as {order}, in: {compiled}"
        raise RuntimeError(message)
    return Statement(str(compiled))


# ── values ──


def text_of(at: datetime | None) -> str | None:
    """Write a time as it is stored: UTC, six decimals, `Z`."""
    if at is None:
        return None
    return at.astimezone(UTC).isoformat(timespec="microseconds")[:26] + "Z"


def time_of(text: str | None) -> datetime | None:
    """Read a stored time; None for one that can't be read, since one bad row must not stop a sweep or a list."""
    try:
        return None if text is None else datetime.fromisoformat(text)
    except (ValueError, TypeError):
        return None


_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def to_json(value: Json | Sequence[object]) -> str:
    """Write JSON as it is stored: no spaces, letters as they are unless UTF-8 can't say them.

    Raises:
        SerializationError: JSON can't say it; SQLite's own functions would not read NaN either.
    """
    try:
        text = _ENCODER.encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise SerializationError("a value", f"JSON can't say it ({error})") from None
    return text if text.isprintable() or _is_utf8(text) else json.dumps(value, separators=(",", ":"))


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def parsed(text: str | None, otherwise: Any) -> Any:
    """Read stored JSON of the type of `otherwise`, which is the answer where it can't be read."""
    try:
        value = json.loads(text or "")
    except (ValueError, TypeError, RecursionError):
        return otherwise
    return value if otherwise is None or isinstance(value, type(otherwise)) else otherwise


PROGRESS_DATA: Final = ("completed", "total", "unit", "phase", "message", "data", "rate", "eta_s")
"""What `progress_data` holds, in the order of `Progress`."""


def told_row(change: Change) -> Row:
    """Fill in `_TOLD`: what an attempt has told since its last write."""
    size = sum([line.size for line in change.lines]) if change.lines else 0
    return (size, change.warnings, *_progress_row(change.progress))


def _progress_row(progress: Progress | None) -> Row:
    """Progress is kept as it is where there is none to store.

    What can't be stored is left out: progress is for people, and must not cost a job its checkpoint or its result.
    """
    if progress is None:
        return (None, None, None)
    rest = {name: value for name in PROGRESS_DATA if (value := getattr(progress, name)) is not None}
    try:
        text = to_json(rest)
    except SerializationError:
        text = to_json({name: value for name, value in rest.items() if _can_be_said(value)})
    return (text, _fraction(progress.fraction), text)


def _can_be_said(value: Json) -> bool:
    try:
        to_json(value)
    except SerializationError:
        return False
    return True


def progress_of(fraction: float | None, text: str | None) -> Progress | None:
    """Read stored progress; what can't be read of it is missing."""
    if text is None:
        return None
    told = parsed(text, {})
    return Progress(fraction, *(told.get(name) for name in PROGRESS_DATA))


def _fraction(fraction: float | None) -> float | None:
    try:
        return None if fraction is None else float(fraction)
    except (TypeError, ValueError, OverflowError):
        return None


# ── changes of a job ──

GUARD: Final = ("at_id", "at_attempt", "at_status", "at_event")


def guard_row(job: Standing) -> Row:
    """Fill in `GUARD`."""
    return (job.id, job.attempt, job.status.value, job.event_seq)


_MOVED: Final = (
    "status", "attempt", "wanted", "reason", "rank", "scheduled_at", "alarm", "blockers", "retry_count", "crash_count",
    "suspect", "across_restarts", "event_seq", "life", "running_since", "run_s", "completed_at",
)  # fmt: skip


_TIMED: Final = frozenset({JobStatus.SCHEDULED, JobStatus.WAITING})
"""Where time moves a job."""


def moved_row(job: Standing, now: datetime, now_text: str) -> Row:
    """The new values of a job that changed its standing, in the order of `_MOVED`."""
    status = job.status
    return (
        status.value, job.attempt, job.wanted, job.reason,
        rank(now, job.priority) if status is JobStatus.QUEUED else None,
        due_at := text_of(job.due_at), due_at if status in _TIMED else None, job.blockers, job.retry_count,
        job.crash_count, int(job.suspect), int(job.across_restarts), job.event_seq, job.life,
        now_text if job.running_since is now else text_of(job.running_since),
        job.run_s, now_text if status in TERMINAL else None,
    )  # fmt: skip


_TOLD: Final = ("log_bytes", "warnings", "progress_data", "progress", "progress_data")
_FINISHED: Final = ("output", "output_data", "error", "error_message")
_KEPT: Final = ("checkpoint_seq", "state_seq", "last_checkpoint_at", "state")
_SAVED: Final = ("event_seq", "crash_count", "suspect", *_KEPT)


def _guard() -> list[ColumnElement[bool]]:
    """One job that is still what it was when the change was decided."""
    found = zip((jobs.c.id, jobs.c.attempt, jobs.c.status, jobs.c.event_seq), GUARD, strict=True)
    return [column == bindparam(name) for column, name in found]


def _update(*names: str, **computed: ColumnElement[Any]) -> Update:
    """Change the job that the guard names."""
    given: dict[str, ColumnElement[Any]] = {name: bindparam(name) for name in names}
    values = ((jobs.c[name], value) for name, value in (given | computed).items())
    return jobs.update().where(*_guard()).ordered_values(*values)


def _told() -> dict[str, ColumnElement[Any]]:
    given: ColumnElement[Any] = bindparam("progress_data")
    return {
        "log_bytes": jobs.c.log_bytes + bindparam("log_bytes"),
        "warnings": jobs.c.warnings + bindparam("warnings"),
        "progress": case((given.is_(None), jobs.c.progress), else_=bindparam("progress")),
        "progress_data": func.coalesce(given, jobs.c.progress_data),
    }


STANDING: Final = (
    jobs.c.id, jobs.c.status, jobs.c.attempt, jobs.c.wanted, jobs.c.reason, jobs.c.resumable, jobs.c.priority,
    jobs.c.blockers, jobs.c.scheduled_at, jobs.c.retry_count, jobs.c.crash_count, jobs.c.suspect,
    jobs.c.across_restarts, jobs.c.event_seq, jobs.c.life, jobs.c.running_since, jobs.c.run_s, jobs.c.checkpoint_seq,
)  # fmt: skip
"""The columns of a `Standing`, in its order."""


def standing_of(row: Sequence[Any]) -> Standing:
    """Read a `Standing` from the columns of `STANDING`."""
    (job_id, status, attempt, wanted, reason, resumable, priority, blockers, due_at, retries, crashes, suspect, stays,
     event_seq, life, since, run_s, checkpoint_seq) = row  # fmt: skip
    return Standing(
        job_id, JobStatus(status), attempt, wanted, reason, bool(resumable), priority, blockers, time_of(due_at),
        retries, crashes, bool(suspect), bool(stays), event_seq, life, time_of(since), run_s, checkpoint_seq,
    )  # fmt: skip


_BLOCKER: Final = ("job_id", "kind", "on")
_SIGNAL: Final = ("job_id", "name", "payload", "at")
_ENDED: Final = ("ended_at", "ended_how", "blamed")

_CLAIMED: Final = (
    jobs.c.name, jobs.c.version, jobs.c.params_data, jobs.c.state, jobs.c.metadata, jobs.c.progress,
    jobs.c.progress_data, jobs.c.log_bytes,
)  # fmt: skip

_INSERTED: Final = (
    "id", "name", "version", "label", "description", "user", "tags", "metadata", "key", "params", "params_data",
    "resumable", "status", "queue", "priority", "rank", "event_seq", "created_at", "state", "parent_id",
)  # fmt: skip


def inserted_row(job: NewJob, now: datetime, now_text: str) -> Row:
    """The values of a new job, in the order of `_INSERTED`."""
    return (
        job.id, job.name, job.version, job.label, job.description, job.user, to_json(job.tags),
        to_json(dict(job.metadata)), job.key, to_json(job.params), job.params_data, int(job.resumable), "queued",
        job.queue, job.priority, rank(now, job.priority), 1, now_text, job.state, job.parent_id,
    )  # fmt: skip


def event_row(transition: Transition, now_text: str, message: str | None = None, data: str | None = None) -> Row:
    """The stored event of a transition that has one."""
    after = transition.after
    return (after.id, after.event_seq, transition.event, after.status.value, message, data, now_text)


def line_row(line: LogLine, seq: int, job: Standing, now: datetime) -> Row:
    """The stored event of a line that a job's attempt has logged; told before whatever came with it."""
    data = to_json({"level": line.level, "attempt": job.attempt, "fields": line.fields})
    told_at = text_of(now - timedelta(seconds=line.waited_s))
    return (job.id, seq, "log", job.status.value, line.message, data, told_at)


def runnable(known: Sequence[tuple[Any, Any]]) -> ColumnElement[bool]:
    """Whether a job's name is among those known, and its version no newer; pairs of name and newest version."""
    # CASE is a flat list. A chain of ORs would be a tree as deep as it is long, and SQLite stops at a depth of 1,000.
    # Versions begin at 1, so that of an unknown name is never reached, and NOT turns no NULL into a job nobody finds.
    return jobs.c.version <= case(*known, value=jobs.c.name, else_=literal_column("0")) if known else false()


class Waiting:
    """The statements that tell who waits for what, and let them go."""

    def __init__(self, ready: Callable[..., Statement], dialect: Database) -> None:
        self.block: Statement = ready(dialect.upsert(job_blockers, *_BLOCKER), *_BLOCKER)
        self.unblock: Statement = ready(
            job_blockers.delete().where(*(job_blockers.c[name] == bindparam(name) for name in _BLOCKER)), *_BLOCKER
        )
        own = job_blockers.c.job_id == bindparam("job_id")
        self.free: Statement = ready(job_blockers.delete().where(own), "job_id")
        self.any_blocker: Statement = ready(select(exists(job_blockers.select())))
        on = tuple(job_blockers.c[name] == bindparam(name) for name in _BLOCKER[1:])
        blocked = select(job_blockers.c.job_id).where(*on).order_by(job_blockers.c.job_id)
        self.blocked: Statement = ready(blocked, *_BLOCKER[1:])
        self.blockers: Statement = ready(select(func.count()).select_from(job_blockers).where(own), "job_id")
        self.children: Statement = ready(
            select(jobs.c.id).where(jobs.c.parent_id == bindparam("parent_id")).order_by(jobs.c.id), "parent_id"
        )
        self.send: Statement = ready(dialect.upsert(job_signals, *_SIGNAL), *_SIGNAL)
        sent = (job_signals.c.job_id == bindparam("job_id"), job_signals.c.name == bindparam("name"))
        self.sent: Statement = ready(select(job_signals.c.payload).where(*sent), "job_id", "name")


class Statements:
    """All statements of the write path, compiled for one dialect."""

    def __init__(self, dialect: Database) -> None:
        self._dialect = dialect
        self._claims: dict[int, Statement] = {}

        def ready(statement: ClauseElement, *order: str) -> Statement:
            return prepare(statement, dialect.compiler, *order)

        def insert(table: Table, *names: str) -> Statement:
            return ready(table.insert().values({name: bindparam(name) for name in names}), *names)

        self.insert: Statement = insert(jobs, *_INSERTED)
        self.insert_event: Statement = insert(job_events, "job_id", "seq", "type", "status", "message", "data", "at")
        self.insert_label: Statement = insert(labels, "key", "value", "created_at", "job_id")
        self.insert_queue: Statement = ready(dialect.upsert(queues, "name"), "name")
        self.queues: Statement = ready(select(queues.c.name, queues.c.paused))
        keyed = (jobs.c.name == bindparam("name"), jobs.c.key == bindparam("key"), jobs.c.key.is_not(None))
        self.by_key: Statement = ready(select(jobs.c.id, jobs.c.params_data).where(*keyed), "name", "key")
        self.standing: Statement = ready(select(*STANDING).where(jobs.c.id == bindparam("id")), "id")

        started = func.coalesce(jobs.c.started_at, bindparam("started_at"))
        self.start: Statement = ready(
            _update(*_MOVED, "node", started_at=started), *_MOVED, "node", "started_at", *GUARD
        )
        self.move: Statement = ready(_update(*_MOVED), *_MOVED, *GUARD)
        # An attempt knows its own checkpoints; who takes its job may not, since an owner that was silent may yet save.
        taken = _update(*_MOVED).where(jobs.c.checkpoint_seq == bindparam("at_checkpoint"))
        self.take: Statement = ready(taken, *_MOVED, *GUARD, "at_checkpoint")
        self.finish: Statement = ready(_update(*_MOVED, *_FINISHED, **_told()), *_MOVED, *_FINISHED, *_TOLD, *GUARD)
        self.save: Statement = ready(_update(*_SAVED, **_told()), *_SAVED, *_TOLD, *GUARD)
        self.stop: Statement = ready(_update(*_MOVED, **_told()), *_MOVED, *_TOLD, *GUARD)
        self.suspend: Statement = ready(_update(*_MOVED, *_KEPT, **_told()), *_MOVED, *_KEPT, *_TOLD, *GUARD)
        self.delete: Statement = ready(jobs.delete().where(*_guard()), *GUARD)
        self.report: Statement = ready(_update("event_seq", **_told()), "event_seq", *_TOLD, *GUARD)
        kept = dialect.upsert(job_checkpoints, "job_id", "slot", "seq", "state", "at", replace=True)
        self.keep: Statement = ready(kept, "job_id", "slot", "seq", "state", "at")
        self.waiting: Waiting = Waiting(ready, dialect)

        alive = (lives.c.id == bindparam("at_life"), lives.c.ended_at.is_(None))
        entered = tuple(column.name for column in lives.c if column.name not in _ENDED)
        self.register: Statement = insert(lives, *entered)
        self.alive: Statement = ready(select(lives.c.working).where(*alive), "at_life")
        renewed = lives.update().where(*alive).values(lease_until=bindparam("lease_until"))
        self.renew: Statement = ready(renewed, "lease_until", "at_life")
        left = lives.update().where(*alive).values(working=literal_column("0"))
        self.leave: Statement = ready(left, "at_life")
        ended = lives.update().where(*alive).ordered_values(*((lives.c[name], bindparam(name)) for name in _ENDED))
        self.retire: Statement = ready(ended, *_ENDED, "at_life")
        ran = select(jobs.c.id, jobs.c.suspect).where(
            jobs.c.life == bindparam("life"), jobs.c.status == bindparam("status")
        )
        ran = ran.order_by(jobs.c.suspect.desc()).limit(bindparam("limit")).offset(bindparam("offset"))
        self.running: Statement = ready(ran, "life", "status", "limit", "offset")

    def claim(self, known: int) -> Statement:
        """Find the best claimable jobs of one queue, suspects or others, among `known` pairs of name and version."""
        if known not in self._claims:
            pairs = [(f"name_{i}", f"version_{i}") for i in range(known)]
            found = (
                select(*STANDING, *_CLAIMED, jobs.c.rank, jobs.c.num)
                .where(
                    jobs.c.queue == bindparam("queue"),
                    jobs.c.suspect == bindparam("suspect"),
                    jobs.c.rank.is_not(None),
                    runnable([(bindparam(name), bindparam(version)) for name, version in pairs]),
                )
                .order_by(jobs.c.rank, jobs.c.num)
                .limit(bindparam("room"))
                .offset(bindparam("offset"))
            )
            order = ("queue", "suspect", *(name for pair in pairs for name in pair), "room", "offset")
            text = prepare(found, self._dialect.compiler, *order).text
            self._claims[known] = Statement(text.replace("FROM jobs", f"FROM jobs {self._dialect.claim_hint}", 1))
        return self._claims[known]
