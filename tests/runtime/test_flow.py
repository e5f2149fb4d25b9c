"""Durable control flow: steps, sleeps, signals, children and loops, through deaths, restarts and the real database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

import anyio
import pytest
from pydantic import BaseModel

from jobkit import (
    BlockingJobContext,
    IllegalTransition,
    Job,
    JobCancelled,
    JobContext,
    JobFailed,
    JobNotFound,
    JobStatus,
    Registry,
    job,
    state,
)
from jobkit.codec import Codec
from jobkit.interfaces import Change, Send
from jobkit.runtime.scheduler import LOOK_S
from jobkit.testing import FakeThreads
from tests.runtime.kit import DEADLINE_S, OtherProcess, make, node_of, pass_until, store_at, until, until_true

pytestmark = pytest.mark.anyio

FLOW: Final = Registry()
CALLS: list[Any] = []


@pytest.fixture(autouse=True)
def calls():
    """What handlers did, in this test."""
    CALLS.clear()


class Point(BaseModel):
    """What a step may return."""

    x: int
    y: int


def _point(x: int) -> Point:
    CALLS.append(("point", x))
    return Point(x=x, y=x)


async def _is(handle: Any, status: JobStatus) -> bool:
    return await handle.status() is status


# ── steps ──


@job(registry=FLOW)
class Steps(Job[tuple[Point, dict[str, Any]]]):
    """Two steps, then stop at the gate until let go."""

    async def run(self, ctx: JobContext) -> tuple[Point, dict[str, Any]]:
        first = await ctx.step("first", _point, 1)
        second = await ctx.step("second", self._later, 2)
        await ctx.resources["gate"].pass_async([])
        await ctx.check_interrupt()
        return first, second

    async def _later(self, x: int) -> dict[str, Any]:
        CALLS.append(("later", x))
        return {"at": datetime(2030, 1, x, tzinfo=UTC), "set": {x}}


@job(registry=FLOW)
class StepsInThread(Job[tuple[Point, dict[str, Any]]]):
    """The same in a thread."""

    def run(self, ctx: BlockingJobContext) -> tuple[Point, dict[str, Any]]:
        first = ctx.step("first", _point, 1)
        second = ctx.step("second", lambda: {"at": datetime(2030, 1, 2, tzinfo=UTC), "set": {2}})
        ctx.resources["gate"].pass_blocking([])
        ctx.check_interrupt()
        return first, second


@pytest.mark.parametrize("kind", [Steps, StepsInThread])
async def test_a_step_runs_once_and_its_result_comes_back(path, gate, kind):
    """A step's result is stored, equal and of its own type, and later attempts get it without calling again."""
    async with make(path, registry=FLOW, resources={"gate": gate}) as manager:
        handle = await manager.dispatch(kind())
        await gate.reached(1)
        assert (await handle.record()).checkpoint_seq == 2
        await handle.pause()
        gate.let(1)
        await until_true(lambda: _is(handle, JobStatus.PAUSED))
        await handle.resume()
        gate.open()
        found = await handle.result(DEADLINE_S)
    assert found == (Point(x=1, y=1), {"at": datetime(2030, 1, 2, tzinfo=UTC), "set": {2}})
    assert CALLS.count(("point", 1)) == 1
    assert CALLS.count(("later", 2)) <= 1


