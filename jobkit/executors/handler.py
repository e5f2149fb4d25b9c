"""One attempt, from bytes to an outcome: the wall around user code.

Whatever a handler does, `perform` answers with a value: it returned, it raised, it let an interrupt through, its stored
bytes were unreadable, or its lease was lost. Only three things pass through the wall: the cancellation of the attempt,
KeyboardInterrupt and SystemExit, which are not the handler's to decide. A handler that merely raises a cancellation of
its own, as one does that awaits a cancelled task, has failed like any other.
"""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from jobkit.definition import Job
from jobkit.envelope import seal, unseal
from jobkit.errors import InvalidParams, JobkitError, LeaseLost, StateCorrupt, StateVersionError, UnknownJob
from jobkit.interfaces import Completed, Failed, Fenced, Interrupt, Interrupted, Unloadable
from jobkit.model import Failure
from jobkit.plain import TEXT_BYTES, clean

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jobkit.interfaces import Link, Outcome, Work
    from jobkit.jobtype import JobType
    from jobkit.registration import Registry

_STRENGTH: Final = ("cancel", "time-out", "pause", "shutdown", "suspend")

Invoke: TypeAlias = Callable[[Callable[[Any], Any], Callable[[], bytes]], Awaitable[Any]]
"""Calls a method of the job where it belongs, with the context that fits it; is also given what packs the state."""


async def perform(
    registry: Registry, work: Work, link: Link, invoke: Invoke, stopped: Callable[[], bool] = lambda: False
) -> Outcome:
    """Run one attempt to its end.

    Args:
        registry: Knows what the work's name means here.
        work: The attempt.
        link: The way back to the runtime.
        invoke: How this executor calls a method of the job.
        stopped: Whether the attempt is being cancelled; a cancellation that is raised without it is the handler's own.

    Returns:
        What came of it.
    """
    try:
        job_type = registry.get(work.name)
        job = _load(job_type, work)
    except UnknownJob as error:
        return Unloadable("unknown_job", failure_of(error))
    except StateCorrupt as error:
        return Unloadable("corrupt_state", failure_of(error))
    except (StateVersionError, InvalidParams) as error:
        return Unloadable("needs_migration", failure_of(error))
    except BaseException as error:  # noqa: BLE001  the wall around a handler: loading runs code of its class
        return judge(error, link, stopped=stopped())

    def pack() -> bytes:
        return seal(work.job_id, job_type.version, job_type.pack_state(job))

    try:
        if work.attempt > 1:
            await _hook(job, "on_resume", link, invoke, pack, stopped)
        result = await invoke(job.run, pack)
        output, shown = job_type.pack_output(result)
    except BaseException as error:  # noqa: BLE001  the wall around a handler
        return judge(error, link, stopped=stopped())
    _compare_params(job_type, job, work, link)
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


def _compare_params(job_type: JobType, job: Job[Any], work: Work, link: Link) -> None:
    """Warn of a parameter that was changed in place; the job is completed all the same."""
    try:
        if job_type.pack_params(job) == work.params:
            return
        if job_type.pack_params(job) == job_type.pack_params(job_type.restore(work.params, None)):
            return  # the class has changed since, not the parameters
    except Exception:  # noqa: BLE001, S110  what can't even be packed any more was changed
        pass
    link.log("a parameter was changed in place; parameters are stored once, so the change is lost", "warning", {})


async def _hook(  # noqa: PLR0917  what `perform` knows
    job: Job[Any], name: str, link: Link, invoke: Invoke, pack: Callable[[], bytes], stopped: Callable[[], bool]
) -> None:
    """Call a hook if the class has one; what it raises is logged and changes nothing else.

    Interrupts, a lost lease and whatever is not the handler's own do pass: they are no failures of the hook.
    """
    if getattr(type(job), name) is getattr(Job, name):
        return
    try:
        await invoke(getattr(job, name), pack)
    except BaseException as error:
        raised = list(_leaves(error))
        if any(isinstance(one, Interrupt | LeaseLost) or _not_ours(one, stopped=stopped()) for one in raised):
            raise
        link.log(f"{name} raised {_said(error)}", "error", {})


def judge(error: BaseException, link: Link, *, stopped: bool = False) -> Outcome:
    """Turn what a handler raised into an outcome.

    An interrupt is found inside exception groups and wins over the errors beside it, which are logged; of several, the
    strongest counts. A suspension alone gives way to an error.

    Args:
        error: What was raised.
        link: Where to log what is not told by the outcome.
        stopped: Whether the attempt is being cancelled.

    Returns:
        The outcome.

    Raises:
        BaseException: The attempt's cancellation, KeyboardInterrupt or SystemExit.
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
                link.log(f"beside the interrupt: {_said(other)}", "error", {})
            return Interrupted(strongest.kind)
    if any(_not_ours(one, stopped=stopped) for one in others):
        raise error
    return Failed(failure_of(error))


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _leaves(one)
    else:
        yield error


def _not_ours(error: BaseException, *, stopped: bool) -> bool:
    """Whether an exception is the process's or the loop's, not the handler's."""
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return True
    return stopped and _is_cancellation(error)


def _is_cancellation(error: BaseException) -> bool:
    """By name, since the loop may be any."""
    return type(error).__name__ in {"CancelledError", "Cancelled"} and not isinstance(error, Exception)


# ── errors as text ──


def _message(error: BaseException) -> str:
    try:
        return clean(str(error))
    except BaseException:  # noqa: BLE001  a broken __str__ must not hide the failure
        return "(its message can't be shown)"


def _said(error: BaseException) -> str:
    return f"{clean(type(error).__name__)}: {_message(error)}"


def failure_of(error: BaseException) -> Failure:
    """Describe an exception as text. Never raises, whatever the exception's own methods do."""
    kind, message = clean(type(error).__name__), _message(error)
    if isinstance(error, JobkitError):
        return Failure(kind, message)
    try:
        trace = "".join(traceback.format_exception(error))
        trace = clean(trace[-TEXT_BYTES:].encode(errors="replace")[-TEXT_BYTES:].decode(errors="ignore"))
    except BaseException:  # noqa: BLE001  nor must a broken traceback
        trace = ""
    return Failure(kind, message, trace)
