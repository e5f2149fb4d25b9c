"""Every seam on one page: what the runtime needs of the world, and what crosses.

A seam is a Protocol; the values that cross it stand beside it. The store takes *writes* and answers each with a value
or an error; the executor takes *work* and answers with an *outcome*; a handler's context reaches the runtime through a
*port*. Clock, ids and threads are seams too, so that the whole runtime can run in simulated time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias, TypeVar, runtime_checkable

from jobkit.bounds import MAX_BYTES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path
    from uuid import UUID

    from jobkit.filters import JobFilter
    from jobkit.lifecycle import Cause, Standing
    from jobkit.lifecycle import Transition as Transition  # noqa: PLC0414  an observer's author names its type from here
    from jobkit.model import Event, Failure, JobRecord, JobStats, JobStatus, Json, LogLevel, Page, Progress

T = TypeVar("T")

InterruptKind: TypeAlias = Literal["cancel", "time-out", "pause", "shutdown", "suspend"]
"""Why a handler is stopped, strongest first."""


class Interrupt(BaseException):
    """Stops a handler at a checkpoint. Let it through; clean up in `finally`.

    It derives from `BaseException`, so that `except Exception` cannot swallow a pause.

    Attributes:
        kind: Why: `"cancel"`, `"time-out"`, `"pause"`, `"shutdown"` or `"suspend"`.
    """

    def __init__(self, kind: InterruptKind) -> None:
        super().__init__(kind)
        self.kind = kind


# ── the store: writes, and what they come to ──


class NewJob(NamedTuple):
    """A job to be stored. Texts are stored as they are; `tags` and `metadata` are indexed too."""

    id: str
    name: str
    version: int
    queue: str
    priority: int
    resumable: bool
    params: dict[str, Json]
    params_data: bytes
    state: bytes | None = None
    key: str | None = None
    label: str | None = None
    description: str | None = None
    user: str | None = None
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, Json] = {}
    parent_id: str | None = None


class Wait(NamedTuple):
    """What a suspended job waits for: the end of another job, by its id, or a signal, by its name."""

    kind: Literal["job", "signal"]
    on: str


class Insert(NamedTuple):
    """Store jobs, all or none. Answered by a tuple of `Stored`, or `KeyConflict`."""

    jobs: tuple[NewJob, ...]


class Stored(NamedTuple):
    """Where a new job went: its own id, or that of the job that had its key."""

    id: str
    created: bool


class LogLine(NamedTuple):
    """A line of a job's log, as it is stored.

    Attributes:
        message: The line.
        level: How grave it is.
        fields: Details.
        size: How many bytes of the job's log it takes.
        waited_s: For how long it had waited when it was handed over, in seconds: it was told so much before the commit.
    """

    message: str
    level: LogLevel
    fields: dict[str, Json]
    size: int
    waited_s: float = 0.0


class Change(NamedTuple):
    """Let a cause act on a job, with what belongs to it. Answered by a `Transition`, or by why it can't be.

    Attributes:
        job_id: The job.
        cause: What happened.
        expected: The standing that the writer knows. An attempt and a sweep give it: if the job has another attempt or
            status by now, nothing is changed and the answer is `LeaseLost`. A request gives None: it acts on what is
            there.
        node: The node that starts it (claim).
        state: The sealed state to save (checkpoint).
        progress: The latest progress.
        output: The result, packed and as JSON (complete).
        failure: Why it failed (fail, unloadable).
        lines: What the attempt has logged since its last write; stored as `log` events, before that of the cause.
        warnings: How many warnings and errors it has logged since then, also those that are not among the lines.
        waits: What it waits for (suspend); what has come already counts for nothing.
        spawns: Jobs to store with it (checkpoint).
    """

    job_id: str
    cause: Cause
    expected: Standing | None = None
    state: bytes | None = None
    progress: Progress | None = None
    output: tuple[bytes, Json] | None = None
    failure: Failure | None = None
    lines: tuple[LogLine, ...] = ()
    warnings: int = 0
    waits: tuple[Wait, ...] = ()
    spawns: tuple[NewJob, ...] = ()


class Send(NamedTuple):
    """Send a signal to a job, which keeps the first of each name. Answered by a `Transition`, or why it can't be."""

    job_id: str
    name: str
    payload: bytes


