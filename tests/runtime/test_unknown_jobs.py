"""Jobs that a build doesn't know: left alone while anybody knows them, held when nobody does, released again."""

from __future__ import annotations

import sqlite3
from uuid import UUID

import pytest

from jobkit import Job, JobContext, JobHeld, JobStatus, Registry, job
from jobkit.runtime import recovery
from tests.runtime.kit import DEADLINE_S, Echo, OtherProcess, make, node_of, stored, until_true

pytestmark = pytest.mark.anyio

ELSEWHERE = Registry()


@job("elsewhere", registry=ELSEWHERE)
class Elsewhere(Job[int]):
    """Known elsewhere alone."""

    async def run(self, ctx: JobContext) -> int:
        return 1


@job("echo", version=2, registry=ELSEWHERE)
class NewerEcho(Job[int]):
    """A newer version of a job that is known here too."""

    async def run(self, ctx: JobContext) -> int:
        return 2


@pytest.fixture
def strangers(path):
    """Another process that knows jobs of its own, and has dispatched one of each."""
    other = OtherProcess(path, registry=ELSEWHERE, lease_s=3_600)
    ids = other.put(Elsewhere()) + other.put(NewerEcho())
    return other, ids


async def test_unknown_jobs_are_left_alone_while_a_living_node_knows_them(path, strangers):
    """G10: a name or a version that this build doesn't know waits for the node that does, and blocks no other job."""
    other, ids = strangers
    async with make(path) as manager:
        assert await (await manager.dispatch(Echo(n=1))).result(DEADLINE_S) == 1
        await node_of(manager).recovery.sweep()
        assert [stored(other.store, one).status for one in ids] == [JobStatus.QUEUED] * 2
    assert len(other.claim(9)) == 2
    other.die()


async def test_unknown_jobs_are_held_when_no_living_node_knows_them_and_released_when_one_starts(path, strangers):
    """G10: what nobody can run is held as `unknown_job`, and goes on by itself once a node starts that knows it."""
    other, ids = strangers
    other.die()
    async with make(path) as manager:
        await until_true(lambda: _all(manager, ids, JobStatus.HELD))
        assert [(await manager.get(one)).reason for one in ids] == ["unknown_job"] * 2
        with pytest.raises(JobHeld, match="unknown_job"):
            await manager.handle(ids[0]).result(DEADLINE_S)
        assert await (await manager.dispatch(Echo(n=1))).result(DEADLINE_S) == 1
        async with make(path, registry=ELSEWHERE) as knowing:
            await until_true(lambda: _all(knowing, ids, JobStatus.COMPLETED))
            assert [await knowing.handle(one).result() for one in ids] == [1, 2]
            types = [event.type async for event in knowing.events(ids[0]) if event.cursor]
            assert types == ["created", "held", "released", "started", "completed"]


async def _all(manager, ids, status: JobStatus) -> bool:
    return all([(await manager.get(one)).status is status for one in ids])


async def test_what_is_held_for_another_reason_is_not_released(path, strangers):
    """G10: a start releases nothing but what was held for want of a node that knows it."""
    other, _ = strangers
    (damaged,) = other.put(Elsewhere())
    connection = sqlite3.connect(path)
    connection.execute(
        "UPDATE jobs SET status = 'held', reason = 'corrupt_state', rank = NULL WHERE id = ?", (damaged,)
    )
    connection.commit()
    connection.close()
    other.die()
    async with make(path, registry=ELSEWHERE) as manager:
        await manager.run_until_idle(DEADLINE_S)
        assert (await manager.get(damaged)).status is JobStatus.HELD


async def test_a_crowd_of_unknown_jobs_does_not_hide_the_known(path, monkeypatch):
    """G10: however many unknown jobs stand first in line, those behind them run, and all of them are held in time."""
    monkeypatch.setattr(recovery, "PORTION", 50)
    other = OtherProcess(path, registry=ELSEWHERE)
    ids = other.put(Elsewhere(), 300)
    other.die()
    async with make(path) as manager:
        assert await (await manager.dispatch(Echo(n=1))).result(DEADLINE_S) == 1
        await until_true(lambda: _counted(manager, len(ids)))


async def _counted(manager, number: int) -> bool:
    return bool((await manager.stats()).held == number)


async def test_a_release_by_hand_is_held_again_unless_somebody_knows_it(path, strangers):
    """A person may release an unknown job, but that alone doesn't make it known."""
    other, ids = strangers
    other.die()
    async with make(path, sweep_s=0.02) as manager:
        await until_true(lambda: _all(manager, ids, JobStatus.HELD))
        await manager.release(ids[0])
        await until_true(lambda: _held_again(manager, ids[0]))


async def _held_again(manager, job_id) -> bool:
    types = [event.type for event in await manager._watch.events(UUID(job_id), None, 99)]
    return types.count("held") == 2
