"""`JobHandle`: one dispatched job, to wait for and to ask about; and the streams of what happens to it.

The streams are iterators, not generators: one may leave them at any point, on any event loop, without closing anything.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import anyio

from jobkit.errors import InvalidFilter, JobkitError, JobNotFound
from jobkit.model import EVENT_TYPES, Event, JobStatus, Progress
from jobkit.runtime.feed import LIVE_EVENTS
from jobkit.runtime.watch import PAGE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from uuid import UUID

    from jobkit.model import ControlOutcome, JobRecord
    from jobkit.runtime.control import Control
    from jobkit.runtime.watch import Watch

Out_co = TypeVar("Out_co", covariant=True)


class JobHandle(Generic[Out_co]):
    """A dispatched job.

    Attributes:
        id: The job's id.
        name: Its registered name; None for a handle that was made from a bare id, whose record tells.
    """

    def __init__(self, watch: Watch, control: Control, job_id: UUID, name: str | None = None) -> None:
        """Made by a manager; see `JobManager.handle`."""
        self._watch, self._control = watch, control
        self.name: str | None = name
        self.id = job_id

    def __repr__(self) -> str:
        return f"JobHandle({self.id})"

    async def record(self) -> JobRecord:
        """The job as it is stored now.

        Raises:
            JobNotFound: There is no such job, or it was deleted.
        """
        return await self._watch.record(self.id)

    async def status(self) -> JobStatus:
        """Where the job stands now.

        Raises:
            JobNotFound: There is no such job, or it was deleted.
        """
        return (await self._watch.ended(self.id)).status

    async def result(self, timeout: float | None = None) -> Out_co:  # noqa: ASYNC109  the usual name, and one call
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
            JobNotFound: There is no such job, or it was deleted.
            TimeoutError: It was not finished in time; it goes on.
        """
        ear = self._watch.feed.listen(str(self.id))
        signal = ear.signal
        ended = await self._watch.ended(self.id)  # before the deadline counts: with 0 one asks whether it is done
        looks = 0
        with anyio.fail_after(timeout):
            while not (ended.status.terminal or ended.status is JobStatus.HELD):
                looks += not await self._watch.heard(signal, looks)
                signal = ear.signal
                ended = await self._watch.ended(self.id)
        outcome = self._watch.outcome(self.id, ended)
        if isinstance(outcome, JobkitError):
            raise outcome
        return cast("Out_co", outcome)

    async def pause(self, *, across_restarts: bool = False, wait: bool = False) -> ControlOutcome:
        """Pause it; see `JobManager.pause`."""
        return await self._control.pause(self.id, across_restarts=across_restarts, wait=wait)

    async def resume(self, *, wait: bool = False) -> ControlOutcome:
        """Let it go on after a pause; see `JobManager.resume`."""
        return await self._control.resume(self.id, wait=wait)

    async def cancel(self, *, wait: bool = False) -> ControlOutcome:
        """Cancel it; see `JobManager.cancel`."""
        return await self._control.cancel(self.id, wait=wait)

    def events(self, *, after: int | None = None, types: Iterable[str] | None = None) -> EventStream:
        """Follow the job's events: those stored, then those to come; ends when the job does.

        Args:
            after: Only events with a higher sequence number.
            types: Only these types, as `"completed"` or `"job.completed"`.

        Raises:
            InvalidFilter: An unknown type.
            JobNotFound: From the iterator: there is no such job, or it was deleted before its end was read.
        """
        return EventStream(self._watch, self.id, None if after is None else str(after), types)

    def progress(self) -> ProgressStream:
        """Follow the job's progress each time it has changed; ends when the job does.

        In the process that runs the job up to twenty changes a second are seen, elsewhere those that are stored: with
        each checkpoint, and twice a second otherwise. The last is never left out.

        Raises:
            JobNotFound: There is no such job; of one that is deleted meanwhile, the progress just ends.
        """
        return ProgressStream(self._watch, self.id)