class Claim(NamedTuple):
    """Start up to `room` queued jobs. Answered by a list of `Claimed`, best first; `LeaseLost` if the life is over.

    Attributes:
        life: The claiming life's id.
        node: Its node's name.
        room: How many jobs at most.
        versions: What it can run: the newest known version by name.
        queues: The queues to serve; None for all.
        suspects: Whether one of them may be a suspect: a life runs at most one at a time.
    """

    life: str
    node: str
    room: int
    versions: Mapping[str, int]
    queues: tuple[str, ...] | None = None
    suspects: bool = True


class Claimed(NamedTuple):
    """A job that was started: its standing, what its handler needs, and what earlier attempts have told."""

    transition: Transition
    name: str
    version: int
    params_data: bytes
    state: bytes | None
    metadata: dict[str, Json]
    progress: Progress | None
    log_bytes: int


Fate: TypeAlias = Literal["alive", "crashed", "rebooted", "unknown"]
"""What can be told from here of a life's process: that it lives, or how it died."""

Ending: TypeAlias = Literal["left", "crashed", "rebooted", "expired"]
"""How a life ended: in good order, by a death that was proven, or with its lease."""


class Life(NamedTuple):
    """One run of a manager.

    Attributes:
        id: Its own id; also the name of its lock.
        node: The node's name, for people.
        host: The machine.
        boot_id: The machine's present boot.
        pid: Its process.
        working: Whether it takes jobs; not any more once it is being stopped.
        versions: What it can run.
        started_at: When it began.
        lease_until: Until when it may be taken to be alive without further proof.
        ended_at: When it ended or was found dead.
    """

    id: str
    node: str
    host: str
    boot_id: str
    pid: int
    working: bool
    versions: Mapping[str, int]
    started_at: datetime | None = None
    lease_until: datetime | None = None
    ended_at: datetime | None = None


class Register(NamedTuple):
    """Enter a life. Answered by its `lease_until`."""

    life: Life
    lease_s: float


class Renew(NamedTuple):
    """Renew a life's lease. Answered by the new `lease_until`; `LeaseLost` if it was found dead meanwhile."""

    life: str
    lease_s: float


class Leave(NamedTuple):
    """Note that a life is being stopped: it takes no more jobs, and if it is killed from now on, that is no crash."""

    life: str


class Retire(NamedTuple):
    """Note that a life is over, and which of its jobs a crash counts against. Answered by True if it wasn't noted."""

    life: str
    how: Ending = "left"


class End(NamedTuple):
    """A life's end.

    Attributes:
        at: When it had ended at the latest.
        how: In which way.
        blamed: The job that its crash counts against, if that could be told.
    """

    at: datetime
    how: Ending
    blamed: str | None


Write: TypeAlias = Insert | Change | Send | Claim | Register | Renew | Leave | Retire


class Ended(NamedTuple):
    """What a caller who waits for a result needs to know of a job."""

    name: str
    status: JobStatus
    reason: str | None
    output: bytes | None
    failure: Failure | None


class Situation(NamedTuple):
    """What stands around a job that isn't running.

    Attributes:
        waits: What it waits for.
        across_restarts: Whether its pause outlasts a restart.
        suspect: Whether it was running when its worker crashed, and has not been saved since.
        queue_paused: Whether its queue is paused.
        ahead: How many jobs of its queue stand before it.
        counted: Whether these are all, and not as many as are counted at most.
    """

    waits: tuple[Wait, ...] = ()
    across_restarts: bool = False
    suspect: bool = False
    queue_paused: bool = False
    ahead: int = 0
    counted: bool = True


