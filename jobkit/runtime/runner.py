"""One attempt in progress: the link that its executor talks to, and the straight way from a claim to an outcome.

`Running` is what this process knows of a job that it holds: the standing that every write of the attempt names, and
what was asked of the handler. `run` takes it from the claim to the last write.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import anyio

from jobkit.envelope import largest_field
from jobkit.errors import InvalidOption, JobkitError, LeaseLost, SerializationError, StateTooLarge, StoreUnavailable
from jobkit.executors.handler import failure_of
from jobkit.interfaces import (
    Attempt,
    Change,
    Completed,
    EndsOf,
    Failed,
    Fenced,
    Interrupt,
    Interrupted,
    SignalOf,
    Unloadable,
    Work,
)
from jobkit.lifecycle import Cause, Trigger
from jobkit.model import Failure
from jobkit.points import reach
from jobkit.runtime.reports import Reports

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from jobkit.interfaces import (
        Claimed,
        Clock,
        Executor,
        Ids,
        InterruptKind,
        Middleware,
        NewJob,
        Outcome,
        Question,
        Store,
        Suspension,
        Transaction,
    )
    from jobkit.lifecycle import Standing
    from jobkit.model import Json, Progress
    from jobkit.runtime.feed import Feed
    from jobkit.runtime.loops import Loop
    from jobkit.runtime.writer import Writer

log: logging.Logger = logging.getLogger("jobkit.job")

CHECKPOINT: Final = Cause(Trigger.CHECKPOINT)
COMPLETE: Final = Cause(Trigger.COMPLETE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What all attempts of a manager share."""

    writer: Writer
    feed: Feed
    loop: Loop
    clock: Clock
    node: str
    max_state_bytes: int
    max_log_bytes: int
    checkpoint_every_s: float
    ids: Ids
    store: Store
    read: Callable[..., Awaitable[Any]]
    handle: Callable[[UUID, str], Any]
    data_dir: Callable[[], Path]
    resources: Mapping[str, Any]


