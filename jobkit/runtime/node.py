"""A node at work: one life after another, and what works under it.

A manager that works has one; a client has none. It puts together the lease, the worker and the recovery, and sees to it
that none outlives the other: when the lease is lost the handlers stop, a new life is begun, and the jobs of the old one
are taken up again like anybody else's. Nothing here decides a status.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import anyio

from jobkit.errors import JobkitError
from jobkit.executors.inline import InlineExecutor
from jobkit.executors.thread import ThreadExecutor
from jobkit.interfaces import Leave, Retire
from jobkit.runtime.leases import Lease, new_life
from jobkit.runtime.recovery import Recovery
from jobkit.runtime.scheduler import Scheduler
from jobkit.runtime.supervisor import Supervisor
from jobkit.runtime.worker import Worker
from jobkit.store.dialects import boot_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobkit.interfaces import Executor, Ids, Middleware, Store, Threads
    from jobkit.lifecycle import Standing
    from jobkit.registration import Registry
    from jobkit.runtime.runner import Surroundings
    from jobkit.runtime.watch import Watch
    from jobkit.settings import Settings

log: logging.Logger = logging.getLogger("jobkit")

IDLE_POLL_S: Final = 0.02

LEFT_BEHIND_S: Final = 1.0
"""How long to wait for the loops to end; only a handler that can't be stopped keeps them longer."""

REBIRTH_S: Final = 1.0
"""How long to wait before trying again to begin a new life."""


