"""One attempt, from bytes to an outcome: the wall around user code.

Whatever a handler does, `perform` answers with a value: it returned, it raised, it let an interrupt through, its stored
bytes were unreadable, or its lease was lost. Only three things pass through the wall: the cancellation of the attempt,
KeyboardInterrupt and SystemExit, which are not the handler's to decide. A handler that merely raises a cancellation of
its own, as one does that awaits a cancelled task, has failed like any other.
"""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from jobkit.definition import Job
from jobkit.dispatching import check_options, new_job
from jobkit.ending import outcome_of
from jobkit.envelope import unseal
from jobkit.errors import InvalidParams, JobkitError, LeaseLost, StateCorrupt, StateVersionError, UnknownJob
from jobkit.flow import JobSide
from jobkit.interfaces import Completed, Failed, Fenced, Interrupt, Interrupted, Unloadable
from jobkit.journal import Journal
from jobkit.model import Failure
from jobkit.plain import TEXT_BYTES, clean

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jobkit.interfaces import Link, Outcome, Work
    from jobkit.jobtype import JobType
    from jobkit.registration import Registry

_STRENGTH: Final = ("cancel", "time-out", "pause", "shutdown", "suspend")

Invoke: TypeAlias = Callable[[Callable[..., Any], JobSide, tuple[Any, ...]], Awaitable[Any]]
"""Calls a method of the job where it belongs, with the context that fits it, made of the job's side, and further
arguments."""


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
        job, journal = _load(job_type, work, link)
    except UnknownJob as error:
        return Unloadable("unknown_job", failure_of(error))
    except StateCorrupt as error:
        return Unloadable("corrupt_state", failure_of(error))
    except (StateVersionError, InvalidParams) as error:
        return Unloadable("needs_migration", failure_of(error))
    except BaseException as error:  # noqa: BLE001  the wall around a handler: loading runs code of its class
        return judge(error, link, stopped=stopped())
    side = JobSide(
        pack=lambda: job_type.seal_state(job, work.job_id, journal.packed),
        journal=journal,
        offspring=lambda child, new_id, options: new_job(
            registry.type_of(child), child, new_id, check_options(options), work.max_state_bytes
        ),
        outcome=partial(outcome_of, registry),
        codec=job_type.codec_for,
    )
    return await _Performance(job_type, job, work, link, invoke, stopped, side).play()


class _Performance(NamedTuple):
    """A job that is loaded, and what it is run with."""

    job_type: JobType
    job: Job[Any]
    work: Work
    link: Link
    invoke: Invoke
    stopped: Callable[[], bool]
    side: JobSide

    async def play(self) -> Outcome:
        """Run the handler, and the hooks that belong to what came of it."""
        try:
            if self.work.attempt > 1:
                await self._hook("on_resume")
            result = await self.invoke(self.job.run, self.side, ())
            output, shown = self.job_type.pack_output(result)
        except BaseException as error:  # noqa: BLE001  the wall around a handler
            return await self._told(error)
        _compare_params(self.job_type, self.job, self.work, self.link)
        return await self._with_hook(Completed(output, shown))

    async def _told(self, error: BaseException) -> Outcome:
        """Say what it means that the handler raised this."""
        try:
            outcome = judge(error, self.link, stopped=self.stopped())
        except BaseException:
            if self.stopped() and self.link.due() == "cancel":  # by force, since it did not stop by itself
                await self._hook("on_cancel")
            raise
        return await self._with_hook(outcome)

    async def _with_hook(self, outcome: Outcome) -> Outcome:
        """Call the hook for what came of the handler. It changes nothing, but may find that the lease is lost."""
        try:
            match outcome:
                case Interrupted("cancel"):
                    await self._hook("on_cancel")
                case Completed() | Failed() if self.link.due() == "cancel":  # it came too late, or was swallowed
                    await self._hook("on_cancel")
                case Interrupted("pause" | "shutdown"):
                    await self._hook("on_pause")
                case Failed(failure):
                    await self._hook("on_failure", failure)
        except BaseException as error:  # noqa: BLE001  the wall around a handler, as above
            if isinstance(judge(error, self.link, stopped=self.stopped()), Fenced):
                return Fenced()
        return outcome

    async def _hook(self, name: str, *arguments: object) -> None:
        """Call a hook if the class has one; what it raises is logged and changes nothing else.

        Interrupts, a lost lease and whatever is not the handler's own do pass: they are no failures of the hook.
        """
        if getattr(type(self.job), name) is getattr(Job, name):
            return
        try:
            await self.invoke(getattr(self.job, name), self.side, arguments)
        except BaseException as error:
            raised = list(_leaves(error))
            if any(isinstance(one, Interrupt | LeaseLost) or _not_ours(one, stopped=self.stopped()) for one in raised):
                raise
            self.link.log(f"{name} raised {_said(error)}", "error", {})


def _load(job_type: JobType, work: Work, link: Link) -> tuple[Job[Any], Journal]:
    """Turn stored bytes into a job and its journal, or say why they can't be."""

    def tell(lost: list[str]) -> None:
        link.log(f"what is stored of fields that the class no longer has was dropped: {', '.join(lost)}", "warning", {})

    if work.state is None:
        return job_type.restore(work.params, None, version=work.version, tell=tell), Journal()
    envelope = unseal(work.state)
    if envelope.job_id != work.job_id:
        raise StateCorrupt(f"it belongs to job {envelope.job_id}", work.job_id)
    if envelope.version > job_type.version:
        raise StateVersionError(work.name, envelope.version, job_type.version)
    job = job_type.restore(work.params, envelope.state, version=work.version, shapes=envelope.shapes, tell=tell)
    return job, Journal(envelope.journal)


def _compare_params(job_type: JobType, job: Job[Any], work: Work, link: Link) -> None:
    """Warn of a parameter that was changed in place; the job is completed all the same."""
    try:
        if job_type.pack_params(job) == work.params:
            return
        if job_type.pack_params(job) == job_type.pack_params(job_type.restore(work.params, None, version=work.version)):
            return  # the class has changed since, not the parameters
    except Exception:  # noqa: BLE001, S110  what can't even be packed any more was changed
        pass
    link.log("a parameter was changed in place; parameters are stored once, so the change is lost", "warning", {})


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