async def test_misuse_is_answered_clearly(path):
    """A name used twice or none at all, a result that can't be stored, no length of time: each says what to do."""
    registry = Registry()

    @job(registry=registry)
    class Twice(Job[None]):
        async def run(self, ctx: JobContext) -> None:
            await ctx.step("a", lambda: 1)
            await ctx.step("a", lambda: 2)

    @job(registry=registry)
    class Unnamed(Job[None]):
        async def run(self, ctx: JobContext) -> None:
            await ctx.step(lambda: 1, lambda: 2)  # type: ignore[arg-type]

    @job(registry=registry)
    class Unstorable(Job[None]):
        async def run(self, ctx: JobContext) -> None:
            await ctx.step("a", object)

    @job(registry=registry)
    class Awaited(Job[None]):
        def run(self, ctx: BlockingJobContext) -> None:
            async def later() -> int:
                return 1

            ctx.step("a", later)

    @job(registry=registry)
    class Negative(Job[None]):
        async def run(self, ctx: JobContext) -> None:
            await ctx.sleep("a", -1)

    @job(registry=registry)
    class Naive(Job[None]):
        async def run(self, ctx: JobContext) -> None:
            await ctx.sleep_until("a", datetime(2030, 1, 1))  # noqa: DTZ001  which is the point

    expected = {
        Twice: "for the second time", Unnamed: "takes a name", Unstorable: "step 'a'", Awaited: "async function",
        Negative: "no length of time", Naive: "time zone",
    }  # fmt: skip
    async with make(path, registry=registry) as manager:
        for kind, problem in expected.items():
            with pytest.raises(JobFailed, match=problem):
                await (await manager.dispatch(kind())).result(DEADLINE_S)


async def test_a_name_that_means_something_else_after_a_deploy_is_a_conflict(path):
    """A step that became a sleep under the same name is told, not mistaken; new names and another order just work."""
    old, new, reordered = Registry(), Registry(), Registry()

    @job("deployed", registry=old)
    class Old(Job[list[int]]):
        async def run(self, ctx: JobContext) -> list[int]:
            found = [await ctx.step("a", lambda: 1), await ctx.step("b", lambda: 2)]
            await ctx.wait_for("go")
            return found

    @job("deployed", registry=new)
    class New(Job[list[int]]):
        async def run(self, ctx: JobContext) -> list[int]:
            await ctx.sleep("a", 1)
            return []

    @job("deployed", registry=reordered)
    class Reordered(Job[list[int]]):
        async def run(self, ctx: JobContext) -> list[int]:
            return [await ctx.step("b", lambda: 0), await ctx.step("c", lambda: 3), await ctx.step("a", lambda: 0)]

    async with make(path, registry=old) as manager:
        ids = [(await manager.dispatch(Old())).id for _ in range(2)]
        for one in ids:
            await until_true(partial(_is, manager.handle(one), JobStatus.WAITING))
            await manager.signal(one, "other")
    async with make(path, registry=new) as manager:
        await manager.signal(ids[0], "go")
        with pytest.raises(JobFailed, match="give the new call another name"):
            await manager.handle(ids[0]).result(DEADLINE_S)
    async with make(path, registry=reordered) as manager:
        await manager.signal(ids[1], "go")
        assert await manager.handle(ids[1]).result(DEADLINE_S) == [2, 3, 1]


# ── sleeps ──


@job(registry=FLOW)
class Sleeps(Job[list[str]]):
    """Sleep twice."""

    woke: list[str] = state(default_factory=list)

    async def run(self, ctx: JobContext) -> list[str]:
        CALLS.append(("run", ctx.attempt))
        await ctx.sleep("nap", timedelta(hours=1))
        if not self.woke:
            self.woke.append("nap")
        await ctx.sleep_until("night", datetime(2030, 1, 2, tzinfo=UTC))
        return [*self.woke, "night"]


@job(registry=FLOW)
class SleepsInThread(Job[str]):
    """Sleep in a thread."""

    def run(self, ctx: BlockingJobContext) -> str:
        CALLS.append(("run", ctx.attempt))
        ctx.sleep("nap", 3_600.0)
        return "woke"


