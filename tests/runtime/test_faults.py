"""Faults that a manager outlives: a database that fails, handlers that break the rules, answers that come too late."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from jobkit import (
    Job,
    JobContext,
    JobFailed,
    JobManager,
    JobStatus,
    LeaseLost,
    Registry,
    StoreUnavailable,
    job,
    state,
)
from jobkit.interfaces import Change, Claim, Fenced, Renew, Retire, Write
from jobkit.lifecycle import Transition, Trigger
from jobkit.testing import FakeClock, FakeThreads
from tests.runtime.kit import (
    DEADLINE_S,
    Count,
    Echo,
    OtherProcess,
    SeenFromAfar,
    Steps,
    breathe,
    make,
    node_of,
    one,
    pass_until,
    store_at,
    stored,
    until,
)

pytestmark = pytest.mark.anyio

GRACE_S = FORCED_S = 0.05

TOO_LONG_S = 8.0
"""After which a stop of so little grace counts as hanging, on however slow a machine."""


class Faulty(SeenFromAfar):
    """A database that refuses writes, can't be read, or is late, as the test says.

    Attributes:
        refused: Kinds of writes that can't be committed.
        unreadable: What a look for work meets.
        looks: How many such looks there were.
        late: Which writes' commits are held up until `go`.
        answer_only: Whether they are committed at once, and only their answers are late.
        holding: Set once a commit is held up.
        go: Lets everything that is held up go on.
        done: All writes that were committed, with their answers.
    """

    def __init__(self, path: Path, now: Callable[[], datetime | None] = lambda: None) -> None:
        super().__init__(f"sqlite:///{path}", now=now)
        self.refused: tuple[type, ...] = ()
        self.unreadable: Exception | None = None
        self.looks = 0
        self.late: Callable[[Write], bool] = lambda _: False
        self.answer_only = False
        self.holding, self.go = threading.Event(), threading.Event()
        self.done: list[tuple[Write, Any]] = []

    def commit(self, batch: Sequence[Write]) -> list[Any]:
        """Commit, or not."""
        if any(isinstance(write, self.refused) for write in batch):
            raise StoreUnavailable("it is away", "wait")
        late = any(self.late(write) for write in batch)
        if late and not self.answer_only:
            self._hold_up()
        answers = super().commit(batch)
        self.done.extend(zip(batch, answers, strict=True))
        if late and self.answer_only:
            self._hold_up()
        return answers

    def _hold_up(self) -> None:
        self.holding.set()
        self.go.wait(DEADLINE_S)

    def claimable(self, versions: Any, served: Any, *, suspects: bool = True) -> bool:
        """Look for work, or fail."""
        self.looks += 1
        if self.unreadable is not None:
            raise self.unreadable
        return super().claimable(versions, served, suspects=suspects)


@pytest.fixture
def store(path):
    """A database that fails when it is told to."""
    faulty = Faulty(path)
    yield faulty
    faulty.go.set()


@pytest.fixture
def forced(monkeypatch):
    """Have little patience with what keeps a stop."""
    for name in ("worker.FORCED_S", "node.LEFT_BEHIND_S"):
        monkeypatch.setattr(f"jobkit.runtime.{name}", FORCED_S)


async def stop_soon(manager: JobManager, give_up: Callable[[], object]) -> None:
    """Stop a manager, which must not take long; what keeps it is let go if it does, so that the test can end."""
    over = []

    async def stop() -> None:
        await manager.stop(grace=GRACE_S)
        over.append(True)

    async with anyio.create_task_group() as group:
        group.start_soon(stop)
        with anyio.move_on_after(TOO_LONG_S):
            await until(lambda: over)
        in_time = bool(over)
        if not in_time:
            give_up()
    assert in_time, "the stop hung"


def locks(path: Path) -> list[Path]:
    """The locks of lives."""
    return list(path.parent.glob(f"{path.name}.lives/*-*.lock"))


# ── a database that can't be read ──


@pytest.mark.parametrize("error", [StoreUnavailable("it is away", "wait"), ValueError("a row that nobody expected")])
async def test_a_look_for_work_that_fails_does_not_end_the_work(path, store, monkeypatch, error):
    """Rule 13, G20: whatever an idle worker's look for work meets, it looks again, and runs what comes in later."""
    monkeypatch.setattr("jobkit.runtime.worker.POLL_S", 0.02)
    other = OtherProcess(path)
    async with make(store) as manager:
        store.unreadable = error
        seen = store.looks
        await until(lambda: store.looks >= seen + 2)
        own = await manager.dispatch(Echo(n=1))
        assert await own.result(DEADLINE_S) == 1
        seen = store.looks
        await until(lambda: store.looks >= seen + 2)
        store.unreadable = None
        (found,) = other.put(Echo(n=2))
        assert await manager.handle(found).result(DEADLINE_S) == 2
    other.leave()


