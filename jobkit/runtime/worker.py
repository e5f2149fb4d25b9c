"""The worker: claims jobs and keeps as many running as there is room for.

The only place where a job is started. It asks the writer for a claim whenever it has room and has been told of work,
and looks at the database now and then even if it has not: notification only shortens the wait.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import anyio

from jobkit.errors import JobkitError
from jobkit.interfaces import Claim
from jobkit.runtime import runner
from jobkit.runtime.loops import EventReply
from jobkit.runtime.runner import Running
from jobkit.runtime.supervisor import FORCED_S
from jobkit.runtime.writer import Entry

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from jobkit.interfaces import Claimed, Executor, Middleware
    from jobkit.registration import Registry
    from jobkit.runtime.runner import Surroundings

log: logging.Logger = logging.getLogger("jobkit.worker")

POLL_S: Final = 0.2
"""How long a worker with nothing to do waits before it looks again."""

FLUSH_S: Final = 0.25
"""How often it is looked for progress and lines of logs that nothing else has stored."""


class Order(EventReply):
    """A claim that waits in the writer for a commit that brings work; also its answer."""

    __slots__ = ("_came",)

    def __init__(self, came: Callable[[], None]) -> None:
        super().__init__()
        self._came = came

    def set(self, answer: object) -> None:
        """Give the answer; on the loop."""
        super().set(answer)
        self._came()


class Worker:
    """Claims and runs."""

    def __init__(
        self,
        *,
        around: Surroundings,
        registry: Registry,
        executors: Mapping[str, Executor],
        life: Callable[[], str | None],
        concurrency: int,
        queues: Sequence[str] | None,
        middleware: Sequence[Middleware],
        others: Callable[[], bool],
        claimable: Callable[[], Awaitable[bool]],
    ) -> None:
        """Prepare; `run` works.

        Args:
            around: What all attempts share.
            registry: What this build can run.
            executors: Where handlers run, by name.
            life: The id of the present life; None while there is none.
            concurrency: How many attempts may run at once.
            queues: The queues to serve; None for all.
            middleware: What wraps each attempt.
            others: Whether another working life lives.
            claimable: Looks whether a claim would find anything.
        """
        self._around, self._registry, self._executors = around, registry, executors
        self._life, self._concurrency = life, concurrency
        self._queues = None if queues is None else tuple(queues)
        self._middleware, self._others, self._claimable = middleware, others, claimable
        self._changed = anyio.Event()
        self._claiming = True
        self._asking = self._ordered = self._complaining = False
        self._queued = around.feed.queued
        self._suspect: Running | None = None
        self._until = 0.0
        self.running: dict[str, Running] = {}

    # ── the loops ──

    async def run(self) -> None:
        """Claim and run until cancelled."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._flush)
            exhausted = False
            while True:
                room = self._room()
                if not room:
                    await self._changed.wait()
                    continue
                try:
                    claimed = await (self._stand_by(room) if exhausted else self._claim(room))
                except Exception as error:  # noqa: BLE001  a wall: whatever a look for work met, the next is due
                    self._complain(error)
                    claimed = []
                else:
                    self._complaining = False
                exhausted = len(claimed) < room
                for one in claimed:
                    if one.transition.after.life != self._life():
                        continue  # claimed by a life that was lost meanwhile: the next sweep puts it back
                    running = Running(one, self._around)
                    if not self._claiming:
                        running.stop()
                    if one.transition.after.suspect:
                        self._suspect = running
                    self.running[one.transition.after.id] = running
                    group.start_soon(self._run_one, running, name=f"{one.name} {one.transition.after.id}")

    def _complain(self, error: Exception) -> None:
        if not self._complaining:
            log.warning("work can't be looked for, which will be tried again: %s", error)
        self._complaining = True

    def _wish(self, room: int) -> Claim | None:
        life, versions = self._life(), self._registry.versions()
        if life is None or not versions or not self._claiming:
            return None
        return Claim(life, self._around.node, room, versions, self._queues, self.takes_suspects)

    async def _claim(self, room: int) -> list[Claimed]:
        self._queued = self._around.feed.queued  # before asking: what comes in after the answer is not to be missed
        if (claim := self._wish(room)) is None:
            return []
        return await self._asked(self._around.writer.submit(claim))

    async def _stand_by(self, room: int) -> list[Claimed]:
        """Wait for work: claim in the very commit that brings it, or find what others have brought."""
        writer = self._around.writer
        while True:
            order = Order(self._work_came)
            if (claim := self._wish(room)) is not None:
                writer.stand_by(Entry(claim, order))
                self._ordered = True
            try:
                told = await self._around.clock.wait(self._queued, POLL_S)
            finally:
                self._ordered = taken = claim is not None and not writer.stand_down()
                if not self._claiming:
                    self._tell()
            if taken and (found := await self._asked(order.wait())):
                return found
            self._queued = self._around.feed.queued
            if (room := self._room()) and (told or taken or await self._claimable()):
                return await self._claim(room)
            if not room:
                return []

    def _work_came(self) -> None:
        """On the loop: the standing order was carried out; what it brought counts as under way from this moment."""
        self._asking = True
        self._around.feed.work_came()
        self._queued = self._around.feed.queued

    async def _asked(self, answer: Awaitable[Any]) -> list[Claimed]:
        self._asking = True
        try:
            found: list[Claimed] = await answer
        except JobkitError as error:
            log.debug("nothing could be claimed: %s", error)
            return []
        finally:
            self._asking = self._ordered = False
            self._tell()
        return found

    def _room(self) -> int:
        return self._concurrency - len(self.running) if self._claiming else 0

    async def _run_one(self, running: Running) -> None:
        executor = self._executor(running)
        running.stoppable = executor is None or executor.stoppable
        try:
            await runner.run(running, executor, self._middleware, self._others)
        except Exception:  # the wall around a handler: what went wrong here is ours, and must not stop the others
            log.exception("%s %s: its attempt broke off", running.name, running.standing.id)
        finally:
            if self.running.get(running.standing.id) is running:  # a new life may hold the job again by now
                del self.running[running.standing.id]
            if self._suspect is running:
                self._suspect = None
                self._around.feed.work_came()  # the next suspect may be claimed
            if running.over is not None:
                running.over.set()
            self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    def _executor(self, running: Running) -> Executor | None:
        if running.name not in self._registry:
            return None
        return self._executors.get(self._registry.get(running.name).runs_in)

    async def _flush(self) -> None:
        never = anyio.Event()
        while True:
            await self._around.clock.wait(never, FLUSH_S)
            for running in self.running.values():
                running.reports.flush()

    # ── stopping ──

    @property
    def takes_suspects(self) -> bool:
        """Whether a suspect may be claimed: one at a time, so that a crash can be laid at its door."""
        return self._suspect is None or not self._suspect.standing.suspect

    @property
    def busy(self) -> bool:
        """Whether anything runs or is being claimed."""
        return bool(self.running) or self._asking

    async def drain(self, grace_s: float) -> bool:
        """Claim nothing more, and have every handler stop at its next checkpoint.

        Args:
            grace_s: How long to wait before handlers are stopped by force, in seconds.

        Returns:
            Whether all stopped by themselves.
        """
        self._claiming = False
        self._around.feed.work_came()  # wakes a worker that stands by, to take its order back
        for running in self.running.values():
            running.stop()
        try:
            return await self._quiet(grace_s)
        finally:  # also when the caller has no more patience
            with anyio.CancelScope(shield=True):
                self._around.writer.lose_patience()
                for running in self.running.values():
                    running.scope.cancel()
                await self._quiet(FORCED_S)
                await self._leave_behind()

    async def _leave_behind(self) -> None:
        """Give back the jobs of handlers that can't be stopped; what these do from now on counts for nothing."""
        for running in list(self.running.values()):
            if not running.fenced:
                log.error("%s %s: its handler can't be stopped and is left behind", running.name, running.standing.id)
                await runner.give_back(running, self._others)

    async def quiet(self) -> None:
        """Wait until nothing runs or is being claimed."""
        while self.busy:
            await self._changed.wait()

    def abandon(self) -> None:
        """Stop every handler at once and let nothing that it says count: its jobs are no longer ours."""
        for running in list(self.running.values()):
            running.fence()
            running.scope.cancel()

    def hurry(self, grace_s: float) -> None:
        """Wait for handlers no longer than this from now on, where `drain` waits for them."""
        self._until = min(self._until, self._around.clock.monotonic() + grace_s)
        self._tell()

    async def _quiet(self, within_s: float) -> bool:
        self._until = self._around.clock.monotonic() + within_s
        while self.busy or self._ordered:  # an order that is being carried out brings jobs, which are to be given back
            left = self._until - self._around.clock.monotonic()
            if left <= 0:
                return False
            await self._around.clock.wait(self._changed, left)
        return True
