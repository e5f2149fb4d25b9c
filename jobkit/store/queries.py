"""What the store answers when it is asked: jobs, lists, statistics, events, lives.

Every list is an index read of bounded length: one condition leads (the most telling that was given), each of its values
is read in order from its own index up to the page's length, and the rest of the conditions filter on the way. A text is
looked for in the newest jobs alone, whatever else was asked.

Invariant: one row that can't be read never hides another; what is unreadable of it is shown as missing.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
from datetime import UTC, datetime
from itertools import product
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, exists, func, literal, not_, or_, select, tuple_, union_all

from jobkit.errors import InvalidFilter
from jobkit.interfaces import End, Ended, Life, Situation, Wait
from jobkit.model import TERMINAL, Event, Failure, JobRecord, JobStats, JobStatus, Page
from jobkit.store.schema import job_blockers, job_events, job_signals, jobs, labels, lives, queues
from jobkit.store.sql import STANDING, parsed, progress_of, runnable, standing_of, text_of, time_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sqlalchemy import FromClause, Row, Select

    from jobkit.filters import JobFilter
    from jobkit.lifecycle import Standing
    from jobkit.model import Json
    from jobkit.store.dialects import Database

TEXT_WINDOW: Final = 10_000
"""How many of the newest jobs a text is looked for in."""

SAMPLE: Final = 100_000
"""How many of the newest completed jobs durations are worked out from."""

LEADERS: Final = 100
"""Of how many values each may be read from its own index; more are looked for among all jobs."""

FIRST_IN_LINE: Final = 10_000
"""Among how many of a queue's jobs, best first, unknown ones are looked for: the others move up."""

COUNTED: Final = 1_000
"""Up to how many jobs that stand before another are counted."""

MAX_SERIAL: Final = 2**63 - 1

_SEARCHED: Final = (
    "num",
    "id",
    "name",
    "label",
    "error_message",
    "status",
    "queue",
    "user",
    "parent_id",
    "created_at",
    "run_s",
)
"""What conditions, order and statistics need of a job."""

_RECORD: Final = (
    jobs.c.id, jobs.c.name, jobs.c.version, jobs.c.label, jobs.c.description, jobs.c.status, jobs.c.reason,
    jobs.c.wanted, jobs.c.queue, jobs.c.priority, jobs.c.params, jobs.c.progress, jobs.c.progress_data, jobs.c.output,
    jobs.c.error, jobs.c.warnings, jobs.c.attempt, jobs.c.retry_count, jobs.c.max_retries, jobs.c.crash_count,
    jobs.c.checkpoint_seq,
    jobs.c.created_at, jobs.c.scheduled_at, jobs.c.started_at, jobs.c.running_since, jobs.c.run_s, jobs.c.completed_at,
    jobs.c.last_checkpoint_at, jobs.c.node, lives.c.lease_until, jobs.c.user, jobs.c.tags, jobs.c.metadata,
    jobs.c.parent_id, jobs.c.depends_on, jobs.c.retry_of, jobs.c.forked_from, jobs.c.key,
    jobs.c.created_at.label("page_at"), jobs.c.num.label("page_num"),
)  # fmt: skip


