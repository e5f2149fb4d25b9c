"""Honest crash accounting: who is a suspect, what is a strike, and what never counts."""

from __future__ import annotations

from typing import Any

import pytest

from jobkit import JobFilter, JobStatus
from jobkit.interfaces import Change, Retire
from jobkit.lifecycle import Cause, Trigger
from jobkit.runtime import moving
from jobkit.testing import FakeThreads
from tests.runtime.kit import (
    DEADLINE_S,
    Count,
    Echo,
    OtherProcess,
    Steps,
    make,
    node_of,
    one,
    pass_until,
    store_at,
    stored,
    until,
)

pytestmark = pytest.mark.anyio


async def _swept(path, **given: Any) -> None:
    """Have what dead owners left put back in the line, and nothing run."""
    async with make(path, queues=["none"], **given) as manager:
        await until(node_of(manager).recovery.swept.is_set)


def _suspects(path) -> dict[str, bool]:
    """Which jobs are suspects."""
    store = store_at(path)
    try:
        with store._database.reading() as connection:
            return {row[0]: bool(row[1]) for row in connection.exec_driver_sql("SELECT id, suspect FROM jobs")}
    finally:
        store.close()


def _crash(path, ids: list[str], **given: Any) -> OtherProcess:
    """Have a process claim what it can, which must be these jobs, and die."""
    other = OtherProcess(path, **given)
    assert {claimed.transition.after.id for claimed in other.claim(9)} == set(ids)
    other.die()
    return other


def _put(path, number: int) -> list[str]:
    other = OtherProcess(path)
    ids = other.put(Count(n=2), number)
    other.leave()
    return ids


async def test_three_crashes_alone_hold_a_job(path):
    """G9: a job that was the only one running at three crashes in a row is held, before it is run a fourth time."""
    ids = _put(path, 1)
    store = store_at(path)
    for strikes in (1, 2, 3):
        _crash(path, ids)
        await _swept(path)
        record = stored(store, ids[0])
        assert (record.crash_count, record.retry_count) == (strikes, 0)
        assert (record.status, record.reason) == (("held", "crash_loop") if strikes == 3 else ("queued", None))
    assert OtherProcess(path).claim(9) == []
    async with make(path) as manager:
        await manager.release(ids[0])
        assert await manager.handle(ids[0]).result(DEADLINE_S) == 2
        assert (await manager.get(ids[0])).crash_count == 0
    store.close()


async def test_a_crash_beside_others_is_a_strike_for_nobody(path):
    """G9: of several jobs that ran at a crash none is blamed, and all are suspects."""
    ids = _put(path, 3)
    _crash(path, ids)
    await _swept(path)
    store = store_at(path)
    assert [stored(store, one).crash_count for one in ids] == [0, 0, 0]
    assert _suspects(path) == dict.fromkeys(ids, True)
    store.close()


async def test_a_node_runs_one_suspect_at_a_time_beside_other_jobs(path, gate, listener):
    """G9: suspects wait for each other, not for anybody else, and each for the one before only until it is saved."""
    suspects = _put(path, 3)
    _crash(path, suspects)
    async with make(path, resources={"gate": gate}, observers=[listener], concurrency=10) as manager:
        await manager.run_until_idle(DEADLINE_S)
        assert [await manager.handle(one).status() for one in suspects] == [JobStatus.COMPLETED] * 3
    running: set[str] = set()
    for heard in listener.heard:
        alone = heard.after.suspect and heard.after.status is JobStatus.RUNNING
        running = running | {heard.after.id} if alone else running - {heard.after.id}
        assert len(running) <= 1
    assert {heard.after.id for heard in listener.heard if heard.before.suspect} == set(suspects)
    assert _suspects(path) == dict.fromkeys(suspects, False)


async def test_the_next_suspect_starts_once_the_one_before_is_saved(path, gate):
    """G9: a suspect that has saved is none any more: it goes on beside the next one."""
    other = OtherProcess(path)
    suspects = other.put(Steps(n=2), 3)
    other.claim(9)
    other.die()
    async with make(path, resources={"gate": gate}, concurrency=10, sweep_s=1_000.0) as manager:
        await gate.reached(1)
        free = await manager.dispatch(Steps(n=1))
        await gate.reached(2)  # the other job runs beside the suspect
        assert sorted([(await manager.get(one)).status for one in suspects]) == ["queued", "queued", "running"]
        gate.let(1)  # the suspect saves its first step, and waits at its second
        await gate.reached(4)
        assert sorted([(await manager.get(one)).status for one in suspects]) == ["queued", "running", "running"]
        gate.open()
        assert await free.result(DEADLINE_S) == [1]
        assert [await manager.handle(one).result(DEADLINE_S) for one in suspects] == [[2, 2]] * 3