async def test_a_sleep_frees_the_slot_and_ends_in_time(path, clock):
    """A sleeping job is a row: it holds no slot, and goes on when its time has come, with its state."""
    async with make(
        path, registry=FLOW, clock=clock, threads=FakeThreads(clock), concurrency=1, lease_s=1e6
    ) as manager:
        handle = await manager.dispatch(Sleeps())
        await until_true(lambda: _is(handle, JobStatus.SCHEDULED))
        record = await handle.record()
        assert record.scheduled_at == clock.now() + timedelta(hours=1)
        assert not node_of(manager).worker.running
        clock.advance(3_599)
        await anyio.lowlevel.checkpoint()
        assert await handle.status() is JobStatus.SCHEDULED
        clock.advance(2)
        await pass_until(clock, lambda: CALLS.count(("run", 2)))
        await until_true(lambda: _is(handle, JobStatus.SCHEDULED))
        assert (await handle.record()).scheduled_at == datetime(2030, 1, 2, tzinfo=UTC)
        clock.advance(24 * 3_600)
        await pass_until(clock, lambda: CALLS.count(("run", 3)))
        assert await handle.result(DEADLINE_S) == ["nap", "night"]
        assert (await handle.record()).attempt == 3
        assert ((await handle.record()).duration_s or 0) < 3_600


async def test_a_sleep_survives_restarts_and_counts_from_its_beginning(path, clock):
    """A restart does not begin a sleep anew, and what was due meanwhile goes on at the next start."""
    given: dict[str, Any] = {"clock": clock, "threads": FakeThreads(clock), "lease_s": 1e6, "registry": FLOW}
    async with make(path, **given) as manager:
        handle = await manager.dispatch(SleepsInThread())
        await until_true(lambda: _is(handle, JobStatus.SCHEDULED))
    clock.advance(1_800)
    async with make(path, **given) as manager:
        assert await manager.handle(handle.id).status() is JobStatus.SCHEDULED
    clock.advance(1_801)
    async with make(path, **given) as manager:
        assert await manager.handle(handle.id).result(DEADLINE_S) == "woke"


async def test_a_sleeping_job_can_be_paused_and_cancelled(path, clock):
    """G7, G8: a pause keeps the alarm, a resume sets it again, and what is cancelled never wakes."""
    given: dict[str, Any] = {"clock": clock, "threads": FakeThreads(clock), "lease_s": 1e6, "registry": FLOW}
    async with make(path, **given) as manager:
        handles = await manager.dispatch_many([SleepsInThread(), SleepsInThread()])
        for handle in handles:
            await until_true(partial(_is, handle, JobStatus.SCHEDULED))
        await handles[0].pause()
        await handles[1].cancel()
        clock.advance(1_000)
        await handles[0].resume()
        assert await handles[0].status() is JobStatus.SCHEDULED
        await handles[0].pause()
        clock.advance(10_000)
        await handles[0].resume()
        assert await handles[0].result(DEADLINE_S) == "woke"
        assert await handles[1].status() is JobStatus.CANCELLED


async def test_a_hundred_thousand_sleeping_jobs_are_rows(path, clock):
    """Suspended jobs cost nothing but rows: beside a hundred thousand of them a manager works as if alone."""
    other = OtherProcess(path, now=clock.now, registry=FLOW)
    (job_id,) = other.put(Sleeps())
    with other.store._database.writing() as connection:
        names = [row[1] for row in connection.exec_driver_sql("PRAGMA table_info(jobs)") if row[1] not in {"num", "id"}]
        columns = ", ".join(f'"{name}"' for name in names)
        values = ", ".join(
            {"status": "'scheduled'", "alarm": "'2031-01-01T00:00:00.000000Z'", "rank": "NULL"}.get(name, f'"{name}"')
            for name in names
        )
        connection.exec_driver_sql(
            f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)"
            f" INSERT INTO jobs (id, {columns}) SELECT 'id ' || i, {values} FROM jobs, n WHERE jobs.id = '{job_id}'"
        )
    assert other.store.next_due() == datetime(2031, 1, 1, tzinfo=UTC)
    assert other.store.due(10) == []
    other.leave()
    async with make(path, registry=FLOW, clock=clock, threads=FakeThreads(clock)) as manager:
        handle = await manager.dispatch(Child(x=1))
        assert (await handle.result(DEADLINE_S)).x == 1
        clock.advance(5)
        await manager.run_until_idle(DEADLINE_S)
        assert (await manager.stats()).counts["scheduled"] == 100_001


