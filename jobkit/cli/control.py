"""`jobkit pause`, `resume`, `cancel`, `release`, `rm`: what people ask of jobs, whoever runs them.

Each takes several jobs. All are looked up before anything is asked, so that a mistyped id changes nothing; then all are
asked at once, and one of which it can't be done is told on stderr without keeping back the others.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated, TypeAlias

import anyio
from cyclopts import Parameter

from jobkit import JobkitError, JobStatus
from jobkit.cli.database import Database, client
from jobkit.cli.exits import CONFLICT, INTERRUPTED, OK, USAGE, Refused, complain, exit_code_of
from jobkit.cli.words import Flag, find

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from jobkit import ControlOutcome, JobManager, JobRecord

    Answer: TypeAlias = tuple[JobRecord, str]
    Ask: TypeAlias = Callable[[JobManager, JobRecord], Awaitable[Answer]]
    Say: TypeAlias = Callable[[JobRecord, str], str]

Ids: TypeAlias = Annotated[list[str], Parameter(name="ID", negative="", help="Job ids, or their beginnings.")]
Wait: TypeAlias = Annotated[
    bool, Parameter(name="--wait", negative="", show_default=False, help="Wait until running ones have stopped.")
]
Json: TypeAlias = Annotated[
    bool,
    Parameter(
        name="--json", negative="", show_default=False,
        help="The jobs as a JSON array for programs, each with the outcome of what was asked.",
    ),
]  # fmt: skip


async def pause(
    ids: Ids,
    /,
    *,
    across_restarts: Flag = False,
    wait: Wait = False,
    database: Database = None,
    json: Json = False,
) -> int:
    """Pause jobs: running ones at their next checkpoint, with their state saved, all others at once.

    A paused job goes on after `jobkit resume`. The next start of a worker resumes it too, unless another worker is
    there or the setting `resume` is "interrupted".

    Parameters
    ----------
    across_restarts
        Stay paused whatever starts, until someone resumes them.
    """
    from jobkit import Settings

    lasting = across_restarts or Settings().resume == "interrupted"
    until = "until `jobkit resume`" if lasting else "until `jobkit resume`, or the next start of a worker"

    def say(job: JobRecord, _: str) -> str:
        if job.status is JobStatus.PAUSED:
            return f"is paused {until}"
        return f"will be paused {_when(job)}, {until}" if job.wanted else f"is {job.status}"

    async def ask(manager: JobManager, job: JobRecord) -> Answer:
        return await _then(manager, job, manager.pause(job.id, across_restarts=across_restarts, wait=wait))

    return await _each(database, ids, ask, say, json=json)


async def resume(ids: Ids, /, *, database: Database = None, json: Json = False) -> int:
    """Let paused jobs go on where they were, and take back a pause that a running one has not come to yet."""

    async def ask(manager: JobManager, job: JobRecord) -> Answer:
        return await _then(manager, job, manager.resume(job.id))

    return await _each(database, ids, ask, lambda job, _: f"goes on: it is {job.status}", json=json)


async def cancel(ids: Ids, /, *, wait: Wait = False, database: Database = None, json: Json = False) -> int:
    """Cancel jobs: running ones at their next checkpoint, all others at once. They can't complete any more."""

    def say(job: JobRecord, outcome: str) -> str:
        if outcome == "already_finished":
            return f"had finished before: it is {job.status}"
        return f"will be cancelled {_when(job)}" if job.wanted else f"is {job.status}"

    async def ask(manager: JobManager, job: JobRecord) -> Answer:
        return await _then(manager, job, manager.cancel(job.id, wait=wait))

    return await _each(database, ids, ask, say, json=json)


async def release(ids: Ids, /, *, database: Database = None, json: Json = False) -> int:
    """Let held jobs go on, their crashes forgiven. One whose cause is not mended is held again."""

    async def ask(manager: JobManager, job: JobRecord) -> Answer:
        return await _then(manager, job, manager.release(job.id))

    return await _each(database, ids, ask, lambda job, _: f"goes on: it is {job.status}", json=json)


def rm(ids: Ids, /, *, yes: Flag = False, dry_run: Flag = False, database: Database = None, json: Json = False) -> int:
    """Delete finished jobs, with all that is known of them and their folders.

    Parameters
    ----------
    yes
        Don't ask first.
    dry_run
        Say what would be deleted, and delete nothing.
    """
    if not yes and not dry_run:
        ids = _confirmed(database, ids)

    async def ask(manager: JobManager, job: JobRecord) -> Answer:
        if not job.status.terminal:
            raise Refused(CONFLICT, f"job {job.id} is {job.status}: only finished jobs can be deleted; cancel it first")
        if not dry_run:
            await manager.delete(job.id)
        return job, "would be deleted" if dry_run else "deleted"

    def say(job: JobRecord, outcome: str) -> str:
        return f"{'' if dry_run else 'is '}{outcome}: it was {job.status}"

    return anyio.run(partial(_each, database, ids, ask, say, json=json))


def _confirmed(database: str | None, ids: Sequence[str]) -> list[str]:
    """Ask whether these jobs are to be deleted. Outside the event loop, where Ctrl-C ends a question at once."""
    if not sys.stdin.isatty():
        raise Refused(USAGE, "what is deleted is gone for good: add --yes where nobody can be asked")

    async def look() -> list[JobRecord]:
        async with client(database) as manager:
            return await _found(manager, ids)

    jobs = anyio.run(look)
    finished = [_named(job) for job in jobs if job.status.terminal]
    if finished:
        print(f"Delete {', '.join(finished)} for good? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
            raise Refused(INTERRUPTED, "nothing was deleted")
    return [str(job.id) for job in jobs]


# ── several jobs ──


async def _found(manager: JobManager, ids: Sequence[str]) -> list[JobRecord]:
    found = [await find(manager, typed) for typed in ids]
    return list({job.id: job for job in found}.values())


async def _then(manager: JobManager, job: JobRecord, asked: Awaitable[ControlOutcome]) -> Answer:
    """Wait for what came of a request, and read the job again."""
    outcome = await asked
    return await manager.get(job.id), outcome


async def _each(database: str | None, ids: Sequence[str], ask: Ask, say: Say, *, json: bool) -> int:
    """Ask something of every job, and tell what came of it.

    Returns:
        The exit code: of several, the first that is not 0.
    """
    async with client(database) as manager:
        jobs = await _found(manager, ids)
        answers: list[Answer | JobkitError | Refused | None] = [None] * len(jobs)

        async def one(place: int, job: JobRecord) -> None:
            try:
                answers[place] = await ask(manager, job)
            except (JobkitError, Refused) as error:
                answers[place] = error

        async with anyio.create_task_group() as group:
            for place, job in enumerate(jobs):
                group.start_soon(one, place, job)

    done = [answer for answer in answers if isinstance(answer, tuple)]
    if json:
        from jobkit.cli.machine import dump, record_json

        print(dump([record_json(job) | {"outcome": outcome} for job, outcome in done]))
    else:
        for job, outcome in done:
            print(f"{_named(job)} {say(job, outcome)}")
    codes = [_complained(error) for error in answers if isinstance(error, JobkitError | Refused)]
    return codes[0] if codes else OK


def _complained(error: JobkitError | Refused) -> int:
    complain(error)
    return exit_code_of(error.code) if isinstance(error, JobkitError) else error.exit_code


def _named(job: JobRecord) -> str:
    from jobkit.cli.people import clean

    return f"{clean(job.name)} {job.id}"


def _when(job: JobRecord) -> str:
    from jobkit.cli.people import silent

    return "when a worker takes over: its own gives no sign of life" if silent(job) else "at its next checkpoint"