class Running:
    """One attempt in progress; the executor's `Link`.

    Attributes:
        standing: What this process knows of the job.
        scope: Cancelled to stop the handler by force.
        stoppable: Whether that stops it, rather than leaving it behind.
        stopping: Whether it is to stop for a shutdown.
        fenced: Whether nothing that it says counts any more.
        asked_at: When this process heard of what is wanted, in monotonic seconds.
        over: Set at its end; None for as long as nobody waits for that.
    """

    def __init__(self, claimed: Claimed, around: Surroundings) -> None:
        """Take hold of a job that was just claimed."""
        self._around = around
        self.standing: Standing = claimed.transition.after
        self.name: str = claimed.name
        self.work: Work = Work(
            self.standing.id,
            claimed.name,
            claimed.version,
            self.standing.attempt,
            claimed.params_data,
            claimed.state,
            claimed.metadata,
            around.node,
            around.checkpoint_every_s,
            around.max_state_bytes,
        )
        self._claimed_at = around.clock.monotonic()
        self.suspension: Suspension | None = None
        self.scope: anyio.CancelScope = anyio.CancelScope()
        self.stoppable: bool = True
        self.stopping: bool = False
        self.fenced: bool = False
        self.asked_at: float = 0.0
        self.over: anyio.Event | None = None
        self._raised: InterruptKind | None = None
        self._learning = threading.Lock()
        self.reports: Reports = Reports(
            self, claimed, around.writer, around.feed, around.loop, around.clock, around.max_log_bytes
        )
        self._one_save = anyio.Lock(fast_acquire=True)
        self._one_blocking_save = threading.Lock()

    # ── what the runtime asks of it ──

    def stop(self) -> None:
        """Ask the handler to stop at its next checkpoint, for a shutdown."""
        self.stopping = True

    def fence(self) -> None:
        """Let nothing that the handler says count any more."""
        self.fenced = True

    def learn(self, told: Standing) -> None:
        """Take note of how the job stands; from any thread.

        The attempt's own writes and other people's requests may be heard of in any order: what is older of either never
        takes the place of what is newer.
        """
        with self._learning:
            known = self.standing
            if told.event_seq < known.event_seq:
                told = told._replace(
                    event_seq=known.event_seq, wanted=known.wanted, across_restarts=known.across_restarts
                )
            if told.checkpoint_seq < known.checkpoint_seq:
                told = told._replace(
                    checkpoint_seq=known.checkpoint_seq, crash_count=known.crash_count, suspect=known.suspect
                )
            if told.wanted != known.wanted:
                self.asked_at = self._around.clock.monotonic()
            self.standing = told
        if known.suspect and not told.suspect:
            self._around.loop.post(self._around.feed.work_came)  # the next suspect may be claimed

    # ── time, and what the handler asks ──

    def now(self) -> datetime:
        """The database's time, as it was at the claim, and as much later as has passed here."""
        since = self.standing.running_since
        assert since is not None  # noqa: S101  it is running
        return since + timedelta(seconds=self._around.clock.monotonic() - self._claimed_at)

    def new_id(self) -> str:
        """An id for a new job."""
        return str(self._around.ids.new())

    def handle(self, job_id: str, name: str) -> Any:
        """A handle of a job."""
        return self._around.handle(UUID(job_id), name)

    async def ask(self, question: Question) -> Any:
        """Look something up in the database."""
        return await self._around.read(self.ask_blocking, question)

    def ask_blocking(self, question: Question) -> Any:
        """Look something up, in a thread that may block."""
        match question:
            case SignalOf(name):
                return self._around.store.signal(self.standing.id, name)
            case EndsOf(jobs):
                return [self._around.store.ended(job_id) for job_id in jobs]

    # ── checkpoints ──

    def suspend(self, suspension: Suspension) -> None:
        """Take note of what to store once the handler has come to its end."""
        self._check(suspension.state)
        self.suspension, self._raised = suspension, "suspend"

    async def save(self, state: bytes, spawns: Sequence[NewJob] = ()) -> None:
        """Save a sealed state; see `Link.save`."""
        async with self._one_save:
            change = self._checkpoint(state, spawns)
            with anyio.CancelScope(shield=True):  # the next checkpoint builds on what came of this one
                try:
                    self.learn((await self._around.writer.submit(change)).after)
                except LeaseLost:
                    self.fenced = True
                    raise
                except JobkitError:
                    self.reports.not_saved(change)
                    raise
            self.reports.saved()
            self._stop_if_due(len(state))

    def save_blocking(self, state: bytes, spawns: Sequence[NewJob] = ()) -> None:
        """Save a sealed state from a thread; see `Link.save`."""
        with self._one_blocking_save:
            change = self._checkpoint(state, spawns)
            try:
                self.learn(self._around.writer.submit_blocking(change).after)
            except LeaseLost:
                self.fenced = True
                raise
            except JobkitError:
                self.reports.not_saved(change)
                raise
            self.reports.saved()
            self._stop_if_due(len(state))

    def save_within(self, transaction: Transaction, state: bytes) -> None:
        """Save a sealed state in the user's transaction; see `Link.save_within`."""
        self._check(state)
        if self._one_save.locked():  # its state is older, and would be stored after this one
            problem = "another checkpoint of this job is under way, in another task: await that first"
            raise InvalidOption("session", transaction, problem)
        change = Change(self.standing.id, CHECKPOINT, self.standing, state)
        try:
            done = self._around.store.within(transaction, change)
            reach("session.before_commit")
            transaction.commit()
        except BaseException as error:
            self.fenced = self.fenced or isinstance(error, LeaseLost)
            transaction.rollback()
            raise
        reach("session.after_commit")
        self._around.loop.post(self._around.feed.heard, [done])
        self.learn(done.after)
        self._stop_if_due(len(state))

    def _check(self, state: bytes) -> None:
        if self.fenced:
            raise LeaseLost(self.standing.id, self.standing.attempt)
        if self._raised == "suspend":  # the attempt's last write stores what that has left behind, and nothing newer
            raise Interrupt("suspend")
        if len(state) > self._around.max_state_bytes:
            raise StateTooLarge(len(state), self._around.max_state_bytes, largest_field(state))

    def _checkpoint(self, state: bytes, spawns: Sequence[NewJob]) -> Change:
        self._check(state)
        change = self.reports.along(CHECKPOINT, state)
        return change._replace(spawns=tuple(spawns)) if spawns else change

    def _stop_if_due(self, size: int) -> None:
        self.reports.tell("checkpoint", {"seq": self.standing.checkpoint_seq, "bytes": size})
        kind = self.due()
        if kind is not None:
            self._raised = kind
            raise Interrupt(kind)

    def due(self) -> InterruptKind | None:
        """Why the handler should stop at its next checkpoint: the strongest reason, and for good once it was raised."""
        if self._raised is not None:
            return self._raised
        return self.standing.wanted or ("shutdown" if self.stopping and self.standing.resumable else None)

    # ── progress, logs, folders ──

    def report(self, progress: Progress) -> None:
        """Take note of the latest progress; see `Link.report`."""
        self.reports.report(progress)

    def log(self, message: str, level: str, fields: Mapping[str, Json]) -> None:
        """Take a line for the job's log; see `Link.log`."""
        self.reports.log(message, level, fields)

    def folder(self, *, of_attempt: bool) -> Path:
        """Make the job's folder, or that of this attempt, and answer its path."""
        path = self._around.data_dir()
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("jobs", self.standing.id, *([str(self.standing.attempt)] if of_attempt else [])):
            path /= name
            path.mkdir(mode=0o700, exist_ok=True)  # one by one: what `parents` makes on the way is open to others
        return path

    @property
    def resources(self) -> Mapping[str, Any]:
        """What the application gave the manager for its handlers."""
        return self._around.resources