@runtime_checkable
class Store(Protocol):
    """The database. Synchronous: it knows no event loop; `commit` is called from one thread, reads from any."""

    @property
    def location(self) -> str:
        """Where it is, for people; passwords masked."""
        ...

    def open(self) -> None:
        """Connect, and create or upgrade the schema.

        Raises:
            StoreUnavailable: It can't be reached, read or written.
            SchemaMismatch: A newer release wrote it.
        """
        ...

    def close(self) -> None:
        """Let go of every connection and file."""
        ...

    def hurry(self) -> None:
        """Wait for others who write no longer than a moment from now on, until it is opened again; from any thread."""
        ...

    def commit(self, batch: Sequence[Write]) -> list[Any]:
        """Apply the writes in their order, in one transaction.

        Args:
            batch: The writes; no two for one job.

        Returns:
            For each write its answer, or the exception that it alone has earned.

        Raises:
            StoreUnavailable: Nothing of the batch was applied.
        """
        ...

    def within(self, transaction: Transaction, write: Insert | Change) -> Any:
        """Apply a write inside a transaction of the user's, in the user's thread; it is the user's to commit.

        Args:
            transaction: It.
            write: The write.

        Returns:
            Its answer.

        Raises:
            InvalidOption: It is no transaction on this database that can be joined.
            StoreUnavailable: The database is locked or away.
            JobkitError: What the write has earned.
        """
        ...

    def get(self, job_id: str) -> JobRecord | None:
        """Read one job; None if there is none of that id."""
        ...

    def ended(self, job_id: str) -> Ended | None:
        """Read what came of a job so far; None if there is none of that id."""
        ...

    def situation(self, job_id: str) -> Situation:
        """What stands around a job."""
        ...

    def page(self, where: JobFilter, limit: int, cursor: str | None) -> Page[JobRecord]:
        """Read the next jobs after a cursor, newest first."""
        ...

    def stats(self, where: JobFilter) -> JobStats:
        """Count jobs and measure how long they ran."""
        ...

    def events(self, job_id: str | None, after: str | None, types: Sequence[str] | None, limit: int) -> list[Event]:
        """Read stored events in order, of one job or of all, after a cursor."""
        ...

    def state(self, job_id: str) -> tuple[int, bytes] | None:
        """The number of the latest checkpoint and its sealed state."""
        ...

    def signal(self, job_id: str, name: str) -> bytes | None:
        """The payload of a signal that was sent to a job."""
        ...

    def due(self, limit: int) -> list[Standing]:
        """Jobs whose time has come: scheduled ones, and waiting ones that wait no longer."""
        ...

    def next_due(self) -> datetime | None:
        """When the next job's time comes."""
        ...

    def lives(self) -> list[Life]:
        """All lives that are not over."""
        ...

    def orphans(self, limit: int) -> list[Standing]:
        """Jobs whose owner's life is over: running or assigned there, or paused by its shutdown."""
        ...

    def ends(self, lives: Sequence[str]) -> dict[str, End]:
        """How these lives that are noted as over have ended."""
        ...

    def paused(self, before: datetime, limit: int) -> list[Standing]:
        """Jobs that were paused before a restart, and that it resumes."""
        ...

    def asked(self, life: str) -> list[Standing]:
        """Running jobs of a life of which something is wanted."""
        ...

    def unknown(self, versions: Mapping[str, int], limit: int) -> list[Standing]:
        """Queued jobs that none of those who know these names and versions can run; among the first in line."""
        ...

    def known_again(self, versions: Mapping[str, int], limit: int) -> list[Standing]:
        """Jobs held as unknown that those who know these names and versions can run."""
        ...

    def claimable(self, versions: Mapping[str, int], queues: Sequence[str] | None, *, suspects: bool = True) -> bool:
        """Whether a claim would find anything."""
        ...

    def now(self) -> datetime:
        """The database's time."""
        ...

    def hold(self, life: str) -> Hold | None:
        """Take hold of a new life's lock; None where lives are judged by their leases alone."""
        ...

    def fate(self, life: Life) -> Fate:
        """What can be told from here of a life's process."""
        ...