async def test_waiting_for_idleness_tells_of_a_database_that_is_away(store):
    """G20: run_until_idle says plainly that the database can't be read, or waits for it; it raises no group."""
    async with make(store) as manager:
        await manager.run_until_idle(DEADLINE_S)
        store.unreadable = StoreUnavailable("it is away", "wait")
        with pytest.raises((StoreUnavailable, TimeoutError)):
            await manager.run_until_idle(0.5)
        store.unreadable = None
        handle = await manager.dispatch(Echo(n=1))
        await manager.run_until_idle(DEADLINE_S)
        assert await handle.status() is JobStatus.COMPLETED


# ── handlers that break the rules ──


@pytest.mark.parametrize("grouped", [False, True])
async def test_a_handler_that_raises_generator_exit_has_failed(path, gate, grouped):
    """Rule 13: GeneratorExit out of a handler fails its job alone: those beside it and those after it go on."""
    registry = Registry()

    @job("leaves", registry=registry)
    class Leaves(Job[int]):
        async def run(self, ctx: JobContext) -> int:
            if grouped:
                raise BaseExceptionGroup("several", [GeneratorExit("gone"), ValueError("as well")])
            raise GeneratorExit("gone")

    @job("stays", registry=registry)
    class Stays(Job[int]):
        async def run(self, ctx: JobContext) -> int:
            await gate.pass_async([])
            return ctx.attempt

    async with make(path, registry=registry) as manager:
        beside = await manager.dispatch(Stays())
        await gate.reached(1)
        handle = await manager.dispatch(Leaves())
        with pytest.raises(JobFailed):
            await handle.result(DEADLINE_S)
        gate.open()
        assert await beside.result(DEADLINE_S) == 1
        assert await (await manager.dispatch(Stays())).result(DEADLINE_S) == 1


@pytest.mark.parametrize("how", ["async", "sync", "grouped", "middleware"])
async def test_a_lost_lease_that_is_only_claimed_fails_the_job(path, how):
    """G2: whoever says that the lease was lost, when it was not, fails the job; it doesn't stay running for ever."""
    registry = Registry()

    @job("says_async", registry=registry)
    class SaysAsync(Job[int]):
        async def run(self, ctx: JobContext) -> int:
            if how == "async":
                raise LeaseLost(str(ctx.id), ctx.attempt)
            if how == "grouped":
                raise ExceptionGroup("several", [LeaseLost(str(ctx.id), ctx.attempt), ValueError("as well")])
            return 1

    @job("says_sync", registry=registry)
    class SaysSync(Job[int]):
        def run(self, ctx) -> int:
            raise LeaseLost(str(ctx.id), ctx.attempt)

    async def fence(attempt, call_next):
        await call_next()
        return Fenced()

    middleware = [fence] if how == "middleware" else []
    async with make(path, registry=registry, middleware=middleware) as manager:
        made: Job[int] = SaysSync() if how == "sync" else SaysAsync()
        handle = await manager.dispatch(made)
        with pytest.raises(JobFailed):
            await handle.result(DEADLINE_S)
        record = await handle.record()
        assert (record.status, record.attempt, record.lease_deadline) == (JobStatus.FAILED, 1, None)


