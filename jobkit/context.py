"""What a handler sees while it runs: `JobContext`, and the same for handlers that block.

A context awaits nothing but its port. That is what makes the blocking view possible: it drives the very same coroutines
over a port that blocks instead of suspending, one `send(None)` each, so that there is one implementation and no loop in
the handler's thread. Folders, time and the database are behind the port too: nothing here touches the world.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import nullcontext, suppress
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Concatenate, Final, Generic, ParamSpec, TypeVar, cast, overload
from uuid import UUID

from jobkit.flow import DurableCalls
from jobkit.interfaces import Interrupt
from jobkit.model import Progress
from jobkit.plain import clean, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path
    from typing import Self

    from jobkit.flow import JobSide, Track
    from jobkit.interfaces import Port, Transaction, Work
    from jobkit.model import Json

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class ContextBase:
    """The members that are the same in both views."""

    __slots__ = ("_port", "_side", "_work")

    def __init__(self, work: Work, port: Port, side: JobSide) -> None:
        """Made by an executor.

        Args:
            work: The attempt.
            port: The way out.
            side: The way to the job.
        """
        self._work, self._port, self._side = work, port, side

    @property
    def id(self) -> UUID:
        """The job's id."""
        return UUID(self._work.job_id)

    @property
    def name(self) -> str:
        """The job's registered name."""
        return self._work.name

    @property
    def attempt(self) -> int:
        """The attempt's number, from 1; it rises at every claim and fences every write."""
        return self._work.attempt

    @property
    def node(self) -> str:
        """The node that runs this attempt."""
        return self._work.node

    @property
    def metadata(self) -> Mapping[str, Json]:
        """The metadata given at dispatch."""
        return self._work.metadata

    @property
    def resources(self) -> Mapping[str, Any]:
        """What the application gave its manager for handlers."""
        return self._port.resources

    @property
    def is_resuming(self) -> bool:
        """Whether an earlier attempt was made."""
        return self._work.attempt > 1

    @property
    def data_dir(self) -> Path:
        """The job's own folder, kept over all attempts; made on first use, removed with the job."""
        return self._port.folder(of_attempt=False)

    @property
    def output_dir(self) -> Path:
        """This attempt's own folder; made on first use."""
        return self._port.folder(of_attempt=True)

    def once_key(self, name: str) -> str:
        """Make an idempotency key for a call to an outside system.

        Args:
            name: What the call does, unique within the job.

        Returns:
            A text that is the same in every attempt of this job, and in no other job.
        """
        return f"{self._work.job_id}:{name}"

    def progress(
        self,
        progress: float | Progress | None = None,
        *,
        completed: float | None = None,
        total: float | None = None,
        unit: str | None = None,
        phase: str | None = None,
        message: str | None = None,
        data: Json = None,
    ) -> None:
        """Say how far the job has come. Never blocks or raises; what is too frequent is left out, the last is not.

        Args:
            progress: 0.0 to 1.0, or a whole `Progress`. With nothing given the progress is indeterminate.
            completed: Units done.
            total: Units in all; with `completed` it gives the fraction.
            unit: What is counted.
            phase: The part of the work under way.
            message: One line for people.
            data: Anything JSON can say.
        """
        if not isinstance(progress, Progress):
            progress = Progress(progress, completed, total, unit, phase, message, data)
        self._port.report(self._sayable(progress))

    def _sayable(self, given: Progress) -> Progress:
        """Make of it what JSON can say, now: what the handler changes later is not to be seen half changed."""
        data = given.data
        if data is not None and type(data) not in _SCALARS:
            try:
                data = plain(data)
            except Exception as error:  # noqa: BLE001  reporting progress never fails
                self._port.log(f"the data of this progress can't be shown ({type(error).__name__})", "warning", {})
                data = None
        completed, total = _number(given.completed), _number(given.total)
        return Progress(
            _fraction(given.fraction, completed, total), completed, total,
            _text(given.unit), _text(given.phase), _text(given.message), data,
        )  # fmt: skip

    def log(self, message: str, /, *, level: str = "info", **fields: object) -> None:
        """Write a line to the job's log. Never blocks or raises.

        The line is kept with the job, in order: stored by the next checkpoint or within a second, whichever comes
        first, and then to be read by `JobManager.logs` and streamed by `events`. Another attempt's are kept beside it.
        It goes to `logging` at once, as the logger `jobkit.job`, under the job's name and id.

        A line is kept to 8 KiB, and its fields to another 8. All lines of a job may take so many bytes as the setting
        `max_log_bytes` says, with 100 for each line: the first are kept, and the last quarter is for warnings and
        errors alone. That lines are left out is said where it begins, and how many at the end of the attempt; they
        still go to `logging`.

        Args:
            message: The line.
            level: `"debug"`, `"info"`, `"warning"` or `"error"`; anything else is taken for `"info"`.
            **fields: Details. What JSON can't say is kept as text; secrets are masked as in parameters.
        """
        self._port.log(_line(message), _text(level) or "", {name: _shown(value) for name, value in fields.items()})

    def warn(self, message: str, /, **fields: object) -> None:
        """Write a warning, as `log` writes a line. Warnings and errors are counted on the job's record.

        Args:
            message: The line.
            **fields: Details.
        """
        self._port.log(_line(message), "warning", {name: _shown(value) for name, value in fields.items()})


