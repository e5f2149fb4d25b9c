"""Lives and their leases: how a manager shows that it lives, and what it does when it can't."""

from __future__ import annotations

import threading
from datetime import datetime
from functools import partial
from typing import Any

import anyio
import pytest

from jobkit import Job, JobContext, JobStatus, Registry, StoreUnavailable, job, state
from jobkit.interfaces import Renew, Retire
from jobkit.store import SqlStore
from jobkit.testing import FakeClock, FakeThreads
from tests.runtime.kit import (
    DEADLINE_S,
    Echo,
    OtherProcess,
    SeenFromAfar,
    Steps,
    StepsInThread,
    make,
    node_of,
    one,
    pass_until,
    store_at,
)

pytestmark = pytest.mark.anyio

LEASE_S = 30.0


@pytest.fixture
def timed(clock):
    """What a manager in fake time is given."""
    return {"clock": clock, "threads": FakeThreads(clock), "lease_s": LEASE_S}


def lease_until(store: SqlStore) -> datetime:
    """Until when the only life's lease holds."""
    (life,) = store.lives()
    assert life.lease_until is not None
    return life.lease_until


def renewed_since(store: SqlStore, before: datetime) -> bool:
    """Whether the only life's lease was renewed."""
    return lease_until(store) > before


def renewed_life(store: SqlStore, before: datetime) -> bool:
    """Whether there is a life whose lease holds for longer than that."""
    return any(one.lease_until is not None and one.lease_until > before for one in store.lives())


async def test_a_life_renews_its_lease(path, clock, timed):
    """A living manager's lease never runs out, however long it lives."""
    looking = store_at(path, clock.now)
    async with make(path, **timed):
        for _ in range(10):
            before = lease_until(looking)
            assert before > clock.now()
            await pass_until(clock, partial(renewed_since, looking, before))
    looking.close()


async def test_a_life_taken_for_dead_begins_another(path, clock, timed, gate):
    """G4: a manager whose life was noted as over stops its handlers and works on in a new one, from the saved state."""
    ended = []

    async def note(attempt, call_next):
        try:
            return await call_next()
        finally:
            ended.append(attempt.attempt)

    looking = store_at(path, clock.now)
    async with make(path, resources={"gate": gate}, middleware=[note], sweep_s=1.0, **timed) as manager:
        handle = await manager.dispatch(Steps(n=3))
        await gate.reached(1)
        gate.let(1)
        await gate.reached(2)
        (old,) = looking.lives()
        one(looking.commit([Retire(old.id)]))
        await pass_until(clock, lambda: ended)
        assert ended == [1]
        gate.open()
        await pass_until(clock, lambda: [life.id for life in looking.lives()] not in ([], [old.id]))
        assert await handle.result(DEADLINE_S) == [1, 2, 2]
        assert (await handle.record()).attempt == 2
    assert looking.lives() == []
    looking.close()


async def test_threads_of_a_lost_life_are_fenced(path, clock, timed, gate):
    """G4: a thread can't be stopped when its life is lost, but nothing that it saves counts."""
    looking = store_at(path, clock.now)
    async with make(path, resources={"gate": gate}, sweep_s=1.0, **timed) as manager:
        handle = await manager.dispatch(StepsInThread(n=2))
        await gate.reached(1)
        (old,) = looking.lives()
        one(looking.commit([Retire(old.id)]))
        await pass_until(clock, lambda: gate.arrived >= 2)  # the new attempt arrives, beside the old thread
        gate.open()
        assert await handle.result(DEADLINE_S) == [2, 2]
    looking.close()


def has_come(clock: FakeClock, at: float) -> bool:
    """Whether a time has come."""
    return clock.monotonic() >= at


class Refusing(SqlStore):
    """A database in which one kind of write is not possible for a while, or late."""

    refused: tuple[type, ...] = ()
    held: threading.Event | None = None

    def commit(self, batch):
        if self.held is not None and any(isinstance(write, Renew) for write in batch):
            self.held.wait(DEADLINE_S)
        if any(isinstance(write, self.refused) for write in batch):
            raise StoreUnavailable("it is away", "wait")
        return super().commit(batch)


class FarRefusing(Refusing, SeenFromAfar):
    """The same, used from other machines too, where lives are judged by their leases alone."""


async def test_handlers_stop_before_the_lease_has_run_out(path, clock, timed, gate):
    """A life that can't renew in time stops its handlers while the lease still holds, and goes on once it can."""
    stopped = []

    async def note(attempt, call_next):
        try:
            return await call_next()
        finally:
            stopped.append(clock.now())

    store = FarRefusing(f"sqlite:///{path}", now=clock.now)
    looking = store_at(path, clock.now)
    async with make(store, resources={"gate": gate}, middleware=[note], sweep_s=1.0, **timed) as manager:
        handle = await manager.dispatch(Steps(n=1))
        await gate.reached(1)
        until_then = lease_until(looking)
        store.refused = (Renew,)
        await pass_until(clock, lambda: stopped)
        assert clock.now() < until_then
        store.refused = ()
        gate.open()
        await pass_until(clock, lambda: renewed_life(looking, until_then))
        assert await handle.result(DEADLINE_S) == [2]
    looking.close()