@pytest.mark.usefixtures("forced")
async def test_a_handler_that_can_not_be_stopped_does_not_keep_a_stop(path, gate):
    """G16: a handler that shields itself is left behind: its job is given back, and its word counts no more."""
    registry = Registry()
    refused, ended = [], threading.Event()

    @job("shielded", registry=registry)
    class Shielded(Job[int]):
        done: int = state(0)

        async def run(self, ctx: JobContext) -> int:
            if ctx.attempt > 1:
                return self.done
            self.done = 1
            await ctx.checkpoint()
            try:
                with anyio.CancelScope(shield=True):
                    await gate.pass_async([])
                    self.done = 2
                    try:
                        await ctx.checkpoint()
                    except (LeaseLost, StoreUnavailable) as error:
                        refused.append(type(error).__name__)
                    ctx.progress(0.9)
                return 99
            finally:
                ended.set()

    manager = make(path, registry=registry)
    await manager.start()
    handle = await manager.dispatch(Shielded())
    await gate.reached(1)
    await stop_soon(manager, gate.open)
    looking = store_at(path)
    record = stored(looking, handle.id)
    assert (record.status, record.reason, record.checkpoint_seq) == (JobStatus.PAUSED, "shutdown", 1)
    assert looking.lives() == []
    assert not ended.is_set()
    async with make(path, registry=registry) as manager:
        assert await manager.handle(handle.id).result(DEADLINE_S) == 1
        gate.open()
        await until(ended.is_set)
        record = await manager.get(handle.id)
        assert (record.status, record.attempt, record.checkpoint_seq) == (JobStatus.COMPLETED, 2, 1)
        assert record.progress is None
    assert len(refused) == 1
    looking.close()


# ── a database that can't be written ──


@pytest.mark.usefixtures("forced")
@pytest.mark.parametrize("saving", [False, True])
async def test_a_stop_returns_though_nothing_can_be_written(path, store, gate, saving):
    """G16, G20: a stop waits for the grace, not for the database; the job goes on later from its last checkpoint."""
    manager = make(store, resources={"gate": gate}, lease_s=3_600)
    await manager.start()
    handle = await manager.dispatch(Steps(n=3))
    gate.let(1)
    await gate.reached(2)
    store.refused = (object,)
    if saving:
        gate.let(1)
        running = node_of(manager).worker.running[str(handle.id)]
        await until(running._one_save.locked)

    def give_up() -> None:
        store.refused = ()

    await stop_soon(manager, give_up)
    looking = store_at(path)
    assert stored(looking, handle.id).checkpoint_seq == 1
    looking.close()
    gate.open()
    async with make(path, resources={"gate": gate}, lease_s=3_600) as manager:
        assert await manager.handle(handle.id).result(DEADLINE_S) == [1, 2, 2]
        assert (await manager.get(handle.id)).attempt == 2


@pytest.mark.usefixtures("forced")
@pytest.mark.parametrize("refused", [(Retire,), (Change, Retire)])
async def test_a_life_whose_end_was_not_noted_is_proven_dead(path, store, gate, refused):
    """G6: a life that could not note its end leaves its lock behind, and what it held is taken over without waiting."""
    manager = make(store, resources={"gate": gate}, lease_s=3_600)
    await manager.start()
    handle = await manager.dispatch(Steps(n=2))
    gate.let(1)
    await gate.reached(2)
    store.refused = refused

    def give_up() -> None:
        store.refused = ()

    await stop_soon(manager, give_up)
    looking = store_at(path)
    status = JobStatus.RUNNING if Change in refused else JobStatus.PAUSED
    assert stored(looking, handle.id).status is status
    (left,) = looking.lives()
    assert [lock.stem for lock in locks(path)] == [left.id]
    gate.open()
    async with make(path, resources={"gate": gate}, lease_s=3_600) as manager:
        assert await manager.handle(handle.id).result(DEADLINE_S) == [1, 2]
        assert left.id not in {life.id for life in looking.lives()}
        await until(lambda: left.id not in {lock.stem for lock in locks(path)})
    assert locks(path) == []
    looking.close()


