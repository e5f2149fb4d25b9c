"""Every error that jobkit raises: one tree, each with a stable code.

Why one file: a caller that catches `JobkitError` catches all of them and nothing else, and a face can translate an
error by its `code` without knowing the class. A message always says what to do next; what it speaks of is also an
attribute. A handler's own failure is never raised through here: it is data (`Failure`), carried by `JobFailed`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from jobkit.model import Failure

__all__ = [
    "DuplicateJob", "FrozenParameter", "IllegalTransition", "InvalidFilter", "InvalidJob", "InvalidJobId",
    "InvalidOption", "InvalidOutput", "InvalidParams", "InvalidSettings", "JobCancelled", "JobFailed", "JobHeld",
    "JobLost", "JobNotFound", "JobTimedOut", "JobkitError", "KeyConflict", "LeaseLost", "ManagerNotRunning",
    "SchemaMismatch", "SerializationError", "StateCorrupt", "StateTooLarge", "StateVersionError", "StoreUnavailable",
    "UnknownJob",
]  # fmt: skip


class JobkitError(Exception):
    """The root of the tree.

    Attributes:
        code: A stable, machine-readable name of the error's kind.
    """

    code: ClassVar[str] = "jobkit_error"


# ── defining and naming jobs ──


class InvalidJob(JobkitError, TypeError):
    """A class that can't work as a job was decorated."""

    code = "invalid_job"


class DuplicateJob(JobkitError):
    """Two different definitions claim one job name."""

    code = "duplicate_job"
    name: str
    first: str
    second: str

    def __init__(self, name: str, first: str, second: str) -> None:
        super().__init__(
            f"the job name {name!r} belongs to {first}; {second} needs another: write @job({name + '_2'!r}), "
            f"or remove one of the two definitions"
        )
        self.name, self.first, self.second = name, first, second


class UnknownJob(JobkitError, LookupError):
    """No job of that name is registered here."""

    code = "unknown_job"
    name: str
    near: tuple[str, ...]

    def __init__(self, name: str, near: Sequence[str] = ()) -> None:
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "import the module that defines it first"
        super().__init__(f"no job is registered under the name {name!r}: {hint}")
        self.name, self.near = name, tuple(near)


class InvalidParams(JobkitError, ValueError):
    """Parameters do not fit the job's definition.

    Attributes:
        name: The job's name.
        fields: What is wrong with each field, by its dotted path.
    """

    code = "invalid_params"
    name: str
    fields: dict[str, str]

    def __init__(self, name: str, fields: Mapping[str, str]) -> None:
        listed = "; ".join(f"{path or 'params'}: {problem}" for path, problem in fields.items())
        super().__init__(f"the parameters of {name!r} are not valid: {listed}")
        self.name, self.fields = name, dict(fields)


class InvalidSettings(JobkitError, ValueError):
    """Settings that can't be used; all of them are told at once.

    Attributes:
        fields: What is wrong with each setting, by its name.
        sources: Where each of these values stands, by the setting's name, as far as known.
    """

    code = "invalid_settings"
    fields: dict[str, str]
    sources: dict[str, str]

    def __init__(self, fields: Mapping[str, str], sources: Mapping[str, str] | None = None) -> None:
        self.fields, self.sources = dict(fields), dict(sources or {})
        told = (f"{name}{self._source(name)}: {problem}" for name, problem in self.fields.items())
        super().__init__(f"the settings are not valid: {'; '.join(told)}")

    def _source(self, name: str) -> str:
        return f" ({self.sources[name]})" if name in self.sources else ""


class FrozenParameter(JobkitError, AttributeError):
    """A parameter was assigned after its job had been dispatched."""

    code = "frozen_parameter"
    job: str
    field: str

    def __init__(self, job: str, field: str) -> None:
        super().__init__(
            f"{job}.{field} is a parameter: it is stored once, at dispatch, and can't change afterwards; "
            f"declare it as {field}: ... = state(...) if a checkpoint is to save it"
        )
        self.job, self.field = job, field


# ── asking for jobs ──


