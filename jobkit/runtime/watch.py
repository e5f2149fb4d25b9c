"""Asking and waiting: what a caller may know of jobs, without a say in them.

Reads go to the database in a few threads, never on the event loop. Waiting is for the feed, with a look at the database
now and then, since another process may have done what is waited for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

import anyio
from anyio import CapacityLimiter, to_thread

from jobkit.ending import outcome_of
from jobkit.errors import JobNotFound, ManagerNotRunning
from jobkit.explanation import explain
from jobkit.model import LOG_LEVELS

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from jobkit.interfaces import Clock, Ended, Signal, Store
    from jobkit.model import Event, Explanation, JobRecord, LogLevel
    from jobkit.registration import Registry
    from jobkit.runtime.feed import Feed

P = ParamSpec("P")
R = TypeVar("R")

READS_AT_ONCE: Final = 4

PAGE: Final = 500
"""How many events are read at once."""

LAST_READS_S: Final = 5.0
"""How long to wait at the end for those who are reading; a read that takes longer is left to fail."""

POLL_S: Final = (0.05, 0.1, 0.2, 0.5)
"""How long to wait, if nobody tells, before looking at the database again; the last value holds on."""


class Watch:
    """One database, as those who only look see it."""

    def __init__(self, store: Store, feed: Feed, clock: Clock, registry: Registry) -> None:
        """Prepare; closed until `open`.

        Args:
            store: What is read.
            feed: Who tells what was committed here.
            clock: Time between looks.
            registry: Knows the types of outputs.
        """
        self.feed: Feed = feed
        self._store, self._clock, self._registry = store, clock, registry
        self._limiter: CapacityLimiter | None = None

    def open(self) -> None:
        """Allow reading; on the event loop."""
        self._limiter = CapacityLimiter(READS_AT_ONCE)

    async def close(self) -> None:
        """Refuse to read from now on, and let those who are reading come to their end."""
        limiter, self._limiter = self._limiter, None
        if limiter is not None:
            with anyio.move_on_after(LAST_READS_S):
                for _ in range(READS_AT_ONCE):
                    await limiter.acquire_on_behalf_of(object())

    def check(self) -> None:
        """Raise `ManagerNotRunning` unless open."""
        if self._limiter is None:
            raise ManagerNotRunning

    async def read(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a reading function in a thread."""
        self.check()
        return await to_thread.run_sync(lambda: function(*args, **kwargs), limiter=self._limiter)

    async def record(self, job_id: UUID) -> JobRecord:
        """One job; `JobNotFound` if there is none."""
        found = await self.read(self._store.get, str(job_id))
        if found is None:
            raise JobNotFound(str(job_id))
        return found

    async def ended(self, job_id: UUID) -> Ended:
        """What came of a job so far; `JobNotFound` if there is none."""
        found = await self.read(self._store.ended, str(job_id))
        if found is None:
            raise JobNotFound(str(job_id))
        return found

    def outcome(self, job_id: UUID, ended: Ended) -> Any:
        """What came of a job, as a value: its output, or the error that tells of its end."""
        return outcome_of(self._registry, str(job_id), ended)

    async def explanation(self, job_id: UUID) -> Explanation:
        """Why a job isn't running; `JobNotFound` if there is none."""
        return await self.read(self._explain, str(job_id))

    def _explain(self, job_id: str) -> Explanation:
        store = self._store
        if (found := store.get(job_id)) is None:
            raise JobNotFound(job_id)
        return explain(found, store.situation(job_id), store.lives(), store.now())

    async def events(self, job_id: UUID | None, after: str | None, limit: int) -> list[Event]:
        """Stored events after a cursor, oldest first."""
        return await self.read(self._store.events, None if job_id is None else str(job_id), after, None, limit)

    async def logs(self, job_id: UUID, after: str | None, level: LogLevel, limit: int | None) -> list[Event]:
        """The stored lines of a job's log of that level or graver, oldest first; `JobNotFound` if there is no job."""
        levels = LOG_LEVELS[LOG_LEVELS.index(level) :]
        found: list[Event] = []
        more = True
        while more and (limit is None or len(found) < limit):
            page = await self.read(self._store.events, str(job_id), after, ("log",), PAGE)
            found += [line for line in page if isinstance(line.data, dict) and line.data.get("level") in levels]
            if more := len(page) == PAGE:
                after = page[-1].cursor
        if not found:
            await self.ended(job_id)
        return found[:limit]

    async def heard(self, signal: Signal, looks: int) -> bool:
        """Wait to be told, but not for long: the more often one has looked in vain, the longer.

        Args:
            signal: Set by the feed.
            looks: How often the database was looked at in vain.

        Returns:
            Whether the feed told.
        """
        return await self._clock.wait(signal, POLL_S[min(looks, len(POLL_S) - 1)])