async def test_who_swallows_a_suspension_saves_nothing_after_it(path, clock):
    """G3: what is stored is what the suspension left behind: no checkpoint after it is acknowledged."""
    registry = Registry()

    @job(registry=registry)
    class Swallows(Job[int]):
        done: int = state(0)

        async def run(self, ctx: JobContext) -> int:
            try:
                await ctx.sleep("nap", 60)
            except BaseException:
                self.done += 1
                await ctx.checkpoint()
                raise
            return self.done

    async with make(path, registry=registry, clock=clock, threads=FakeThreads(clock), lease_s=1e6) as manager:
        handle = await manager.dispatch(Swallows())
        await until_true(lambda: _is(handle, JobStatus.SCHEDULED))
        assert (await handle.record()).checkpoint_seq == 1
        clock.advance(61)
        assert await handle.result(DEADLINE_S) == 0


async def test_what_can_not_be_moved_when_it_is_due_makes_no_busy_loop(path, clock):
    """G10: a due row that refuses every change is tried again in a second, not at once; others go on meanwhile."""
    async with make(path, registry=FLOW, clock=clock, threads=FakeThreads(clock), lease_s=1e6) as manager:
        stuck, free = [await manager.dispatch(kind()) for kind in (SleepsInThread, Sleeps)]
        for handle in (stuck, free):
            await until_true(partial(_is, handle, JobStatus.SCHEDULED))
        store = store_at(path)
        with store._database.writing() as connection:
            refused = f"WHEN OLD.id = '{stuck.id}' BEGIN SELECT RAISE(ABORT, 'stuck'); END"
            connection.exec_driver_sql(f"CREATE TRIGGER stuck BEFORE UPDATE ON jobs {refused}")
        clock.advance(3_601)
        await pass_until(clock, lambda: ("run", 2) in CALLS)
        assert await node_of(manager).scheduler.look() == LOOK_S
        store.close()


# ── signals ──


@job(registry=FLOW)
class Waits(Job[Any]):
    """Wait for a signal."""

    timeout: float | None = None

    async def run(self, ctx: JobContext) -> Any:
        CALLS.append(("run", ctx.attempt))
        try:
            return await ctx.wait_for("go", self.timeout)
        except TimeoutError as error:
            return str(error)


@job(registry=FLOW)
class WaitsInThread(Job[Any]):
    """Wait in a thread."""

    def run(self, ctx: BlockingJobContext) -> Any:
        CALLS.append(("run", ctx.attempt))
        return ctx.wait_for("go")


@pytest.mark.parametrize("kind", [Waits, WaitsInThread])
@pytest.mark.parametrize("first", [False, True])
async def test_a_signal_is_never_lost_whichever_comes_first(path, kind, first):
    """A signal that comes before the wait is there when the job comes to it; one that comes later wakes it."""
    payload = {"at": datetime(2030, 1, 1, tzinfo=UTC), "by": ("a", 1)}
    async with make(path, registry=FLOW, work=False) as client:
        handle = await client.dispatch(kind())
        if first:
            await client.signal(handle.id, "go", payload)
            await client.signal(handle.id, "go", "a second one")
    async with make(path, registry=FLOW) as manager:
        handle = manager.handle(handle.id)
        if not first:
            await until_true(lambda: _is(handle, JobStatus.WAITING))
            await manager.signal(handle.id, "another", 1)
            assert await handle.status() is JobStatus.WAITING
            await manager.signal(handle.id, "go", payload)
        assert await handle.result(DEADLINE_S) == payload
        assert len(CALLS) == (1 if first else 2)
        with pytest.raises(IllegalTransition, match="signal"):
            await manager.signal(handle.id, "go")
        with pytest.raises(JobNotFound):
            await manager.signal("00000000-0000-7000-8000-000000000000", "go")