# ── answers that come too late ──


@pytest.mark.parametrize("answer_only", [False, True])
@pytest.mark.parametrize("own", [False, True])
async def test_a_claim_that_outlives_its_life_is_not_run_under_it(path, gate, listener, own, answer_only):
    """G4: jobs that a claim brings after its life was lost are run once, by the next life, in an attempt of its own."""
    clock = FakeClock()
    store = Faulty(path, clock.now)
    store.answer_only = answer_only
    started = []

    async def note(attempt, call_next):
        started.append(attempt.attempt)
        return await call_next()

    gate.open()
    given: dict[str, Any] = {"clock": clock, "threads": FakeThreads(clock), "lease_s": 30.0, "sweep_s": 1.0}
    async with make(
        store, resources={"gate": gate}, middleware=[note], observers=[listener], concurrency=2, **given
    ) as manager:
        await manager.run_until_idle(DEADLINE_S)
        old = node_of(manager).life
        store.late = lambda write: isinstance(write, Claim) and write.life == old
        ids: list[str] = []
        async with anyio.create_task_group() as group:
            if own:

                async def dispatch() -> None:
                    ids.append(str((await manager.dispatch(Steps(n=1))).id))

                group.start_soon(dispatch)
            else:
                other = OtherProcess(path, now=clock.now)
                ids += other.put(Steps(n=1))
                other.leave()
            await pass_until(clock, store.holding.is_set)
            await pass_until(clock, lambda: node_of(manager).life != old)
            store.go.set()
        await pass_until(clock, lambda: "completed" in listener.told(ids[0]))
        assert await manager.handle(ids[0]).result(DEADLINE_S) == [started[-1]]
        record = await manager.get(ids[0])
        assert started == [record.attempt]
        assert record.attempt == (2 if claimed_by(store, old) else 1)


def claimed_by(store: Faulty, life: str | None) -> bool:
    """Whether a life was given any job."""
    return any(isinstance(write, Claim) and write.life == life and answer for write, answer in store.done)


def is_checkpoint(write: Write) -> bool:
    """Whether a write saves a checkpoint."""
    return isinstance(write, Change) and write.cause.trigger is Trigger.CHECKPOINT


def numbers(store: Faulty) -> list[int]:
    """The numbers of all checkpoints that were committed, in order."""
    return [
        answer.after.checkpoint_seq
        for write, answer in store.done
        if is_checkpoint(write) and isinstance(answer, Transition)
    ]


@pytest.mark.parametrize("answer_only", [False, True])
async def test_a_checkpoint_whose_caller_is_cancelled_counts(store, listener, answer_only):
    """G3: a checkpoint that is committed has a number of its own, also if nobody waits for it any more."""
    registry = Registry()
    store.answer_only = answer_only
    store.late = is_checkpoint

    @job("impatient", registry=registry)
    class Impatient(Job[int]):
        done: int = state(0)

        async def run(self, ctx: JobContext) -> int:
            while self.done < 3:
                self.done += 1
                store.holding.clear()
                store.go.clear()
                async with anyio.create_task_group() as group:
                    group.start_soon(ctx.checkpoint)
                    await until(store.holding.is_set)
                    group.cancel_scope.cancel()
                    store.go.set()
                await until(
                    lambda: sum(heard.cause.trigger is Trigger.CHECKPOINT for heard in listener.heard) == self.done
                )
            self.done += 1
            await ctx.checkpoint()
            return self.done

    async with make(store, registry=registry, observers=[listener]) as manager:
        handle = await manager.dispatch(Impatient())
        assert await handle.result(DEADLINE_S) == 4
        record = await handle.record()
    assert numbers(store) == [1, 2, 3, 4]
    assert (record.checkpoint_seq, record.attempt) == (4, 1)


