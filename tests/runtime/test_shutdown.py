"""Stopping a manager: what runs is saved and given back, and goes on where somebody is left to go on."""

from __future__ import annotations

import threading
from typing import Any

import anyio
import pytest

from jobkit import (
    Job,
    JobContext,
    JobStatus,
    LeaseLost,
    ManagerNotRunning,
    Registry,
    StoreUnavailable,
    job,
    state,
)
from jobkit.store import SqlStore
from jobkit.testing import FakeClock, FakeThreads
from tests.runtime.kit import (
    DEADLINE_S,
    Echo,
    Once,
    Steps,
    StepsInThread,
    breathe,
    make,
    node_of,
    pass_until,
    store_at,
    stored,
    until,
)

pytestmark = pytest.mark.anyio


async def stop_while(manager, then) -> None:
    """Stop a manager and meanwhile do something."""
    with anyio.fail_after(DEADLINE_S):
        async with anyio.create_task_group() as group:
            group.start_soon(manager.stop)
            await until(lambda: not node_of(manager).worker._claiming)
            await then()


@pytest.mark.parametrize("kind", [Steps, StepsInThread])
async def test_a_running_job_reaches_a_checkpoint_and_resumes(path, gate, kind):
    """G16, G8: at a stop a job goes on to its next checkpoint, is paused there, and is resumed there by the next."""
    manager = make(path, resources={"gate": gate})
    await manager.start()
    handle = await manager.dispatch(kind(n=3))
    waiting = await manager.dispatch(Echo(n=1), queue="nobody's")
    await gate.reached(1)

    async def let():
        gate.let(1)

    await stop_while(manager, let)
    store = store_at(path)
    record = stored(store, handle.id)
    assert (record.status, record.reason, record.checkpoint_seq) == (JobStatus.PAUSED, "shutdown", 1)
    assert [event.type for event in store.events(str(handle.id), None, None, 10)] == ["created", "started", "paused"]
    assert store.lives() == []
    store.close()
    gate.open()
    async with make(path, resources={"gate": gate}) as manager:
        assert await manager.handle(handle.id).result(DEADLINE_S) == [1, 2, 2]
        record = await manager.get(handle.id)
        assert (record.attempt, record.reason) == (2, None)
        assert await manager.handle(waiting.id).result(DEADLINE_S) == 1


async def test_a_handler_that_never_checkpoints_is_stopped_after_the_grace(path, gate):
    """G16: after the grace an async handler is cancelled; its job resumes from its last checkpoint."""
    registry = Registry()
    cleaned = []

    @job("goes_on", registry=registry)
    class GoesOn(Job[int]):
        done: int = state(0)

        async def run(self, ctx: JobContext) -> int:
            self.done += 1
            await ctx.checkpoint()
            self.done += 100
            if ctx.attempt == 1:
                try:
                    await gate.pass_async([])
                finally:
                    cleaned.append(self.done)
                    raise OSError("cleaning up went wrong as well")
            return self.done

    manager = make(path, registry=registry, grace_s=0.05)
    await manager.start()
    handle = await manager.dispatch(GoesOn())
    await gate.reached(1)
    with anyio.fail_after(DEADLINE_S):
        await manager.stop()
    assert cleaned == [101]
    async with make(path, registry=registry) as manager:
        assert await manager.handle(handle.id).result(DEADLINE_S) == 102
        record = await manager.get(handle.id)
        assert (record.attempt, record.error) == (2, None)


async def test_a_late_first_sweep_puts_back_nothing_that_the_stop_has_paused(path, gate):
    """What a stop gives back stays paused until the next start, though the first sweep is still under way."""
    manager = make(path, resources={"gate": gate})
    store, go = manager._store, threading.Event()
    orphans = store.orphans

    def late(limit: int) -> list[Any]:
        assert go.wait(DEADLINE_S)
        return orphans(limit)

    store.orphans = late  # type: ignore[method-assign]
    await manager.start()
    handle = await manager.dispatch(Steps(n=1))
    await gate.reached(1)
    looking, recovery = store_at(path), node_of(manager).recovery
    stop_working = node_of(manager).stop_working

    async def once_swept() -> None:
        go.set()
        await until(recovery.swept.is_set)
        await stop_working()

    node_of(manager).stop_working = once_swept  # type: ignore[method-assign]
    await manager.stop(0)
    assert stored(looking, handle.id).status is JobStatus.PAUSED
    looking.close()


@pytest.mark.parametrize("grace", [0.0, 0.05])
async def test_a_stop_without_grace_loses_nothing(path, gate, grace):
    """stop(grace=0) stops handlers at once; their jobs are given back in order, and resume."""
    manager = make(path, resources={"gate": gate})
    await manager.start()
    handles = await manager.dispatch_many([Steps(n=1) for _ in range(20)])
    await gate.reached(20)
    with anyio.fail_after(DEADLINE_S):
        await manager.stop(grace=grace)
    store = store_at(path)
    assert {stored(store, one.id).status for one in handles} == {JobStatus.PAUSED}
    store.close()
    gate.open()
    async with make(path, resources={"gate": gate}) as manager:
        for one in handles:
            assert await manager.handle(one.id).result(DEADLINE_S) == [2]


async def test_a_job_that_can_not_be_resumed_is_lost(path, gate):
    """A job that is not resumable and does not end within the grace is lost, and said to be."""
    manager = make(path, resources={"gate": gate}, grace_s=0.05)
    await manager.start()
    handle = await manager.dispatch(Once())
    await gate.reached(1)
    with anyio.fail_after(DEADLINE_S):
        await manager.stop()
    async with make(path, resources={"gate": gate}) as manager:
        assert (await manager.get(handle.id)).status is JobStatus.LOST