@pytest.mark.parametrize("when", range(6))
async def test_no_wake_up_is_lost_between_any_two_commits(path, when):
    """Rule 14: whichever commit of the job's owner a signal from elsewhere follows, the job gets it."""
    looking = store_at(path)
    count = 0
    known: list[Any] = []
    async with make(path, registry=FLOW) as manager, make(path, registry=FLOW, work=False) as client:
        commit = manager._store.commit

        def counted(batch: Any) -> list[Any]:
            nonlocal count
            answers = commit(batch)
            if known and any(type(write).__name__ in {"Change", "Claim"} for write in batch):
                if count == when:
                    looking.commit([Send(str(known[0]), "go", Codec().pack(7))])
                count += 1
            return answers

        manager._store.commit = counted  # type: ignore[method-assign]
        async with anyio.create_task_group():
            handle = await manager.dispatch(Waits())
            known.append(handle.id)
        await until_true(lambda: _settled(handle, lambda: count > when))
        if count <= when:
            await client.signal(handle.id, "go", 7)
        assert await handle.result(DEADLINE_S) == 7
    looking.close()


async def _settled(handle: Any, done: Any) -> bool:
    return bool(done()) or await handle.status() in {JobStatus.WAITING, JobStatus.COMPLETED}


async def test_a_wait_that_times_out(path, clock):
    """A time-out is stored like a result: the job goes on without the signal, and a late one changes nothing."""
    async with make(path, registry=FLOW, clock=clock, threads=FakeThreads(clock), lease_s=1e6) as manager:
        handle = await manager.dispatch(Waits(timeout=60))
        await until_true(lambda: _is(handle, JobStatus.WAITING))
        assert (await handle.record()).scheduled_at == clock.now() + timedelta(seconds=60)
        clock.advance(61)
        await pass_until(clock, lambda: len(CALLS) == 2)
        assert "did not come in time" in await handle.result(DEADLINE_S)


@pytest.mark.parametrize("paused", [False, True])
async def test_a_signal_in_time_ends_the_wait_at_once(path, paused):
    """What comes before a wait's time is over wakes the job then and not at its end, also through a pause."""
    async with make(path, registry=FLOW) as manager:
        handle = await manager.dispatch(Waits(timeout=3600))
        await until_true(lambda: _is(handle, JobStatus.WAITING))
        if paused:
            await handle.pause()
        await manager.signal(handle.id, "go", 7)
        if paused:
            await handle.resume()
        assert await handle.result(DEADLINE_S) == 7


async def test_a_signal_that_is_there_already_ends_the_wait_at_once(path):
    """Rule 14: a signal that comes between the handler's look and its leaving counts, whatever the time-out."""
    sent = store_at(path)
    async with make(path, registry=FLOW) as manager:
        commit = manager._store.commit

        def late(batch: Any) -> list[Any]:
            for write in batch:
                if isinstance(write, Change) and write.waits:
                    sent.commit([Send(write.job_id, "go", Codec().pack(7))])
            return commit(batch)

        manager._store.commit = late  # type: ignore[method-assign]
        handle = await manager.dispatch(Waits(timeout=3600))
        assert await handle.result(DEADLINE_S) == 7
    sent.close()


# ── children ──


@job(registry=FLOW)
class Child(Job[Point]):
    """Give a point, or fail."""

    x: int
    fails: bool = False

    async def run(self, ctx: JobContext) -> Point:
        CALLS.append(("child", self.x))
        if self.fails:
            raise ValueError(f"no point {self.x}")
        return Point(x=self.x, y=0)


@job(registry=FLOW)
class Parent(Job[list[str]]):
    """Spawn children and gather what they give."""

    number: int
    fails: int = -1

    async def run(self, ctx: JobContext) -> list[str]:
        CALLS.append(("parent", ctx.attempt))
        children = [await ctx.spawn(Child(x=x, fails=x == self.fails), key=f"child {x}") for x in range(self.number)]
        found = await ctx.gather(*children)
        return [
            f"point {one.x}" if isinstance(one, Point) else f"{type(one).__name__}: {one.failure.message}"
            for one in found
        ]