async def run(
    running: Running, executor: Executor | None, middleware: Sequence[Middleware], others: Callable[[], bool]
) -> None:
    """Take one attempt from its claim to its last write.

    Args:
        running: The attempt.
        executor: What carries its handler; None if this build can't tell.
        middleware: What wraps it, outermost first.
        others: Whether another working life lives, asked when the attempt is given back.
    """
    try:
        outcome = await _outcome(running, executor, middleware)
        with anyio.CancelScope(shield=True):
            await _finish(running, outcome, others)
    finally:
        running.fence()


async def _outcome(running: Running, executor: Executor | None, middleware: Sequence[Middleware]) -> Outcome | None:
    """Let the attempt run to its end; None: it was stopped by force."""
    outcome: Outcome | None = None
    try:
        with running.scope:
            reach("run.before_handler")
            outcome = await _carried(running, executor, middleware)
            reach("run.after_handler")
    except Exception as error:  # noqa: BLE001  the wall around a handler, and around the middleware that wraps it
        outcome = Failed(failure_of(error))
    if running.fenced:
        return Fenced()
    if isinstance(outcome, Failed) and running.scope.cancel_called:
        why = outcome.failure
        running.log(f"while it was stopped by force: {why.type}: {why.message}", "warning", {})
        return None
    return outcome


async def _carried(running: Running, executor: Executor | None, middleware: Sequence[Middleware]) -> Outcome:
    if executor is None:
        failure = Failure("UnknownJob", f"this build knows no job {running.name!r} of that version")
        return Unloadable("unknown_job", failure)

    async def carry() -> Outcome:
        return await executor.run(running.work, running)

    call: Callable[[], Awaitable[Outcome]] = carry
    if middleware:
        work = running.work
        attempt = Attempt(UUID(work.job_id), work.name, work.attempt, work.attempt > 1, work.metadata)
        for wrap in reversed(middleware):
            call = _wrapped(wrap, attempt, call)
    outcome: object = await call()
    if not isinstance(outcome, Completed | Failed | Interrupted | Unloadable | Fenced):
        problem = f"a middleware or executor answered {outcome!r}, which is no outcome: return what call_next() gave"
        raise TypeError(problem)
    return outcome