async def test_a_commit_that_hangs_is_as_bad_as_none(path, clock, timed, gate):
    """A database that does not answer a renewal in time stops the handlers too."""
    stopped = []

    async def note(attempt, call_next):
        try:
            return await call_next()
        finally:
            stopped.append(clock.now())

    store = FarRefusing(f"sqlite:///{path}", now=clock.now)
    looking = store_at(path, clock.now)
    async with make(store, resources={"gate": gate}, middleware=[note], sweep_s=1.0, **timed) as manager:
        handle = await manager.dispatch(Steps(n=1))
        await gate.reached(1)
        until_then = lease_until(looking)
        store.held = held = threading.Event()
        await pass_until(clock, lambda: stopped)
        assert clock.now() < until_then
        store.held = None
        held.set()
        gate.open()
        await pass_until(clock, lambda: renewed_life(looking, until_then))
        assert await handle.result(DEADLINE_S) == [2]
    looking.close()


@pytest.mark.parametrize("late", [False, True])
async def test_a_life_whose_lock_is_seen_by_all_outlives_its_lease(path, clock, timed, gate, late):
    """G20: where a lock proves that it lives, a life that can't renew for many leases keeps its jobs."""
    store = Refusing(f"sqlite:///{path}", now=clock.now)
    looking = store_at(path, clock.now)
    async with make(store, resources={"gate": gate}, sweep_s=1.0, **timed) as manager:
        handle = await manager.dispatch(Steps(n=2))
        await gate.reached(1)
        (own,) = looking.lives()
        if late:
            store.held = threading.Event()
        else:
            store.refused = (object,)
        await pass_until(clock, partial(has_come, clock, clock.monotonic() + 5 * LEASE_S), step_s=1.0)
        gate.let(1)
        assert lease_until(looking) < clock.now()
        async with make(path, queues=["none"], sweep_s=0.5, **timed) as other:
            await pass_until(clock, node_of(other).recovery.swept.is_set)  # and it has found nobody dead
        assert gate.arrived == 1
        store.refused = ()
        if store.held is not None:
            store.held.set()
        await pass_until(clock, lambda: gate.arrived == 2)
        gate.open()
        assert await handle.result(DEADLINE_S) == [1, 1]
        await pass_until(clock, partial(renewed_since, looking, clock.now()))
        assert [life.id for life in looking.lives()] == [own.id]
    looking.close()


async def test_managers_that_can_not_write_hold_it_against_nobody(path, clock, timed, gate):
    """G20: of two managers whose disk is full for many leases, neither takes the other for dead, then or later."""
    stores = [Refusing(f"sqlite:///{path}", now=clock.now) for _ in range(2)]
    looking = store_at(path, clock.now)
    given: dict[str, Any] = {"resources": {"gate": gate}, "sweep_s": 1.0, **timed}
    async with make(stores[0], **given) as manager, make(stores[1], **given):
        handle = await manager.dispatch(Steps(n=2))
        await gate.reached(1)
        lives = {life.id for life in looking.lives()}
        for leases, refused in ((5, (object,)), (3, ())):
            for store in stores:
                store.refused = refused
            until_then = clock.monotonic() + leases * LEASE_S
            await pass_until(clock, partial(has_come, clock, until_then))
            assert {life.id for life in looking.lives()} == lives
        gate.open()
        assert await handle.result(DEADLINE_S) == [1, 1]
    looking.close()


async def test_a_life_that_is_noted_as_over_while_it_can_not_write_stops(path, clock, timed, gate):
    """G4: a manager that alone can't write looks whether it was taken for dead, and stops its handlers if so."""
    ended = []

    async def note(attempt, call_next):
        try:
            return await call_next()
        finally:
            ended.append(attempt.attempt)

    store = Refusing(f"sqlite:///{path}", now=clock.now)
    looking = store_at(path, clock.now)
    async with make(store, resources={"gate": gate}, middleware=[note], sweep_s=1.0, **timed) as manager:
        handle = await manager.dispatch(Steps(n=1))
        await gate.reached(1)
        store.refused = (object,)
        await pass_until(clock, partial(has_come, clock, clock.monotonic() + 2 * LEASE_S))
        assert ended == []
        (own,) = looking.lives()
        one(looking.commit([Retire(own.id)]))
        await pass_until(clock, lambda: ended)
        store.refused = ()
        gate.open()
        await pass_until(clock, looking.lives)
        assert await handle.result(DEADLINE_S) == [2]
    looking.close()


