"""One batch of writes, inside one transaction.

Fast first, fair second. `together` runs each kind of statement once for the whole batch and trusts what the writers
know of their jobs; each statement's guard makes sure of it, and one row count tells whether all were right. If not, the
batch is rolled back and `singly` does the writes one after another, each in a savepoint, deciding anew on what the
database says: so only the culprit hears of it, and nobody else's work is undone.

Invariant: an event is numbered and stored in the transaction of the change that it tells of.
"""

from __future__ import annotations

import json
from collections import defaultdict, deque
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, InterfaceError, ProgrammingError

from jobkit.canonical import canonical
from jobkit.errors import JobkitError, JobNotFound, KeyConflict, LeaseLost, SerializationError
from jobkit.filters import label_text
from jobkit.interfaces import Change, Claim, Claimed, Insert, Leave, Register, Renew, Retire, Send, Stored
from jobkit.lifecycle import Cause, Transition, Trigger, advance
from jobkit.model import TERMINAL, Failure, JobStatus
from jobkit.policy import blame
from jobkit.store.sql import (
    event_row,
    guard_row,
    inserted_row,
    line_row,
    moved_row,
    progress_of,
    standing_of,
    text_of,
    to_json,
    told_row,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime

    from sqlalchemy import Connection

    from jobkit.interfaces import Ending, NewJob, Wait, Write
    from jobkit.lifecycle import Standing
    from jobkit.store.sql import Row, Statement, Statements

CULPRIT: Final = (IntegrityError, DataError, InterfaceError, ProgrammingError, UnicodeEncodeError, OverflowError)
"""What a value that the database can't take raises; any other error is the database's own trouble."""


class Mismatch(Exception):  # a signal within this module, not an error for callers
    """A row was not what its writer took it for."""


class Planned(NamedTuple):
    """A statement for one row."""

    statement: Statement
    row: Row


class Batch:
    """One transaction at work."""

    def __init__(
        self, connection: Connection, now: datetime, statements: Statements, known_queues: set[str], keep: int
    ) -> None:
        """Begin with an open transaction.

        Args:
            connection: The writing connection, inside the transaction.
            now: The transaction's time.
            statements: The compiled statements.
            known_queues: Queues that are known to be stored; added to only by the caller, after the commit.
            keep: How many checkpoints of a job to keep.
        """
        self._connection, self._now, self._sql, self._keep = connection, now, statements, keep
        self._now_text = text_of(now) or ""
        self._known_queues = known_queues
        self._waits: bool | None = None
        self.new_queues: set[str] = set()
        self.rows: int = 0
        self.size: int = 0

    # ── the two ways ──

    def together(self, writes: Sequence[Write]) -> list[Any]:
        """Apply all writes, each kind at once.

        Raises:
            Mismatch: Some row was not as expected; the transaction must be rolled back. The same goes for a value that
                can't be stored, whatever it raises.
        """
        answers: list[Any] = [None] * len(writes)
        plans: dict[Statement, list[Row]] = defaultdict(list)
        events: list[Row] = []
        late: list[int] = []
        for index, write in enumerate(writes):
            if isinstance(write, Change) and write.expected is not None and not write.waits:
                try:
                    answers[index] = transition = advance(write.expected, write.cause, self._now, len(write.lines))
                except JobkitError as error:
                    answers[index] = error
                    continue
                for statement, row in self._plan(write, transition):
                    plans[statement].append(row)
                events.extend(self._events(transition, write))
                if write.spawns:
                    self._plan_inserts(write.spawns, plans, events)
            elif isinstance(write, Insert) and all(job.key is None for job in write.jobs):
                answers[index] = tuple(Stored(job.id, created=True) for job in write.jobs)
                self._plan_inserts(write.jobs, plans, events)
            else:
                late.append(index)
        self._run(plans)
        if events:
            self._tell(events)
        for index, answer in enumerate(answers):
            if isinstance(answer, Transition):
                answers[index] = self._with_consequences(answer)
        self._one_by_one(writes, late, answers, self._trusted)
        return answers

    def singly(self, writes: Sequence[Write]) -> list[Any]:
        """Apply the writes one after another, each against what the database says."""
        answers: list[Any] = [None] * len(writes)
        self._one_by_one(writes, range(len(writes)), answers, self._alone)
        return answers

    def do(self, write: Write) -> Any:
        """Apply one write in a transaction of somebody else's, who undoes all of it if it fails."""
        try:
            return self._do(write)
        except CULPRIT as error:
            raise _refused(error) from None

    @staticmethod
    def _one_by_one(
        writes: Sequence[Write], which: Sequence[int], answers: list[Any], do: Callable[[Write], Any]
    ) -> None:
        # claims last: they find what came in beside them
        for index in sorted(which, key=lambda at: isinstance(writes[at], Claim)):
            answers[index] = do(writes[index])

    def _trusted(self, write: Write) -> Any:
        """Do a write without a savepoint if it refuses before it changes anything: only an insert may go half-way."""
        if isinstance(write, Insert):
            return self._alone(write)
        try:
            return self._do(write)
        except JobkitError as error:
            return error

    def _alone(self, write: Write) -> Any:
        queues = set(self.new_queues)
        try:
            with self._connection.begin_nested():
                return self._do(write)
        except JobkitError as error:
            answer = error
        except CULPRIT as error:
            answer = _refused(error)
        self.new_queues = queues  # what it had added is rolled back with it
        return answer

    def _do(self, write: Write) -> Any:
        match write:
            case Change():
                return self._change(write)
            case Send():
                return self._signal(write)
            case Insert():
                return self._insert(write.jobs)
            case Claim():
                return self._claim(write)
            case Register(life=life, lease_s=lease_s):
                until = self._now + timedelta(seconds=lease_s)
                self._sql.register.one(
                    self._connection,
                    (life.id, life.node, life.host, life.boot_id, life.pid, int(life.working),
                     to_json(dict(life.versions)), self._now_text, text_of(until)),
                )  # fmt: skip
                return until
            case Renew(life=life_id, lease_s=lease_s):
                until = self._now + timedelta(seconds=lease_s)
                if self._sql.renew.one(self._connection, (text_of(until), life_id)).rowcount != 1:
                    raise LeaseLost(life_id, 0)
                return until
            case Leave(life=life_id):
                return self._sql.leave.one(self._connection, (life_id,)).rowcount == 1
            case Retire(life=life_id, how=how):
                row = (self._now_text, *self._ending(life_id, how), life_id)
                return self._sql.retire.one(self._connection, row).rowcount == 1

    def _ending(self, life: str, how: Ending) -> tuple[Ending, str | None]:
        """How a life ended, and the job that this counts against.

        Whoever is killed while it is being stopped, as by a deployment that has no more patience, has merely left. A
        crash is laid at a job's door now, while all that the life ran still stand there as running.
        """
        if how != "crashed":
            return how, None
        found = self._sql.alive.one(self._connection, (life,)).one_or_none()
        if found is not None and not found.working:
            return "left", None
        ran = self._sql.running.one(self._connection, (life, "running", 2, 0)).all()
        return how, blame([(job_id, bool(suspect)) for job_id, suspect in ran])

    # ── changes ──

    def _change(self, change: Change) -> Transition:
        return self._with_consequences(self._apply(change))

    def _apply(self, change: Change) -> Transition:
        job, cause = self._standing(change), change.cause
        open_waits = [wait for wait in change.waits if not self._is_over(job.id, wait)]
        if change.waits:
            cause = replace(cause, blockers=len(open_waits), due_at=cause.due_at if open_waits else None)
        transition = advance(job, cause, self._now, len(change.lines))
        for statement, row in self._plan(change, transition):
            if statement.many(self._connection, [row]) != 1:
                raise LeaseLost(change.job_id, job.attempt)
        self._tell(list(self._events(transition, change)))
        if change.spawns:
            self._insert(change.spawns)
        if open_waits and not transition.after.status.terminal:
            self._waits = True
            self._sql.waiting.block.many(self._connection, [(job.id, *wait) for wait in open_waits])
        return transition

    def _standing(self, change: Change) -> Standing:
        expected = change.expected
        row = self._sql.standing.one(self._connection, (change.job_id,)).one_or_none()
        if row is None:
            raise JobNotFound(change.job_id) if expected is None else LeaseLost(change.job_id, expected.attempt)
        job = standing_of(row)
        if expected is not None and (job.attempt, job.status) != (expected.attempt, expected.status):
            raise LeaseLost(change.job_id, expected.attempt)
        return job

    def _plan(self, change: Change, transition: Transition) -> Iterator[Planned]:
        """Say which statements write a transition, with their rows."""
        before, after, trigger = transition.before, transition.after, transition.cause.trigger
        guard = guard_row(before)
        told = told_row(change)
        if trigger is Trigger.REPORT:
            yield Planned(self._sql.report, (after.event_seq, *told, *guard))
        elif trigger in {Trigger.CHECKPOINT, Trigger.SUSPEND}:
            yield from self._saved(change, transition)
        elif trigger is Trigger.DELETE:
            yield Planned(self._sql.delete, guard)
        elif after is not before and after != before:  # a queued job keeps its place unless it has to move
            moved = moved_row(after, self._now, self._now_text)
            if change.output is not None or change.failure is not None:
                yield Planned(self._sql.finish, (*moved, *_finished(change, after.status), *told, *guard))
            elif trigger is Trigger.OWNER_GONE:
                yield Planned(self._sql.take, (*moved, *guard, before.checkpoint_seq))
            elif any(told):
                yield Planned(self._sql.stop, (*moved, *told, *guard))
            else:
                yield Planned(self._sql.move, (*moved, *guard))

    def _saved(self, change: Change, transition: Transition) -> Iterator[Planned]:
        """Store a state: of an attempt that goes on, or of one that leaves to wait."""
        after, state = transition.after, change.state or b""
        seq = after.checkpoint_seq
        self.size += 2 * len(state)
        kept, rest = (seq, seq, self._now_text, state), (*told_row(change), *guard_row(transition.before))
        if transition.cause.trigger is Trigger.SUSPEND:
            yield Planned(self._sql.suspend, (*moved_row(after, self._now, self._now_text), *kept, *rest))
        else:
            yield Planned(self._sql.save, (after.event_seq, after.crash_count, int(after.suspect), *kept, *rest))
        if self._keep:
            yield Planned(self._sql.keep, (after.id, seq % self._keep, seq, state, self._now_text))

    def _events(self, transition: Transition, change: Change) -> Iterator[Row]:
        before = transition.before
        if change.lines and transition.after is not before:
            for seq, line in enumerate(change.lines, before.event_seq + 1):
                self.size += line.size
                yield line_row(line, seq, before, self._now)
        if transition.event is not None:
            failure = change.failure
            message = transition.after.reason if failure is None else f"{failure.type}: {failure.message}"
            yield event_row(transition, self._now_text, message)

    # ── what a change brings about in other jobs ──

    def _is_over(self, job_id: str, wait: Wait) -> bool:
        """Whether what a job is about to wait for has come already."""
        if wait.kind == "signal":
            return self._sql.waiting.sent.one(self._connection, (job_id, wait.on)).one_or_none() is not None
        row = self._sql.standing.one(self._connection, (wait.on,)).one_or_none()
        return row is None or standing_of(row).status.terminal

    def _signal(self, signal: Send) -> Transition:
        change = Change(signal.job_id, Cause(Trigger.SIGNAL))
        transition = advance(self._standing(change), change.cause, self._now)
        self._sql.waiting.send.one(self._connection, (signal.job_id, signal.name, signal.payload, self._now_text))
        return transition._replace(then=tuple(map(self._apply, self._let_go("signal", signal.name, [signal.job_id]))))

    def _with_consequences(self, done: Transition) -> Transition:
        """Let a job's end act on those that wait for it, and its cancel on its children, and so on."""
        if done.after.status is done.before.status and not done.before.blockers:
            return done  # as most are: checkpoints
        then: list[Transition] = []
        ahead = deque([done])
        while ahead:
            for change in self._brought_about(ahead.popleft()):
                further = self._apply(change)
                if further.after is not further.before:
                    then.append(further)
                    ahead.append(further)
        return done._replace(then=tuple(then)) if then else done

    def _brought_about(self, done: Transition) -> Iterator[Change]:
        before, after = done.before, done.after
        if before.blockers and not (after.blockers and after.status not in TERMINAL):
            self._sql.waiting.free.one(self._connection, (after.id,))
        if after.status not in TERMINAL or before.status in TERMINAL:
            return
        if self._anybody_waits():
            waiting = self._sql.waiting.blocked.one(self._connection, ("job", after.id)).scalars().all()
            yield from self._let_go("job", after.id, waiting)
        if after.status is JobStatus.CANCELLED:
            for (child,) in self._sql.waiting.children.one(self._connection, (after.id,)).all():
                yield Change(child, Cause(Trigger.CANCEL))

    def _let_go(self, kind: str, on: str, jobs: Sequence[str]) -> Iterator[Change]:
        """Have jobs wait for something no longer, as far as they do."""
        for job_id in jobs:
            if self._sql.waiting.unblock.one(self._connection, (job_id, kind, on)).rowcount:
                left = self._sql.waiting.blockers.one(self._connection, (job_id,)).scalar_one()
                yield Change(job_id, Cause(Trigger.UNBLOCK, blockers=left))

    def _anybody_waits(self) -> bool:
        """Whether any job waits for anything: asked once a batch, since mostly none does."""
        if self._waits is None:
            self._waits = bool(self._sql.waiting.any_blocker.one(self._connection, ()).scalar_one())
        return self._waits

    # ── inserts ──

    def _plan_inserts(self, new: Sequence[NewJob], plans: dict[Statement, list[Row]], events: list[Row]) -> None:
        rows = plans[self._sql.insert]
        labels: list[Row] = []
        for job in new:
            rows.append(inserted_row(job, self._now, self._now_text))
            events.append((job.id, 1, "created", "queued", job.label, None, self._now_text))
            self.size += len(job.params_data) + len(job.state or b"")
            if job.queue not in self._known_queues:
                self.new_queues.add(job.queue)
            if job.tags or job.metadata:
                labels.extend(self._labels(job))
        if labels:
            plans[self._sql.insert_label].extend(labels)

    def _labels(self, job: NewJob) -> Iterator[Row]:
        for tag in dict.fromkeys(job.tags):
            yield ("tag", tag, self._now_text, job.id)
        for key, value in job.metadata.items():
            if value is None or isinstance(value, str | int | float | bool):
                yield (f"metadata.{key}", label_text(value), self._now_text, job.id)

    def _insert(self, new: Sequence[NewJob]) -> tuple[Stored, ...]:
        """Insert jobs of which some have keys; a key that is taken gives the job that has it."""
        stored = []
        for job in new:
            known = None
            if job.key is not None:
                known = self._sql.by_key.one(self._connection, (job.name, job.key)).one_or_none()
            if known is None:
                plans: dict[Statement, list[Row]] = defaultdict(list)
                events: list[Row] = []
                self._plan_inserts([job], plans, events)
                self._run(plans)
                self._tell(events)
                stored.append(Stored(job.id, created=True))
            elif canonical(known.params_data) == canonical(job.params_data):
                stored.append(Stored(known.id, created=False))
            else:
                raise KeyConflict(job.name, job.key or "", known.id)
        return tuple(stored)

    # ── claims ──

    def _claim(self, claim: Claim) -> list[Claimed]:
        if self._sql.alive.one(self._connection, (claim.life,)).one_or_none() is None:
            raise LeaseLost(claim.life, 0)
        cause = Cause(Trigger.CLAIM, life=claim.life)
        claimed, started, events = [], [], []
        for row in self._candidates(claim):
            *standing, name, version, params_data, state, metadata, fraction, progress, log_bytes, _rank, _num = row
            job = standing_of(standing)
            try:
                facts = json.loads(metadata) if metadata != "{}" else {}
            except (ValueError, TypeError, RecursionError) as error:
                self._hold(job, Failure("StateCorrupt", f"its stored metadata is damaged: {error}"))
                continue
            transition = advance(job, cause, self._now)
            after = transition.after
            moved = moved_row(after, self._now, self._now_text)
            started.append((*moved, claim.node, self._now_text, *guard_row(job)))
            events.append(event_row(transition, self._now_text))
            told = progress_of(fraction, progress)
            claimed.append(Claimed(transition, name, version, params_data, state, facts, told, log_bytes))
        if started:
            if self._sql.start.many(self._connection, started) != len(started):
                raise Mismatch
            self._tell(events)
            self.rows += len(started)
        return claimed

    def _hold(self, job: Standing, failure: Failure) -> None:
        """Put a damaged job aside, so that it does not stand in the way of others."""
        self._change(Change(job.id, Cause(Trigger.UNLOADABLE, reason="corrupt_state"), job, failure=failure))

    def _candidates(self, claim: Claim) -> list[Any]:
        """The best claimable jobs of the queues served: a limited index read for each, and one for their suspects."""
        if claim.room <= 0 or not claim.versions:
            return []
        statement = self._sql.claim(len(claim.versions))
        known = tuple(part for pair in claim.versions.items() for part in pair)
        found: list[Any] = []
        suspects: list[Any] = []
        for queue, paused in self._sql.queues.one(self._connection, ()):
            if not paused and (claim.queues is None or queue in claim.queues):
                found.extend(statement.one(self._connection, (queue, 0, *known, claim.room, 0)).all())
                if claim.suspects:
                    suspects.extend(statement.one(self._connection, (queue, 1, *known, 1, 0)).all())
        found.extend(sorted(suspects, key=_place)[:1])
        found.sort(key=_place)
        return found[: claim.room]

    # ── running what was planned ──

    def _run(self, plans: dict[Statement, list[Row]]) -> None:
        for queue in self.new_queues - self._known_queues:
            self._sql.insert_queue.many(self._connection, [(queue,)])
        for statement, rows in plans.items():
            if rows and statement.many(self._connection, rows) != len(rows):
                raise Mismatch
            self.rows += len(rows)

    def _tell(self, events: list[Row]) -> None:
        if events:
            self._sql.insert_event.many(self._connection, events)


def _refused(error: Exception) -> SerializationError:
    cause = error.orig if isinstance(error, DBAPIError) else error
    return SerializationError("the job", f"the database refuses one of its values ({cause})")


def _place(row: Row) -> tuple[int, int]:
    """Where a candidate stands in line: its rank and, for equal ones, its number."""
    rank, num = row[-2:]
    return rank, num


def _finished(change: Change, status: JobStatus) -> Row:
    """The columns of what came of an attempt; an output counts only where the job is completed by it."""
    output_data, shown = change.output if change.output is not None and status is JobStatus.COMPLETED else (None, None)
    failure = change.failure
    return (
        None if output_data is None else to_json(shown),
        output_data,
        None
        if failure is None
        else to_json({"type": failure.type, "message": failure.message, "traceback": failure.traceback}),
        None if failure is None else f"{failure.type}: {failure.message}",
    )
