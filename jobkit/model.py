"""The nouns: what a job is, seen from outside.

Plain values without behaviour beyond reading themselves. Nothing here decides: `lifecycle` decides, the store writes.
All times are aware UTC datetimes; all durations are seconds and say so in their names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping  # noqa: TC003  whoever reads these annotations at run time finds their names
from dataclasses import dataclass, field
from datetime import datetime  # noqa: TC003  as above
from enum import IntEnum, StrEnum
from typing import Any, Final, Generic, Literal, NamedTuple, TypeAlias, TypedDict, TypeVar
from uuid import UUID  # noqa: TC003  as above

T = TypeVar("T")

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
"""A value that JSON can say."""

Wanted: TypeAlias = Literal["pause", "cancel"]
"""What was asked of a running job and not yet done."""

LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]
"""How grave a line of a job's log is."""

LOG_LEVELS: Final[tuple[LogLevel, ...]] = ("debug", "info", "warning", "error")
"""From the slightest to the gravest."""

ExecutorName: TypeAlias = Literal["auto", "inline", "thread"]
"""Where a job type asks to run."""

RunsIn: TypeAlias = Literal["inline", "thread"]
"""Where it does."""

MASK: Final = "**********"
"""What people see in the place of a secret."""


class JobStatus(StrEnum):
    """Where a job stands. Other systems' words and any letter case are understood: `JobStatus("PENDING")`."""

    SCHEDULED = "scheduled"
    WAITING = "waiting"
    QUEUED = "queued"
    ASSIGNED = "assigned"
    RUNNING = "running"
    PAUSED = "paused"
    HELD = "held"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    LOST = "lost"

    @property
    def terminal(self) -> bool:
        """Whether a job in this status is finished for good."""
        return self in TERMINAL

    @classmethod
    def _missing_(cls, value: object) -> JobStatus | None:
        if not isinstance(value, str):
            return None
        word = value.strip().lower()
        word = _SYNONYMS.get(word, word)
        return next((status for status in cls if status.value == word), None)


_SYNONYMS: Final = {"pending": "queued", "succeeded": "completed", "canceled": "cancelled", "timeout": "timed_out"}

TERMINAL: Final = frozenset(
    {JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.TIMED_OUT, JobStatus.LOST},
)


class ControlOutcome(StrEnum):
    """What came of a request to pause, resume, cancel or release a job."""

    ACCEPTED = "accepted"
    """It is stored and can't be lost. A running job's handler does it when it comes to its next checkpoint."""

    ALREADY_FINISHED = "already_finished"
    """There was nothing to cancel: the job had reached a terminal status."""


class Priority(IntEnum):
    """How urgent a job is; any integer may be used, these are the named ones."""

    LOW = 1
    NORMAL = 5
    HIGH = 10
    CRITICAL = 15


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job has come.

    A handler says how far; how fast, and for how long still, is worked out from the time for which it ran: neither is
    asked whether two are equal.

    Attributes:
        fraction: 0.0 to 1.0, or None if it can't be told.
        completed: Units done.
        total: Units in all.
        unit: What is counted: `"files"`, `"bytes"`.
        phase: The part of the work under way.
        message: One line for people.
        data: Anything JSON can say, for programs.
        rate: How fast it went on when this was told: units a second of running, or where only the fraction is known,
            how much of that; None until there is enough to tell.
        eta_s: For how many seconds it still had to run then; a pause or a break adds nothing. None if it can't be told.
    """

    fraction: float | None = None
    completed: float | None = None
    total: float | None = None
    unit: str | None = None
    phase: str | None = None
    message: str | None = None
    data: Json = None
    rate: float | None = field(default=None, compare=False)
    eta_s: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed, as text: the exception itself never leaves its process.

    Attributes:
        type: The exception's class name.
        message: Its text, cleaned of control characters and cut to 8 KiB.
        traceback: The formatted traceback, cut to the last 8 KiB; empty if there was none.
    """

    type: str
    message: str
    traceback: str = ""


class Event(NamedTuple):
    """One thing that happened to a job.

    Attributes:
        job_id: The job.
        seq: 1, 2, 3… per job without gaps; `progress` and `checkpoint` are live only and repeat the last stored number.
        type: What happened: `"created"`, `"started"`, `"completed"`…
        status: The job's status after it.
        message: One line for people; of a `log` event, the line.
        data: Details, as JSON. Of a `log` event: its `level`, the `attempt` that told it, and its `fields`.
        at: When, by the database's clock.
        cursor: Where a reader of all jobs goes on from; empty for a live event.
    """

    job_id: UUID
    seq: int
    type: str
    status: JobStatus
    message: str | None
    data: Json
    at: datetime
    cursor: str = ""