class Queries:
    """The reading half of the store."""

    _database: Database

    def now(self) -> datetime:
        """The database's time."""
        with self._database.reading() as connection:
            return self._database.now(connection)

    # ── one job ──

    def get(self, job_id: str) -> JobRecord | None:
        """One job as it is stored."""
        with self._database.reading() as connection:
            row = connection.execute(_records().where(jobs.c.id == job_id)).one_or_none()
            return None if row is None else _record(row, self._database.now(connection))

    def ended(self, job_id: str) -> Ended | None:
        """What a caller who waits for a job's result needs to know."""
        query = select(jobs.c.name, jobs.c.status, jobs.c.reason, jobs.c.output_data, jobs.c.error)
        with self._database.reading() as connection:
            row = connection.execute(query.where(jobs.c.id == job_id)).one_or_none()
        if row is None:
            return None
        return Ended(row.name, JobStatus(row.status), row.reason, row.output_data, _failure(row.error))

    def state(self, job_id: str) -> tuple[int, bytes] | None:
        """The number of the latest checkpoint and its sealed state."""
        with self._database.reading() as connection:
            row = connection.execute(select(jobs.c.state_seq, jobs.c.state).where(jobs.c.id == job_id)).one_or_none()
        return None if row is None or row.state is None else (row.state_seq, row.state)

    def signal(self, job_id: str, name: str) -> bytes | None:
        """The payload of a signal that was sent to a job."""
        sent = select(job_signals.c.payload).where(job_signals.c.job_id == job_id, job_signals.c.name == name)
        with self._database.reading() as connection:
            return connection.execute(sent).scalar_one_or_none()

    def situation(self, job_id: str) -> Situation:
        """What stands around a job; of one that isn't there, nothing."""
        own = select(jobs.c.across_restarts, jobs.c.suspect, jobs.c.queue, jobs.c.rank, jobs.c.num, queues.c.paused)
        own = own.select_from(jobs.outerjoin(queues, queues.c.name == jobs.c.queue)).where(jobs.c.id == job_id)
        waits = select(job_blockers.c.kind, job_blockers.c.on).where(job_blockers.c.job_id == job_id)
        with self._database.reading() as connection:
            row = connection.execute(own).one_or_none()
            found = tuple(Wait(kind, on) for kind, on in connection.execute(waits.order_by(*waits.selected_columns)))
            if row is None:
                return Situation()
            ahead = 0
            if row.rank is not None:
                line = (jobs.c.queue == row.queue, jobs.c.suspect == row.suspect, jobs.c.rank <= row.rank)
                before = tuple_(jobs.c.rank, jobs.c.num) < tuple_(literal(row.rank), literal(row.num))
                first = select(jobs.c.num).where(*line, before).limit(COUNTED).subquery()
                ahead = connection.execute(select(func.count()).select_from(first)).scalar_one()
        return Situation(found, bool(row.across_restarts), bool(row.suspect), bool(row.paused), ahead, ahead < COUNTED)

    # ── lists ──

    def page(self, where: JobFilter, limit: int, cursor: str | None) -> Page[JobRecord]:
        """Jobs that match, newest first.

        Args:
            where: The conditions.
            limit: How many at most.
            cursor: Where the page before ended.

        Returns:
            The jobs, and the cursor of the next page.
        """
        query = page_query(where, limit + 1, _read_cursor(cursor))
        with _sayable(), self._database.reading() as connection:
            rows = connection.execute(query).all()
            now = self._database.now(connection)
        more = len(rows) > limit
        return Page([_record(row, now) for row in rows[:limit]], _write_cursor(rows[limit - 1]) if more else None)

    def stats(self, where: JobFilter) -> JobStats:
        """Counts by status, and durations of the newest completed jobs."""
        job = _scope(where).c
        conditions = _conditions(where, job)
        counted = select(job.status, func.count()).where(*conditions).group_by(job.status)
        completed = (job.status == JobStatus.COMPLETED.value, *conditions)
        newest = select(job.run_s).where(*completed).order_by(job.created_at.desc()).limit(SAMPLE)
        with _sayable(), self._database.reading() as connection:
            counts = dict.fromkeys((status.value for status in JobStatus), 0)
            counts.update((row[0], row[1]) for row in connection.execute(counted))
            durations = sorted(connection.execute(newest).scalars())
        finished = sum(counts[status] for status in TERMINAL)
        return JobStats(
            counts=counts,
            total=sum(counts.values()),
            success_rate=counts["completed"] / finished if finished else None,
            mean_duration_s=sum(durations) / len(durations) if durations else None,
            p95_duration_s=durations[(95 * len(durations) + 99) // 100 - 1] if durations else None,
            sampled=counts["completed"] > len(durations),
        )

    # ── events ──

    def events(self, job_id: str | None, after: str | None, types: Sequence[str] | None, limit: int) -> list[Event]:
        """Read stored events in order.

        Args:
            job_id: One job's; None for all jobs'.
            after: An event's `cursor`, or for one job a sequence number as text; None for the beginning.
            types: Only these types.
            limit: How many at most.

        Returns:
            The events, oldest first.
        """
        query = select(job_events).order_by(job_events.c.pos).limit(limit)
        if job_id is not None:
            query = select(job_events).where(job_events.c.job_id == job_id).order_by(job_events.c.seq).limit(limit)
        if after is not None:
            query = query.where(_after(job_id, after))
        if types is not None:
            query = query.where(job_events.c.type.in_(types))
        with self._database.reading() as connection:
            return [_event(row) for row in connection.execute(query)]

    # ── lives and recovery ──

    def lives(self) -> list[Life]:
        """All lives that are not over."""
        with self._database.reading() as connection:
            rows = connection.execute(select(lives).where(lives.c.ended_at.is_(None))).all()
        return [
            Life(
                row.id, row.node, row.host, row.boot_id, row.pid, bool(row.working), parsed(row.versions, {}),
                time_of(row.started_at), time_of(row.lease_until),
            )
            for row in rows
        ]  # fmt: skip

    def orphans(self, limit: int) -> list[Standing]:
        """Jobs whose owner's life is over: running or assigned there, or paused by its shutdown."""
        query = orphan_query(limit)
        with self._database.reading() as connection:
            return [standing_of(row) for row in connection.execute(query)]

    def ends(self, over: Sequence[str]) -> dict[str, End]:
        """How these lives that are noted as over have ended."""
        until = func.min(lives.c.ended_at, lives.c.lease_until)  # who noted it may have come long after the lease's end
        query = select(lives.c.id, until, lives.c.ended_how, lives.c.blamed)
        with self._database.reading() as connection:
            found = connection.execute(query.where(lives.c.id.in_(over), lives.c.ended_at.is_not(None)))
            return {life: End(at, how, blamed) for life, text, how, blamed in found if (at := time_of(text))}

    def due(self, limit: int) -> list[Standing]:
        """Jobs whose time has come, the earliest first."""
        with self._database.reading() as connection:
            now = text_of(self._database.now(connection))
            query = select(*STANDING).where(jobs.c.alarm <= now).order_by(jobs.c.alarm).limit(limit)
            return [standing_of(row) for row in connection.execute(query)]

    def next_due(self) -> datetime | None:
        """When the next job's time comes."""
        query = select(jobs.c.alarm).where(jobs.c.alarm.is_not(None)).order_by(jobs.c.alarm).limit(1)
        with self._database.reading() as connection:
            return time_of(connection.execute(query).scalar_one_or_none())

    def paused(self, before: datetime, limit: int) -> list[Standing]:
        """Jobs that were paused before a restart, and that it resumes, the oldest first."""
        told, other = job_events.alias(), job_events.alias()
        of_another_kind = other.c.type.not_in(("pause_requested", "paused", "log"))
        last_other = (
            select(func.max(other.c.seq)).where(other.c.job_id == told.c.job_id, of_another_kind).scalar_subquery()
        )
        # asked for counts: who was to pause it may have died first, and then it is the restart that has paused it
        asked = (told.c.job_id == jobs.c.id, told.c.seq > last_other, told.c.type != "log")
        return self._standings(
            jobs.c.status == JobStatus.PAUSED.value, jobs.c.across_restarts == 0,
            exists(select(1).select_from(told).where(*asked, told.c.at <= text_of(before))),
            order=jobs.c.created_at, limit=limit,
        )  # fmt: skip

    def asked(self, life: str) -> list[Standing]:
        """Running jobs of a life of which something is wanted."""
        return self._standings(jobs.c.life == life, jobs.c.wanted.is_not(None))

    def unknown(self, versions: Mapping[str, int], limit: int) -> list[Standing]:
        """Queued jobs of names or versions that are not among these, as far as they are among the first in line."""
        found: list[Standing] = []
        with self._database.reading() as connection:
            for queue, suspect in product(connection.execute(select(queues.c.name)).scalars().all(), (0, 1)):
                line = select(jobs.c.num).where(jobs.c.queue == queue, jobs.c.suspect == suspect)
                first = line.where(jobs.c.rank.is_not(None)).order_by(jobs.c.rank).limit(FIRST_IN_LINE).subquery()
                query = select(*STANDING).join(first, jobs.c.num == first.c.num)
                query = query.where(not_(runnable(list(versions.items())))).limit(limit - len(found))
                found.extend(standing_of(row) for row in connection.execute(query))
        return found

    def known_again(self, versions: Mapping[str, int], limit: int) -> list[Standing]:
        """Jobs held as unknown whose names and versions are among these, the oldest first."""
        return self._standings(
            jobs.c.status == JobStatus.HELD.value, jobs.c.reason == "unknown_job", runnable(list(versions.items())),
            order=jobs.c.created_at, limit=limit,
        )  # fmt: skip

    def _standings(
        self, *where: ColumnElement[bool], order: ColumnElement[Any] | None = None, limit: int | None = None
    ) -> list[Standing]:
        query = select(*STANDING).where(*where).order_by(order).limit(limit)
        with self._database.reading() as connection:
            return [standing_of(row) for row in connection.execute(query)]

    def claimable(self, versions: Mapping[str, int], served: Sequence[str] | None, *, suspects: bool = True) -> bool:
        """Whether a claim would find anything."""
        known = runnable(list(versions.items()))
        kinds = (0, 1) if suspects else (0,)
        with self._database.reading() as connection:
            for queue in connection.execute(select(queues.c.name).where(queues.c.paused == 0)).scalars():
                if served is None or queue in served:
                    ready = (jobs.c.queue == queue, jobs.c.suspect.in_(kinds), jobs.c.rank.is_not(None))
                    if connection.execute(select(jobs.c.num).where(*ready, known).limit(1)).first() is not None:
                        return True
        return False


# ── building queries ──


def _records() -> Select[Any]:
    return select(*_RECORD).select_from(jobs.outerjoin(lives, jobs.c.life == lives.c.id))


def page_query(where: JobFilter, limit: int, after: tuple[str, int] | None = None) -> Select[Any]:
    """The query of one page: the newest jobs that match, beyond `after`."""
    found = [_matching(where, lead, limit, after).subquery() for lead in _leads(where)]
    chosen = found[0] if len(found) == 1 else union_all(*(select(one.c.num) for one in found)).subquery()
    order = (jobs.c.created_at.desc(), jobs.c.num.desc())
    return _records().where(jobs.c.num.in_(select(chosen.c.num))).order_by(*order).limit(limit)


class _Lead(NamedTuple):
    """What leads to a page's jobs.

    Attributes:
        source: What is read.
        job: The columns of its jobs.
        at: When a job was created, as the leading index has it.
        only: What the index is searched for.
    """

    source: FromClause
    job: Any
    at: ColumnElement[str]
    only: tuple[ColumnElement[bool], ...] = ()


def _matching(where: JobFilter, lead: _Lead, limit: int, after: tuple[str, int] | None) -> Select[Any]:
    """The numbers of the newest jobs that match, read in the order of one index."""
    conditions = [*lead.only, *_conditions(where, lead.job)]
    if after is not None:
        conditions.append(lead.at <= after[0])
        conditions.append(tuple_(lead.at, lead.job.num) < tuple_(*map(literal, after)))
    found = select(lead.job.num.label("num")).select_from(lead.source).where(*conditions)
    return found.order_by(lead.at.desc(), lead.job.num.desc()).limit(limit)


def _leads(where: JobFilter) -> list[_Lead]:
    """The condition whose index leads, once for each of its values; for a text, the newest jobs alone."""
    source = _scope(where)
    if source is not jobs:
        return [_Lead(source, source.c, source.c.created_at)]
    for column, values in _plain(where, jobs.c):
        if 0 < len(values) <= LEADERS:
            return [_Lead(jobs, jobs.c, jobs.c.created_at, (column == value,)) for value in dict.fromkeys(values)]
    found = [("tag", tag) for tag in where.tag] or [(f"metadata.{key}", value) for key, value in where.metadata[:1]]
    if 0 < len(found) <= LEADERS:
        labelled = labels.join(jobs, jobs.c.id == labels.c.job_id)
        return [
            _Lead(labelled, jobs.c, labels.c.created_at, (labels.c.key == key, labels.c.value == value))
            for key, value in dict.fromkeys(found)
        ]
    return [_Lead(jobs, jobs.c, jobs.c.created_at)]


def _scope(where: JobFilter) -> FromClause:
    """Where to look: among all jobs, or for a text among the newest."""
    if where.text is None:
        return jobs
    searched = select(*(jobs.c[name] for name in _SEARCHED))
    return searched.order_by(jobs.c.num.desc()).limit(TEXT_WINDOW).subquery("newest")


def _plain(where: JobFilter, job: Any) -> tuple[tuple[ColumnElement[Any], Sequence[str]], ...]:
    """Conditions on a single column, the most telling first."""
    return (
        (job.parent_id, where.parent),
        (job.user, where.user),
        (job.name, where.name),
        (job.status, [status.value for status in where.status]),
        (job.queue, where.queue),
    )


def _conditions(where: JobFilter, job: Any) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = [column.in_(values) for column, values in _plain(where, job) if values]
    if where.tag:
        found.append(_labelled(job, "tag", where.tag))
    found.extend(_labelled(job, f"metadata.{key}", (value,)) for key, value in where.metadata)
    if where.since is not None:
        found.append(job.created_at >= text_of(where.since))
    if where.until is not None:
        found.append(job.created_at < text_of(where.until))
    if where.text is not None:
        begins = [column.startswith(where.text, autoescape=True) for column in (job.id, job.name, job.label)]
        found.append(or_(*begins, job.error_message.contains(where.text, autoescape=True)))
    return found


def _labelled(job: Any, key: str, values: Sequence[str]) -> ColumnElement[bool]:
    also = labels.alias()
    return exists().where(also.c.job_id == job.id, also.c.key == key, also.c.value.in_(values))


def orphan_query(limit: int) -> Select[Any]:
    """Jobs whose `life` is over."""
    over = select(lives.c.id).where(lives.c.ended_at.is_not(None), lives.c.id == jobs.c.life)
    return select(*STANDING).where(jobs.c.life.is_not(None), exists(over)).order_by(jobs.c.life).limit(limit)


def _after(job_id: str | None, after: str) -> ColumnElement[bool]:
    kind, _, number = after.rpartition(":")
    if (
        not number.isdecimal()
        or kind not in {"", "all"}
        or len(number) > len(str(MAX_SERIAL))
        or int(number) > MAX_SERIAL
    ):
        raise InvalidFilter("cursor", after, ["an event's cursor", "a sequence number"])
    if job_id is None:
        return job_events.c.pos > int(number)
    if kind == "":
        return job_events.c.seq > int(number)
    return job_events.c.pos > int(number)


# ── reading rows ──


def _read_cursor(cursor: str | None) -> tuple[str, int] | None:
    if cursor is None:
        return None
    try:
        at, num = json.loads(base64.urlsafe_b64decode(cursor.encode()))
        if isinstance(at, str) and isinstance(num, int) and 0 <= num <= MAX_SERIAL:
            at.encode()
            return at, num
    except (ValueError, TypeError, RecursionError, binascii.Error):
        pass
    raise InvalidFilter("cursor", cursor, ["the next_cursor of a page"])


def _write_cursor(row: Row[Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps([row.page_at, row.page_num]).encode()).decode()


@contextlib.contextmanager
def _sayable() -> Iterator[None]:
    """Refuse a text that no row can hold."""
    try:
        yield
    except UnicodeEncodeError as error:
        raise InvalidFilter("text", error.object, ["one that UTF-8 can say"]) from None


def _failure(text: str | None) -> Failure | None:
    if text is None:
        return None
    told = parsed(text, {})
    return Failure(*(str(told.get(name, "")) for name in ("type", "message", "traceback")))


def _uuid(text: str | None) -> UUID | None:
    return None if text is None else UUID(text)


def _at(text: str) -> datetime:
    return time_of(text) or _UNREADABLE


_UNREADABLE: Final = datetime.min.replace(tzinfo=UTC)
"""What a time is shown as that can't be read and can't be missing."""


def _event(row: Row[Any]) -> Event:
    return Event(
        UUID(row.job_id), row.seq, row.type, JobStatus(row.status), row.message,
        parsed(row.data, None), _at(row.at), f"all:{row.pos}",
    )  # fmt: skip


def _record(row: Row[Any], now: datetime) -> JobRecord:
    since = time_of(row.running_since)
    ran: float | None = row.run_s
    if since is not None:
        ran = row.run_s + max(0.0, (now - since).total_seconds())
    elif row.started_at is None:
        ran = None
    params: dict[str, Json] = parsed(row.params, {})
    return JobRecord(
        id=UUID(row.id), name=row.name, version=row.version, label=row.label, description=row.description,
        status=JobStatus(row.status), reason=row.reason, wanted=row.wanted, queue=row.queue, priority=row.priority,
        params=params,
        progress=progress_of(row.progress, row.progress_data),
        output=parsed(row.output, None), error=_failure(row.error), warnings=row.warnings, attempt=row.attempt,
        retry_count=row.retry_count, max_retries=row.max_retries, crash_count=row.crash_count,
        checkpoint_seq=row.checkpoint_seq, created_at=_at(row.created_at), scheduled_at=time_of(row.scheduled_at),
        started_at=time_of(row.started_at), completed_at=time_of(row.completed_at),
        last_checkpoint_at=time_of(row.last_checkpoint_at), duration_s=ran, node=row.node,
        lease_deadline=time_of(row.lease_until), user=row.user, tags=tuple(parsed(row.tags, [])),
        metadata=parsed(row.metadata, {}), parent_id=_uuid(row.parent_id),
        depends_on=tuple(UUID(one) for one in parsed(row.depends_on, [])), retry_of=_uuid(row.retry_of),
        forked_from=_uuid(row.forked_from), key=row.key,
    )  # fmt: skip
