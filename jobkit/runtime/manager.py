"""`JobManager`: where an application enters.

It puts the parts together, starts and stops them in order, and turns calls into writes and reads. What moves a job is
elsewhere: nothing here decides a status or runs a handler.
"""

from __future__ import annotations

import platform
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, overload
from urllib.parse import quote
from uuid import UUID

import anyio
from anyio import to_thread

from jobkit.definition import Job
from jobkit.dispatching import check_options, new_job
from jobkit.errors import InvalidFilter, InvalidJob, InvalidJobId, InvalidSettings, ManagerNotRunning
from jobkit.filters import JobFilter
from jobkit.interfaces import Insert, Store
from jobkit.model import LOG_LEVELS
from jobkit.registration import registry as global_registry
from jobkit.runtime.clock import SystemClock, SystemIds, SystemThreads
from jobkit.runtime.control import Control
from jobkit.runtime.feed import Feed
from jobkit.runtime.handle import EventStream, JobHandle
from jobkit.runtime.loops import Loop
from jobkit.runtime.node import Node
from jobkit.runtime.runner import Surroundings
from jobkit.runtime.watch import Watch
from jobkit.runtime.writer import Writer
from jobkit.settings import Settings
from jobkit.store import SqlStore

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from typing_extensions import Unpack

    from jobkit.filters import FilterFields
    from jobkit.interfaces import Clock, Ids, Middleware, NewJob, Observer, Stored, Threads, Transaction
    from jobkit.jobtype import JobType
    from jobkit.model import (
        ControlOutcome,
        DispatchOptions,
        Event,
        Explanation,
        JobRecord,
        JobStats,
        JobStatus,
        LogLevel,
        Page,
    )
    from jobkit.registration import Registry

T = TypeVar("T")
Out = TypeVar("Out")

MAX_PAGE: Final = 1_000