async def test_children_are_gathered_and_a_failure_is_a_value(path):
    """A parent waits for its children without a slot, and gets each one's output, or its failure as a value."""
    async with make(path, registry=FLOW, concurrency=1) as manager:
        handle = await manager.dispatch(Parent(number=3, fails=1))
        assert await handle.result(DEADLINE_S) == ["point 0", "JobFailed: no point 1", "point 2"]
        children = (await manager.list_jobs(parent=handle.id)).items
        assert len(children) == 3
        assert {child.parent_id for child in children} == {handle.id}
        assert sorted(CALLS) == [("child", 0), ("child", 1), ("child", 2), ("parent", 1), ("parent", 2)]


async def test_a_parent_without_children_gathers_nothing(path):
    """Gathering nothing answers at once."""
    async with make(path, registry=FLOW) as manager:
        assert await (await manager.dispatch(Parent(number=0))).result(DEADLINE_S) == []


async def test_a_resumed_parent_has_the_same_children(path):
    """G3: a child is stored with its parent's checkpoint: whatever attempt comes to it, there is one for each key."""
    other = OtherProcess(path, registry=FLOW)
    (parent,) = other.put(Parent(number=2))
    other.leave()
    async with make(path, registry=FLOW, queues=["default"], concurrency=1) as manager:
        await until_true(lambda: _spawned(manager, parent))
        assert len((await manager.list_jobs(parent=parent)).items) == 2
        assert await manager.handle(parent).result(DEADLINE_S) == ["point 0", "point 1"]
        assert len((await manager.list_jobs(parent=parent)).items) == 2


async def _spawned(manager: Any, parent: str) -> bool:
    return len((await manager.list_jobs(parent=parent)).items) == 2


@job(registry=FLOW)
class Generations(Job[int]):
    """Spawn a child that spawns a child, and so on."""

    left: int

    async def run(self, ctx: JobContext) -> int:
        if self.left == 0:
            return await ctx.wait_for("never") or 0
        (found,) = await ctx.gather(await ctx.spawn(Generations(left=self.left - 1), key="child"))
        if isinstance(found, Exception):
            raise found
        return 1 + int(found)


async def test_a_cancelled_parents_children_are_cancelled(path):
    """G7: cancelling a parent cancels all its descendants, in the same transaction, however deep."""
    async with make(path, registry=FLOW) as manager:
        handle = await manager.dispatch(Generations(left=30))
        await until_true(lambda: _counted(manager, "waiting", 31))
        await handle.cancel()
        stats = await manager.stats()
        assert (stats.cancelled, stats.total) == (31, 31)


async def test_generations_hand_their_results_up(path):
    """A chain of children completes from its end, each parent woken by its child."""
    async with make(path, registry=FLOW) as manager:
        handle = await manager.dispatch(Generations(left=5))
        await until_true(lambda: _counted(manager, "waiting", 6))
        leaf = next(one for one in (await manager.list_jobs()).items if one.params["left"] == 0)
        await manager.signal(leaf.id, "never", 10)
        assert await handle.result(DEADLINE_S) == 15
    store = store_at(path)
    with store._database.reading() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM job_blockers").scalar_one() == 0
    store.close()


async def _counted(manager: Any, status: str, number: int) -> bool:
    return bool((await manager.stats()).counts[status] == number)


