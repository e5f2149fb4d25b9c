"""The state machine: the one place that decides a job's status.

Its theory in a few lines. A job's `Standing` is the small part of its row on which decisions rest. Something happens to
it, a `Cause`: a trigger with the facts that only the outside knows (when the next retry is due, whether another worker
lives). `advance(standing, cause, now)` looks the pair up in `TABLE` and answers a `Transition`, a value that the store
writes, observers hear and tests assert. Nothing here touches a clock or a database.

Each cell of the table is one of

* a new status, always the same or chosen among a few by the facts;
* *noted*: stored now, applied later (a request to a running job, a blocker that went away while paused);
* *ignored*: nothing to do (a sweep found a job that has moved on);
* *refused*: `IllegalTransition`, for what a person or a program asked;
* *fenced*: `LeaseLost`, for the word of an attempt that no longer holds the job;
* *removed*: the row goes.

Invariants: a terminal status is never left but by deletion; `attempt` never falls; a wanted cancel wins over every
other outcome; every change of status has exactly one stored event, which is numbered in the same transition, as are the
lines of the job's log that are stored with it.
The diagram in docs/lifecycle.md is generated from `TABLE`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from jobkit.errors import IllegalTransition, LeaseLost
from jobkit.model import TERMINAL, JobStatus
from jobkit.policy import STRIKES

if TYPE_CHECKING:
    from datetime import datetime

    from jobkit.model import Wanted

SCHEDULED, WAITING, QUEUED, ASSIGNED = JobStatus.SCHEDULED, JobStatus.WAITING, JobStatus.QUEUED, JobStatus.ASSIGNED
RUNNING, PAUSED, HELD = JobStatus.RUNNING, JobStatus.PAUSED, JobStatus.HELD
COMPLETED, FAILED, CANCELLED = JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED
TIMED_OUT, LOST = JobStatus.TIMED_OUT, JobStatus.LOST


class Trigger(StrEnum):
    """What can happen to a job. The value is how a message says it."""

    DUE = "due"
    UNBLOCK = "a blocker's end"
    DEPENDENCY_FAILED = "a dependency's failure"
    SIGNAL = "signal"
    ASSIGN = "assign"
    CLAIM = "claim"
    CHECKPOINT = "checkpoint"
    REPORT = "report"
    SUSPEND = "suspend"
    COMPLETE = "complete"
    FAIL = "fail"
    TIME_OUT = "time-out"
    PAUSE = "pause"
    STOPPED = "saved and stopped"
    RESUME = "resume"
    CANCEL = "cancel"
    OWNER_GONE = "owner gone"
    GRACE_OVER = "shutdown grace over"
    UNLOADABLE = "unloadable"
    KNOWN = "known again"
    RELEASE = "release"
    DELETE = "delete"


Blame: TypeAlias = Literal["hold", "cancel", "run"]
"""What a dependency's failure does to those that wait for it."""


class Standing(NamedTuple):
    """The part of a job on which decisions rest.

    Attributes:
        id: The job's id as text.
        status: Where it stands.
        attempt: Rises at every claim and fences every write.
        wanted: What was asked of the running job and not yet done.
        reason: Why it is paused or held.
        resumable: Whether a second attempt may be made at all.
        priority: Higher is claimed sooner.
        blockers: Dependencies, children or signals that it still waits for.
        due_at: Not to run before this time; of a job that has left to wait, until when it waits.
        retry_count: Automatic retries so far.
        crash_count: Strikes since its last checkpoint.
        suspect: Whether it was running when its owner crashed, and has not been saved since.
        across_restarts: Whether the pause that it is in, or that is wanted, outlasts a restart.
        event_seq: The number of its latest stored event.
        life: The life that holds it, or that paused it when shutting down.
        running_since: When its present attempt began.
        run_s: Seconds it ran in attempts that are over.
        checkpoint_seq: The number of its latest checkpoint.
    """

    id: str
    status: JobStatus
    attempt: int = 0
    wanted: Wanted | None = None
    reason: str | None = None
    resumable: bool = True
    priority: int = 5
    blockers: int = 0
    due_at: datetime | None = None
    retry_count: int = 0
    crash_count: int = 0
    suspect: bool = False
    across_restarts: bool = False
    event_seq: int = 0
    life: str | None = None
    running_since: datetime | None = None
    run_s: float = 0.0
    checkpoint_seq: int = 0