_SCALARS: Final = frozenset({bool, str})


def _fraction(given: object, completed: float | None, total: float | None) -> float | None:
    fraction = _number(given)
    if given is None and completed is not None and total is not None:
        fraction = completed / total if total else 1.0
    return None if fraction is None else min(1.0, max(0.0, float(fraction)))


def _number(given: object) -> float | None:
    """A number that JSON can say; None for what is none."""
    try:
        number = float(cast("Any", given))
    except Exception:  # noqa: BLE001  reporting progress never fails
        return None
    if number - number != 0.0:  # NaN and the infinities
        return None
    return given if type(given) is int else number


def _text(given: object) -> str | None:
    if given is None or type(given) is str:
        return given
    try:
        return str.__str__(str(given))  # as a plain str, whatever a class of its own makes of one
    except Exception:  # noqa: BLE001  reporting progress never fails
        return None


def _line(message: object) -> str:
    text = "None" if message is None else _text(message)
    return "(a message that can't be shown)" if text is None else text


def _shown(value: object) -> Json:
    """What a line of the log shows of a value, now: as JSON, or else as text."""
    if value is None or type(value) in _SCALARS:
        return cast("Json", value)
    with suppress(Exception):  # logging never fails
        return plain(value)
    with suppress(Exception):
        return clean(repr(value))
    return "(a value that can't be shown)"


class JobContext(ContextBase, DurableCalls):
    """A running handler's view of its job."""

    __slots__ = ()

    async def checkpoint(self, *, session: Transaction | None = None) -> None:
        """Save the job's state now; on return it is durable, and every later attempt starts from it or a newer one.

        A cancellation that comes meanwhile waits until the state is saved.

        Args:
            session: A SQLAlchemy `Session` or `Connection` on jobkit's own database, with what the handler has written
                there: data and state are committed together, by this call, so each happens exactly once. It blocks
                this thread for the commit, and nothing may follow in that transaction.

        Raises:
            Interrupt: The state is saved and the handler is to stop; let it through.
            LeaseLost: Another attempt has taken over; nothing was saved.
            SerializationError: A state field holds what can't be stored; nothing was saved.
            StateTooLarge: The state is over the limit; nothing was saved.
            InvalidOption: The session isn't one on jobkit's database.
        """
        if session is None:
            await self._save()
        else:
            self._port.save_within(session, self._side.pack())
            await self._port.breathe()

    async def check_interrupt(self) -> None:
        """Stop here if a pause, cancel, time-out or shutdown is wanted, saving the state first as `checkpoint` would.

        Raises:
            Interrupt: The state is saved and the handler is to stop; let it through.
            LeaseLost: Another attempt has taken over.
        """
        if self._port.due() is not None:
            await self._save()
        await self._port.breathe()


def drive(coroutine: Coroutine[Any, Any, R]) -> R:
    """Run a coroutine that awaits nothing but a blocking port, to its end, without a loop.

    Args:
        coroutine: The coroutine; it is used up.

    Returns:
        Its result.

    Raises:
        RuntimeError: It awaited something else.
    """
    try:
        coroutine.send(None)
    except StopIteration as end:
        return cast("R", end.value)
    coroutine.close()
    message = "a sync handler awaited something that is not its context: make run() async, or call a blocking function"
    raise RuntimeError(message)


