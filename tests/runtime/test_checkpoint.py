"""Checkpoints: what is acknowledged is where the next attempt starts."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from jobkit import Job, JobContext, JobFailed, JobStatus, LeaseLost, Progress, Registry, job, state
from jobkit.envelope import seal, unseal
from jobkit.interfaces import Change
from jobkit.jobtype import JobType
from jobkit.lifecycle import Cause, Trigger
from jobkit.store.sql import STANDING, standing_of
from tests.runtime.kit import (
    DEADLINE_S,
    REGISTRY,
    Count,
    CountInThread,
    OtherProcess,
    Steps,
    StepsInThread,
    make,
    one,
    saved,
    store_at,
)

pytestmark = pytest.mark.anyio


def done_in(job_type: JobType, params: bytes, sealed: bytes) -> int:
    """How far a saved state had come."""
    restored: Any = job_type.restore(params, unseal(sealed).state)
    return int(restored.done)


@pytest.mark.parametrize("kind", [Count, CountInThread])
async def test_resumes_from_the_last_acknowledged_checkpoint(path, kind):
    """G3: after a crash the next attempt starts from the last acknowledged checkpoint, not from an older one."""
    job_type = REGISTRY.type_of(kind(n=5))
    other = OtherProcess(path)
    (job_id,) = other.put(kind(n=5))
    (claimed,) = other.claim()
    played = kind(n=5)
    for done in (1, 2, 3):
        played.done = done
        other.save(claimed, seal(job_id, 1, job_type.pack_state(played)))
    other.die()
    async with make(path) as manager:
        handle = manager.handle(job_id)
        assert await handle.result(DEADLINE_S) == 5
        record = await handle.record()
    assert (record.attempt, record.checkpoint_seq) == (2, 5)  # 3 before the crash, 2 after: none was repeated


async def test_each_checkpoint_counts(path):
    """`checkpoint_seq` is 0 until the first checkpoint, and each adds 1 even if nothing has changed."""
    registry = Registry()

    @job("saves", registry=registry)
    class Saves(Job[int]):
        async def run(self, ctx: JobContext) -> int:
            for _ in range(7):
                await ctx.checkpoint()
            return 0

    async with make(path, registry=registry, work=False) as client:
        handle = await client.dispatch(Saves())
        assert (await handle.record()).last_checkpoint_at is None
        async with make(path, registry=registry):
            await handle.result(DEADLINE_S)
        record = await handle.record()
        assert record.checkpoint_seq == 7
        assert record.last_checkpoint_at is not None


async def test_the_last_checkpoints_are_kept(path):
    """The last N checkpoints of a job are kept as they were, and no more."""
    async with make(path, keep_checkpoints=3) as manager:
        handle = await manager.dispatch(Count(n=10))
        await handle.result(DEADLINE_S)
    store = store_at(path)
    with store._database.reading() as connection:
        rows = connection.exec_driver_sql("SELECT seq, state FROM job_checkpoints ORDER BY seq").all()
    seq, last = saved(store, handle.id)
    store.close()
    assert [row.seq for row in rows] == [8, 9, 10]
    job_type = REGISTRY.get("count")
    params = job_type.pack_params(Count(n=10))
    assert [done_in(job_type, params, row.state) for row in rows] == [8, 9, 10]
    assert (seq, last) == (10, rows[-1].state)


async def test_a_state_that_is_too_large_fails_cleanly(path):
    """A state over the limit fails the job with StateTooLarge's advice; the checkpoint before it is still there."""
    registry = Registry()

    @job("grows", registry=registry)
    class Grows(Job[int]):
        before: list[int] = state(default_factory=lambda: list(range(100)))
        data: bytes = state(b"")
        after: str = state("x" * 200)

        async def run(self, ctx: JobContext) -> int:
            await ctx.checkpoint()
            self.data = bytes(5_000)
            await ctx.checkpoint()
            return 0

    async with make(path, registry=registry, max_state_bytes=4_000) as manager:
        handle = await manager.dispatch(Grows())
        with pytest.raises(JobFailed, match="StateTooLarge") as raised:
            await handle.result(DEADLINE_S)
        assert "data_dir" in raised.value.failure.message
        assert "its largest field is data" in raised.value.failure.message
        assert (await handle.record()).checkpoint_seq == 1


async def test_a_state_that_is_too_large_may_be_caught(path):
    """StateTooLarge is an ordinary error: a handler may catch it, make its state smaller, and go on."""
    registry = Registry()

    @job("shrinks", registry=registry)
    class Shrinks(Job[int]):
        data: bytes = state(b"")

        async def run(self, ctx: JobContext) -> int:
            self.data = bytes(5_000)
            try:
                await ctx.checkpoint()
            except Exception as error:
                self.data = type(error).__name__.encode()
            await ctx.checkpoint()
            return len(self.data)

    async with make(path, registry=registry, max_state_bytes=4_000) as manager:
        handle = await manager.dispatch(Shrinks())
        assert await handle.result(DEADLINE_S) == len("StateTooLarge")
        assert (await handle.record()).checkpoint_seq == 1


