"""Recovery: finds owners that are gone and puts their jobs back in the line.

It never starts a job. It notes which lives are over, and lets `lifecycle` decide on each job that such a life left
behind: queued, usually, to be claimed like any other. A living owner's jobs are never touched: a life on this machine
is proven dead by its lock or by another boot, one elsewhere is taken for dead when its lease has run out. A life that
still has its lock but has let a whole lease pass in silence, as a stopped process does, has had its jobs too. The
silence is what this process has heard of it, sweep by sweep and by its own clock: neither a set clock nor a time for
which this process was stopped itself, as on a machine that stood still, costs anybody a job.

The first sweep is the start of a manager: unless another working one was there before it, it resumes the jobs that
people have paused too. Every sweep also holds the jobs that no living node knows, and releases those that one knows
again, so that they don't stand in the way of others.
"""

from __future__ import annotations

import logging
import math
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Final

import anyio

from jobkit.errors import JobkitError
from jobkit.interfaces import Retire
from jobkit.lifecycle import Cause, Trigger
from jobkit.model import JobStatus
from jobkit.runtime.moving import move

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from datetime import datetime
    from typing import Any

    from jobkit.interfaces import Clock, End, Ending, Life, Store
    from jobkit.lifecycle import Standing
    from jobkit.runtime.writer import Writer

log: logging.Logger = logging.getLogger("jobkit.recovery")

MUTE: Final = 2 / 3
"""After which part of a lease without a renewal of its own a life holds silence against nobody: who could speak?"""