EVENT_TYPES: Final = (
    "created", "scheduled", "waiting", "queued", "assigned", "started", "progress", "checkpoint", "log",
    "pause_requested", "cancel_requested", "paused", "resumed", "retried", "held", "released",
    "completed", "failed", "cancelled", "timed_out", "lost",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """One job as it is stored.

    Attributes:
        id: Its id, a UUID of version 7.
        name: The registered job name.
        version: The class version that wrote its parameters.
        label: A short name for people.
        description: A line for people; the class's own by default.
        status: Where it stands.
        reason: Why it is paused (`user`, `shutdown`) or held (`corrupt_state`, …).
        wanted: `"pause"` or `"cancel"` if that was asked of it while running.
        queue: The queue it waits in.
        priority: Higher is claimed sooner.
        params: Its parameters as JSON; secrets are masked.
        progress: The latest progress that was stored.
        output: Its result as JSON, once completed.
        error: Why the last attempt failed.
        warnings: How many warnings and errors its handlers have logged, over all attempts.
        attempt: 0 until the first claim; rises at every claim and fences every write.
        retry_count: Automatic retries so far.
        max_retries: How many it may have.
        crash_count: Deaths of its worker since the last checkpoint.
        checkpoint_seq: 0 until the first checkpoint; each adds 1.
        created_at: When it was dispatched.
        scheduled_at: When it is due, if it was given a time.
        started_at: When it first started.
        completed_at: When it reached a terminal status.
        last_checkpoint_at: When its state was last saved.
        duration_s: Seconds of running time over all attempts; for a running job up to the last transition.
        node: The node that runs it, or ran it last.
        lease_deadline: Until when its owner's lease holds.
        user: Who started it.
        tags: Free words to find it by.
        metadata: Free JSON; its top-level scalars can be filtered.
        parent_id: The job that spawned it.
        depends_on: Jobs that it waits for.
        retry_of: The job that it is a new run of.
        forked_from: The job whose checkpoint it started from.
        key: Its idempotency key.
    """

    id: UUID
    name: str
    version: int
    label: str | None
    description: str | None
    status: JobStatus
    reason: str | None
    wanted: Wanted | None
    queue: str
    priority: int
    params: dict[str, Json]
    progress: Progress | None
    output: Json
    error: Failure | None
    warnings: int
    attempt: int
    retry_count: int
    max_retries: int
    crash_count: int
    checkpoint_seq: int
    created_at: datetime
    scheduled_at: datetime | None
    started_at: datetime | None
    completed_at: datetime | None
    last_checkpoint_at: datetime | None
    duration_s: float | None
    node: str | None
    lease_deadline: datetime | None
    user: str | None
    tags: tuple[str, ...]
    metadata: dict[str, Json]
    parent_id: UUID | None
    depends_on: tuple[UUID, ...]
    retry_of: UUID | None
    forked_from: UUID | None
    key: str | None


@dataclass(frozen=True, slots=True)
class Reason:
    """One thing that stands in a job's way.

    Attributes:
        code: A stable word for it: `"paused"`, `"waits_for_job"`, `"no_worker"`…
        text: One line for people.
        data: Its details, as JSON.
    """

    code: str
    text: str
    data: Json = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a job isn't running. As text, it is the reasons in words.

    Attributes:
        job_id: The job.
        status: Where it stands.
        reasons: What stands in its way, the nearest first.
    """

    job_id: UUID
    status: JobStatus
    reasons: tuple[Reason, ...]

    def __str__(self) -> str:
        return "; ".join(reason.text for reason in self.reasons)


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A part of a list; `next_cursor` leads to the next one, None at the end."""

    items: list[T]
    next_cursor: str | None

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True, slots=True)
class JobStats:
    """Counts and durations. A status reads as an attribute too: `stats.completed`.

    Attributes:
        counts: Jobs by status; every status is there, zeros too.
        total: All of them.
        success_rate: Completed as a share (0–1) of all finished jobs; None if none has finished.
        mean_duration_s: Mean running time of completed jobs, in seconds.
        p95_duration_s: The 95th percentile of the same.
        sampled: Whether durations are of the newest jobs alone.
    """

    counts: dict[str, int]
    total: int
    success_rate: float | None
    mean_duration_s: float | None
    p95_duration_s: float | None
    sampled: bool = False

    def __getattr__(self, name: str) -> int:
        if name in JobStatus.__members__.values():
            return self.counts[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)


class DispatchOptions(TypedDict, total=False):
    """What may be said of a job when it is dispatched.

    Attributes:
        priority: Higher is claimed sooner; the job type's own by default.
        queue: The queue to wait in; the job type's own by default.
        key: An idempotency key: the same name, key and parameters give the same job for as long as it is stored.
        label: A short name for people.
        description: A line for people; the job type's own by default.
        tags: Free words to find it by.
        user: Who started it.
        metadata: Free JSON; its top-level scalars can be filtered.
        session: A SQLAlchemy `Session` or `Connection` on jobkit's database: the job exists if and only if the caller
            commits it. On SQLite it holds the only writer until then: write last, commit soon.
    """

    session: Any
    priority: int
    queue: str
    key: str | None
    label: str | None
    description: str | None
    tags: Iterable[str]
    user: str | None
    metadata: Mapping[str, Json]
