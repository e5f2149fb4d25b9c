"""`BlockingJobManager`: the manager for programs without an event loop (Flask, Django, scripts).

A twin, not a second implementation: an ordinary `JobManager` runs on a loop in a thread of its own, and each method
here is one line that has the method of the same name run there while its caller waits. Signatures, types and docstrings
are those of the original; `tests/runtime/test_blocking.py` fails if a twin is missing.

A manager may be made before a fork and started in each child. What was started before a fork is the parent's: in the
child it refuses to work, and is kept as it is until the process ends, since closing it would meddle with the parent.
"""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # before what is registered below: at the end of a program the last comes first
import contextlib
import functools
import inspect
import os
import re
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, Concatenate, Final, Generic, Literal, ParamSpec, TypeVar, cast, overload

from jobkit.context import drive
from jobkit.errors import ManagerNotRunning
from jobkit.registration import registry as global_registry
from jobkit.runtime.handle import JobHandle
from jobkit.runtime.manager import JobManager
from jobkit.runtime.portal import Portal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import Self
    from uuid import UUID

    from jobkit.interfaces import Clock, Ids, Middleware, Observer, Store, Threads
    from jobkit.registration import Registry
    from jobkit.settings import Settings

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_GIVES: Final = {
    "JobHandle": "BlockingJobHandle",
    "EventStream": "BlockingStream[Event]",
    "ProgressStream": "BlockingStream[Progress]",
}
"""What a twin gives in the place of what the original gives."""


# ── what makes a twin of a method ──