@pytest.mark.parametrize("answer_only", [False, True])
async def test_the_checkpoint_after_a_cancelled_one_does_not_take_its_number(store, answer_only):
    """G3: the next checkpoint has the next number, also if one whose caller was cancelled is still being committed."""
    registry = Registry()
    store.answer_only = answer_only
    store.late = is_checkpoint
    tries = []

    @job("hasty", registry=registry)
    class Hasty(Job[int]):
        done: int = state(0)

        async def run(self, ctx: JobContext) -> int:
            while self.done < 3:
                self.done += 1
                async with anyio.create_task_group() as group:
                    group.start_soon(ctx.checkpoint)
                    await until(store.holding.is_set)
                    group.cancel_scope.cancel()
                tries.append(self.done)
            self.done += 1
            await ctx.checkpoint()
            return self.done

    async with make(store, registry=registry) as manager:
        handle = await manager.dispatch(Hasty())
        await until(store.holding.is_set)
        for _ in range(20):  # either all are asked for by then, or each waits for the one before
            await breathe()
            if len(tries) == 3:
                break
        store.go.set()
        assert await handle.result(DEADLINE_S) == 4
        record = await handle.record()
    seen = numbers(store)
    assert seen
    assert seen == list(range(1, len(seen) + 1))
    assert (record.checkpoint_seq, record.attempt) == (len(seen), 1)


# ── what is left behind ──


async def test_nobody_who_has_gone_is_told_anything(path):
    """Whoever has stopped watching, halfway or at the end, costs nothing from then on."""
    async with make(path) as manager:
        for _ in range(5):
            handle = await manager.dispatch(Count(n=2))
            assert [one.completed async for one in handle.progress()][-1] == 2
            assert [one.type async for one in handle.events()][-1] == "completed"
            assert await handle.result(DEADLINE_S) == 2
        halfway, changes = manager.events(), handle.progress()
        assert (await anext(halfway)).type == "created"
        assert (await anext(changes)).completed == 2
        assert manager._feed.watched
        await manager.run_until_idle(DEADLINE_S)
        del handle, halfway, changes
        await checkpoint()
        gc.collect()
        assert not manager._feed.watched


@pytest.mark.parametrize("end", ["killed", "killed far away", "noted as over"])
async def test_downtime_is_not_running_time(path, end):
    """A job whose owner vanished ran until its owner's last sign of life, not until somebody found out."""
    clock, lease_s = FakeClock(), 30.0
    other = OtherProcess(path, now=clock.now, lease_s=lease_s, host="far.example" if "far" in end else None)
    (job_id,) = other.put(Count(n=2))
    other.claim()
    clock.advance(10)
    one(other.store.commit([Renew(other.life.id, lease_s)]))
    if end == "noted as over":
        other.leave()
    else:
        other.die()
    clock.advance(990)
    async with make(path, clock=clock, threads=FakeThreads(clock)) as manager:  # time stands still
        assert await manager.handle(job_id).result(DEADLINE_S) == 2
        record = await manager.get(job_id)
    assert record.attempt == 2
    assert record.duration_s is not None
    assert 0 <= record.duration_s <= 10 + lease_s


async def test_a_handle_knows_its_jobs_name_if_it_was_dispatched_here(path):
    """A handle from a dispatch tells the job's name; one that was made of an id has asked nobody, and has none."""
    async with make(path) as manager:
        handle = await manager.dispatch(Echo(n=1))
        assert handle.name == "echo"
        assert (await manager.dispatch_by_name("count", {"n": 1})).name == "count"
        many = await manager.dispatch_many([Echo(n=1), ("count", {"n": 1})])
        assert [each.name for each in many] == ["echo", "count"]
        assert manager.handle(handle.id).name is None