class InvalidJobId(JobkitError, ValueError):
    """A job id that is not a UUID."""

    code = "invalid_job_id"
    value: object

    def __init__(self, value: object) -> None:
        super().__init__(f"{value!r} is not a job id: give a UUID or its 36-character text, as dispatch() returned it")
        self.value = value


class InvalidFilter(JobkitError, ValueError):
    """A filter names a field or a value that does not exist."""

    code = "invalid_filter"
    field: str
    value: object
    allowed: tuple[str, ...]

    def __init__(self, field: str, value: object, allowed: Iterable[str]) -> None:
        self.field, self.value, self.allowed = field, value, tuple(allowed)
        super().__init__(f"{value!r} is no {field} of a job filter; one of: {', '.join(self.allowed)}")


class InvalidOption(JobkitError, ValueError):
    """An option of a dispatch that can't be stored."""

    code = "invalid_option"
    option: str
    value: object

    def __init__(self, option: str, value: object, advice: str) -> None:
        super().__init__(f"{option}={value!r} can't be used: {advice}")
        self.option, self.value = option, value


class ManagerNotRunning(JobkitError):
    """A manager was asked for what it can only do while it runs, or for what it doesn't do."""

    code = "manager_not_running"
    problem: str
    advice: str

    def __init__(
        self,
        problem: str = "the manager is not running",
        advice: str = "enter it as a context manager, or start() it",
    ) -> None:
        super().__init__(f"{problem}: {advice}")
        self.problem, self.advice = problem, advice


class JobNotFound(JobkitError, LookupError):
    """No job has that id."""

    code = "job_not_found"
    job_id: str

    def __init__(self, job_id: str) -> None:
        super().__init__(f"there is no job {job_id}: it may have been deleted, or belong to another database")
        self.job_id = job_id


class KeyConflict(JobkitError):
    """The same name and key were dispatched before, with other parameters."""

    code = "key_conflict"
    name: str
    key: str
    job_id: str

    def __init__(self, name: str, key: str, job_id: str) -> None:
        super().__init__(
            f"{name!r} was dispatched before under the key {key!r}, with other parameters, as job {job_id}: "
            f"use another key for other work"
        )
        self.name, self.key, self.job_id = name, key, job_id


class IllegalTransition(JobkitError):
    """A request that the job's status does not allow.

    Attributes:
        job_id: The job.
        status: Its status now.
        request: What was asked, in a word.
        target: The status it would have led to.
    """

    code = "illegal_transition"
    job_id: str
    status: str
    request: str
    target: str

    def __init__(self, job_id: str, status: str, request: str, target: str, why: str | None = None) -> None:
        super().__init__(
            f"job {job_id} is {status}: {request} would make it {target}, {why or 'which is not possible from there'}"
        )
        self.job_id, self.status, self.request, self.target = job_id, status, request, target


class LeaseLost(JobkitError):
    """An attempt wrote to a job that it no longer holds; nothing was changed."""

    code = "lease_lost"
    job_id: str
    attempt: int

    def __init__(self, job_id: str, attempt: int) -> None:
        super().__init__(
            f"attempt {attempt} no longer holds job {job_id}: another attempt took over, or the job was ended; "
            f"stop working on it"
        )
        self.job_id, self.attempt = job_id, attempt


# ── stored state ──


class JournalConflict(JobkitError):
    """A named call of a handler meets a name that stands for something else.

    Attributes:
        name: The name.
    """

    code = "journal_conflict"
    name: str

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(problem)
        self.name = name


class SerializationError(JobkitError, TypeError):
    """A value can't be stored.

    Attributes:
        path: Where it stands, as a dotted path from the job.
    """

    code = "serialization_error"
    path: str
    problem: str

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path} can't be stored: {problem}")
        self.path, self.problem = path, problem


class StateTooLarge(JobkitError):
    """A state is larger than the setting allows (sizes in bytes)."""

    code = "state_too_large"
    size: int
    limit: int
    largest: str

    def __init__(self, size: int, limit: int, largest: str = "") -> None:
        where = f" (its largest field is {largest})" if largest else ""
        super().__init__(
            f"the state is {size:,} bytes{where}, the limit is {limit:,}: keep bulk data in ctx.data_dir and its path "
            f"in the state, or raise the setting max_state_bytes"
        )
        self.size, self.limit, self.largest = size, limit, largest