@dataclass(frozen=True, slots=True)
class Cause:
    """A trigger, with the facts that only the outside knows.

    Attributes:
        trigger: What happened.
        life: The claiming life (claim, assign).
        reason: Why it is held (unloadable, dependency failed).
        due_at: When it goes on: a retry (fail, time-out) or the end of a sleep or a wait (suspend); None for
            never or for now.
        blockers: How much it waits for from now on (suspend, a blocker's end, dependency failed).
        blame: What the policy says (dependency failed).
        others: Whether a working life goes on: another, or this one where it isn't shutting down (saved and stopped,
            shutdown grace over).
        across_restarts: Whether the pause is to outlast a restart (pause).
        crashed: Whether the owner died of a crash, as opposed to a reboot or a loss of contact (owner gone).
        strike: Whether this crash counts against the job (owner gone).
        seen_at: When the owner was last known to live (owner gone); its job is not taken to have run for longer.
    """

    trigger: Trigger
    life: str | None = None
    reason: str | None = None
    due_at: datetime | None = None
    blockers: int = 0
    blame: Blame = "hold"
    others: bool = False
    across_restarts: bool = False
    crashed: bool = False
    strike: bool = False
    seen_at: datetime | None = None


class Transition(NamedTuple):
    """What a cause did to a job.

    Attributes:
        before: The standing that it met.
        cause: What happened.
        after: The standing that it left; equal to `before` where there was nothing to do.
        event: The type of the stored event; None where nothing is told.
        then: What it brought about in other jobs, in the same transaction.
    """

    before: Standing
    cause: Cause
    after: Standing
    event: str | None
    then: tuple[Transition, ...] = ()


Decide: TypeAlias = Callable[[Standing, Cause, "datetime"], Standing]
Answer: TypeAlias = Literal["move", "note", "ignore", "refuse", "fence", "remove"]


class Cell(NamedTuple):
    """One cell of the table.

    Attributes:
        answer: The kind of cell.
        targets: The statuses it may lead to.
        decide: Works out the new standing (moves and notes).
    """

    answer: Answer
    targets: tuple[JobStatus, ...] = ()
    decide: Decide | None = None


IGNORE: Final = Cell("ignore")
REFUSE: Final = Cell("refuse")
FENCE: Final = Cell("fence")
REMOVE: Final = Cell("remove")


# ── how a standing changes ──


def _leave(job: Standing, status: JobStatus, now: datetime, reason: str | None = None) -> Standing:
    """Give the job a status in which nobody holds it, and book the time it ran."""
    ran = job.run_s
    if job.running_since is not None:
        ran += max(0.0, (now - job.running_since).total_seconds())
    return job._replace(
        status=status, wanted=None, reason=reason, life=None, running_since=None, run_s=ran,
        suspect=job.suspect and status not in TERMINAL,
        across_restarts=job.across_restarts and status is PAUSED,
    )  # fmt: skip


def _ready(job: Standing, now: datetime) -> Standing:
    """Put the job back to where it waits, worked out anew from what it still waits for."""
    if job.blockers:
        return _leave(job, WAITING, now)
    if job.due_at is not None and job.due_at > now:
        return _leave(job, SCHEDULED, now)
    return _leave(job, QUEUED, now)


def _honour(job: Standing, now: datetime) -> Standing | None:
    """Do what was asked of a running job that has stopped, if anything was."""
    if job.wanted == "cancel":
        return _leave(job, CANCELLED, now)
    if job.wanted == "pause":
        return _leave(job, PAUSED, now, "user")
    return None


def _due(job: Standing, _: Cause, now: datetime) -> Standing:
    return _leave(job, WAITING if job.blockers else QUEUED, now)


def _wait_over(job: Standing, _: Cause, now: datetime) -> Standing:
    return _ready(job._replace(blockers=0), now)


def _requeue(job: Standing, _: Cause, now: datetime) -> Standing:
    return _leave(job, QUEUED, now)


def _unblock(job: Standing, cause: Cause, now: datetime) -> Standing:
    return _ready(_note_unblocked(job, cause, now), now)


def _note_unblocked(job: Standing, cause: Cause, now: datetime) -> Standing:  # noqa: ARG001  one shape for all rules
    # Before a job's first attempt its time says when it may begin; of one that has left to wait, how long it waits.
    came_in_time = job.attempt and not cause.blockers and job.status is not SCHEDULED
    return job._replace(blockers=cause.blockers, due_at=None if came_in_time else job.due_at)


def _dependency_failed(job: Standing, cause: Cause, now: datetime) -> Standing:
    if cause.blame == "cancel":
        return _leave(job, CANCELLED, now)
    if cause.blame == "run":
        return _ready(job._replace(blockers=cause.blockers), now)
    return _leave(job, HELD, now, cause.reason or "dependency_failed")


