"""`JobHandle`: one dispatched job, to wait for and to ask about."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

import anyio

from jobkit.errors import JobCancelled, JobFailed, JobHeld, JobLost, JobNotFound, JobTimedOut
from jobkit.model import Failure, JobStatus

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from jobkit.interfaces import Ended
    from jobkit.model import Event, JobRecord, Progress
    from jobkit.runtime.feed import Ear
    from jobkit.runtime.manager import JobManager

Out = TypeVar("Out", covariant=True)

POLL_S: Final = (0.05, 0.1, 0.2, 0.5)
"""How long to wait, if nobody tells, before looking at the database again; the last value holds on."""

PAGE: Final = 500


class JobHandle(Generic[Out]):
    """A dispatched job.

    Attributes:
        id: The job's id.
    """

    def __init__(self, manager: JobManager, job_id: UUID) -> None:
        """Made by a manager; see `JobManager.handle`."""
        self._manager = manager
        self.id = job_id

    def __repr__(self) -> str:
        return f"JobHandle({self.id})"

    async def record(self) -> JobRecord:
        """The job as it is stored now.

        Raises:
            JobNotFound: It was deleted.
        """
        return await self._manager.get(self.id)

    async def status(self) -> JobStatus:
        """Where the job stands now.

        Raises:
            JobNotFound: It was deleted.
        """
        return (await self.record()).status

    async def result(self, timeout: float | None = None) -> Out:  # noqa: ASYNC109  the usual name, and one call
        """Wait until the job is finished, and answer its output.

        Args:
            timeout: How long to wait at most, in seconds; None for as long as it takes.

        Returns:
            What `run()` returned, in its own type; as JSON if this process doesn't know the job.

        Raises:
            JobFailed: It failed.
            JobCancelled: It was cancelled.
            JobTimedOut: It ran too long.
            JobLost: Its node vanished and it can't be resumed.
            JobHeld: It waits for a person.
            JobNotFound: It was deleted.
            TimeoutError: It was not finished in time; it goes on.
        """
        with anyio.fail_after(timeout), self._manager._feed.listening(str(self.id)) as ear:  # noqa: SLF001  one room
            looks = 0
            while True:
                signal = ear.signal
                ended = await self._manager._ended(self.id)  # noqa: SLF001
                if ended.status.terminal or ended.status is JobStatus.HELD:
                    return cast("Out", self._outcome(ended))
                looks += not await _heard(self._manager, signal, looks)

    def _outcome(self, ended: Ended) -> Any:
        job_id = str(self.id)
        match ended.status:
            case JobStatus.COMPLETED:
                return self._manager._output(ended)  # noqa: SLF001
            case JobStatus.FAILED:
                raise JobFailed(job_id, ended.failure or Failure("Unknown", "no failure was stored"))
            case JobStatus.CANCELLED:
                raise JobCancelled(job_id)
            case JobStatus.TIMED_OUT:
                raise JobTimedOut(job_id)
            case JobStatus.LOST:
                raise JobLost(job_id)
            case _:
                raise JobHeld(job_id, ended.reason)

    def events(self, *, after: int | None = None, types: Sequence[str] | None = None) -> EventStream:
        """Follow the job's events: those stored, then those to come; ends when the job does.

        Args:
            after: Only events with a higher sequence number.
            types: Only these types, as `"completed"` or `"job.completed"`.
        """
        return self._manager.events(self.id, after=None if after is None else str(after), types=types)

    def progress(self) -> ProgressStream:
        """Follow the job's progress; ends when the job does."""
        return ProgressStream(self._manager, self.id)


async def _heard(manager: JobManager, signal: anyio.Event, looks: int) -> bool:
    return await manager._clock.wait(signal, POLL_S[min(looks, len(POLL_S) - 1)])  # noqa: SLF001


class EventStream(AsyncIterator["Event"]):
    """Events of one job or of all: those stored, then those to come. An iterator that may be left at any point."""

    def __init__(self, manager: JobManager, job_id: UUID | None, after: str | None, types: frozenset[str] | None) -> None:
        """Made by `JobManager.events`."""
        self._manager, self._job_id, self._after, self._types = manager, job_id, after, types
        self._ready: list[Event] = []
        self._looks = 0
        self._over = False
        self._listening = manager._feed.listening(None if job_id is None else str(job_id))  # noqa: SLF001  one room
        self._ear: Ear | None = None

    async def __anext__(self) -> Event:
        while not self._ready:
            if self._over:
                await self.aclose()
                raise StopAsyncIteration
            await self._look()
        event = self._ready.pop(0)
        if self._job_id is not None and event.status.terminal:
            self._over = True
        return event

    async def aclose(self) -> None:
        """Stop listening; done by itself when the job ends."""
        if self._ear is not None:
            self._listening.__exit__(None, None, None)
            self._ear = None

    async def _look(self) -> None:
        if self._ear is None:
            self._ear = self._listening.__enter__()
        ear = self._ear
        signal = ear.signal
        live = [ear.live.popleft() for _ in range(len(ear.live))]
        stored = await self._manager._stored_events(self._job_id, self._after, PAGE)  # noqa: SLF001
        if stored:
            self._after = stored[-1].cursor
        found = sorted([*live, *stored], key=lambda event: event.at) if live and stored else [*live, *stored]
        self._ready = [event for event in found if self._types is None or event.type in self._types]
        if any(event.status.terminal for event in stored) and self._job_id is not None:
            self._over = len(stored) < PAGE
        if self._ready or self._over:
            self._looks = 0
        elif not stored:
            self._looks += not await _heard(self._manager, signal, self._looks)


class ProgressStream(AsyncIterator["Progress"]):
    """A job's progress, each time it has changed, and once more at its end."""

    def __init__(self, manager: JobManager, job_id: UUID) -> None:
        """Made by `JobHandle.progress`."""
        self._manager, self._job_id = manager, job_id
        self._last: Progress | None = None
        self._over = False
        self._looks = 0

    async def __anext__(self) -> Progress:
        with self._manager._feed.listening(str(self._job_id)) as ear:  # noqa: SLF001  one room
            while not self._over:
                signal = ear.signal
                try:
                    record = await self._manager.get(self._job_id)
                except JobNotFound:
                    break
                self._over = record.status.terminal or record.status is JobStatus.HELD
                if record.progress is not None and record.progress != self._last:
                    self._last, self._looks = record.progress, 0
                    return record.progress
                if not self._over:
                    self._looks += not await _heard(self._manager, signal, self._looks)
        raise StopAsyncIteration
