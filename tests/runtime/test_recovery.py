"""Recovery: whose owner is dead goes back in the line; whose owner lives is left alone."""

from __future__ import annotations

import shutil
import threading
from typing import Any
from uuid import uuid4

import pytest

from jobkit import Job, JobContext, JobHeld, JobStatus, Registry, job
from jobkit.envelope import seal
from jobkit.runtime import moving
from jobkit.testing import FakeClock, FakeThreads
from tests.runtime.kit import (
    DEADLINE_S,
    REGISTRY,
    Count,
    Echo,
    Once,
    OtherProcess,
    Steps,
    make,
    node_of,
    one,
    pass_until,
    saved,
    store_at,
    stored,
    until,
    until_true,
)

pytestmark = pytest.mark.anyio


async def test_a_dead_owners_jobs_are_taken_over_at_once(path, clock):
    """G6: an owner that is proven dead by its lock loses its jobs at the next start, without any waiting."""
    other = OtherProcess(path, now=clock.now, lease_s=3_600)
    (job_id,) = other.put(Count(n=2))
    other.claim()
    other.die()
    async with make(path, clock=clock, threads=FakeThreads(clock)) as manager:  # time stands still
        assert await manager.handle(job_id).result(DEADLINE_S) == 2
        types = [one.type async for one in manager.events(job_id) if one.cursor]
        assert types == ["created", "started", "queued", "started", "completed"]
    store = store_at(path)
    assert store.lives() == []
    store.close()


async def test_a_dead_owner_is_found_by_a_sweep_too(path):
    """G6: a manager that is running already takes over from one that dies beside it, within a sweep."""
    other = OtherProcess(path, lease_s=3_600)
    (job_id,) = other.put(Count(n=2))
    other.claim()
    async with make(path, sweep_s=0.05) as manager:
        await until(node_of(manager).recovery.swept.is_set)
        assert (await manager.get(job_id)).status is JobStatus.RUNNING
        other.die()
        assert await manager.handle(job_id).result(DEADLINE_S) == 2


@pytest.mark.parametrize("why", ["another host", "no lock"])
async def test_an_owner_of_which_nothing_is_known_keeps_its_lease(path, clock, monkeypatch, why):
    """G6: where death can't be proven, an owner is left alone for as long as its lease holds, and no longer."""
    other = OtherProcess(path, now=clock.now, lease_s=30, host="far.example" if why == "another host" else None)
    (job_id,) = other.put(Count(n=2))
    other.claim()
    other.die()
    if why == "no lock":
        shutil.rmtree(f"{path}.lives")
    threads = FakeThreads(clock)
    async with make(path, clock=clock, threads=threads, sweep_s=1.0, lease_s=1_000_000) as manager:
        handle = manager.handle(job_id)
        sweeps = []
        sweep = node_of(manager).recovery.sweep

        async def counted():
            found = await sweep()
            sweeps.append(clock.monotonic())
            return found

        monkeypatch.setattr(node_of(manager).recovery, "sweep", counted)
        await pass_until(clock, lambda: sweeps and sweeps[-1] > 20)
        assert clock.monotonic() < 30
        assert await handle.status() is JobStatus.RUNNING
        clock.advance(30)
        await until_true(lambda: _moved(clock, handle))
        assert await handle.result(DEADLINE_S) == 2


async def _moved(clock: FakeClock, handle) -> bool:
    clock.advance(0.25)
    return await handle.status() is not JobStatus.RUNNING


async def test_a_living_owners_jobs_are_never_touched(path, clock):
    """An owner that holds its lock is alive, though the clock says that its lease is over: its jobs stay its own."""
    other = OtherProcess(path, now=clock.now, lease_s=1)
    (job_id,) = other.put(Count(n=2))
    (claimed,) = other.claim()
    clock.advance(1_000)
    async with make(path, clock=clock, threads=FakeThreads(clock)) as manager:
        await until(node_of(manager).recovery.swept.is_set)
        assert (await manager.get(job_id)).status is JobStatus.RUNNING
        state = REGISTRY.get("count").pack_state(Count(n=2))
        assert other.save(claimed, seal(job_id, 1, state)).after.checkpoint_seq == 1
    other.die()


