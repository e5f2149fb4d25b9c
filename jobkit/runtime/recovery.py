"""Recovery: finds owners that are dead and puts their jobs back in the line.

It never starts a job. It notes which lives are over, and lets `lifecycle` decide on each job that such a life left
behind: queued, usually, to be claimed like any other. A living owner's jobs are never touched: a life on this machine
is proven dead by its lock, another one is taken for dead when its lease has run out.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import anyio

from jobkit.errors import JobkitError
from jobkit.interfaces import Change, Retire
from jobkit.lifecycle import Cause, Trigger
from jobkit.model import JobStatus

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime
    from typing import Any

    from jobkit.interfaces import Clock, Life, Store
    from jobkit.lifecycle import Standing
    from jobkit.runtime.writer import Writer

log: logging.Logger = logging.getLogger("jobkit.recovery")

PORTION: Final = 500
"""How many jobs are put back in one commit: the worker claims the first while the rest follow."""


class Recovery:
    """Sweeps for dead owners, at the start and ever after."""

    def __init__(  # noqa: PLR0917  in the order in which it uses them
        self,
        store: Store,
        writer: Writer,
        clock: Clock,
        read: Callable[..., Awaitable[Any]],
        own_life: Callable[[], str | None],
        lease_s: float,
        sweep_s: float,
    ) -> None:
        """Prepare; `run` sweeps.

        Args:
            store: Where lives and jobs are.
            writer: Commits what is decided.
            clock: Time between sweeps.
            read: Calls a reading function off the event loop.
            own_life: The id of the present life.
            lease_s: How long a lease holds: an owner is known to have lived when it began.
            sweep_s: Seconds between sweeps.
        """
        self._store, self._writer, self._clock, self._read = store, writer, clock, read
        self._own_life, self._sweep_s = own_life, sweep_s
        self._lease = timedelta(seconds=lease_s)
        self._seen: dict[str, datetime] = {}
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
        lives: list[Life] = await self._read(self._store.lives)
        now = await self._read(self._store.now)
        for life in lives:
            over = life.id != self._own_life() and await self._read(self._is_over, life, now)
            if over and await self._writer.submit(Retire(life.id)):
                log.info("the life %s of node %s (process %s) is over", life.id, life.node, life.pid)
            if over and life.lease_until is not None:
                self._seen[life.id] = life.lease_until - self._lease
        moved = 0
        while orphans := await self._read(self._store.orphans, PORTION):
            await self._look_up({job.life for job in orphans if job.life is not None} - self._seen.keys())
            changes = [Change(job.id, self._cause(job), job) for job in orphans if job.status in _TRIGGER]
            answers = await self._writer.submit_all(changes)
            done = sum(not isinstance(answer, Exception) for answer in answers)
            moved += done
            if not done:
                break
        self._seen.clear()
        if moved:
            log.info("%s jobs of owners that are gone were put back in the line", moved)
        return moved

    async def others_live(self) -> bool:
        """Whether another working life lives, as far as can be told from here."""

        def found() -> bool:
            now = self._store.now()
            others = (life for life in self._store.lives() if life.working and life.id != self._own_life())
            return any(not self._is_over(life, now) for life in others)

        return bool(await self._read(found))

    async def _look_up(self, lives: set[str]) -> None:
        """Learn when lives ended that somebody else has noted as over."""
        if lives:
            self._seen.update(await self._read(self._store.ended_at, list(lives)))

    def _cause(self, job: Standing) -> Cause:
        return Cause(_TRIGGER[job.status], seen_at=self._seen.get(job.life or ""))

    def _is_over(self, life: Life, now: datetime) -> bool:
        dead = self._store.prove_dead(life)
        return dead if dead is not None else life.lease_until is None or life.lease_until < now


_TRIGGER: Final = {
    JobStatus.RUNNING: Trigger.OWNER_GONE,
    JobStatus.ASSIGNED: Trigger.OWNER_GONE,
    JobStatus.PAUSED: Trigger.RESUME,
}