class JobManager:
    """Dispatches, runs and watches jobs on one database. An async context manager.

    Args:
        store: A path (a directory means `jobs.db` in it, and job folders beside that), a SQLAlchemy URL (`sqlite://`
            is in memory), or a `jobkit.interfaces.Store`; None takes the settings.
        settings: Everything else that can be set; read from the environment by default.
        registry: What can be run; the global one by default.
        concurrency: How many attempts may run at once.
        queues: The queues to serve; None for all.
        node_name: How this node is called; the machine's name by default.
        work: False for a client, which prepares the schema, dispatches and watches, but runs and resumes nothing.
        resume: What a start resumes unless another working manager is there: `"all"`, what was running and what is
            paused, or `"interrupted"`, only what was running; as set by default.
        resources: What handlers find as `ctx.resources`.
        middleware: Wraps each attempt, outermost first.
        observers: Hear each transition that this process commits.
        clock: Where time comes from, for simulated time.
        ids: Where job ids come from.
        threads: Where threads come from.
    """

    def __init__(
        self,
        store: str | Path | Store | None = None,
        *,
        settings: Settings | None = None,
        registry: Registry = global_registry,
        concurrency: int | None = None,
        queues: Sequence[str] | None = None,
        node_name: str | None = None,
        work: bool = True,
        resume: Literal["all", "interrupted"] | None = None,
        resources: Mapping[str, Any] | None = None,
        middleware: Sequence[Middleware] = (),
        observers: Sequence[Observer] = (),
        clock: Clock | None = None,
        ids: Ids | None = None,
        threads: Threads | None = None,
    ) -> None:
        self._settings = settings if settings is not None else Settings()
        self._resume = self._settings.resume if resume is None else _one_of_resume(resume)
        self._clock: Clock = clock or SystemClock()
        self._ids: Ids = ids or SystemIds()
        self._threads: Threads = threads or SystemThreads()
        self._registry = registry
        self._concurrency = self._settings.concurrency if concurrency is None else _at_least_one(concurrency)
        self._queues = None if queues is None else _names(queues)
        self.node_name: str = node_name or platform.node()
        self._work = work
        self._resources: Mapping[str, Any] = {} if resources is None else resources
        self._middleware = middleware
        self._store, self._data_dir = self._place(store)
        self._feed = Feed(observers)
        self._watch = Watch(self._store, self._feed, self._clock, registry)
        self._control = Control(self._watch, lambda: self._writer, lambda: self._data_dir)
        self._node: Node | None = None
        self._running = self._starting = False
        self._all_saved = True
        self._stopped: anyio.Event | None = None

    def _place(self, store: str | Path | Store | None) -> tuple[Store, Path | None]:
        """Make the store that was meant, and say where job folders go; None until one is needed."""
        if isinstance(store, Store):
            return store, self._settings.data_dir
        folder = self._settings.data_dir
        url = self._settings.url if store is None else str(store)
        if "://" not in url:
            path = Path(url).expanduser()
            if path.is_dir():
                folder, path = folder or path, path / "jobs.db"
            url = f"sqlite:///{quote(path.as_posix(), safe='/:')}"
        made = SqlStore(
            url,
            keep_checkpoints=self._settings.keep_checkpoints,
            durability=self._settings.durability,
            allow_network_fs=self._settings.allow_network_fs,
            now=self._clock.now,
        )
        if folder is None and made.path is not None:
            folder = Path(f"{made.path}.data")
        return made, folder

    # ── life ──

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            await self.stop()

    async def start(self) -> None:
        """Open the database, resume what was interrupted, and begin to work. Doing it twice is an error.

        Raises:
            StoreUnavailable: The database can't be used.
            SchemaMismatch: A newer release wrote it.
            ManagerNotRunning: It is started already.
        """
        if self._running or self._starting:
            raise ManagerNotRunning("the manager is started already", "stop it first, or make another one")
        self._starting = True
        try:
            self._registry.load_installed()
            await to_thread.run_sync(self._store.open)
            await self._begin()
        finally:
            self._starting = False

    async def _begin(self) -> None:
        loop = Loop()
        self._feed.work_came()  # what was waited for on another loop is of no use on this one
        self._watch.open()
        self._writer = Writer(self._store, loop, self._clock, self._threads, self._feed.heard, self._feed.work_came)
        self._writer.start()
        self._stopped = None
        self._running = True
        self._node = self._make_node(loop) if self._work else None
        if self._node is not None:
            try:
                await self._node.begin()
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await self._close()
                raise
            loop.spawn(self._node.run, "jobkit")

    def _make_node(self, loop: Loop) -> Node:
        around = Surroundings(
            writer=self._writer,
            feed=self._feed,
            loop=loop,
            clock=self._clock,
            node=self.node_name,
            max_state_bytes=self._settings.max_state_bytes,
            max_log_bytes=self._settings.max_log_bytes,
            checkpoint_every_s=self._settings.checkpoint_every_s,
            ids=self._ids,
            store=self._store,
            read=self._watch.read,
            handle=self._handle,
            data_dir=self._folder,
            resources=self._resources,
        )
        return Node(
            around=around,
            watch=self._watch,
            store=self._store,
            registry=self._registry,
            ids=self._ids,
            threads=self._threads,
            settings=self._settings,
            concurrency=self._concurrency,
            queues=self._queues,
            resume_paused=self._resume == "all",
            middleware=self._middleware,
        )

    async def stop(self, grace: float | None = None) -> bool:
        """Stop claiming, have running jobs reach a checkpoint, give them back, and close the database.

        A second call while the first one waits shortens the wait, if it gives a grace of its own.

        Args:
            grace: How long handlers may take, in seconds, before they are stopped by force and resumed later from their
                last checkpoint; the setting `grace_s` by default.

        Returns:
            Whether every running job was saved; False if the grace ran out.
        """
        if not self._running:
            return True
        if self._stopped is not None:
            if grace is not None and self._node is not None:
                self._node.hurry(grace)
            await self._stopped.wait()
            return self._all_saved
        self._stopped = anyio.Event()
        self._all_saved = False
        try:
            self._all_saved = self._node is None or await self._node.drain(
                self._settings.grace_s if grace is None else grace
            )
        finally:  # who cancels this call has no more patience: the grace is over
            with anyio.CancelScope(shield=True):
                if self._node is not None:
                    await self._node.stop_working()
                await self._close()
                self._stopped.set()
        return self._all_saved

    async def _close(self) -> None:
        self._running = False
        try:
            if self._node is not None:
                await self._node.end()
        finally:
            await self._writer.close()
            await self._watch.close()
            self._feed.close()
            await to_thread.run_sync(self._store.close)

    async def run_until_idle(self, timeout: float | None = None) -> None:  # noqa: ASYNC109  the usual name
        """Work until nothing is claimable and nothing runs: for tests and scripts.

        Args:
            timeout: How long at most, in seconds.

        Raises:
            TimeoutError: There was still work to do.
            ManagerNotRunning: The manager isn't started, or is a client.
        """
        self._watch.check()
        if self._node is None:
            raise ManagerNotRunning("this manager is a client (work=False)", "make it a working one to run jobs")
        with anyio.fail_after(timeout):
            still_working = await self._node.idle()
        if not still_working:
            raise ManagerNotRunning("the manager's own work has ended", "see its log; start it again to go on")

    # ── dispatching ──

    async def dispatch(self, job: Job[Out], **options: Unpack[DispatchOptions]) -> JobHandle[Out]:
        """Store one job; on return it is durable.

        Args:
            job: The job, with its parameters.
            **options: See `DispatchOptions`.

        Returns:
            Its handle.

        Raises:
            InvalidJob: Its class isn't decorated.
            InvalidOption: An option's value can't be stored.
            InvalidParams: Its parameters are over the setting `max_state_bytes`.
            KeyConflict: The key was used for other parameters.
            SerializationError: A parameter holds what can't be stored.
            StoreUnavailable: Nothing was stored; or, after a lost connection or where the disk did not confirm it, that
                isn't known: repeat it with the same key.
        """
        return (await self._insert([job], options))[0]

    async def dispatch_by_name(
        self, name: str, params: Mapping[str, Any] | None = None, **options: Unpack[DispatchOptions]
    ) -> JobHandle[Any]:
        """Store one job from untrusted input: a registered name, and parameters that are validated.

        Args:
            name: The registered name.
            params: The parameters; state fields and unknown ones are refused.
            **options: See `DispatchOptions`.

        Returns:
            Its handle.

        Raises:
            UnknownJob: No such name; the message lists near ones.
            InvalidParams: Field by field, what is wrong.
            JobkitError: As `dispatch` raises.
        """
        return (await self._insert([self._registry.create(name, {} if params is None else params)], options))[0]

    @overload
    async def dispatch_many(
        self, jobs: Iterable[Job[Out]], **options: Unpack[DispatchOptions]
    ) -> list[JobHandle[Out]]: ...
    @overload
    async def dispatch_many(
        self, jobs: Iterable[Job[Any] | tuple[str, Mapping[str, Any]]], **options: Unpack[DispatchOptions]
    ) -> list[JobHandle[Any]]: ...
    async def dispatch_many(self, jobs: Iterable[Any], **options: Unpack[DispatchOptions]) -> list[JobHandle[Any]]:
        """Store many jobs in one transaction: all or none.

        Args:
            jobs: Jobs, or pairs of name and parameters.
            **options: For each of them; see `DispatchOptions`.

        Returns:
            Their handles, in order.

        Raises:
            JobkitError: As `dispatch` and `dispatch_by_name` raise; then none is stored.
        """
        return await self._insert([self._made(one) for one in jobs], options)

    def _made(self, item: Any) -> Job[Any]:
        match item:
            case Job():
                return item
            case (str(name), params):
                return self._registry.create(name, params)
        raise InvalidJob(f"{item!r:.200} can't be dispatched: give a job, or a pair of its name and its parameters")

    def dispatch_within(
        self, transaction: Transaction, job: Job[Out], **options: Unpack[DispatchOptions]
    ) -> JobHandle[Out]:
        """Do as `dispatch(job, session=session)` does, for code that can't await, as in `AsyncSession.run_sync`.

        Args:
            transaction: A SQLAlchemy `Session` or `Connection` on jobkit's database.
            job: The job, with its parameters.
            **options: See `DispatchOptions`.

        Returns:
            Its handle; there is a job behind it once the caller has committed.

        Raises:
            InvalidOption: It isn't one on jobkit's database.
            JobkitError: As `dispatch` raises.
        """
        jobs = [job]
        new = self._new(jobs, options)
        return self._handles(jobs, new, self._store.within(transaction, Insert(tuple(new))))[0]

    async def _insert(self, jobs: Sequence[Job[Any]], options: DispatchOptions) -> list[JobHandle[Any]]:
        session = options.pop("session", None)
        new = self._new(jobs, options)
        if not new:
            return []
        write = Insert(tuple(new))
        stored = await self._writer.submit(write) if session is None else self._store.within(session, write)
        return self._handles(jobs, new, stored)

    def _new(self, jobs: Sequence[Job[Any]], options: DispatchOptions) -> list[NewJob]:
        self._watch.check()
        checked = check_options(options)
        types = [self._registry.type_of(job) for job in jobs]
        limit = self._settings.max_state_bytes
        return [new_job(kind, job, str(self._ids.new()), checked, limit) for kind, job in zip(types, jobs, strict=True)]

    def _handles(
        self, jobs: Sequence[Job[Any]], new: Sequence[NewJob], stored: Sequence[Stored]
    ) -> list[JobHandle[Any]]:
        for job in jobs:  # only now: what was refused may be changed and tried again
            self._registry.type_of(job).bind(job)
        return [self._handle(UUID(one.id), job.name) for one, job in zip(stored, new, strict=True)]

    # ── control ──

    async def pause(self, job_id: UUID | str, *, across_restarts: bool = False, wait: bool = False) -> ControlOutcome:
        """Pause a job: a running one at its next checkpoint, with its state saved; any other one at once.

        A handler that has not stopped when the setting `grace_s` is over is stopped by force, and goes on later from
        its last checkpoint; one in a thread can't be, so the pause stays wanted until it comes to a checkpoint.

        Args:
            job_id: The job.
            across_restarts: Whether it stays paused when a manager starts; by default a start resumes it.
            wait: Whether to wait until a running handler has stopped.

        Returns:
            `"accepted"`: it is stored, whether or not anybody runs the job at this moment.

        Raises:
            IllegalTransition: It is held, finished, being cancelled, or running and not resumable.
            InvalidJobId: Not a UUID.
            JobNotFound: No job has that id.
        """
        return await self._control.pause(_uuid(job_id), across_restarts=across_restarts, wait=wait)

    async def resume(self, job_id: UUID | str, *, wait: bool = False) -> ControlOutcome:
        """Let a paused job go on: back to where it was, then claimed like any other. Takes back a wanted pause too.

        Args:
            job_id: The job.
            wait: Whether to wait until a running handler has nothing more to do for it.

        Returns:
            `"accepted"`.

        Raises:
            IllegalTransition: It isn't paused.
            InvalidJobId: Not a UUID.
            JobNotFound: No job has that id.
        """
        return await self._control.resume(_uuid(job_id), wait=wait)

    async def cancel(self, job_id: UUID | str, *, wait: bool = False) -> ControlOutcome:
        """Cancel a job: a running one at its next checkpoint, any other one at once. It can't complete any more.

        A handler that has not stopped when the setting `grace_s` is over is stopped by force; one in a thread is left
        behind, and what it does from then on counts for nothing.

        Args:
            job_id: The job.
            wait: Whether to wait until a running handler has stopped.

        Returns:
            `"accepted"`, or `"already_finished"`.

        Raises:
            InvalidJobId: Not a UUID.
            JobNotFound: No job has that id.
        """
        return await self._control.cancel(_uuid(job_id), wait=wait)

    async def release(self, job_id: UUID | str, *, wait: bool = False) -> ControlOutcome:
        """Let a held job go on, its crashes forgiven. If what it was held for is not mended, it is held again.

        Args:
            job_id: The job.
            wait: For likeness with the others: there is no handler to wait for.

        Returns:
            `"accepted"`.

        Raises:
            IllegalTransition: It isn't held.
            InvalidJobId: Not a UUID.
            JobNotFound: No job has that id.
        """
        return await self._control.release(_uuid(job_id), wait=wait)

    async def signal(self, job_id: UUID | str, name: str, payload: Any = None) -> None:
        """Send a job a signal, for its `ctx.wait_for(name)`. It is kept, whether or not the job waits for it yet.

        Args:
            job_id: The job.
            name: The signal's name. The first of each name counts: a job waits for each name once.
            payload: What `wait_for` answers; JSON-like values, and those of the standard library that state may hold.

        Raises:
            IllegalTransition: The job is finished.
            InvalidJobId: Not a UUID.
            InvalidOption: The name can't be stored.
            JobNotFound: No job has that id.
            SerializationError: The payload can't be stored.
        """
        await self._control.signal(_uuid(job_id), name, payload)

    async def delete(self, job_id: UUID | str) -> None:
        """Delete a finished job with all that is known of it, and its folder.

        Args:
            job_id: The job.

        Raises:
            IllegalTransition: It isn't finished: cancel it first.
            InvalidJobId: Not a UUID.
            JobNotFound: No job has that id.
        """
        await self._control.delete(_uuid(job_id))

    # ── asking ──

    def handle(self, job_id: UUID | str) -> JobHandle[Any]:
        """Make a handle of a job that was dispatched before, without asking whether it exists.

        Args:
            job_id: Its id.

        Raises:
            InvalidJobId: Not a UUID.
        """
        return self._handle(_uuid(job_id))

    def _handle(self, job_id: UUID, name: str | None = None) -> JobHandle[Any]:
        return JobHandle(self._watch, self._control, job_id, name)

    async def get(self, job_id: UUID | str) -> JobRecord:
        """Read one job.

        Args:
            job_id: Its id.

        Raises:
            InvalidJobId: Not a UUID.
            JobNotFound: No job has that id.
        """
        return await self._watch.record(_uuid(job_id))

    async def explain(self, job_id: UUID | str) -> Explanation:
        """Say why a job isn't running, in words and as data.

        Args:
            job_id: Its id.

        Returns:
            The reasons, the nearest first; `str()` of it is a sentence.

        Raises:
            InvalidJobId: Not a UUID.
            JobNotFound: No job has that id.
        """
        return await self._watch.explanation(_uuid(job_id))

    async def list_jobs(
        self,
        filter: JobFilter | JobStatus | str | None = None,  # noqa: A002  the word for it
        *,
        limit: int = 50,
        cursor: str | None = None,
        **fields: Unpack[FilterFields],
    ) -> Page[JobRecord]:
        """List jobs, newest first.

        Args:
            filter: A `JobFilter`, or a status.
            limit: How many at most, 1 to 1,000.
            cursor: The `next_cursor` of the page before.
            **fields: The fields of a `JobFilter`, instead of one.

        Raises:
            InvalidFilter: An unknown field, status, cursor or limit, or a value of a wrong type.
            InvalidJobId: A parent's text that is not a job id.
        """
        if not _is_whole(limit) or not 1 <= limit <= MAX_PAGE:
            raise InvalidFilter("limit", limit, [f"a number from 1 to {MAX_PAGE}"])
        if cursor is not None and not isinstance(cursor, str):
            raise InvalidFilter("cursor", cursor, ["the next_cursor of a page", "None"])
        where = JobFilter.of(filter, fields)
        return await self._watch.read(self._store.page, where, limit, cursor)

    async def stats(
        self,
        filter: JobFilter | JobStatus | str | None = None,  # noqa: A002  as above
        **fields: Unpack[FilterFields],
    ) -> JobStats:
        """Count jobs by status, and work out durations.

        Args:
            filter: A `JobFilter`, or a status.
            **fields: The fields of a `JobFilter`, instead of one.

        Raises:
            InvalidFilter: An unknown field or status, or a value of a wrong type.
            InvalidJobId: A parent's text that is not a job id.
        """
        return await self._watch.read(self._store.stats, JobFilter.of(filter, fields))

    def events(
        self,
        job_id: UUID | str | None = None,
        *,
        after: str | int | None = None,
        types: Iterable[str] | None = None,
    ) -> EventStream:
        """Follow events: those stored, then those to come. One job's stream ends when the job does.

        Args:
            job_id: One job's; None for all jobs'.
            after: Go on after this event's `cursor`, or for one job after this sequence number.
            types: Only these types, as `"completed"` or `"job.completed"`.

        Raises:
            InvalidFilter: An unknown type.
        """
        one = None if job_id is None else _uuid(job_id)
        return EventStream(self._watch, one, None if after is None else str(after), types)

    async def logs(
        self,
        job_id: UUID | str,
        *,
        after: str | int | None = None,
        level: LogLevel = "debug",
        limit: int | None = None,
    ) -> list[Event]:
        """Read what a job's handlers have logged, over all its attempts, oldest first.

        A line is an event of type `log`: its `message` is the line; its `data` has the `level`, the `attempt` and the
        `fields`. `events` streams them as they are stored.

        Args:
            job_id: The job's id.
            after: Only lines after this event's `cursor`, or after this sequence number.
            level: Only lines of this level or graver ones.
            limit: How many at most; None for all, which the setting `max_log_bytes` bounds.

        Raises:
            InvalidFilter: An unknown level or cursor, or a limit below 1.
            InvalidJobId: Not a UUID.
            JobNotFound: No job has that id.
        """
        if level not in LOG_LEVELS:
            raise InvalidFilter("level", level, LOG_LEVELS)
        if limit is not None and (not _is_whole(limit) or limit < 1):
            raise InvalidFilter("limit", limit, ["a number from 1", "None"])
        return await self._watch.logs(_uuid(job_id), None if after is None else str(after), level, limit)

    def job_types(self) -> list[JobType]:
        """All job types that this manager can run."""
        return self._registry.job_types()

    def schema(self, name: str) -> dict[str, Any]:
        """The JSON schema of a job's parameters.

        Args:
            name: The registered name.

        Raises:
            UnknownJob: No such name.
        """
        return self._registry.schema(name)

    def _folder(self) -> Path:
        if self._data_dir is None:
            self._data_dir = Path(tempfile.mkdtemp(prefix="jobkit-"))
        return self._data_dir


def _is_whole(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)


def _at_least_one(concurrency: int) -> int:
    if not _is_whole(concurrency):
        raise InvalidSettings({"concurrency": f"{concurrency!r} is no whole number"})
    if concurrency < 1:
        problem = f"{concurrency} is less than 1; write work=False for a manager that runs nothing"
        raise InvalidSettings({"concurrency": problem})
    return concurrency


def _one_of_resume(word: str) -> str:
    if word not in {"all", "interrupted"}:
        raise InvalidSettings({"resume": f'{word!r}: write "all" or "interrupted"'})
    return word


def _names(queues: Sequence[str]) -> tuple[str, ...]:
    if isinstance(queues, str):
        raise InvalidSettings({"queues": f"write a list of names, as in queues=[{queues!r}]"})
    return tuple(queues)


def _uuid(value: UUID | str) -> UUID:
    if isinstance(value, UUID):
        return value
    try:
        return UUID(value)
    except (ValueError, AttributeError, TypeError):
        raise InvalidJobId(value) from None