def _wrapped(
    wrap: Middleware, attempt: Attempt, inner: Callable[[], Awaitable[Outcome]]
) -> Callable[[], Awaitable[Outcome]]:
    return lambda: wrap(attempt, inner)


async def _finish(running: Running, outcome: Outcome | None, others: Callable[[], bool]) -> None:
    """Write what came of the attempt."""
    job, writer = running.standing, running._around.writer  # noqa: SLF001  one module, one attempt
    who = f"{running.name} {job.id}: attempt {job.attempt}"
    change = _last_change(running, outcome, others)
    if change is None:
        log.warning("%s lost its lease; what it did since counts for nothing", who)
        return
    change = running.reports.last(change)
    try:
        try:
            await writer.submit(change)
        except SerializationError as error:  # a job must not stay running for a result that can't be stored
            failure = Failure(type(error).__name__, f"what came of the handler could not be stored: {error}")
            await writer.submit(change._replace(cause=Cause(Trigger.FAIL), output=None, failure=failure))
    except StoreUnavailable as error:
        log.error("%s has ended, but that could not be stored: %s", who, error)  # noqa: TRY400  no trace to show
    except LeaseLost:
        log.warning("%s ended after it had lost its lease; nothing was changed", who)


async def give_back(running: Running, others: Callable[[], bool]) -> None:
    """Give back the job of a handler that goes on and can't be stopped."""
    job, progress = running.standing, running.reports.latest()
    change = Change(job.id, Cause(Trigger.GRACE_OVER, others=others()), job, progress=progress)
    change = running.reports.last(change)
    running.fence()
    try:
        await running._around.writer.submit(change)  # noqa: SLF001  one module, one attempt
    except JobkitError as error:
        log.warning("%s %s could not be given back: %s", running.name, running.standing.id, error)


def _last_change(running: Running, outcome: Outcome | None, others: Callable[[], bool]) -> Change | None:
    """What is to be written of an outcome, None if nothing; no outcome: the attempt was stopped by force."""
    job, progress = running.standing, running.reports.latest()
    here = not running.stopping  # what it stops for may have been taken back meanwhile: this life goes on with it
    match outcome:
        case Completed(output=output, shown=shown):
            return Change(job.id, COMPLETE, job, output=(output, shown), progress=progress)
        case Failed(failure=failure):
            return Change(job.id, Cause(Trigger.FAIL), job, failure=failure, progress=progress)
        case Unloadable(reason=reason, failure=failure):
            return Change(job.id, Cause(Trigger.UNLOADABLE, reason=reason), job, failure=failure)
        case Interrupted("suspend") if (suspension := running.suspension) is not None:
            cause = Cause(Trigger.SUSPEND, due_at=suspension.due_at)
            return Change(job.id, cause, job, state=suspension.state, progress=progress, waits=suspension.waits)
        case Interrupted() if running.due() is None:
            failure = Failure("Interrupt", "the handler raised an Interrupt of its own; nothing had asked it to stop")
            return Change(job.id, Cause(Trigger.FAIL), job, failure=failure, progress=progress)
        case Interrupted():
            return Change(job.id, Cause(Trigger.STOPPED, others=here or others()), job, progress=progress)
        case Fenced() if running.fenced:
            return None
        case Fenced():
            failure = Failure("LeaseLost", "the handler or a middleware said so, but the attempt holds its job")
            return Change(job.id, Cause(Trigger.FAIL), job, failure=failure, progress=progress)
        case None:
            return Change(job.id, Cause(Trigger.GRACE_OVER, others=here or others()), job, progress=progress)