async def test_the_only_suspect_is_blamed(path):
    """G9: a crash counts against a job that was the only suspect among those that ran, and against no other."""
    ids = _put(path, 3)
    _crash(path, ids)
    await _swept(path)
    store = store_at(path)
    for strikes in (1, 2, 3):
        other = OtherProcess(path)
        fresh = other.put(Echo(), 2) if strikes == 1 else []
        other.leave()
        claiming = OtherProcess(path)
        claimed = {one.transition.after.id: one.transition.after for one in claiming.claim(9)}
        (suspect,) = [job for job in claimed.values() if job.suspect]
        if strikes == 1:
            first = suspect.id
            assert set(claimed) == {first, *fresh}
            for job_id in fresh:  # they end before the crash, as the others' work does
                one(claiming.store.commit([Change(job_id, Cause(Trigger.COMPLETE), claimed[job_id])]))
        assert suspect.id == first
        claiming.die()
        await _swept(path)
        _lift(path, first)
        assert stored(store, first).crash_count == strikes
    assert stored(store, first).reason == "crash_loop"
    assert [stored(store, one).crash_count for one in ids if one != first] == [0, 0]
    store.close()


def _lift(path, job_id: str) -> None:
    """Put a job first in line."""
    store = store_at(path)
    with store._database.writing() as connection:
        connection.exec_driver_sql("UPDATE jobs SET rank = -1 WHERE id = ? AND rank IS NOT NULL", (job_id,))
    store.close()


async def test_a_checkpoint_clears_a_job(path):
    """G9: strikes count in a row without a newer checkpoint: a job that saves between two crashes starts anew."""
    ids = _put(path, 1)
    for _ in range(2):
        _crash(path, ids)
        await _swept(path)
    other = OtherProcess(path)
    (claimed,) = other.claim()
    other.save(claimed, b"state")
    other.die()
    await _swept(path)
    store = store_at(path)
    assert stored(store, ids[0]).crash_count == 1
    store.close()


async def test_a_reboot_never_counts(path):
    """G9: a life of an earlier boot of this machine tells nothing against its jobs."""
    ids = _put(path, 1)
    for _ in range(4):
        other = OtherProcess(path)
        other.claim(9)
        with other.store._database.writing() as connection:
            connection.exec_driver_sql("UPDATE lives SET boot_id = 'an earlier one' WHERE id = ?", (other.life.id,))
        other.die()
        await _swept(path)
    store = store_at(path)
    assert (stored(store, ids[0]).status, stored(store, ids[0]).crash_count) == ("queued", 0)
    assert _suspects(path) == {ids[0]: False}
    store.close()


async def test_a_lost_lease_never_counts(path, clock):
    """G9: an owner that was merely not heard of has not crashed, as far as anybody can tell."""
    other = OtherProcess(path, now=clock.now, host="far.example")
    (job_id,) = other.put(Count(n=2))
    other.claim(9)
    other.die()
    clock.advance(60)
    await _swept(path, clock=clock, threads=FakeThreads(clock))
    store = store_at(path, clock.now)
    assert (stored(store, job_id).status, stored(store, job_id).crash_count) == ("queued", 0)
    assert _suspects(path) == {job_id: False}
    store.close()


async def test_a_shutdown_and_a_deploy_never_count(path, gate):
    """G9: a job that a stop gave back, whether saved or by force, is no suspect and has no strike."""
    for grace in (0.0, None, 0.0):
        async with make(path, resources={"gate": gate}, queues=None) as manager:
            if not (await manager.list_jobs()).items:
                await manager.dispatch(Steps(n=9))
            arrived = gate.arrived
            await gate.reached(arrived + 1) if arrived else await gate.reached(1)
            if grace is None:
                gate.let(1)
            await manager.stop(grace)
    store = store_at(path)
    (record,) = store.page(JobFilter(), 9, None).items
    assert (record.status, record.crash_count, record.retry_count) == ("paused", 0, 0)
    assert not any(_suspects(path).values())
    store.close()


