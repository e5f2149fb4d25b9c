"""Durable control flow: calls of a handler whose results outlive the attempt that made them.

Steps, sleeps, signals, children and loops. Each call has a name that is unique within the job; what it came to is kept
in the journal beside the state, and each is a checkpoint. A call that has to wait suspends the job: `run()` is left
through an interrupt, the slot is free for others, and when the time has come the job is entered again with its state,
where the same call answers at once. A suspended job is a row, and nothing else.

Nothing here touches the world: time, the database and new ids are behind the port.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import AsyncIterator, Collection, Iterable, Iterator
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, NoReturn, TypeVar
from weakref import ref

from jobkit.codec import Codec
from jobkit.errors import JobNotFound, SerializationError
from jobkit.interfaces import Ended, EndsOf, Interrupt, SignalOf, Suspension, Wait
from jobkit.model import Failure, JobStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Self

    from jobkit.definition import Job
    from jobkit.interfaces import NewJob, Port, Work
    from jobkit.journal import Journal

T = TypeVar("T")

_PLAIN: Final = Codec()
"""For what comes from outside: values of the library's own types."""


class JobSide(NamedTuple):
    """What a context reaches of its job, as the port is what it reaches of the world.

    Attributes:
        pack: Packs the job's present state and journal, sealed.
        journal: What the job has brought behind it.
        offspring: Makes what is stored of a new job, given its id and options; refuses what can't be dispatched.
        outcome: Makes of a child's end its output in its own type, or the error that tells of it.
        codec: Packs and unpacks what a function returns.
    """

    pack: Callable[[], bytes]
    journal: Journal
    offspring: Callable[[Job[Any], str, Mapping[str, Any]], NewJob]
    outcome: Callable[[str, Ended], Any]
    codec: Callable[[Callable[..., Any]], Codec]