class Node:
    """What a working manager starts and stops."""

    def __init__(
        self,
        *,
        around: Surroundings,
        watch: Watch,
        store: Store,
        registry: Registry,
        ids: Ids,
        threads: Threads,
        settings: Settings,
        concurrency: int,
        queues: Sequence[str] | None,
        resume_paused: bool,
        middleware: Sequence[Middleware],
    ) -> None:
        """Prepare; `begin` enters a life, `run` works.

        Args:
            around: What all attempts share.
            watch: Reads off the event loop.
            store: Where lives and jobs are.
            registry: What can be run.
            ids: Where the ids of lives come from.
            threads: Where threads come from.
            settings: How long a lease holds, and how often to sweep.
            concurrency: How many attempts may run at once.
            queues: The queues to serve; None for all.
            resume_paused: Whether a start resumes what people have paused.
            middleware: What wraps each attempt.
        """
        self._around, self._watch, self._store = around, watch, store
        self._registry, self._ids, self._threads, self._queues = registry, ids, threads, queues
        self._lease_s = settings.lease_s
        self._lease: Lease | None = None
        self._lost: Lease | None = None
        self._lease_lost = anyio.Event()
        self._others_live = False
        self._scope = anyio.CancelScope()
        self._over = anyio.Event()
        executors: dict[str, Executor] = {
            "inline": InlineExecutor(registry, threads),
            "thread": ThreadExecutor(registry, threads),
        }
        self.worker: Worker = Worker(
            around=around,
            registry=registry,
            executors=executors,
            life=lambda: self.life,
            concurrency=concurrency,
            queues=queues,
            middleware=middleware,
            others=lambda: self._others_live,
            claimable=self._claimable,
        )
        self.supervisor: Supervisor = Supervisor(
            around=around,
            running=self.worker.running,
            asked=self._asked,
            grace_s=settings.grace_s,
            others=lambda: self._others_live,
        )
        self.scheduler: Scheduler = Scheduler(store, around.writer, around.clock, watch.read)
        self.recovery: Recovery = Recovery(
            store=store,
            writer=around.writer,
            clock=around.clock,
            read=watch.read,
            own_life=lambda: self.life,
            versions=registry.versions,
            lease_s=settings.lease_s,
            sweep_s=settings.sweep_s,
            resume_paused=resume_paused,
        )

    @property
    def life(self) -> str | None:
        """The id of the present life; None between two."""
        return None if self._lease is None else self._lease.life.id

    # ── a life, and the next one ──

    async def begin(self) -> None:
        """Enter a life, locked and leased."""
        life = new_life(self._ids, self._around.node, self._registry.versions(), boot_id())
        lease = Lease(
            self._store, self._around.writer, self._around.clock, self._threads, life, self._lease_s,
            lost=lambda: self._around.loop.post(self._die, lease),
        )  # fmt: skip
        with anyio.CancelScope(shield=True):  # a life that is entered must be known here, to be ended again
            await lease.begin()
            self._lease = lease

    def _die(self, lost: Lease) -> None:
        """On the loop: the lease is lost, so stop what runs; `_go_on_living` begins a new life."""
        if self._lease is lost:
            self._lost, self._lease = lost, None
            self.worker.abandon()
            self._lease_lost.set()

    async def _go_on_living(self) -> None:
        """Begin a new life whenever one was lost, for as long as that takes."""
        while True:
            await self._lease_lost.wait()
            self._lease_lost = anyio.Event()
            if self._lost is not None:
                with anyio.CancelScope(shield=True):
                    await self._lost.end()
            failures = 0
            while self._lease is None:
                try:
                    await self.begin()
                except JobkitError as error:
                    failures += 1
                    if failures == 1:
                        log.error("no new life can be begun yet, so nothing is run here: %s", error)  # noqa: TRY400  no trace to show
                    await self._around.clock.wait(anyio.Event(), REBIRTH_S)
            self._around.feed.work_came()
            self.recovery.hurry()  # the jobs of the life that was lost are there to be taken up again

    # ── working ──

    async def run(self) -> None:
        """Work and sweep, until `drain` or `end` says otherwise."""
        self._around.feed.attendant = self.supervisor.heard
        try:
            with self._scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(self.recovery.run)
                    group.start_soon(self.scheduler.run)
                    group.start_soon(self.supervisor.run)
                    group.start_soon(self.worker.run)
                    group.start_soon(self._go_on_living)
        except BaseExceptionGroup as group_error:
            log.critical("the manager's own work broke off", exc_info=group_error)
            raise
        finally:
            if not self._scope.cancel_called and self._lease is not None:  # the loop has ended under it
                self._around.writer.post(Retire(self._lease.life.id))
                self._lease.forsake()
            self._around.feed.attendant = None
            self._over.set()
            self.recovery.swept.set()

    async def idle(self) -> bool:
        """Wait until nothing is claimable and nothing runs; answer False if the work here has ended instead."""
        ear = self._around.feed.listen()
        await self.recovery.swept.wait()
        while not self._over.is_set():
            signal = ear.signal
            await self.worker.quiet()
            if not await self._claimable() and not self.worker.busy:
                return not self._over.is_set()
            await self._around.clock.wait(signal, IDLE_POLL_S)
        return False

    async def _claimable(self) -> bool:
        suspects = self.worker.takes_suspects
        return await self._watch.read(self._store.claimable, self._registry.versions(), self._queues, suspects=suspects)

    async def _asked(self) -> list[Standing]:
        return [] if self.life is None else await self._watch.read(self._store.asked, self.life)

    # ── stopping ──

    async def drain(self, grace_s: float) -> bool:
        """Claim nothing more, and give back what runs: at its next checkpoint, or by force when the grace is over.

        Args:
            grace_s: How long to wait for handlers, in seconds.

        Returns:
            Whether all stopped by themselves.
        """
        if self.life is not None:
            self._around.writer.post(Leave(self.life))  # the stop goes on however long that takes
        try:
            self._others_live = await self.recovery.others_live()
        except JobkitError:
            self._others_live = False
        return await self.worker.drain(grace_s)

    def hurry(self, grace_s: float) -> None:
        """Wait no longer than this from now on, where `drain` waits for handlers."""
        self.worker.hurry(grace_s)

    async def stop_working(self) -> None:
        """End the loops; what can't be stopped is left behind."""
        self._scope.cancel()
        with anyio.move_on_after(LEFT_BEHIND_S):
            await self._over.wait()

    async def end(self) -> None:
        """End the present life."""
        if self._lease is not None:
            await self._lease.end()
            self._lease = None