@overload
def _blocking(
    method: Callable[Concatenate[JobManager, P], Coroutine[Any, Any, JobHandle[R]]],
) -> Callable[Concatenate[BlockingJobManager, P], BlockingJobHandle[R]]: ...
@overload
def _blocking(
    method: Callable[Concatenate[JobManager, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[BlockingJobManager, P], R]: ...
@overload
def _blocking(
    method: Callable[Concatenate[JobManager, P], JobHandle[R]],
) -> Callable[Concatenate[BlockingJobManager, P], BlockingJobHandle[R]]: ...
@overload
def _blocking(
    method: Callable[Concatenate[JobManager, P], AsyncIterator[R]],
) -> Callable[Concatenate[BlockingJobManager, P], BlockingStream[R]]: ...
@overload
def _blocking(
    method: Callable[Concatenate[JobManager, P], R],
) -> Callable[Concatenate[BlockingJobManager, P], R]: ...
@overload
def _blocking(
    method: Callable[Concatenate[JobHandle[T], P], Coroutine[Any, Any, JobHandle[R]]],
) -> Callable[Concatenate[BlockingJobHandle[T], P], BlockingJobHandle[R]]: ...
@overload
def _blocking(
    method: Callable[Concatenate[JobHandle[T], P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[BlockingJobHandle[T], P], R]: ...
@overload
def _blocking(
    method: Callable[Concatenate[JobHandle[T], P], AsyncIterator[R]],
) -> Callable[Concatenate[BlockingJobHandle[T], P], BlockingStream[R]]: ...
def _blocking(method: Callable[..., Any]) -> Callable[..., Any]:
    """Make the twin of a method: it takes the same, and gives the same once it is done."""
    asynchronous = inspect.iscoroutinefunction(method)
    within = "transaction" in inspect.signature(method).parameters

    @functools.wraps(method)
    def call(view: BlockingJobManager | BlockingJobHandle[Any], *args: Any, **kwargs: Any) -> Any:
        work = functools.partial(method, view._awaited, *args, **kwargs)  # noqa: SLF001  the two are one
        if within or kwargs.get("session") is not None:  # on the caller's connection, so in the caller's thread
            return view._call(lambda: drive(_answer(work)), here=True)  # noqa: SLF001  as above
        return view._call(work, waits=asynchronous)  # noqa: SLF001  as above

    signature = inspect.signature(method)
    gives = re.sub("|".join(_GIVES), lambda found: _GIVES[found[0]], signature.return_annotation)
    call.__signature__ = signature.replace(return_annotation=gives)  # type: ignore[attr-defined]
    call.__module__, call.__qualname__ = __name__, f"Blocking{method.__qualname__}"
    return call


def _blocking_handles(
    method: Callable[Concatenate[JobManager, P], Coroutine[Any, Any, list[JobHandle[R]]]],
) -> Callable[Concatenate[BlockingJobManager, P], list[BlockingJobHandle[R]]]:
    """Do the same for a method that gives many handles; apart, since mypy matches no overloads with overloads."""
    return cast("Callable[Concatenate[BlockingJobManager, P], list[BlockingJobHandle[R]]]", _blocking(method))


# ── the twins ──


class BlockingJobManager:
    """Dispatches, runs and watches jobs on one database, for callers that block. A context manager.

    It has the methods of `JobManager`, without `await`, and may be shared by any number of threads. Handlers run as
    they do there: async ones on the manager's own event loop (asyncio, in a thread), sync ones in threads. In async
    code use `JobManager`: a call here blocks whatever loop it is made on.

    Web workers that are forked (gunicorn, uWSGI, multiprocessing) may all use a manager that was made before, as long
    as each starts it for itself. If the program ends without `stop()`, it is done then, with the usual grace.

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
        self._awaited = JobManager(
            store,
            settings=settings,
            registry=registry,
            concurrency=concurrency,
            queues=queues,
            node_name=node_name,
            work=work,
            resume=resume,
            resources=resources,
            middleware=middleware,
            observers=observers,
            clock=clock,
            ids=ids,
            threads=threads,
        )
        self.node_name: str = self._awaited.node_name
        self._portal: Portal | None = None

    # ── life ──

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Open the database, resume what was interrupted, and begin to work. Doing it twice is an error.

        Raises:
            StoreUnavailable: The database can't be used.
            SchemaMismatch: A newer release wrote it.
            ManagerNotRunning: It is started already, or was before this process was forked.
        """
        portal = Portal()
        with _turn:
            other = self._portal
            if other is None:
                self._portal = portal
        if other is not None:
            other.check()
            raise ManagerNotRunning("the manager is started already", "stop it first, or make another one")
        try:
            portal.open()
            portal.call(self._awaited.start)
            _running.add(self)
        except BaseException:
            self._end(portal, 0.0)
            raise

    def stop(self, grace: float | None = None) -> bool:
        """Stop claiming, have running jobs reach a checkpoint, give them back, and close the database.

        Ctrl-C meanwhile ends the grace.

        Args:
            grace: How long handlers may take, in seconds, before they are stopped by force and resumed later from their
                last checkpoint; the setting `grace_s` by default.

        Returns:
            Whether every running job was saved; False if the grace ran out.
        """
        portal = self._portal
        if portal is None or self not in _running or portal.inherited:
            return True
        portal.check()
        return self._end(portal, grace)

    def _end(self, portal: Portal, grace: float | None) -> bool:
        saved = False
        try:
            with contextlib.suppress(ManagerNotRunning):  # it has ended by itself
                saved = portal.call(functools.partial(self._awaited.stop, grace))
        finally:
            portal.close()
            with _turn:
                if self._portal is portal:
                    self._portal = None
                    _running.discard(self)
        return saved

    def _call(self, work: Callable[[], Any], *, waits: bool = False, here: bool = False) -> Any:
        portal = self._portal
        if here and portal is not None and portal.inherited:
            portal.check()
        if here or (not waits and (portal is None or portal.here)):  # there is nobody on the loop, or only the caller
            answer = work()
        elif portal is None:
            raise ManagerNotRunning
        else:
            answer = portal.call(functools.partial(_answer, work))
        match answer:
            case JobHandle():
                return BlockingJobHandle(self, answer)
            case [JobHandle(), *_]:
                return [BlockingJobHandle(self, one) for one in answer]
            case AsyncIterator():
                return BlockingStream(self, answer)
        return answer

    run_until_idle: Final = _blocking(JobManager.run_until_idle)

    # ── dispatching ──

    dispatch: Final = _blocking(JobManager.dispatch)
    dispatch_by_name: Final = _blocking(JobManager.dispatch_by_name)
    dispatch_many: Final = _blocking_handles(JobManager.dispatch_many)
    dispatch_within: Final = _blocking(JobManager.dispatch_within)

    # ── asking ──

    pause: Final = _blocking(JobManager.pause)
    resume: Final = _blocking(JobManager.resume)
    cancel: Final = _blocking(JobManager.cancel)
    release: Final = _blocking(JobManager.release)
    signal: Final = _blocking(JobManager.signal)
    delete: Final = _blocking(JobManager.delete)
    handle: Final = _blocking(JobManager.handle)
    get: Final = _blocking(JobManager.get)
    explain: Final = _blocking(JobManager.explain)
    list_jobs: Final = _blocking(JobManager.list_jobs)
    stats: Final = _blocking(JobManager.stats)
    events: Final = _blocking(JobManager.events)
    logs: Final = _blocking(JobManager.logs)
    job_types: Final = _blocking(JobManager.job_types)
    schema: Final = _blocking(JobManager.schema)


async def _answer(work: Callable[[], Any]) -> Any:
    answer = work()
    return await answer if inspect.isawaitable(answer) else answer


class BlockingJobHandle(Generic[T_co]):
    """A dispatched job.

    Attributes:
        id: The job's id.
        name: Its registered name; None for a handle that was made from a bare id, whose record tells.
    """

    def __init__(self, manager: BlockingJobManager, awaited: JobHandle[T_co]) -> None:
        """Made by a manager; see `BlockingJobManager.handle`."""
        self._awaited = awaited
        self._call = manager._call  # noqa: SLF001  the two are one
        self.name: str | None = awaited.name
        self.id: UUID = awaited.id

    def __repr__(self) -> str:
        return f"BlockingJobHandle({self.id})"

    record: Final = _blocking(JobHandle[T_co].record)
    status: Final = _blocking(JobHandle[T_co].status)
    result: Final = _blocking(JobHandle[T_co].result)
    pause: Final = _blocking(JobHandle[T_co].pause)
    resume: Final = _blocking(JobHandle[T_co].resume)
    cancel: Final = _blocking(JobHandle[T_co].cancel)
    events: Final = _blocking(JobHandle[T_co].events)
    progress: Final = _blocking(JobHandle[T_co].progress)


class BlockingStream(Iterator[T_co]):
    """Events or progress. It may be left at any point, without closing anything; for one thread at a time."""

    def __init__(self, manager: BlockingJobManager, awaited: AsyncIterator[T_co]) -> None:
        """Made by `BlockingJobManager.events`, and by `events` and `progress` of a handle."""
        self._awaited = awaited
        self._call = manager._call  # noqa: SLF001  the two are one

    def __next__(self) -> T_co:
        try:
            return cast("T_co", self._call(self._awaited.__anext__, waits=True))
        except StopAsyncIteration:
            raise StopIteration from None


# ── what runs in this process ──


_running: Final[set[BlockingJobManager]] = set()
"""Managers that are started; in a forked child also the parent's, which nobody is to collect there."""

_turn: Final = threading.Lock()
"""For whoever starts or stops, for a moment; a forked child finds it free."""


def _free_in_child() -> None:
    if _turn.locked():  # by a thread that is not there
        _turn.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_free_in_child)


def _stop_all() -> None:
    """When the main thread has ended: wait for the others that keep a program going, and stop what is still started."""
    told = getattr(concurrent.futures.thread, "_threads_queues", ())  # threads that are told to end after this
    spared = {threading.main_thread(), threading.current_thread(), *told}
    while others := [one for one in threading.enumerate() if not one.daemon and one not in spared]:
        for thread in others:
            thread.join()
    for manager in tuple(_running):
        manager.stop()


# atexit itself comes too late: from Python 3.12 on no thread can be started by then, and handlers that are to reach a
# checkpoint may need one. What concurrent.futures uses instead comes while the program is still whole.
getattr(threading, "_register_atexit", atexit.register)(_stop_all)
