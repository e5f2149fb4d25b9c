"""`jobkit worker`: a process that runs jobs until it is told to stop, and stops as promised.

What it does is a manager's to do. This is its door to the world of processes: the application's modules are imported,
the log goes to stderr, signals become a stop, and whether everything was saved becomes the exit code.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from cyclopts import Parameter
from cyclopts.validators import Number

from jobkit.cli.database import Database, meant
from jobkit.cli.exits import ENVIRONMENT, OK, TIMED_OUT, Refused
from jobkit.cli.signals import Stop
from jobkit.cli.words import Several, several
from jobkit.interfaces import Failed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from jobkit import JobManager
    from jobkit.interfaces import Attempt, Outcome, Transition

log: logging.Logger = logging.getLogger("jobkit.cli")

FORMAT: Final = "%(asctime)s %(levelname)s %(message)s"

NAMED: Final = 10
"""How many job types the first line names."""

LEFT_BEHIND_S: Final = 2.0
"""How long the process may take to end once its jobs are given back."""


def worker(
    *,
    app: Several = None,
    database: Database = None,
    concurrency: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    queues: Several = None,
    grace: Annotated[float | None, Parameter(validator=Number(gte=0))] = None,
    resume: Literal["all", "interrupted"] | None = None,
    name: str | None = None,
) -> int:
    """Run jobs until told to stop.

    SIGTERM or SIGINT (Ctrl-C) stops it: no job is started any more, those that run go on to their next checkpoint, and
    all are given back by the end of the grace. The exit code is 0 if every running job was saved, 7 if the grace ran
    out. A second signal ends the grace at once, a third one the process.

    The log goes to stderr; LOG_LEVEL says how much of it (INFO by default).

    Parameters
    ----------
    app
        The module that defines the jobs, as in myapp.jobs; with commas, several. By default what JOBKIT_APP, .env,
        jobkit.toml or pyproject.toml say.
    concurrency
        How many jobs to run at once; by default as set, else 100.
    queues
        Only jobs of these queues; with commas, several. By default of all.
    grace
        How many seconds a running job gets to reach a checkpoint when it is to stop; by default as set, else 10.
    resume
        What the start resumes, unless another worker is there: all, also what people have paused, or only what was
        interrupted; by default as set, else all.
    name
        What this node is called; by default the machine's name.
    """
    wishes: dict[str, Any] = {"app": several(app), "concurrency": concurrency, "grace_s": grace, "resume": resume}
    with Stop() as stop:
        try:
            with stop.abrupt():
                from jobkit import JobManager, Settings
                from jobkit.cli.application import load

                level = _level()
                settings = Settings(**{setting: wish for setting, wish in wishes.items() if wish is not None})
                names = load(settings.app)
        except KeyboardInterrupt:
            return OK
        _log_to_stderr(level)
        store = meant(database, settings)
        teller = Teller()
        manager = JobManager(
            store,
            settings=settings,
            queues=several(queues),
            node_name=name,
            middleware=[teller.around],
            observers=[teller.heard],
        )
        told = f"worker {manager.node_name}, process {os.getpid()}, on {_shown(store)}, runs {_some(names)}"
        return asyncio.run(_work(manager, stop, teller, told, settings.grace_s))


async def _work(manager: JobManager, stop: Stop, teller: Teller, told: str, grace_s: float) -> int:
    """Start, wait for a request to stop, and stop; a request while it starts is minded once it has started."""
    await manager.start()
    log.info("%s", told)
    await stop.requested(1)
    teller.stopping(grace_s)
    hurry = asyncio.create_task(_hurry(manager, stop))
    try:
        saved = await manager.stop(0 if stop.requests > 1 else None)
    finally:
        hurry.cancel()
    if saved:
        log.info("stopped; every running job was saved")
    else:
        log.warning("stopped; the grace ran out, so jobs were stopped by force: they go on from their last checkpoints")
    code = OK if saved else TIMED_OUT
    _end_soon(code)
    return code


async def _hurry(manager: JobManager, stop: Stop) -> None:
    await stop.requested(2)
    log.warning("hurrying: jobs are stopped by force")
    await manager.stop(grace=0)


def _end_soon(code: int) -> None:
    """See to it that the process ends: Python would wait for threads that a handler has left behind."""
    ending = threading.Timer(LEFT_BEHIND_S, os._exit, (code,))
    ending.daemon = True
    ending.start()


class Teller:
    """Tells the log which jobs this worker takes up, and what becomes of them.

    A middleware knows a job by its name and hears of its failure; an observer hears what was committed, which is what
    holds: a handler that completes after it was cancelled has not completed.
    """

    def __init__(self) -> None:
        self._running = 0
        self._known: dict[str, tuple[str, str]] = {}

    async def around(self, attempt: Attempt, call_next: Callable[[], Awaitable[Outcome]]) -> Outcome:
        """Tell of an attempt's begin."""
        job_id = str(attempt.job_id)
        self._running += 1
        self._known[job_id] = attempt.name, ""
        log.info("%s %s: started, attempt %s", attempt.name, job_id, attempt.attempt)
        try:
            outcome = await call_next()
        finally:
            self._running -= 1
        if isinstance(outcome, Failed):
            self._known[job_id] = attempt.name, f": {outcome.failure.type}: {outcome.failure.message}"
        return outcome

    def heard(self, transition: Transition) -> None:
        """Tell of its end, once that is committed; of a bad one also if it was another worker's, or never began."""
        before, after = transition.before, transition.after
        if before.status != "running" or after.status == "running":
            return
        bad = after.status in {"failed", "held", "lost", "timed_out"}
        if not bad and after.id not in self._known:
            return
        name, failure = self._known.pop(after.id, ("job", ""))
        ended = str(after.status) + (f" ({after.reason})" if after.reason else "")
        log.log(
            logging.WARNING if bad else logging.INFO,
            "%s %s: %s%s, %.1f s at work", name, after.id, ended, failure if bad else "", after.run_s,
        )  # fmt: skip

    def stopping(self, grace_s: float) -> None:
        """Tell what a stop waits for."""
        jobs = {0: "", 1: "; waiting up to {:g} s for 1 job"}.get(self._running, "; waiting up to {:g} s for {} jobs")
        log.info("stopping%s", f"{jobs.format(grace_s, self._running)}; press Ctrl-C again to hurry" if jobs else "")


# ── the log, and how it says what ──


def _level() -> int:
    """Read LOG_LEVEL."""
    word = os.environ.get("LOG_LEVEL") or "INFO"
    levels = logging.getLevelNamesMapping()
    if word.upper() not in levels:
        raise Refused(ENVIRONMENT, f"LOG_LEVEL={word!r} is no level: write DEBUG, INFO, WARNING, ERROR or CRITICAL")
    return levels[word.upper()]


def _log_to_stderr(level: int) -> None:
    """Show the log, unless the application's own modules have said where it goes."""
    logging.basicConfig(level=level, format=FORMAT, stream=sys.stderr)
    own = logging.getLogger("jobkit")
    if own.level == logging.NOTSET:
        own.setLevel(level)


def _shown(store: str | Path) -> str:
    """Say which database it is, without what a URL may hold of secrets."""
    if not isinstance(store, str):
        return str(store)
    url = urlsplit(store)
    return f"{url.scheme}://{url.hostname or ''}{url.path}"


def _some(names: Sequence[str]) -> str:
    """Say which jobs there are, of very many the first."""
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