class StateCorrupt(JobkitError):
    """Stored bytes are not what was written."""

    code = "state_corrupt"
    problem: str
    job_id: str | None

    def __init__(self, problem: str, job_id: str | None = None) -> None:
        whose = f" of job {job_id}" if job_id else ""
        super().__init__(
            f"the stored state{whose} is damaged: {problem}; restore a backup, or retry from an earlier checkpoint"
        )
        self.problem, self.job_id = problem, job_id


class StateVersionError(JobkitError):
    """What is stored of a job can't be loaded by this build's class: it is newer, or the class has changed since.

    Attributes:
        found: The version that wrote it; that of its parameters, if the class has changed.
        known: The version of this build's class.
        problem: What no longer fits; None if the version is a newer one.
    """

    code = "state_version"
    name: str
    found: int
    known: int
    problem: str | None

    def __init__(self, name: str, found: int, known: int, problem: str | None = None) -> None:
        if problem is None:
            super().__init__(
                f"the state of {name!r} was written by version {found}, this build has version {known}: "
                f"deploy a build that knows version {found}"
            )
        else:
            super().__init__(
                f"what is stored of {name!r} does not fit this build's class: {problem}; "
                f"deploy a build that it fits and release the job, or cancel it"
            )
        self.name, self.found, self.known, self.problem = name, found, known, problem


# ── the database ──


class StoreUnavailable(JobkitError):
    """The database could not be read or written."""

    code = "store_unavailable"
    problem: str
    advice: str

    def __init__(self, problem: str, advice: str) -> None:
        super().__init__(f"{problem}: {advice}")
        self.problem, self.advice = problem, advice


class SchemaMismatch(JobkitError):
    """The database's schema is not one that this release can use."""

    code = "schema_mismatch"
    found: str
    known: str

    def __init__(self, found: str, known: str) -> None:
        super().__init__(
            f"the database has schema {found!r}, this release knows up to {known!r}: "
            f"install the release of jobkit that wrote it, or a newer one"
        )
        self.found, self.known = found, known


# ── how a job ended ──


class InvalidOutput(JobkitError, TypeError):
    """A handler returned something else than its job's class declares."""

    code = "invalid_output"
    name: str
    problem: str

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(
            f"{name!r} returned a value that its declared output does not allow: {problem}; "
            f"return that, or declare what is returned: class ...(Job[...])"
        )
        self.name, self.problem = name, problem


class JobFailed(JobkitError):
    """The job's handler failed; `failure` tells how."""

    code = "job_failed"
    job_id: str
    failure: Failure

    def __init__(self, job_id: str, failure: Failure) -> None:
        super().__init__(f"job {job_id} failed: {failure.type}: {failure.message}")
        self.job_id, self.failure = job_id, failure


class JobCancelled(JobkitError):
    """The job was cancelled before it could complete."""

    code = "job_cancelled"
    job_id: str

    def __init__(self, job_id: str) -> None:
        super().__init__(f"job {job_id} was cancelled: dispatch it again if its result is still wanted")
        self.job_id = job_id


class JobTimedOut(JobkitError):
    """The job ran longer than its time-out."""

    code = "job_timed_out"
    job_id: str

    def __init__(self, job_id: str) -> None:
        super().__init__(f"job {job_id} ran longer than its time-out allows: raise it, or make the job smaller")
        self.job_id = job_id


class JobLost(JobkitError):
    """The job's node vanished and the job can't be resumed."""

    code = "job_lost"
    job_id: str

    def __init__(self, job_id: str) -> None:
        super().__init__(f"job {job_id} is lost: its node vanished and it is not resumable; dispatch it again")
        self.job_id = job_id


class JobHeld(JobkitError):
    """The job waits for a person; `reason` says why."""

    code = "job_held"
    job_id: str
    reason: str | None

    def __init__(self, job_id: str, reason: str | None) -> None:
        super().__init__(
            f"job {job_id} is held ({reason or 'no reason given'}): mend the cause, then release or cancel it"
        )
        self.job_id, self.reason = job_id, reason
