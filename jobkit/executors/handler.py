"""One attempt, from bytes to an outcome: the wall around user code.

Whatever a handler does, `perform` answers with a value: it returned, it raised, it let an interrupt through, its stored
bytes were unreadable, or its lease was lost. Only three things pass through the wall: the event loop's own cancellation,
KeyboardInterrupt and SystemExit, which are not the handler's to decide.
"""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from jobkit.codec import seal, unseal
from jobkit.definition import Job
from jobkit.errors import InvalidParams, JobkitError, LeaseLost, StateCorrupt, StateVersionError
from jobkit.interfaces import Completed, Failed, Fenced, Interrupt, Interrupted, Unloadable
from jobkit.model import Failure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jobkit.definition import JobType
    from jobkit.interfaces import Link, Outcome, Work

ERROR_CHARS: Final = 8 * 1024

_STRENGTH: Final = ("cancel", "time-out", "pause", "shutdown", "suspend")

Invoke: TypeAlias = Callable[[Callable[[Any], Any], Callable[[], bytes]], Awaitable[Any]]
"""Calls a method of the job where it belongs, with the context that fits it; is also given what packs the state."""


async def perform(job_type: JobType, work: Work, link: Link, invoke: Invoke) -> Outcome:
    """Run one attempt to its end.

    Args:
        job_type: What the work's name means here.
        work: The attempt.
        link: The way back to the runtime.
        invoke: How this executor calls a method of the job.

    Returns:
        What came of it.
    """
    try:
        job = _load(job_type, work)
    except (StateCorrupt, InvalidParams) as error:
        return Unloadable("corrupt_state", failure_of(error))
    except StateVersionError as error:
        return Unloadable("needs_migration", failure_of(error))

    def pack() -> bytes:
        return seal(work.job_id, job_type.version, job_type.pack_state(job))

    try:
        if work.attempt > 1:
            await _hook(job, "on_resume", link, invoke, pack)
        result = await invoke(job.run, pack)
        output, shown = job_type.pack_output(result)
        if job_type.pack_params(job) != work.params:
            link.log("a parameter was changed in place; parameters are stored once, so the change is lost", "warning", {})
    except BaseException as error:  # noqa: BLE001  the wall around a handler
        return judge(error, link)
    return Completed(output, shown)


def _load(job_type: JobType, work: Work) -> Job[Any]:
    """Turn stored bytes into a job, or say why they can't be."""
    if work.state is None:
        return job_type.restore(work.params, None)
    envelope = unseal(work.state)
    if envelope.job_id != work.job_id:
        raise StateCorrupt(f"it belongs to job {envelope.job_id}", work.job_id)
    if envelope.version > job_type.version:
        raise StateVersionError(work.name, envelope.version, job_type.version)
    return job_type.restore(work.params, envelope.state)


async def _hook(job: Job[Any], name: str, link: Link, invoke: Invoke, pack: Callable[[], bytes]) -> None:
    """Call a hook if the class has one; what it raises is logged and changes nothing else."""
    if getattr(type(job), name) is getattr(Job, name):
        return
    try:
        await invoke(getattr(job, name), pack)
    except Exception as error:  # noqa: BLE001  the wall around a handler
        link.log(f"{name} raised {type(error).__name__}: {clean(str(error))}", "error", {})


def judge(error: BaseException, link: Link) -> Outcome:
    """Turn what a handler raised into an outcome.

    An interrupt is found inside exception groups and wins over the errors beside it, which are logged; of several, the
    strongest counts. A suspension alone gives way to an error.

    Args:
        error: What was raised.
        link: Where to log what is not told by the outcome.

    Returns:
        The outcome.

    Raises:
        BaseException: The loop's cancellation, KeyboardInterrupt or SystemExit.
    """
    raised = list(_leaves(error))
    if any(isinstance(one, LeaseLost) for one in raised):
        return Fenced()
    interrupts = [one for one in raised if isinstance(one, Interrupt)]
    others = [one for one in raised if not isinstance(one, Interrupt)]
    if interrupts:
        strongest = min(interrupts, key=lambda one: _STRENGTH.index(one.kind))
        if not others or strongest.kind != "suspend":
            for other in others:
                link.log(f"beside the interrupt: {type(other).__name__}: {clean(str(other))}", "error", {})
            return Interrupted(strongest.kind)
    if any(_not_ours(one) for one in others):
        raise error
    return Failed(failure_of(error))


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _leaves(one)
    else:
        yield error


def _not_ours(error: BaseException) -> bool:
    """Whether an exception is the process's or the loop's, not the handler's: by name, since the loop may be any."""
    if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
        return True
    return type(error).__name__ in {"CancelledError", "Cancelled"} and not isinstance(error, Exception)


def clean(text: str, limit: int = ERROR_CHARS) -> str:
    """Make a text that any database and terminal takes: no NUL, control characters or lone surrogates, not too long."""
    kept = "".join(char if char in "\n\t" or char.isprintable() else "\ufffd" for char in text[:limit])
    return kept.encode("utf-8", "replace").decode("utf-8")


def failure_of(error: BaseException) -> Failure:
    """Describe an exception as text. Never raises, whatever the exception's own methods do."""
    kind = type(error).__name__
    try:
        message = clean(str(error))
    except Exception:  # noqa: BLE001  a broken __str__ must not hide the failure
        message = "(its message can't be shown)"
    if isinstance(error, JobkitError):
        return Failure(kind, message)
    try:
        trace = clean("".join(traceback.format_exception(error))[-ERROR_CHARS:])
    except Exception:  # noqa: BLE001  nor must a broken traceback
        trace = ""
    return Failure(kind, message, trace)
