"""The supervisor: has running handlers do what people ask of their jobs.

A request is a word on the job's row (`wanted`) and can't be lost there; this is how a handler comes to hear of it. What
this process commits is told by the feed at once; what others commit is found by looking, at most `LOOK_S` later, so
nothing depends on a notification. A handler hears at its next checkpoint. One that has not stopped when the grace is
over is stopped by force, as far as that goes: a coroutine's scope is cancelled; a thread can't be stopped, so a
cancelled one is left behind, fenced off, and a pause stays wanted.

Invariant: nothing here decides a status; what is forced still ends through the attempt's own last write.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import anyio

from jobkit.runtime import runner

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from jobkit.lifecycle import Standing, Transition
    from jobkit.model import Wanted
    from jobkit.runtime.runner import Running, Surroundings

log: logging.Logger = logging.getLogger("jobkit.worker")

LOOK_S: Final = 1.0
"""How often requests from other processes are looked for: a handler must be told within two seconds."""

FORCED_S: Final = 5.0
"""How long a handler that is stopped by force may take to clean up."""


class Supervisor:
    """Tells handlers what is wanted, and sees to it that they do it."""

    def __init__(
        self,
        *,
        around: Surroundings,
        running: Mapping[str, Running],
        asked: Callable[[], Awaitable[list[Standing]]],
        grace_s: float,
        others: Callable[[], bool],
    ) -> None:
        """Prepare; `run` supervises.

        Args:
            around: What all attempts share.
            running: The attempts in progress, by job.
            asked: Reads the jobs of this life of which something is wanted.
            grace_s: How long a handler may take to do what is wanted, in seconds.
            others: Whether another working life lives.
        """
        self._around, self._running, self._asked = around, running, asked
        self._grace_s, self._others = grace_s, others
        self._unminded: list[tuple[Running, anyio.Event]] = []
        self._told = anyio.Event()
        self._complaining = False

    async def run(self) -> None:
        """Look for requests, and mind each that is heard of, until cancelled."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._look_around)
            while True:
                await self._told.wait()
                self._told = anyio.Event()
                while self._unminded:
                    group.start_soon(self._mind, *self._unminded.pop())

    async def _look_around(self) -> None:
        never = anyio.Event()
        while True:
            await self._around.clock.wait(never, LOOK_S)
            if self._running:
                await self._look()

    def heard(self, transition: Transition) -> None:
        """On the loop: hear of what this process has committed."""
        after = transition.after
        if after.wanted != transition.before.wanted and (running := self._running.get(after.id)) is not None:
            self._tell(running, after)

    async def _look(self) -> None:
        """Hear of what others have committed: of requests, and of those that were taken back."""
        before = {job_id: running.standing for job_id, running in self._running.items()}
        try:
            asked = {job.id: job for job in await self._asked()}
        except Exception as error:  # noqa: BLE001  the wall around a look: whatever it met, the next one is due
            if not self._complaining:
                log.warning("requests can't be looked for, which will be tried again: %s", error)
            self._complaining = True
            return
        self._complaining = False
        for job_id, standing in before.items():
            running = self._running.get(job_id)
            if running is None or running.standing is not standing:
                continue  # it was heard of meanwhile
            if (told := asked.get(job_id)) is not None:
                self._tell(running, told)
            elif standing.wanted is not None:
                self._tell(running, standing._replace(wanted=None, across_restarts=False))

    def _tell(self, running: Running, told: Standing) -> None:
        running.learn(told)
        if running.standing.wanted is not None and running.over is None:
            running.over = anyio.Event()
            self._unminded.append((running, running.over))  # a callback of the loop may start no task by itself
            self._told.set()

    async def _mind(self, running: Running, over: anyio.Event) -> None:
        """Give a handler its grace to do what is wanted, then use force; anew if something else is wanted meanwhile."""
        clock = self._around.clock
        forced: Wanted | None = None
        while not over.is_set() and (wanted := running.standing.wanted) is not None:
            left = LOOK_S if wanted == forced else running.asked_at + self._grace_s - clock.monotonic()
            if left > 0:
                await clock.wait(over, left)
            else:
                forced = wanted
                await self._force(running, wanted, over)
        if not over.is_set():
            running.over = None  # what was wanted was taken back; the next request is minded anew

    async def _force(self, running: Running, wanted: Wanted, over: anyio.Event) -> None:
        if wanted == "pause" and not running.stoppable:
            running.log("its thread ignores the pause and can't be stopped; the pause stays wanted", "warning", {})
            return
        running.scope.cancel()
        if await self._around.clock.wait(over, FORCED_S) or wanted == "pause":
            return
        running.log("its handler can't be stopped and is left behind; what it does counts for nothing", "error", {})
        await runner.give_back(running, self._others)