async def test_a_child_that_was_cancelled_or_deleted_is_told_as_such(path):
    """What becomes of a child by other hands reaches the parent as a value too."""
    registry = Registry()

    @job(registry=registry)
    class Idle(Job[None]):
        async def run(self, ctx: JobContext) -> None:
            await ctx.wait_for("never")

    @job(registry=registry)
    class Watching(Job[list[str]]):
        async def run(self, ctx: JobContext) -> list[str]:
            found = await ctx.gather(*[await ctx.spawn(Idle(), key=str(number)) for number in range(2)])
            return [type(one).__name__ for one in found]

    async with make(path, registry=registry) as manager:
        handle = await manager.dispatch(Watching())
        await until_true(lambda: _counted(manager, "waiting", 3))
        children = (await manager.list_jobs(parent=handle.id)).items
        await manager.cancel(children[0].id)
        assert await handle.status() is JobStatus.WAITING
        await manager.cancel(children[1].id)
        assert await handle.result(DEADLINE_S) == [JobCancelled.__name__] * 2


# ── loops ──


@job(registry=FLOW)
class Loops(Job[list[int]]):
    """Loop over numbers; stop at the gate in the body of each."""

    number: int
    every: int | None = None
    seen: list[int] = state(default_factory=list)

    async def run(self, ctx: JobContext) -> list[int]:
        async for item in ctx.track(list(range(self.number)), "items", self.every):
            await ctx.resources["gate"].pass_async([item])
            self.seen.append(item)
        return self.seen


@job(registry=FLOW)
class LoopsInThread(Job[list[int]]):
    """The same in a thread."""

    number: int
    every: int | None = None
    seen: list[int] = state(default_factory=list)

    def run(self, ctx: BlockingJobContext) -> list[int]:
        for item in ctx.track(list(range(self.number)), "items", self.every):
            ctx.resources["gate"].pass_blocking([item])
            self.seen.append(item)
        return self.seen


@pytest.mark.parametrize("kind", [Loops, LoopsInThread])
async def test_a_loop_goes_on_where_it_was(path, gate, kind):
    """An interrupted loop goes on at its cursor: each item's body ends once, and progress follows."""
    async with make(path, registry=FLOW, resources={"gate": gate}) as manager:
        handle = await manager.dispatch(kind(number=5, every=1))
        await gate.reached(1)
        gate.let(1)
        await gate.reached(2)
        await handle.pause()
        gate.let(1)
        await until_true(lambda: _is(handle, JobStatus.PAUSED))
        record = await handle.record()
        assert record.progress is not None
        assert (record.progress.completed, record.progress.total, record.checkpoint_seq) == (2, 5, 2)
        await handle.resume()
        gate.open()
        assert await handle.result(DEADLINE_S) == [0, 1, 2, 3, 4]
        assert gate.seen == [[0], [1], [2], [3], [4]]
        last = (await handle.record()).progress
        assert last is not None
        assert last.fraction == 1.0


async def test_a_loop_saves_by_time_by_default(path, gate, clock):
    """Without `every`, checkpoints follow time, not items."""
    async with make(
        path, registry=FLOW, resources={"gate": gate}, clock=clock, threads=FakeThreads(clock), lease_s=1e6
    ) as manager:
        handle = await manager.dispatch(Loops(number=6))
        await gate.reached(1)
        gate.let(2)
        await gate.reached(3)
        assert (await handle.record()).checkpoint_seq == 0
        clock.advance(1.5)
        gate.let(2)
        await gate.reached(5)
        assert (await handle.record()).checkpoint_seq == 1
        gate.open()
        assert await handle.result(DEADLINE_S) == list(range(6))


async def test_a_killed_loop_repeats_only_what_was_not_saved(path):
    """G3: after a death the loop begins at the last saved cursor, with the state of the same moment."""
    registry = Registry()

    @job(registry=registry)
    class Dies(Job[list[int]]):
        seen: list[int] = state(default_factory=list)

        async def run(self, ctx: JobContext) -> list[int]:
            async for item in ctx.track(range(6), "items", every=2):
                CALLS.append(item)
                if ctx.attempt == 1 and item == 3:
                    await ctx.resources["stop"].wait()
                self.seen.append(item)
            return self.seen

    stop = anyio.Event()
    manager = make(path, registry=registry, resources={"stop": stop})
    await manager.start()
    handle = await manager.dispatch(Dies())
    await until(lambda: 3 in CALLS)
    await manager.stop(grace=0)
    async with make(path, registry=registry) as manager:
        assert await manager.handle(handle.id).result(DEADLINE_S) == [0, 1, 2, 3, 4, 5]
    assert CALLS == [0, 1, 2, 3, 2, 3, 4, 5]