class Recovery:
    """Sweeps for dead owners, at the start and ever after."""

    def __init__(
        self,
        *,
        store: Store,
        writer: Writer,
        clock: Clock,
        read: Callable[..., Awaitable[Any]],
        own_life: Callable[[], str | None],
        versions: Callable[[], Mapping[str, int]],
        lease_s: float,
        sweep_s: float,
        resume_paused: bool,
    ) -> None:
        """Prepare; `run` sweeps.

        Args:
            store: Where lives and jobs are.
            writer: Commits what is decided.
            clock: Time between sweeps.
            read: Calls a reading function off the event loop.
            own_life: The id of the present life.
            versions: What can be run here.
            lease_s: How long a lease holds: an owner is known to have lived when it began.
            sweep_s: Seconds between sweeps.
            resume_paused: Whether a start resumes what people have paused.
        """
        self._store, self._writer, self._clock, self._read = store, writer, clock, read
        self._own_life, self._versions, self._sweep_s = own_life, versions, sweep_s
        self._lease = timedelta(seconds=lease_s)
        self._seen: dict[str, datetime] = {}
        self._ends: dict[str, End] = {}
        self._looked_at = clock.monotonic()
        self._silence: dict[str, tuple[datetime | None, float]] = {}
        self._starting = resume_paused
        self.swept: anyio.Event = anyio.Event()
        self._due = anyio.Event()

    async def run(self) -> None:
        """Sweep until cancelled."""
        failing = False
        while True:
            self._due = anyio.Event()
            try:
                await self.sweep()
            except Exception as error:  # the wall around a sweep: whatever it met, the next one is due all the same
                if not failing:
                    known = isinstance(error, JobkitError)
                    log.warning("a sweep broke off and will be repeated: %s", error, exc_info=not known)
                failing = True
            else:
                failing = False
                self.swept.set()
            await self._clock.wait(self._due, self._sweep_s)

    def hurry(self) -> None:
        """Have the next sweep made at once."""
        self._due.set()

    async def sweep(self) -> int:
        """Note dead owners and requeue what they left behind.

        Returns:
            How many jobs were put back.
        """
        living = await self._retire_the_dead()
        moved = await self._move(self._orphans, self._orphaned)
        self._seen.clear()
        if self._starting and (own := self._own_life()) is not None:
            began = next((life.started_at for life in living if life.id == own), None)
            first = not any(life.working and life.id < own for life in living)  # ids tell who was there before
            if first and began is not None:
                moved += await self._move(partial(self._store.paused, began), _resumed)
            self._starting = False
        if moved:
            log.info("%s jobs were put back in the line", moved)
        await self._sort_out(living)
        return moved

    async def others_live(self) -> bool:
        """Whether another working life lives, as far as can be told from here."""

        def found() -> bool:
            now = self._store.now()
            others = (life for life in self._store.lives() if life.working and life.id != self._own_life())
            return any(self._ending(life, now) is None for life in others)

        return bool(await self._read(found))

    # ── lives ──

    async def _retire_the_dead(self) -> list[Life]:
        """Note which lives are over; answer the others."""
        lives: list[Life] = await self._read(self._store.lives)
        now = await self._read(self._store.now)
        self._listen(lives)
        living = []
        for life in lives:
            ending = None if life.id == self._own_life() else await self._read(self._ending, life, now)
            if ending is None:
                living.append(life)
                continue
            if await self._writer.submit(Retire(life.id, ending)):
                log.info("the life %s of node %s (process %s) is over: %s", life.id, life.node, life.pid, ending)
            if life.lease_until is not None:
                self._seen[life.id] = life.lease_until - self._lease
        return living

    def _listen(self, lives: Sequence[Life]) -> None:
        """Work out for how long each life has not renewed its lease, as far as this process was there to hear it."""
        looked_at = self._clock.monotonic()
        heard_s = min(looked_at - self._looked_at, 2 * self._sweep_s)  # if it is more, this process was stopped itself
        self._looked_at = looked_at
        before, self._silence = self._silence, {}
        for life in lives:
            until, silent_s = before.get(life.id, (None, 0.0))
            silent_s = silent_s + heard_s if until == life.lease_until else 0.0
            self._silence[life.id] = life.lease_until, silent_s
        _, mute_s = self._silence.get(self._own_life() or "", (None, math.inf))
        if mute_s > self._lease.total_seconds() * MUTE:
            self._silence.clear()

    def _ending(self, life: Life, now: datetime) -> Ending | None:
        """How a life has ended; None if it has not, as far as can be told."""
        expired = life.lease_until is None or life.lease_until < now
        match self._store.fate(life):
            case "crashed" | "rebooted" as death:
                return death
            case "alive":
                return "expired" if self._is_silent(life) and expired else None
            case "unknown":
                return "expired" if expired else None

    def _is_silent(self, life: Life) -> bool:
        """Whether a life has not renewed its lease for as long as one holds."""
        _, silent_s = self._silence.get(life.id, (None, 0.0))
        return silent_s >= self._lease.total_seconds()

    # ── jobs ──

    async def _move(self, find: Callable[[int], list[Standing]], cause: Callable[[Standing], Cause | None]) -> int:
        return await move(self._read, self._writer, find, cause)

    def _orphans(self, limit: int) -> list[Standing]:
        """Jobs whose owner's life is over, and how it ended."""
        found = self._store.orphans(limit)
        self._ends = self._store.ends(list({job.life for job in found if job.life}))
        return found

    def _orphaned(self, job: Standing) -> Cause | None:
        """What the end of its owner's life means for a job."""
        if job.status is JobStatus.PAUSED:
            return Cause(Trigger.RESUME)
        if job.life is None or (end := self._ends.get(job.life)) is None:
            return None
        return Cause(
            Trigger.OWNER_GONE,
            seen_at=self._seen.get(job.life, end.at),
            crashed=end.how == "crashed",
            strike=end.blamed == job.id,
        )

    async def _sort_out(self, living: Sequence[Life]) -> None:
        """Hold the jobs that no living node knows, and release those that one knows again."""
        known = dict(self._versions())
        for life in living:
            if life.working:
                for name, version in life.versions.items():
                    known[name] = max(version, known.get(name, version))
        if released := await self._move(lambda limit: self._store.known_again(known, limit), _known_again):
            log.info("%s held jobs are known again and were released", released)
        if held := await self._move(lambda limit: self._store.unknown(known, limit), _unknown):
            log.warning("%s jobs are held: no living node knows their names and versions", held)


def _resumed(_: Standing) -> Cause:
    return Cause(Trigger.RESUME)


def _known_again(_: Standing) -> Cause:
    return Cause(Trigger.KNOWN)


def _unknown(_: Standing) -> Cause:
    return Cause(Trigger.UNLOADABLE, reason="unknown_job")