class EventStream(AsyncIterator[Event]):
    """Events of one job or of all: those stored, then those to come, live ones among them."""

    def __init__(self, watch: Watch, job_id: UUID | None, after: str | None, types: Iterable[str] | None) -> None:
        """Made by `JobManager.events` and `JobHandle.events`."""
        self._watch, self._job_id, self._after = watch, job_id, after
        self._types = None if types is None else frozenset(_event_type(word) for word in types)
        self._ear = watch.feed.listen(None if job_id is None else str(job_id))
        self._ready: deque[Event] = deque()
        self._early: deque[Event] = deque(maxlen=LIVE_EVENTS)
        self._looks = 0
        self._over = False

    async def __anext__(self) -> Event:
        while not self._ready:
            if self._over:
                raise StopAsyncIteration
            await self._look()
        return self._ready.popleft()

    async def _look(self) -> None:
        signal = self._ear.signal
        live = self._ear.take()
        stored = await self._watch.events(self._job_id, self._after, PAGE)
        if stored:
            self._after = stored[-1].cursor
            self._over = self._job_id is not None and stored[-1].status.terminal
        if self._over:
            live += self._ear.take()  # what came live while the end was being read came before it
        merged, early = _merged(stored, [*self._early, *live], more=len(stored) == PAGE and not self._over)
        self._early.clear()
        self._early.extend(early)
        self._ready.extend(event for event in merged if self._types is None or event.type in self._types)
        if stored or live:
            self._looks = 0
        elif await self._is_over():
            self._over = True
        else:
            self._looks += not await self._watch.heard(signal, self._looks)

    async def _is_over(self) -> bool:
        """Whether there is nothing to wait for: the job has ended, and there is no event after those that were read."""
        if self._job_id is None:
            return False
        ended = await self._watch.ended(self._job_id)
        return ended.status.terminal and not await self._watch.events(self._job_id, self._after, 1)


def _merged(stored: Sequence[Event], live: Sequence[Event], *, more: bool) -> tuple[list[Event], list[Event]]:
    """Put live events in their place among stored ones: each after that whose number it carries.

    Args:
        stored: A page of stored events.
        live: Live events, in the order in which they came.
        more: Whether further stored events are there to be read.

    Returns:
        The events in order, and those live ones that come too early, since what is before them is still to be read.
    """
    waiting: dict[UUID, deque[Event]] = {}
    for event in live:
        waiting.setdefault(event.job_id, deque()).append(event)
    merged: list[Event] = []
    for event in stored:
        before = waiting.get(event.job_id)
        while before and before[0].seq < event.seq:
            merged.append(before.popleft())
        merged.append(event)
    read = {event.job_id: event.seq for event in stored}
    left = sorted((event for queue in waiting.values() for event in queue), key=lambda event: event.at)
    if not more:
        return merged + left, []
    early = [event for event in left if event.seq > read.get(event.job_id, 0)]
    return merged + [event for event in left if event.seq <= read.get(event.job_id, 0)], early


def _event_type(word: str) -> str:
    name = word.removeprefix("job.")
    if name not in EVENT_TYPES:
        raise InvalidFilter("event type", word, EVENT_TYPES)
    return name


class ProgressStream(AsyncIterator[Progress]):
    """A job's progress, each time that it has changed; the last is never left out.

    An attempt in this process tells its progress live, and its row comes after: once it was heard, it is believed until
    another attempt or the end. All others are known by their row alone.
    """

    def __init__(self, watch: Watch, job_id: UUID) -> None:
        """Made by `JobHandle.progress`."""
        self._watch, self._job_id = watch, job_id
        self._ear = watch.feed.listen(str(job_id))
        self._ready: deque[Progress] = deque()
        self._last: Progress | None = None
        self._heard_attempt = 0
        self._found = self._over = False
        self._looks = 0

    async def __anext__(self) -> Progress:
        while True:
            while self._ready:
                progress = self._ready.popleft()
                if progress != self._last:
                    self._last, self._looks = progress, 0
                    return progress
            if self._over:
                raise StopAsyncIteration
            await self._look()

    async def _look(self) -> None:
        signal = self._ear.signal
        if self._found and self._listen():
            return
        try:
            record = await self._watch.record(self._job_id)
        except JobNotFound:
            if not self._found:
                raise
            self._over = True  # it was deleted meanwhile
            return
        self._found = True
        self._over = record.status.terminal or record.status is JobStatus.HELD
        if self._over or record.attempt != self._heard_attempt:
            self._ear.take()  # what came live while the row was read may be older than it
            if record.progress is not None and record.progress != self._last:
                self._ready.append(record.progress)
        if not self._over and not self._ready:
            self._looks += not await self._watch.heard(signal, self._looks)

    def _listen(self) -> bool:
        """Take the progress that was told live; answer whether there was any."""
        for event in self._ear.take():
            if event.type == "progress" and isinstance(event.data, dict):
                told: dict[str, Any] = dict(event.data)
                self._heard_attempt = told.pop("attempt", 0)
                self._ready.append(Progress(**told))
        return bool(self._ready)