async def test_a_sweep_that_breaks_off_blames_the_same_job(path, monkeypatch):
    """G9: whom a crash counts against is decided once, with the life's end: not by how far a sweep came."""
    ids = _put(path, 3)
    other = _crash(path, ids)
    looking = store_at(path)
    one(looking.commit([Retire(other.life.id, "crashed")]))
    orphans = looking.orphans(9)
    for job in orphans[:2]:  # a sweep that came no further than this
        one(looking.commit([Change(job.id, Cause(Trigger.OWNER_GONE, crashed=True), job)]))
    await _swept(path)
    assert [stored(looking, one).crash_count for one in ids] == [0, 0, 0]
    assert _suspects(path) == dict.fromkeys(ids, True)
    looking.close()


async def test_many_portions_are_one_crash(path, monkeypatch):
    """G9: jobs that are put back in several commits ran at one and the same crash."""
    monkeypatch.setattr(moving, "PORTION", 2)
    ids = _put(path, 7)
    _crash(path, ids)
    await _swept(path)
    store = store_at(path)
    assert {stored(store, one).crash_count for one in ids} == {0}
    assert _suspects(path) == dict.fromkeys(ids, True)
    store.close()


async def test_a_wanted_pause_does_not_hide_a_crash(path):
    """G9, G8: a job that was to be paused when its owner crashed is paused, and the crash counts all the same."""
    ids = _put(path, 1)
    other = OtherProcess(path)
    other.claim()
    async with make(path, work=False) as client:
        await client.pause(ids[0], across_restarts=True)
    other.die()
    async with make(path) as manager:
        await until(node_of(manager).recovery.swept.is_set)
        record = await manager.get(ids[0])
        assert (record.status, record.crash_count) == ("paused", 1)


# ── owners that are alive but silent ──


async def test_a_silent_owner_loses_its_jobs_after_a_whole_lease(path, clock):
    """G4, G6: a stopped process keeps its lock; when it has let a lease pass its jobs go on, and it commits no more."""
    other = OtherProcess(path, now=clock.now, lease_s=30)
    (job_id,) = other.put(Count(n=2))
    (claimed,) = other.claim()
    started = clock.monotonic()
    async with make(path, clock=clock, threads=FakeThreads(clock), lease_s=30.0, sweep_s=5.0) as manager:
        await pass_until(clock, lambda: stored(other.store, job_id).status is JobStatus.COMPLETED)
        assert 30 <= clock.monotonic() - started <= 60
        record = await manager.get(job_id)
        assert (record.attempt, record.crash_count) == (2, 0)
        with pytest.raises(Exception, match="no longer holds"):
            other.save(claimed, b"late")
        assert one(other.store.commit([Change(job_id, Cause(Trigger.CANCEL))])).before.status is JobStatus.COMPLETED
    other.die()


async def test_a_set_clock_costs_nobody_a_job(path, clock):
    """G14: a clock that jumps an hour ahead ends no life whose process is there and renews its lease."""
    other = OtherProcess(path, now=clock.now, lease_s=30)
    (job_id,) = other.put(Count(n=2))
    other.claim()
    async with make(path, clock=clock, threads=FakeThreads(clock), lease_s=100_000.0, sweep_s=1.0) as manager:
        await until(node_of(manager).recovery.swept.is_set)
        clock.advance(3_600)
        for _ in range(5):
            await node_of(manager).recovery.sweep()
        assert (await manager.get(job_id)).status is JobStatus.RUNNING
    other.die()


async def test_a_sweeper_that_stood_still_itself_accuses_nobody(path, clock):
    """G4: silence counts only as far as somebody was there to hear it: a machine that stood still costs no life.

    Who is still silent after that loses its jobs after a whole lease, as ever.
    """
    other = OtherProcess(path, now=clock.now, lease_s=30)
    (job_id,) = other.put(Count(n=2))
    other.claim()
    async with make(path, clock=clock, threads=FakeThreads(clock), lease_s=30.0, sweep_s=5.0) as manager:
        recovery = node_of(manager).recovery
        await until(recovery.swept.is_set)
        clock.advance(3_600)
        for _ in range(3):
            await recovery.sweep()
            assert (await manager.get(job_id)).status is JobStatus.RUNNING
        went_on_at = clock.monotonic()
        await pass_until(clock, lambda: stored(other.store, job_id).status is JobStatus.COMPLETED)
        assert clock.monotonic() - went_on_at <= 60
    other.die()