class _blocking(Generic[P, R]):  # noqa: N801  used as a decorator would be
    """A method of `JobContext`, seen from a thread."""

    def __init__(self, method: Callable[Concatenate[JobContext, P], Coroutine[Any, Any, R]]) -> None:
        self._method = method
        self.__doc__ = method.__doc__

    @overload
    def __get__(self, view: None, owner: type) -> Self: ...
    @overload
    def __get__(self, view: BlockingJobContext, owner: type) -> Callable[P, R]: ...
    def __get__(self, view: BlockingJobContext | None, owner: type) -> Self | Callable[P, R]:
        if view is None:
            return self

        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            with view._turns:  # noqa: SLF001  the two are one
                return drive(self._method(view._awaited, *args, **kwargs))  # noqa: SLF001  as above

        return call


class BlockingJobContext(ContextBase):
    """The same view for a sync handler, which runs in a thread: same names, no `await`.

    Threads of the handler's own may share it: they take turns, so that a state packed later is never saved earlier.
    """

    __slots__ = ("_awaited", "_turns")

    def __init__(
        self,
        work: Work,
        port: Port,
        side: JobSide,
        turns: AbstractContextManager[Any] = nullcontext(),  # noqa: B008  it has no state
    ) -> None:
        """Made by an executor.

        Args:
            work: The attempt.
            port: The way out.
            side: The way to the job.
            turns: A lock, for as many threads as the handler may start.
        """
        super().__init__(work, port, side)
        self._awaited = JobContext(work, port, side)
        self._turns = turns

    checkpoint: Final = _blocking(JobContext.checkpoint)
    check_interrupt: Final = _blocking(JobContext.check_interrupt)
    sleep: Final = _blocking(JobContext.sleep)
    sleep_until: Final = _blocking(JobContext.sleep_until)
    wait_for: Final = _blocking(JobContext.wait_for)
    spawn: Final = _blocking(JobContext.spawn)
    gather: Final = _blocking(JobContext.gather)
    _keep: Final = _blocking(JobContext._keep)  # noqa: SLF001  the two are one

    def step(self, name: str, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Do as `JobContext.step` does, with a function that is not async: it is called here, in the handler's thread.

        Args:
            name: The step's name, unique within the job.
            call: The function.
            *args: Its arguments.
            **kwargs: Its keyword arguments.

        Returns:
            What it returned, equal and of its own type.

        Raises:
            TypeError: What it returned has to be awaited, which a thread can't do.
            SerializationError: The result can't be stored; the step counts as not done.
            JournalConflict: The name was used for another call.
        """
        found = self._side.journal.enter(name, "step")
        if found is not None:
            return self._side.codec(call).unpack(found[0])
        result = call(*args, **kwargs)
        if isawaitable(result):
            getattr(result, "close", bool)()
            message = f"step({name!r}) of a sync job got an async function: make it a plain def, or run() async"
            raise TypeError(message)
        self._keep(name, call, result)
        return result

    def track(self, items: Iterable[T], cursor: str, every: int | None = None) -> BlockingTrack[T]:
        """Loop over items as `JobContext.track` does: `for item in ctx.track(files, "files")`.

        Args:
            items: What to loop over: the same items in the same order in every attempt.
            cursor: The loop's name, unique within the job or the body that it stands in.
            every: Make a checkpoint after so many items; None goes by time, the setting `checkpoint_every_s`.

        Returns:
            An iterator.

        Raises:
            TypeError: The items can be looped over only once: give a list.
            JournalConflict: The name was used for another call.
        """
        return BlockingTrack(self._awaited.track(items, cursor, every), self._turns)


class BlockingTrack(Iterator[T], Generic[T]):
    """A loop that goes on where the last checkpoint was; see `BlockingJobContext.track`."""

    def __init__(self, track: Track[T], turns: AbstractContextManager[Any]) -> None:
        """Made by `track`."""
        self._track, self._turns = track, turns

    def __next__(self) -> T:
        try:
            with self._turns:
                return drive(self._track.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None


__all__ = ["BlockingJobContext", "ContextBase", "Interrupt", "JobContext", "drive"]
