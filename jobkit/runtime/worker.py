"""The worker: claims jobs and keeps as many running as there is room for.

The only place where a job is started. It asks the writer for a claim whenever it has room and has been told of work, and
looks at the database now and then even if it has not: notification only shortens the wait.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import anyio

from jobkit.errors import JobkitError
from jobkit.interfaces import Claim
from jobkit.runtime import runner
from jobkit.runtime.runner import Running

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from jobkit.interfaces import Claimed, Executor, Middleware
    from jobkit.registration import Registry
    from jobkit.runtime.runner import Surroundings

log = logging.getLogger("jobkit.worker")

POLL_S: Final = 0.2
"""How long a worker with nothing to do waits before it looks again."""

FLUSH_S: Final = 0.5
"""How often progress that nothing else has stored is stored."""


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
        """
        self._around, self._registry, self._executors = around, registry, executors
        self._life, self._concurrency = life, concurrency
        self._queues = None if queues is None else tuple(queues)
        self._middleware, self._others = middleware, others
        self._changed = anyio.Event()
        self._claiming = True
        self._asking = False
        self.running: dict[str, Running] = {}

    # ── the loops ──

    async def run(self) -> None:
        """Claim and run until cancelled."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._flush)
            while True:
                queued = self._around.feed.queued
                claimed = await self._claim() if self._room() else []
                for one in claimed:
                    running = Running(one, self._around)
                    if not self._claiming:
                        running.stop()
                    self.running[one.transition.after.id] = running
                    group.start_soon(self._run_one, running, name=f"{one.name} {one.transition.after.id}")
                if not self._room():
                    await self._changed.wait()
                elif not claimed:
                    await self._around.clock.wait(queued, POLL_S)

    async def _claim(self) -> list[Claimed]:
        life = self._life()
        versions = self._registry.versions()
        if life is None or not versions:
            return []
        self._asking = True
        try:
            found: list[Claimed] = await self._around.writer.submit(
                Claim(life, self._around.node, self._room(), versions, self._queues)
            )
        except JobkitError as error:
            log.debug("nothing could be claimed: %s", error)
            return []
        finally:
            self._asking = False
            self._tell()
        return found

    def _room(self) -> int:
        return self._concurrency - len(self.running) if self._claiming else 0

    async def _run_one(self, running: Running) -> None:
        try:
            await runner.run(running, self._executor(running), self._middleware, self._others)
        except Exception:  # the wall around a handler: what went wrong here is ours, and must not stop the others
            log.exception("%s %s: its attempt broke off", running.name, running.standing.id)
        finally:
            self.running.pop(running.standing.id, None)
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
                running.flush()

    # ── stopping ──

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
        for running in self.running.values():
            running.stop()
        by_themselves = await self._quiet(grace_s)
        for running in self.running.values():
            running.scope.cancel()
        await self._quiet(grace_s)
        return by_themselves

    def abandon(self) -> None:
        """Stop every handler at once and let nothing that it says count: its jobs are no longer ours."""
        for running in list(self.running.values()):
            running.fence()
            running.scope.cancel()

    async def _quiet(self, within_s: float) -> bool:
        deadline = self._around.clock.monotonic() + within_s
        while self.busy:
            left = deadline - self._around.clock.monotonic()
            if left <= 0:
                return False
            await self._around.clock.wait(self._changed, left)
        return True