async def test_a_manager_goes_on_by_itself_when_the_database_is_back(path, clock, timed):
    """G20: a manager that lost its life while nothing could be written begins a new one once that is possible."""
    store = FarRefusing(f"sqlite:///{path}", now=clock.now)
    looking = store_at(path, clock.now)
    async with make(store, sweep_s=1.0, **timed) as manager:
        (old,) = looking.lives()
        store.refused = (object,)
        await pass_until(clock, lambda: node_of(manager).life is None)
        back_at = clock.monotonic() + 50
        await pass_until(clock, lambda: clock.monotonic() >= back_at)
        store.refused = ()
        handle = await manager.dispatch(Echo(n=1))
        await pass_until(clock, lambda: node_of(manager).life not in {None, old.id})
        assert await handle.result(DEADLINE_S) == 1
    looking.close()


async def test_a_stop_during_a_rebirth(path, clock, timed):
    """A manager that is stopped while it has no life stops in order, and leaves none behind."""
    store = FarRefusing(f"sqlite:///{path}", now=clock.now)
    looking = store_at(path, clock.now)
    manager = make(store, sweep_s=1.0, **timed)
    await manager.start()
    (old,) = looking.lives()
    store.refused = (Renew,)
    await pass_until(clock, lambda: node_of(manager).life != old.id)
    with anyio.fail_after(DEADLINE_S):
        await manager.stop()
    assert looking.lives() == []
    looking.close()


@pytest.mark.parametrize("refused", [StoreUnavailable, None])
async def test_a_life_that_can_not_begin_leaves_no_lock(path, refused):
    """If a life can't be entered, its lock is let go, and the manager is not started."""
    from jobkit.interfaces import Register

    store = Refusing(f"sqlite:///{path}")
    store.refused = (Register,) if refused else ()
    manager = make(store)
    if refused:
        with pytest.raises(refused):
            await manager.start()
        assert not list(path.parent.glob("jobs.db.lives/*-*.lock"))
        store.refused = ()
    async with manager:
        assert await (await manager.dispatch(Echo(n=1))).result(DEADLINE_S) == 1


async def test_a_blocked_loop_loses_no_job(path, clock, timed):
    """Rule 5: a handler that blocks the event loop for many leases keeps its job, and all others keep theirs."""
    registry = Registry()
    looking = store_at(path, clock.now)
    blocking, free = threading.Event(), threading.Event()

    @job("blocks", registry=registry)
    class Blocks(Job[int]):
        done: int = state(0)

        async def run(self, ctx: JobContext) -> int:
            blocking.set()
            free.wait(DEADLINE_S)
            self.done = 1
            await ctx.checkpoint()
            return ctx.attempt

    def let_time_pass() -> None:
        blocking.wait(DEADLINE_S)
        looks = threading.Event()
        end = clock.monotonic() + 3 * LEASE_S
        while clock.monotonic() < end and not looks.wait(0.005):
            clock.advance(0.5)
        free.set()

    threading.Thread(target=let_time_pass, daemon=True).start()
    async with make(path, registry=registry, **timed) as manager:
        async with make(path, registry=registry, queues=["none"], sweep_s=0.5, **timed):
            pass  # it sweeps once, and finds nobody dead
        handle = await manager.dispatch(Blocks())
        assert await handle.result(DEADLINE_S) == 1
        assert lease_until(looking) > clock.now()
    looking.close()


async def test_an_unstopped_managers_life_ends_with_its_loop(path, anyio_backend):
    """A manager whose event loop ended under it holds nothing any more: the next one takes its jobs over at once."""

    def forget(gate) -> str:
        async def leave() -> str:
            manager = make(path, resources={"gate": gate}, node_name="forgotten")
            await manager.start()
            handle = await manager.dispatch(Steps(n=1))
            await gate.reached(1)
            return str(handle.id)

        return anyio.run(leave, backend=anyio_backend)

    from tests.runtime.kit import Gate

    left: list[str] = []
    gate = Gate()
    thread = threading.Thread(target=lambda: left.append(forget(gate)))
    thread.start()
    await anyio.to_thread.run_sync(thread.join)
    gate.open()
    async with make(path, resources={"gate": gate}) as manager:
        assert await manager.handle(left[0]).result(DEADLINE_S) == [2]


async def test_the_lease_is_shown_on_the_record(path, clock, timed, gate):
    """A running job's record tells until when its owner's lease holds."""
    async with make(path, resources={"gate": gate}, **timed) as manager:
        handle = await manager.dispatch(Steps(n=1))
        await gate.reached(1)
        record = await handle.record()
        assert record.status is JobStatus.RUNNING
        assert record.lease_deadline is not None
        assert 0 < (record.lease_deadline - clock.now()).total_seconds() <= LEASE_S
        gate.open()
        await handle.result(DEADLINE_S)
        assert (await handle.record()).lease_deadline is None


async def test_a_zombies_claim_finds_nothing(path):
    """G4: a life that was noted as over can claim nothing."""
    from jobkit import LeaseLost

    other = OtherProcess(path)
    other.put(Echo(n=1))
    one(other.store.commit([Retire(other.life.id)]))
    with pytest.raises(LeaseLost):
        other.claim()
    other.die()