async def test_loops_within_loops(path):
    """An inner loop has a cursor of its own for each of the outer one's items, and leaves none behind."""
    registry = Registry()

    @job(registry=registry)
    class Nested(Job[list[tuple[str, int]]]):
        seen: list[tuple[str, int]] = state(default_factory=list)
        stopped: bool = state(default=False)

        async def run(self, ctx: JobContext) -> list[tuple[str, int]]:
            async for letter in ctx.track("abc", "letters", every=1):
                async for number in ctx.track(range(3), "numbers", every=1):
                    if (letter, number) == ("b", 1) and not self.stopped:
                        self.stopped = True
                        await ctx.wait_for("go")
                    self.seen.append((letter, number))
            async for letter in ctx.track("xyz", "rest", every=1):
                if letter == "y":
                    break
                self.seen.append((letter, 0))
            async for number in ctx.track([7], "numbers"):
                self.seen.append(("end", number))
            return self.seen

    async with make(path, registry=registry) as manager:
        handle = await manager.dispatch(Nested())
        await until_true(lambda: _is(handle, JobStatus.WAITING))
        await manager.signal(handle.id, "go")
        found = await handle.result(DEADLINE_S)
    assert found == [(letter, number) for letter in "abc" for number in range(3)] + [("x", 0), ("end", 7)]


async def test_what_can_be_looped_over_only_once_is_refused(path):
    """A generator would be empty at the second attempt, so it is refused at the first, with what to give instead."""
    registry = Registry()

    @job(registry=registry)
    class Generator(Job[None]):
        async def run(self, ctx: JobContext) -> None:
            async for _ in ctx.track(iter([1]), "items"):
                pass

    async with make(path, registry=registry) as manager:
        with pytest.raises(JobFailed, match="give a list"):
            await (await manager.dispatch(Generator())).result(DEADLINE_S)


# ── interrupts ──


async def test_a_pause_outranks_a_suspension(path, gate, clock):
    """A job that comes to a sleep when it is to pause is paused, and its sleep counts from then."""
    registry = Registry()

    @job(registry=registry)
    class Naps(Job[int]):
        async def run(self, ctx: JobContext) -> int:
            await ctx.resources["gate"].pass_async([])
            await ctx.sleep("nap", 60)
            return ctx.attempt

    given: dict[str, Any] = {"clock": clock, "threads": FakeThreads(clock), "lease_s": 1e6, "registry": registry}
    async with make(path, resources={"gate": gate}, **given) as manager:
        handle = await manager.dispatch(Naps())
        await gate.reached(1)
        await handle.pause()
        gate.open()
        await until_true(lambda: _is(handle, JobStatus.PAUSED))
        clock.advance(30)
        await handle.resume()
        await until_true(lambda: _is(handle, JobStatus.SCHEDULED))
        record = await handle.record()
        assert record.scheduled_at == datetime(2030, 1, 1, tzinfo=UTC) + timedelta(seconds=60)


async def test_an_error_beside_a_suspension_wins(path):
    """A handler that fails while it is left for a sleep has failed: nothing of it is hidden by a wait."""
    registry = Registry()

    @job(registry=registry)
    class Torn(Job[None]):
        async def run(self, ctx: JobContext) -> None:
            try:
                await ctx.sleep("nap", 60)
            finally:
                raise ValueError("in the clean-up")

    async with make(path, registry=registry) as manager:
        with pytest.raises(JobFailed, match="in the clean-up"):
            await (await manager.dispatch(Torn())).result(DEADLINE_S)