async def test_another_boot_of_this_machine_is_dead(path, clock):
    """G6: a life of an earlier boot of this machine is over, whatever its lease says."""
    import os

    from jobkit.interfaces import Claim, Life, Register

    other = OtherProcess(path, now=clock.now)
    (job_id,) = other.put(Count(n=1))
    life = Life(str(uuid4()), "n", os.uname().nodename, "an earlier boot", 1, True, REGISTRY.versions())
    one(other.store.commit([Register(life, 3_600)]))
    assert len(one(other.store.commit([Claim(life.id, "n", 1, REGISTRY.versions())]))) == 1
    other.die()
    async with make(path, clock=clock, threads=FakeThreads(clock)) as manager:
        assert await manager.handle(job_id).result(DEADLINE_S) == 1


async def test_jobs_that_a_shutdown_paused_are_resumed(path, gate):
    """G8: a start resumes what an earlier stop paused, whatever it is told about people's pauses."""
    manager = make(path, resources={"gate": gate})
    await manager.start()
    handles = await manager.dispatch_many([Steps(n=1) for _ in range(3)])
    await gate.reached(3)
    await manager.stop(grace=0)
    store = store_at(path)
    assert {stored(store, one.id).reason for one in handles} == {"shutdown"}
    store.close()
    async with make(path, work=False) as client:
        await client.pause(handles[0].id)  # now it is a person's
    gate.open()
    async with make(path, resources={"gate": gate}, resume="interrupted") as manager:
        for handle in handles[1:]:
            assert await manager.handle(handle.id).result(DEADLINE_S) == [2]
        await manager.run_until_idle(DEADLINE_S)
        assert (await manager.get(handles[0].id)).status is JobStatus.PAUSED


async def test_a_late_first_sweep_resumes_nothing_that_was_paused_meanwhile(path, clock):
    """G8: a start resumes what was paused before it; what people pause from then on stays paused."""
    given = {"clock": clock, "threads": FakeThreads(clock), "lease_s": 1e6}
    async with make(path, work=False, **given) as client:
        before = await client.dispatch(Echo(n=1))
        await before.pause()
    clock.advance(1)
    manager = make(path, queues=["another"], **given)
    orphans, go = manager._store.orphans, threading.Event()

    def late(limit: int) -> list[Any]:
        assert go.wait(DEADLINE_S)
        return orphans(limit)

    manager._store.orphans = late  # type: ignore[method-assign]
    async with manager:
        clock.advance(1)
        after = await manager.dispatch(Echo(n=2))
        await after.pause()
        go.set()
        await until(node_of(manager).recovery.swept.is_set)
        assert await manager.handle(before.id).status() is JobStatus.QUEUED
        assert await after.status() is JobStatus.PAUSED


async def test_jobs_that_can_not_be_put_back_hide_no_others(path, monkeypatch):
    """G10: a whole portion of rows that refuse every change does not starve those behind it."""
    monkeypatch.setattr(moving, "PORTION", 3)
    other = OtherProcess(path)
    ids = other.put(Echo(n=1), 8)
    assert len(other.claim(8)) == 8
    other.die()
    store = store_at(path)
    with store._database.writing() as connection:
        named = ", ".join(f"'{one}'" for one in ids[:6])
        refused = f"WHEN OLD.id IN ({named}) BEGIN SELECT RAISE(ABORT, 'stuck'); END"
        connection.exec_driver_sql(f"CREATE TRIGGER stuck BEFORE UPDATE ON jobs {refused}")
    async with make(path) as manager:
        await manager.run_until_idle(DEADLINE_S)
        assert [(await manager.get(one)).status for one in ids] == ["running"] * 6 + ["completed"] * 2
    store.close()


async def test_many_orphans_are_put_back_in_portions(path, monkeypatch):
    """G6: many jobs of a dead owner are put back a portion at a time, and the first run while others follow."""
    monkeypatch.setattr(moving, "PORTION", 100)
    other = OtherProcess(path)
    other.put(Echo(n=1), 300)
    assert len(other.claim(300)) == 300
    other.die()
    portions = []
    async with make(path, work=False):
        pass
    manager = make(path)
    await manager.start()
    submit_all = manager._writer.submit_all

    async def counted(changes):
        portions.append(len(changes))
        return await submit_all(changes)

    monkeypatch.setattr(manager._writer, "submit_all", counted)
    await manager.run_until_idle(60)
    assert (await manager.stats()).completed == 300
    await manager.stop()
    assert max(portions) <= 100
    assert sum(portions) == 300