async def test_a_job_that_ends_within_the_grace_has_ended(path, gate):
    """G16: a handler that ends before its next checkpoint, resumable or not, keeps its own outcome."""
    manager = make(path, resources={"gate": gate})
    await manager.start()
    handle = await manager.dispatch(Once())
    await gate.reached(1)

    async def let():
        gate.open()

    await stop_while(manager, let)
    async with make(path) as manager:
        assert await manager.handle(handle.id).result(DEADLINE_S) == 1


async def test_nothing_is_claimed_while_stopping(path, gate):
    """G16: once a stop has begun, what is queued stays queued, also when a slot comes free."""
    manager = make(path, resources={"gate": gate}, concurrency=1)
    await manager.start()
    first, second = await manager.dispatch_many([Once(), Once()])
    await gate.reached(1)

    async def let():
        gate.open()

    await stop_while(manager, let)
    store = store_at(path)
    assert [stored(store, one.id).status for one in (first, second)] == ["completed", "queued"]
    store.close()


async def test_beside_another_manager_jobs_are_handed_over(path, gate):
    """A manager that stops beside a living one queues its jobs, and the other goes on with them from their state."""
    first = make(path, resources={"gate": gate}, node_name="first")
    await first.start()
    handle = await first.dispatch(Steps(n=2))
    await gate.reached(1)
    async with make(path, resources={"gate": gate}, node_name="second", sweep_s=1_000) as second:

        async def let():
            gate.let(1)

        await stop_while(first, let)
        gate.open()
        assert await second.handle(handle.id).result(DEADLINE_S) == [1, 2]
        assert (await second.get(handle.id)).node == "second"
        types = [one.type async for one in second.events(handle.id) if one.cursor]
        assert types == ["created", "started", "queued", "started", "completed"]


async def test_beside_a_client_jobs_wait_for_a_worker(path, gate):
    """A manager that runs nothing is nobody to hand jobs to."""
    async with make(path, work=False) as client:
        manager = make(path, resources={"gate": gate}, grace_s=0.0)
        await manager.start()
        handle = await manager.dispatch(Steps(n=1))
        await gate.reached(1)
        await manager.stop()
        assert (await client.get(handle.id)).reason == "shutdown"


async def test_a_thread_that_is_left_behind_can_not_write(path, gate):
    """A thread can't be stopped: after the grace it is fenced off, its every later save is refused."""
    registry = Registry()
    refused = []
    ended = threading.Event()

    @job("stays", registry=registry)
    class Stays(Job[int]):
        done: int = state(0)

        def run(self, ctx) -> int:
            if ctx.attempt > 1:
                return self.done
            self.done = 1
            ctx.checkpoint()
            gate.pass_blocking([])
            self.done = 2
            for _ in range(3):
                try:
                    ctx.checkpoint()
                except (LeaseLost, StoreUnavailable) as error:
                    refused.append(type(error).__name__)
            ctx.progress(0.9)
            ctx.log("still here")
            ended.set()
            return 99

    manager = make(path, registry=registry, grace_s=0.05)
    await manager.start()
    handle = await manager.dispatch(Stays())
    await gate.reached(1)
    with anyio.fail_after(DEADLINE_S):
        await manager.stop()
    async with make(path, registry=registry) as manager:
        gate.open()
        await until(ended.is_set)
        assert await manager.handle(handle.id).result(DEADLINE_S) == 1
        assert (await manager.get(handle.id)).checkpoint_seq == 1
    assert refused == ["LeaseLost"] * 3


async def test_the_grace_is_counted_by_the_clock(path, gate):
    """The grace is time like any other: it ends when the clock says so, and not before."""
    clock = FakeClock()
    manager = make(path, resources={"gate": gate}, clock=clock, threads=FakeThreads(clock), grace_s=60.0)
    await manager.start()
    handle = await manager.dispatch(Steps(n=1))
    await gate.reached(1)
    stopped = []

    async def stop():
        await manager.stop()
        stopped.append(True)

    with anyio.fail_after(DEADLINE_S):
        async with anyio.create_task_group() as group:
            group.start_soon(stop)
            await until(lambda: not node_of(manager).worker._claiming)
            clock.advance(59)
            for _ in range(100):
                await anyio.lowlevel.checkpoint()
            assert stopped == []
            await pass_until(clock, lambda: stopped)
    store = store_at(path)
    assert stored(store, handle.id).status is JobStatus.PAUSED
    store.close()


async def test_who_reads_while_the_manager_stops_is_answered(path):
    """The database is closed after the last read has come to its end; who asks later is told that nothing runs."""
    reading, go_on = threading.Event(), threading.Event()

    class Slow(SqlStore):
        def stats(self, where):
            reading.set()
            assert go_on.wait(DEADLINE_S)
            return super().stats(where)

    found = []

    async def ask():
        found.append(await manager.stats())

    manager = make(Slow(f"sqlite:///{path}"))
    with anyio.fail_after(DEADLINE_S):
        await manager.start()
        await manager.dispatch(Echo(n=1), queue="nobody's")
        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await until(reading.is_set)
            group.start_soon(manager.stop)
            await until(lambda: manager._watch._limiter is None)
            for _ in range(20):
                await breathe()  # as long as it takes to close a database
            with pytest.raises(ManagerNotRunning):
                await manager.stats()
            go_on.set()
    assert [stats.total for stats in found] == [1]