class Hold(Protocol):
    """A life's proof of being alive, held open for as long as it lives.

    Attributes:
        suffices: Whether everybody who may take the life's jobs can see it, so that nobody does just for its lease.
    """

    suffices: bool

    def close(self) -> None:
        """Let go, as a death would: what stays is the proof that the life is over."""
        ...

    def release(self) -> None:
        """Let go without a trace, of a life that was never entered."""
        ...


# ── the executor: work, and what it comes to ──


class Work(NamedTuple):
    """One attempt, as it crosses to wherever the handler runs: bytes and plain values alone."""

    job_id: str
    name: str
    version: int
    attempt: int
    params: bytes
    state: bytes | None
    metadata: dict[str, Json]
    node: str
    checkpoint_every_s: float = 1.0
    max_state_bytes: int = MAX_BYTES


class Completed(NamedTuple):
    """The handler returned: its output, packed and as JSON."""

    output: bytes
    shown: Json


class Failed(NamedTuple):
    """The handler raised."""

    failure: Failure


class Interrupted(NamedTuple):
    """The handler let an interrupt through; its state is saved unless it was stopped by force."""

    kind: InterruptKind


class Unloadable(NamedTuple):
    """The stored bytes could not be made into a job; no code of the user's was run."""

    reason: Literal["corrupt_state", "needs_migration", "unknown_job"]
    failure: Failure


class Fenced(NamedTuple):
    """The attempt lost its lease; nothing that it says counts any more."""


Outcome: TypeAlias = Completed | Failed | Interrupted | Unloadable | Fenced


class Transaction(Protocol):
    """A transaction of the user's own on jobkit's database: what SQLAlchemy's `Session` and `Connection` share."""

    def commit(self) -> None:
        """Commit all that was done in it."""
        ...

    def rollback(self) -> None:
        """Undo all that was done in it."""
        ...


class Suspension(NamedTuple):
    """What a handler leaves behind that is to be entered again.

    Attributes:
        state: Its sealed state.
        due_at: When it goes on at the latest; None for as long as it waits.
        waits: What it waits for.
    """

    state: bytes
    due_at: datetime | None = None
    waits: tuple[Wait, ...] = ()


class SignalOf(NamedTuple):
    """Asks for the payload of a signal that was sent to this job; answered by None if there is none."""

    name: str


class EndsOf(NamedTuple):
    """Asks what came of jobs so far; answered by an `Ended` for each, or None where there is no such job."""

    jobs: tuple[str, ...]


Question: TypeAlias = SignalOf | EndsOf
"""What a handler's side may ask the database."""


class Line(Protocol):
    """What a handler's side asks and tells without waiting. Every method may be called from any thread."""

    def now(self) -> datetime:
        """The database's time, as well as it can be told from here."""
        ...

    def new_id(self) -> str:
        """An id for a new job."""
        ...

    def handle(self, job_id: str, name: str) -> Any:
        """A handle of a job, of the kind that fits this side."""
        ...

    def save_within(self, transaction: Transaction, state: bytes) -> None:
        """Save a packed state in the user's own transaction and commit that, in this thread.

        Raises:
            Interrupt: Both are committed, and the handler is to stop.
            LeaseLost: Another attempt holds the job; nothing was committed, and the transaction is rolled back.
            InvalidOption: It is no transaction on jobkit's database.
        """
        ...

    def suspend(self, suspension: Suspension) -> None:
        """Take note of what to store once the handler has come to its end, which it is to do now.

        Raises:
            LeaseLost: Another attempt holds the job.
            StateTooLarge: It can't be stored.
        """
        ...

    def due(self) -> InterruptKind | None:
        """Why the handler should stop at its next checkpoint, if it should."""
        ...

    def report(self, progress: Progress) -> None:
        """Take note of the latest progress; never blocks."""
        ...

    def log(self, message: str, level: str, fields: Mapping[str, Json]) -> None:
        """Take a line for the job's log; never blocks."""
        ...

    def folder(self, *, of_attempt: bool) -> Path:
        """Make the job's folder, or that of this attempt, and answer its path."""
        ...

    @property
    def resources(self) -> Mapping[str, Any]:
        """What the application gave the manager for its handlers."""
        ...


