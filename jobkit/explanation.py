"""Why isn't this job running? Words and data for each reason, worked out from what is stored.

Everything that can stand in a job's way has a line here, the nearest first. Nothing here reads anything: the manager
gathers the facts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from jobkit.model import TERMINAL, Explanation, JobStatus, Reason

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from jobkit.interfaces import Life, Situation
    from jobkit.model import JobRecord, Json

_HELD: Final = {
    "unknown_job": "no living node knows its name and version; it goes on by itself when one starts that does",
    "needs_migration": "its stored parameters or state don't fit the class now: deploy one that fits, then release it",
    "corrupt_state": "its stored bytes are damaged: restore a backup, or cancel it",
    "crash_loop": "it was running each time when its worker crashed: mend its handler, then release it",
    "dependency_failed": "a job that it depends on has failed: release it to run all the same, or cancel it",
}


def explain(job: JobRecord, situation: Situation, lives: Sequence[Life], now: datetime) -> Explanation:
    """Say why a job isn't running.

    Args:
        job: The job.
        situation: What stands around it.
        lives: The lives that are not over.
        now: The database's time.

    Returns:
        The reasons, the nearest first.
    """
    return Explanation(job.id, job.status, tuple(_reasons(job, situation, lives, now)))


def _reasons(job: JobRecord, around: Situation, lives: Sequence[Life], now: datetime) -> Iterator[Reason]:
    if job.status in TERMINAL:
        yield Reason("finished", f"it has ended: {job.status.value}; a finished job never runs again")
    elif job.status is JobStatus.RUNNING:
        yield _running(job)
    elif job.status is JobStatus.PAUSED:
        yield _paused(job, stays=around.across_restarts)
    elif job.status is JobStatus.HELD:
        why = _HELD.get(job.reason or "", "it needs a person")
        yield Reason("held", f"it is held ({job.reason}): {why}", {"reason": job.reason})
    elif job.status is JobStatus.ASSIGNED:
        yield Reason("assigned", "it was handed to a worker that has not started it yet", {"node": job.node})
    elif job.status is JobStatus.QUEUED:
        yield from _queued(job, around, lives)
    else:
        yield from _waiting(job, around, now)


def _running(job: JobRecord) -> Reason:
    if job.wanted is not None:
        asked = {"pause": "it is to pause", "cancel": "it is to be cancelled"}[job.wanted]
        return Reason("stopping", f"it is running, and {asked} at its next checkpoint", {"wanted": job.wanted})
    return Reason("running", f"it is running, as attempt {job.attempt}", {"attempt": job.attempt, "node": job.node})


def _paused(job: JobRecord, *, stays: bool) -> Reason:
    if job.reason == "shutdown":
        return Reason("paused", "its worker was shut down: the next one to start goes on with it", {"by": "shutdown"})
    until = "until it is resumed, also when a worker starts" if stays else "until it is resumed, or all workers restart"
    return Reason("paused", f"it was paused {until}", {"by": "user", "across_restarts": stays})


def _waiting(job: JobRecord, around: Situation, now: datetime) -> Iterator[Reason]:
    for wait in around.waits:
        what = "the end of job" if wait.kind == "job" else "the signal"
        yield Reason(f"waits_for_{wait.kind}", f"it waits for {what} {wait.on}", {wait.kind: wait.on})
    if (at := job.scheduled_at) is not None:
        left = max(0.0, (at - now).total_seconds())
        if around.waits:
            yield Reason("times_out", f"it waits for {left:,.0f} s more at most", {"at": at.isoformat(), "in_s": left})
        elif left:
            yield Reason("due_later", f"it is due in {left:,.0f} s", {"at": at.isoformat(), "in_s": left})
        else:
            yield Reason("due", "it is due, and goes on when a worker looks, within a second", {"at": at.isoformat()})


def _queued(job: JobRecord, around: Situation, lives: Sequence[Life]) -> Iterator[Reason]:
    working = [life for life in lives if life.working]
    knowing = [life for life in working if life.versions.get(job.name, 0) >= job.version]
    if around.queue_paused:
        yield Reason("queue_paused", f"its queue {job.queue!r} is paused", {"queue": job.queue})
    if not working:
        yield Reason("no_worker", "no worker is running: start one")
    elif not knowing:
        problem = f"no running worker knows {job.name!r} in version {job.version}: start one that does"
        yield Reason("unknown_job", problem, {"name": job.name, "version": job.version})
    if around.suspect:
        yield Reason("suspect", "it was running when a worker crashed: such jobs run one at a time until they save")
    if around.ahead:
        number = f"{around.ahead}{'' if around.counted else ' or more'}"
        data: dict[str, Json] = {"ahead": around.ahead, "queue": job.queue}
        yield Reason("in_line", f"it stands behind {number} in its queue", data)
    elif knowing and not around.queue_paused:
        yield Reason("next", "it is next in line: it starts when a worker that serves its queue has room")