def _assign(job: Standing, cause: Cause, _: datetime) -> Standing:
    return job._replace(status=ASSIGNED, attempt=job.attempt + 1, reason=None, life=cause.life)


def _claim(job: Standing, cause: Cause, now: datetime) -> Standing:
    return job._replace(status=RUNNING, attempt=job.attempt + 1, reason=None, life=cause.life, running_since=now)


def _start(job: Standing, cause: Cause, now: datetime) -> Standing:
    return job._replace(status=RUNNING, life=cause.life or job.life, running_since=now)


def _suspend(job: Standing, cause: Cause, now: datetime) -> Standing:
    job = _checkpoint(job, cause, now)._replace(blockers=cause.blockers, due_at=cause.due_at)
    return _honour(job, now) or _ready(job, now)


def _complete(job: Standing, _: Cause, now: datetime) -> Standing:
    return _leave(job, CANCELLED if job.wanted == "cancel" else COMPLETED, now)


def _fail(job: Standing, cause: Cause, now: datetime) -> Standing:
    return _retry_or(FAILED, job, cause, now)


def _time_out(job: Standing, cause: Cause, now: datetime) -> Standing:
    return _retry_or(TIMED_OUT, job, cause, now)


def _retry_or(final: JobStatus, job: Standing, cause: Cause, now: datetime) -> Standing:
    if job.wanted == "cancel":
        return _leave(job, CANCELLED, now)
    if cause.due_at is None:
        return _leave(job, final, now)
    # its handler came to an end by itself, so no row of crashes goes on
    job = job._replace(retry_count=job.retry_count + 1, due_at=cause.due_at, crash_count=0, suspect=False)
    return _honour(job, now) or _leave(job, SCHEDULED, now)


def _pause(job: Standing, cause: Cause, now: datetime) -> Standing:
    return _leave(job._replace(across_restarts=cause.across_restarts), PAUSED, now, "user")


def _pause_assigned(job: Standing, cause: Cause, now: datetime) -> Standing:
    return _pause(job._replace(attempt=job.attempt + 1), cause, now)


def _want_pause(job: Standing, cause: Cause, now: datetime) -> Standing:  # noqa: ARG001  one shape for all rules
    if not job.resumable:
        raise _refusal(job, cause, PAUSED, "but it is not resumable: cancel it instead")
    if job.wanted == "cancel":
        raise _refusal(job, cause, PAUSED, "but it is being cancelled")
    return job._replace(wanted="pause", across_restarts=cause.across_restarts)


def _want_cancel(job: Standing, _: Cause, now: datetime) -> Standing:  # noqa: ARG001  one shape for all rules
    return job._replace(wanted="cancel", across_restarts=False)


def _stopped(job: Standing, cause: Cause, now: datetime) -> Standing:
    return _honour(job, now) or _give_back(job, cause, now)


def _give_back(job: Standing, cause: Cause, now: datetime) -> Standing:
    if not job.resumable:
        return _leave(job, LOST, now)
    if cause.others:
        return _leave(job, QUEUED, now)
    return _leave(job, PAUSED, now, "shutdown")._replace(life=job.life)


def _resume(job: Standing, _: Cause, now: datetime) -> Standing:
    return _ready(job, now)


def _unwant_pause(job: Standing, cause: Cause, now: datetime) -> Standing:  # noqa: ARG001  one shape for all rules
    if job.wanted != "pause":
        raise _refusal(job, cause, QUEUED, "but it isn't paused")
    return job._replace(wanted=None, across_restarts=False)


def _cancel(job: Standing, _: Cause, now: datetime) -> Standing:
    return _leave(job, CANCELLED, now)


def _owner_gone(job: Standing, cause: Cause, now: datetime) -> Standing:
    ended_at = now if cause.seen_at is None else min(now, cause.seen_at)
    job = job._replace(crash_count=job.crash_count + cause.strike, suspect=job.suspect or cause.crashed)
    if (asked := _honour(job, ended_at)) is not None:
        return asked
    if not job.resumable:
        return _leave(job, LOST, ended_at)
    if cause.strike and job.crash_count >= STRIKES:
        return _leave(job, HELD, ended_at, "crash_loop")
    return _leave(job, QUEUED, ended_at)


def _hold(job: Standing, cause: Cause, now: datetime) -> Standing:
    if job.wanted == "cancel":
        return _leave(job, CANCELLED, now)
    return _leave(job, HELD, now, cause.reason)


def _known(job: Standing, _: Cause, now: datetime) -> Standing:
    return _ready(job, now) if job.reason == "unknown_job" else job