class Link(Line, Protocol):
    """An executor's way back to the runtime."""

    async def save(self, state: bytes, spawns: Sequence[NewJob] = ()) -> None:
        """Save a packed state, and new jobs with it, and return once they are durable.

        Raises:
            Interrupt: It is saved, and the handler is to stop.
            LeaseLost: Another attempt holds the job; nothing was saved.
            StateTooLarge: Nothing was saved.
        """
        ...

    def save_blocking(self, state: bytes, spawns: Sequence[NewJob] = ()) -> None:
        """Do the same as `save`, for a thread that may block."""
        ...

    async def ask(self, question: Question) -> Any:
        """Look something up in the database."""
        ...

    def ask_blocking(self, question: Question) -> Any:
        """Do the same as `ask`, for a thread that may block."""
        ...


class Executor(Protocol):
    """Carries a handler to where it runs. Retries, leases and checkpoints are the runtime's.

    Attributes:
        stoppable: Whether cancelling `run` stops the handler; if not, it is left behind and may go on.
    """

    stoppable: bool

    async def run(self, work: Work, link: Link) -> Outcome:
        """Run one attempt to its end, unless the call is cancelled."""
        ...


class Port(Line, Protocol):
    """A context's way out. On a loop it suspends; in a thread it blocks and never suspends."""

    async def save(self, state: bytes, spawns: Sequence[NewJob] = ()) -> None:
        """Save a packed state, as `Link.save` does."""
        ...

    async def ask(self, question: Question) -> Any:
        """Look something up, as `Link.ask` does."""
        ...

    async def breathe(self) -> None:
        """Let others run, where they share a loop."""
        ...


# ── time, chance and threads ──


class Clock(Protocol):
    """Time. Durations are measured by `monotonic`; due times and leases go by the database's clock."""

    def now(self) -> datetime | None:
        """The time that the database is to use; None for its own."""
        ...

    def monotonic(self) -> float:
        """Seconds from an arbitrary start."""
        ...

    def wall(self) -> datetime:
        """This node's own time (aware), for what is shown; nothing is decided by it."""
        ...

    async def wait(self, signal: Signal, seconds: float) -> bool:
        """Wait until a signal is set or the time is over; answer whether it was set."""
        ...


class Signal(Protocol):
    """What a task waits for: an `anyio.Event`."""

    def is_set(self) -> bool:
        """Whether there is nothing to wait for."""
        ...

    async def wait(self) -> None:
        """Wait until it is set."""
        ...


class ThreadSignal(Protocol):
    """What a thread waits for: a `threading.Event`."""

    def is_set(self) -> bool:
        """Whether there is nothing to wait for."""
        ...

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, or for so many seconds; answer whether it is set."""
        ...


class Ids(Protocol):
    """Where new ids come from."""

    def new(self) -> UUID:
        """Make an id that sorts after all that were made here before."""
        ...


class Threads(Protocol):
    """Where threads come from, and how they wait. None of them keeps the process alive."""

    def start(self, run: Callable[[], None], name: str) -> None:
        """Run a function in a thread of its own."""
        ...

    async def run(self, call: Callable[[], T], name: str) -> T:
        """Run a function in a thread of its own and wait for its result; if cancelled, leave it behind."""
        ...

    def wait(self, signal: ThreadSignal, seconds: float) -> bool:
        """Wait in a thread until a signal is set or the time is over; answer whether it was set."""
        ...


# ── extension: two seams, given to the manager ──


class Attempt(NamedTuple):
    """What middleware sees of an attempt."""

    job_id: UUID
    name: str
    attempt: int
    resuming: bool
    metadata: Mapping[str, Json]


Middleware: TypeAlias = "Callable[[Attempt, Callable[[], Awaitable[Outcome]]], Coroutine[Any, Any, Outcome]]"
"""Wraps one attempt: is called with it and with the rest of the chain, and answers the outcome."""

Observer: TypeAlias = "Callable[[Transition], None]"
"""Hears each transition that this process has committed; can change nothing and must not block."""