async def test_a_value_that_can_not_be_stored_fails_with_its_path(path):
    """A state that can't be stored fails the job and names the field; nothing half-written is left."""
    registry = Registry()

    @job("odd_state", registry=registry)
    class OddState(Job[int]):
        thing: object = state(None)

        async def run(self, ctx: JobContext) -> int:
            self.thing = [1, {"a": lambda: 0}]
            await ctx.checkpoint()
            return 0

    async with make(path, registry=registry) as manager:
        handle = await manager.dispatch(OddState())
        with pytest.raises(JobFailed, match=r"state\.thing"):
            await handle.result(DEADLINE_S)
        assert (await handle.record()).checkpoint_seq == 0


async def test_checkpoints_of_two_tasks_both_count(path):
    """Two tasks of one handler may save at once: each checkpoint is made, and the last holds what both have done."""
    registry = Registry()

    @job("crowd", registry=registry)
    class Crowd(Job[int]):
        done: int = state(0)

        async def run(self, ctx: JobContext) -> int:
            async with anyio.create_task_group() as group:
                for _ in range(8):
                    group.start_soon(self._work, ctx)
            return self.done

        async def _work(self, ctx: JobContext) -> None:
            for _ in range(10):
                self.done += 1
                await ctx.checkpoint()

    async with make(path, registry=registry) as manager:
        handle = await manager.dispatch(Crowd())
        assert await handle.result(DEADLINE_S) == 80
        assert (await handle.record()).checkpoint_seq == 80
    store = store_at(path)
    _, sealed = saved(store, handle.id)
    store.close()
    job_type = registry.get("crowd")
    assert done_in(job_type, job_type.pack_params(Crowd()), sealed) == 80


async def test_progress_rides_along(path, gate):
    """Progress that was reported before a checkpoint is stored by it."""
    registry = Registry()

    @job("reports", registry=registry)
    class Reports(Job[int]):
        async def run(self, ctx: JobContext) -> int:
            for n in range(1, 4):
                ctx.progress(completed=n, total=4, unit="files", phase="copy", message=f"file {n}")
            await ctx.checkpoint()
            await gate.pass_async([])
            return 1

    async with make(path, registry=registry) as manager:
        handle = await manager.dispatch(Reports())
        await gate.reached(1)
        assert (await handle.record()).progress == Progress(0.75, 3, 4, "files", "copy", "file 3")
        gate.open()
        await handle.result(DEADLINE_S)


@pytest.mark.parametrize("kind", [Steps, StepsInThread])
async def test_a_checkpoint_after_the_lease_was_lost(path, gate, kind):
    """G4: an attempt whose job was given to another is told LeaseLost, writes nothing, and its end changes nothing."""
    lost = []

    async def note(attempt, call_next):
        outcome = await call_next()
        lost.append((attempt.attempt, type(outcome).__name__))
        return outcome

    async with make(path, resources={"gate": gate}, middleware=[note], concurrency=1) as manager:
        handle = await manager.dispatch(kind(n=3))
        await gate.reached(1)
        gate.let(1)
        await gate.reached(2)
        taking = store_at(path)
        with taking._database.reading() as connection:
            (row,) = connection.exec_driver_sql(f"SELECT {', '.join(one.name for one in STANDING)} FROM jobs").all()
        found = standing_of(row)
        one(taking.commit([Change(found.id, Cause(Trigger.OWNER_GONE), found)]))
        taking.close()
        gate.open()
        # the second attempt, which this manager claims once the first is out of the way, starts from the first step
        assert await handle.result(DEADLINE_S) == [1, 2, 2]
        record = await handle.record()
    assert lost == [(1, "Fenced"), (2, "Completed")]
    assert (record.attempt, record.checkpoint_seq, record.status) == (2, 3, JobStatus.COMPLETED)


async def test_a_lost_lease_is_told_at_the_next_call_too(path, gate):
    """G4: a handler that catches LeaseLost is told so again; its result counts for nothing."""
    registry = Registry()
    told = []

    @job("stubborn", registry=registry)
    class Stubborn(Job[int]):
        async def run(self, ctx: JobContext) -> int:
            if ctx.attempt == 1:
                await gate.pass_async([])
                for _ in range(2):
                    try:
                        await ctx.checkpoint()
                    except LeaseLost as error:
                        told.append(error.attempt)
            return ctx.attempt

    async with make(path, registry=registry, resources={"gate": gate}, concurrency=1) as manager:
        handle = await manager.dispatch(Stubborn())
        await gate.reached(1)
        store = store_at(path)
        with store._database.writing() as connection:
            connection.exec_driver_sql("UPDATE jobs SET attempt = attempt + 1")
        gate.open()
        await manager.run_until_idle(DEADLINE_S)
        record = await handle.record()
        assert told == [1, 1]
        assert (record.status, record.attempt, record.output) == (JobStatus.RUNNING, 2, None)
        store.close()