def _release(job: Standing, _: Cause, now: datetime) -> Standing:
    return _ready(job._replace(crash_count=0), now)


def _keep(job: Standing, _: Cause, now: datetime) -> Standing:  # noqa: ARG001  one shape for all rules
    return job


def _checkpoint(job: Standing, _: Cause, now: datetime) -> Standing:  # noqa: ARG001  one shape for all rules
    return job._replace(crash_count=0, suspect=False, checkpoint_seq=job.checkpoint_seq + 1)


# ── the table ──


# A failed dependency of a paused or held job is noted by leaving it blocked: once it waits again, a sweep finds it.


def _move(decide: Decide, *targets: JobStatus) -> Cell:
    return Cell("move", targets, decide)


def _note(decide: Decide, status: JobStatus) -> Cell:
    return Cell("note", (status,), decide)


def _row(*cells: Cell) -> Mapping[JobStatus, Cell]:
    """Lay cells out over scheduled, waiting, queued, assigned, running, paused, held and, last, any terminal status."""
    *open_cells, ended = cells
    row = dict(zip((SCHEDULED, WAITING, QUEUED, ASSIGNED, RUNNING, PAUSED, HELD), open_cells, strict=True))
    return row | dict.fromkeys(TERMINAL, ended)


def _of_attempt(cell: Cell) -> Mapping[JobStatus, Cell]:
    """Lay out a trigger that only the attempt that holds the job may pull."""
    return _row(FENCE, FENCE, FENCE, FENCE, cell, FENCE, FENCE, FENCE)


_READY: Final = (QUEUED, WAITING, SCHEDULED)

TABLE: Final[Mapping[Trigger, Mapping[JobStatus, Cell]]] = {
    Trigger.DUE: _row(
        _move(_due, QUEUED, WAITING), _move(_wait_over, QUEUED, SCHEDULED), IGNORE, IGNORE, IGNORE, IGNORE, IGNORE,
        IGNORE,
    ),
    Trigger.UNBLOCK: _row(
        _note(_note_unblocked, SCHEDULED), _move(_unblock, QUEUED, SCHEDULED, WAITING), _note(_keep, QUEUED),
        _note(_keep, ASSIGNED), _note(_keep, RUNNING), _note(_note_unblocked, PAUSED), _note(_note_unblocked, HELD),
        IGNORE,
    ),
    Trigger.DEPENDENCY_FAILED: _row(
        _move(_dependency_failed, HELD, CANCELLED, QUEUED, SCHEDULED, WAITING),
        _move(_dependency_failed, HELD, CANCELLED, QUEUED, SCHEDULED, WAITING),
        REFUSE, REFUSE, REFUSE, _note(_keep, PAUSED), _note(_keep, HELD), IGNORE,
    ),
    Trigger.SIGNAL: _row(
        _note(_keep, SCHEDULED), _note(_keep, WAITING), _note(_keep, QUEUED), _note(_keep, ASSIGNED),
        _note(_keep, RUNNING), _note(_keep, PAUSED), _note(_keep, HELD), REFUSE,
    ),
    Trigger.ASSIGN: _row(REFUSE, REFUSE, _move(_assign, ASSIGNED), REFUSE, REFUSE, REFUSE, REFUSE, REFUSE),
    Trigger.CLAIM: _row(
        REFUSE, REFUSE, _move(_claim, RUNNING), _move(_start, RUNNING), REFUSE, REFUSE, REFUSE, REFUSE
    ),
    Trigger.CHECKPOINT: _of_attempt(_note(_checkpoint, RUNNING)),
    Trigger.REPORT: _of_attempt(_note(_keep, RUNNING)),
    Trigger.SUSPEND: _of_attempt(_move(_suspend, SCHEDULED, WAITING, QUEUED, PAUSED, CANCELLED)),
    Trigger.COMPLETE: _of_attempt(_move(_complete, COMPLETED, CANCELLED)),
    Trigger.FAIL: _of_attempt(_move(_fail, FAILED, SCHEDULED, PAUSED, CANCELLED)),
    Trigger.TIME_OUT: _of_attempt(_move(_time_out, TIMED_OUT, SCHEDULED, PAUSED, CANCELLED)),
    Trigger.PAUSE: _row(
        _move(_pause, PAUSED), _move(_pause, PAUSED), _move(_pause, PAUSED), _move(_pause_assigned, PAUSED),
        _note(_want_pause, RUNNING), _move(_pause, PAUSED), REFUSE, REFUSE,
    ),
    Trigger.STOPPED: _of_attempt(_move(_stopped, QUEUED, PAUSED, CANCELLED, LOST)),
    Trigger.RESUME: _row(
        REFUSE, REFUSE, REFUSE, REFUSE, _note(_unwant_pause, RUNNING), _move(_resume, *_READY), REFUSE, REFUSE
    ),
    Trigger.CANCEL: _row(
        _move(_cancel, CANCELLED), _move(_cancel, CANCELLED), _move(_cancel, CANCELLED), _move(_cancel, CANCELLED),
        _note(_want_cancel, RUNNING), _move(_cancel, CANCELLED), _move(_cancel, CANCELLED), IGNORE,
    ),
    Trigger.OWNER_GONE: _row(
        IGNORE, IGNORE, IGNORE, _move(_requeue, QUEUED), _move(_owner_gone, QUEUED, CANCELLED, PAUSED, LOST, HELD),
        IGNORE, IGNORE, IGNORE,
    ),
    Trigger.GRACE_OVER: _of_attempt(_move(_stopped, QUEUED, PAUSED, CANCELLED, LOST)),
    Trigger.UNLOADABLE: _row(
        IGNORE, IGNORE, _move(_hold, HELD), _move(_hold, HELD), _move(_hold, HELD, CANCELLED), IGNORE, IGNORE, IGNORE
    ),
    Trigger.KNOWN: _row(
        IGNORE, IGNORE, IGNORE, IGNORE, IGNORE, IGNORE, _move(_known, *_READY, HELD), IGNORE
    ),
    Trigger.RELEASE: _row(REFUSE, REFUSE, REFUSE, REFUSE, REFUSE, REFUSE, _move(_release, *_READY), REFUSE),
    Trigger.DELETE: _row(REFUSE, REFUSE, REFUSE, REFUSE, REFUSE, REFUSE, REFUSE, REMOVE),
}  # fmt: skip