class DurableCalls:
    """The calls; `JobContext` has them."""

    __slots__ = ()

    _work: Work
    _port: Port
    _side: JobSide

    if TYPE_CHECKING:  # of the context

        def progress(self, *, completed: float, total: float | None) -> None:
            """Say how far the job has come."""

    async def _save(self, spawns: Sequence[NewJob] = ()) -> None:
        await self._port.save(self._side.pack(), spawns)

    async def _save_entry(self, name: str, spawns: Sequence[NewJob] = ()) -> None:
        """Save what the journal was just given; it is taken back if that can't be done."""
        try:
            await self._save(spawns)
        except Interrupt:
            raise  # it is saved
        except BaseException:
            self._side.journal.forget(name)
            raise

    async def _suspend(self, due_at: datetime | None, *waits: Wait) -> NoReturn:
        """Leave `run()`, to be entered again; something stronger that is due takes its place."""
        if self._port.due() is not None:
            await self._save()
        self._port.suspend(Suspension(self._side.pack(), due_at, waits))
        raise Interrupt("suspend")

    # ── steps ──

    async def step(self, name: str, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call a function once in the job's life: later attempts get the result that was stored.

        A process that dies between the call and its checkpoint calls it again; give `once_key(name)` to an outside
        system that must not do a thing twice.

        Args:
            name: The step's name, unique within the job.
            call: The function; what it returns may be awaitable.
            *args: Its arguments.
            **kwargs: Its keyword arguments.

        Returns:
            What it returned, equal and of its own type. Classes must be declared: as the function's return type or
            among the job's fields.

        Raises:
            SerializationError: The result can't be stored; the step counts as not done.
            JournalConflict: The name was used for another call.
        """
        found = self._side.journal.enter(name, "step")
        if found is not None:
            return self._side.codec(call).unpack(found[0])
        result = call(*args, **kwargs)
        if inspect.isawaitable(result):
            result = await result
        await self._keep(name, call, result)
        return result

    async def _keep(self, name: str, call: Callable[..., Any], result: object) -> None:
        try:
            packed = self._side.codec(call).pack(result, path=f"step {name!r}")
        except SerializationError:
            self._side.journal.forget(name)
            raise
        self._side.journal.note(name, "step", packed)
        await self._save_entry(name)

    # ── time ──

    async def sleep(self, name: str, duration: float | timedelta, /) -> None:
        """Sleep for a time that survives restarts, without taking a worker's slot.

        Args:
            name: The sleep's name, unique within the job.
            duration: How long, in seconds or as a timedelta, from the first time this is reached.

        Raises:
            Interrupt: The job is suspended; let it through.
            JournalConflict: The name was used for another call.
            ValueError: It is no length of time.
        """
        length = _duration(duration)
        await self._sleep(name, lambda: self._port.now() + length)

    async def sleep_until(self, name: str, when: datetime, /) -> None:
        """Sleep until a moment, by the database's clock, without taking a worker's slot.

        Args:
            name: The sleep's name, unique within the job.
            when: The moment (aware); that of the first time this is reached counts.

        Raises:
            Interrupt: The job is suspended; let it through.
            JournalConflict: The name was used for another call.
            ValueError: The moment has no time zone.
        """
        moment = _moment(when)
        await self._sleep(name, lambda: moment)

    async def _sleep(self, name: str, until: Callable[[], datetime]) -> None:
        found = self._side.journal.enter(name, "sleep")
        due_at = until() if found is None else found[0]
        if found is None:
            self._side.journal.note(name, "sleep", due_at)
        if self._port.now() < due_at:
            await self._suspend(due_at)
        if found is None:
            await self._save_entry(name)

    # ── signals ──

    async def wait_for(self, name: str, timeout: float | timedelta | None = None) -> Any:  # noqa: ASYNC109  durable
        """Wait for a signal, without taking a worker's slot. It is never lost, whichever comes first.

        Args:
            name: The signal's name, unique within the job; `JobManager.signal` sends it.
            timeout: How long at most, in seconds or as a timedelta, from the first time this is reached.

        Returns:
            The signal's payload.

        Raises:
            TimeoutError: It did not come in time; the same in every later attempt.
            Interrupt: The job is suspended; let it through.
            JournalConflict: The name was used for another call.
        """
        found = self._side.journal.enter(name, "signal")
        due_at: datetime | None
        match found:
            case ["taken", payload]:
                return _PLAIN.unpack(payload)
            case ["missed"]:
                raise TimeoutError(_missed(name))
            case [datetime() as due_at]:
                pass
            case _:
                due_at = None if timeout is None else self._port.now() + _duration(timeout)
        payload = await self._port.ask(SignalOf(name))
        if payload is None and (due_at is None or self._port.now() < due_at):
            self._side.journal.note(name, "signal", due_at)
            await self._suspend(due_at, Wait("signal", name))
        if payload is None:
            self._side.journal.note(name, "signal", "missed")
        else:
            self._side.journal.note(name, "signal", "taken", payload)
        await self._save_entry(name)
        if payload is None:
            raise TimeoutError(_missed(name))
        return _PLAIN.unpack(payload)

    # ── children ──

    async def spawn(self, job: Job[Any], /, *, key: str, **options: Any) -> Any:
        """Dispatch a child job, in the transaction of a checkpoint: the child exists if and only if it is known here.

        Args:
            job: The child.
            key: Its name among this job's calls; the same key in a later attempt gives the same child.
            **options: As for a dispatch; see `DispatchOptions`.

        Returns:
            Its handle.

        Raises:
            JobkitError: As `dispatch` raises; then nothing is stored.
            JournalConflict: The key was used for another call, or for a child of another name.
        """
        found = self._side.journal.enter(key, "child")
        if found is not None:
            return self._port.handle(found[0], found[1])
        try:
            child = self._side.offspring(job, self._port.new_id(), options)
        except BaseException:
            self._side.journal.forget(key)
            raise
        child = child._replace(parent_id=self._work.job_id)
        self._side.journal.note(key, "child", child.id, child.name)
        await self._save_entry(key, [child])
        return self._port.handle(child.id, child.name)

    async def gather(self, *handles: Any) -> list[Any]:
        """Wait until jobs have ended, without taking a worker's slot.

        Args:
            *handles: What `spawn` or `dispatch` gave.

        Returns:
            What became of each, in order: its output in its own type, or, as a value, the error that
            `JobHandle.result` would raise: `JobFailed`, `JobCancelled`, `JobTimedOut`, `JobLost` or `JobNotFound`.

        Raises:
            Interrupt: The job is suspended; let it through.
            JournalConflict: The same handles were gathered before in this attempt.
        """
        ids = tuple(str(handle.id) for handle in handles)
        name = f"gather {' '.join(ids)}"
        found = self._side.journal.enter(name, "children")
        if found is None:
            ends: list[Ended | None] = await self._port.ask(EndsOf(ids))
            open_ids = [one for one, end in zip(ids, ends, strict=True) if end is not None and not end.status.terminal]
            if open_ids:
                await self._suspend(None, *(Wait("job", one) for one in dict.fromkeys(open_ids)))
            found = [None if end is None else _packed(end) for end in ends]
            self._side.journal.note(name, "children", *found)
            await self._save_entry(name)
        return [
            JobNotFound(one) if end is None else self._side.outcome(one, _unpacked(end))
            for one, end in zip(ids, found, strict=True)
        ]

    # ── loops ──

    def track(self, items: Iterable[T], cursor: str, every: int | None = None) -> Track[T]:
        """Loop over items, going on where the last checkpoint was: `async for item in ctx.track(files, "files")`.

        The cursor moves when the body has ended, so an item whose body was cut short comes again. Between items,
        progress is told, interrupts are seen to, and a checkpoint is made now and then. A loop in another's body has a
        cursor of its own for each of the outer one's items.

        Args:
            items: What to loop over: the same items in the same order in every attempt.
            cursor: The loop's name, unique within the job or the body that it stands in.
            every: Make a checkpoint after so many items; None goes by time, the setting `checkpoint_every_s`.

        Returns:
            An asynchronous iterator.

        Raises:
            TypeError: The items can be looped over only once: give a list.
            JournalConflict: The name was used for another call.
        """
        return Track(self, items, cursor, every)


# ── loops ──

_around: ContextVar[tuple[ref[Track[Any]], ...]] = ContextVar("jobkit_tracks", default=())
"""The loops in whose bodies the code at hand stands, outermost first; one that was left by `break` is gone."""


class Track(AsyncIterator[T], Generic[T]):
    """A loop that goes on where the last checkpoint was; see `JobContext.track`."""

    def __init__(self, calls: DurableCalls, items: Iterable[T], cursor: str, every: int | None) -> None:
        """Made by `track`."""
        if isinstance(items, Iterator):
            message = f"track() needs what can be looped over again, not {type(items).__name__}: give a list"
            raise TypeError(message)
        if every is not None and every < 1:
            message = f"every={every}: give a number of items, from 1, or None to go by time"
            raise ValueError(message)
        self._calls, self._every = calls, every
        self._outer = tuple(one for one in _around.get() if one() is not None)
        outer = self._outer[-1]() if self._outer else None
        self._scope = "" if outer is None else outer.scope
        self._name = f"{self._scope}{cursor}"
        found = calls._side.journal.enter(self._name, "cursor")  # noqa: SLF001  the two are one
        self.position: int = 0 if found is None else found[0]
        self._total = len(items) if isinstance(items, Collection) else None
        self._rest = itertools.islice(iter(items), self.position, None)
        self._saved_at = calls._port.now()  # noqa: SLF001  as above
        self._unsaved = 0
        self._in_body = False

    @property
    def scope(self) -> str:
        """What the names of calls in the present body begin with."""
        return f"{self._name}[{self.position}]."

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        if self._in_body:
            self._in_body = False
            _around.set(self._outer)
            await self._advance()
        try:
            item = next(self._rest)
        except StopIteration:
            if self._unsaved:
                await self._calls._save()  # noqa: SLF001  as above
            raise StopAsyncIteration from None
        self._in_body = True
        _around.set((*self._outer, ref(self)))
        return item

    async def _advance(self) -> None:
        """The body has ended: move the cursor, tell of it, and save if it is time."""
        calls, journal = self._calls, self._calls._side.journal  # noqa: SLF001  as above
        journal.close(self.scope)
        self.position += 1
        self._unsaved += 1
        journal.note(self._name, "cursor", self.position)
        if not self._outer:
            calls.progress(completed=self.position, total=self._total)
        port = calls._port  # noqa: SLF001  as above
        if self._every is None:
            due = (port.now() - self._saved_at).total_seconds() >= calls._work.checkpoint_every_s  # noqa: SLF001
        else:
            due = self._unsaved >= self._every
        if due or port.due() is not None:
            await calls._save()  # noqa: SLF001  as above
            self._saved_at, self._unsaved = port.now(), 0
        else:
            await port.breathe()


# ── values ──


def _duration(value: float | timedelta) -> timedelta:
    try:
        length = value if isinstance(value, timedelta) else timedelta(seconds=value)
        if length >= timedelta(0):
            return length
    except (TypeError, ValueError, OverflowError):
        pass
    message = f"{value!r} is no length of time: give seconds, from 0, or a timedelta"
    raise ValueError(message)


def _moment(value: object) -> datetime:
    if not isinstance(value, datetime) or value.tzinfo is None:
        message = f"{value!r} is no moment: give a datetime with a time zone, as datetime.now(UTC) + timedelta(days=1)"
        raise ValueError(message)
    return value.astimezone(UTC)


def _missed(name: str) -> str:
    return f"the signal {name!r} did not come in time"


def _packed(end: Ended) -> list[Any]:
    """A job's end as the journal keeps it."""
    failure = None if end.failure is None else [end.failure.type, end.failure.message, end.failure.traceback]
    return [end.name, end.status.value, end.reason, end.output, failure]


def _unpacked(kept: list[Any]) -> Ended:
    name, status, reason, output, failure = kept
    return Ended(name, JobStatus(status), reason, output, None if failure is None else Failure(*failure))