async def test_a_job_that_can_not_be_resumed_is_lost(path):
    """A dead owner's job that must not be entered twice is lost, and does not run again."""
    other = OtherProcess(path)
    ids = other.put(Once(), 2)
    other.claim(1)
    other.die()
    async with make(path, queues=["none"]) as manager:
        await manager.run_until_idle(DEADLINE_S)
        assert sorted([(await manager.get(one)).status for one in ids]) == ["lost", "queued"]


async def test_one_bad_row_blocks_no_other(path):
    """G10, G17: a job whose stored bytes are damaged is held, its bytes kept; all others are taken over and run."""
    other = OtherProcess(path)
    ids = other.put(Count(n=2), 6)
    claimed = other.claim(6)
    job_type = REGISTRY.get("count")
    for one_claimed in claimed:
        job_id = one_claimed.transition.after.id
        other.save(one_claimed, seal(job_id, 1, job_type.pack_state(Count(n=2))))
    store = other.store
    spoilt, wrong = ids[0], ids[1]
    with store._database.writing() as connection:
        sealed = bytearray(saved(store, spoilt)[1])
        sealed[-1] ^= 1
        connection.exec_driver_sql("UPDATE jobs SET state = ? WHERE id = ?", (bytes(sealed), spoilt))
        connection.exec_driver_sql("UPDATE jobs SET params_data = X'C1C1' WHERE id = ?", (wrong,))
    other.die()
    async with make(path) as manager:
        for job_id in ids[2:]:
            assert await manager.handle(job_id).result(DEADLINE_S) == 2
        for job_id in ids[:2]:
            with pytest.raises(JobHeld, match="corrupt_state"):
                await manager.handle(job_id).result(DEADLINE_S)
            record = await manager.get(job_id)
            assert record.error is not None
            assert record.error.message
    store = store_at(path)
    assert saved(store, spoilt)[1] == bytes(sealed)
    store.close()


async def test_a_state_of_a_newer_version_waits_for_one_who_knows_it(path):
    """G19: a job that a newer class version wrote is never run by an older build; one that knows it runs it."""
    newer, older = Registry(), Registry()

    @job("versioned", version=2, registry=newer)
    class New(Job[int]):
        async def run(self, ctx: JobContext) -> int:
            return 2

    @job("versioned", registry=older)
    class Old(Job[int]):
        async def run(self, ctx: JobContext) -> int:
            return 1

    other = OtherProcess(path, registry=newer)
    (job_id,) = other.put(New())
    other.claim()
    other.die()
    async with make(path, registry=older) as manager:
        await manager.run_until_idle(DEADLINE_S)
        record = await manager.get(job_id)
        assert (record.status, record.reason, record.attempt) == (JobStatus.HELD, "unknown_job", 1)
        async with make(path, registry=newer) as knowing:
            await knowing.run_until_idle(DEADLINE_S)
            assert await knowing.handle(job_id).result(DEADLINE_S) == 2


async def test_a_sweep_that_breaks_is_repeated(path, monkeypatch, caplog):
    """Rule 13: whatever goes wrong in a sweep, the next one is due; the manager works on meanwhile."""
    other = OtherProcess(path)
    (job_id,) = other.put(Count(n=1))
    other.claim()
    other.die()
    manager = make(path, sweep_s=0.01)
    lives = manager._store.lives
    broken: list[bool] = []

    def breaks():
        if len(broken) < 3:
            broken.append(True)
            raise ZeroDivisionError("a bug")
        return lives()

    monkeypatch.setattr(manager._store, "lives", breaks)
    async with manager:
        assert await (await manager.dispatch(Echo(n=1))).result(DEADLINE_S) == 1
        assert await manager.handle(job_id).result(DEADLINE_S) == 1
    assert len(broken) == 3
    assert "a sweep broke off" in caplog.text


async def test_two_managers_recover_each_job_once(path):
    """Managers that find the same dead owner at once put each of its jobs back once."""
    other = OtherProcess(path)
    ids = other.put(Count(n=1), 50)
    other.claim(50)
    other.die()
    async with make(path, sweep_s=0.01) as a, make(path, sweep_s=0.01) as b:
        for job_id in ids:
            assert await a.handle(job_id).result(DEADLINE_S) == 1
            assert (await b.get(job_id)).attempt == 2