_ASKED_FOR: Final = {
    Trigger.ASSIGN: "assigned",
    Trigger.CLAIM: "running",
    Trigger.PAUSE: "paused",
    Trigger.RESUME: "queued",
    Trigger.RELEASE: "queued",
    Trigger.DELETE: "deleted",
    Trigger.DEPENDENCY_FAILED: "held",
    Trigger.SIGNAL: "signalled",
}
"""Where a refused request would have led, for its message."""

_SAID: Final = {
    Trigger.CLAIM: "started",
    Trigger.RESUME: "resumed",
    Trigger.KNOWN: "released",
    Trigger.RELEASE: "released",
}
"""Stored event types that are not simply the new status."""

_REQUESTED: Final = {"pause": "pause_requested", "cancel": "cancel_requested", None: "resumed"}
"""Stored event types of requests to a running job."""


def advance(job: Standing, cause: Cause, now: datetime, lines: int = 0) -> Transition:
    """Decide what a cause does to a job.

    Args:
        job: Where it stands.
        cause: What happened.
        now: The database's time (aware).
        lines: How many lines of the job's log are stored with it: they are numbered before its own event.

    Returns:
        The transition; its `after` equals its `before` where there is nothing to do.

    Raises:
        IllegalTransition: What was asked for is impossible from that status.
        LeaseLost: An attempt spoke of a job that it no longer holds.
    """
    cell = TABLE[cause.trigger][job.status]
    if cell.decide is None:
        if cell.answer in {"ignore", "remove"}:
            return Transition(job, cause, job, None)
        if cell.answer == "fence":
            raise LeaseLost(job.id, job.attempt)
        raise _refusal(job, cause, _ASKED_FOR[cause.trigger])
    after = cell.decide(job, cause, now)
    event = _told(job, cause.trigger, after)
    if stored := lines + (event is not None):
        after = after._replace(event_seq=job.event_seq + stored)
    return Transition(job, cause, after, event)


def _asked(job: Standing) -> tuple[str | None, Wanted | None, bool]:
    """What people have asked of a job, as far as it doesn't show in its status."""
    return job.reason, job.wanted, job.across_restarts


def _told(before: Standing, trigger: Trigger, after: Standing) -> str | None:
    if after.status is before.status:
        if _asked(before) == _asked(after):
            return None
        return "paused" if before.status is PAUSED else _REQUESTED[after.wanted]
    if after.retry_count > before.retry_count and after.status is SCHEDULED:
        return "retried"
    return _SAID.get(trigger, after.status.value)


def _refusal(job: Standing, cause: Cause, target: str, why: str | None = None) -> IllegalTransition:
    return IllegalTransition(job.id, job.status.value, cause.trigger.value, target, why)
