"""The manager: its life, what it answers, what it lets others hear, and what it never runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import anyio
import pytest

from jobkit import (
    Event,
    Failure,
    InvalidFilter,
    InvalidJobId,
    InvalidSettings,
    Job,
    JobContext,
    JobFailed,
    JobFilter,
    JobHeld,
    JobLost,
    JobManager,
    JobNotFound,
    JobStatus,
    ManagerNotRunning,
    Progress,
    Registry,
    Settings,
    StoreUnavailable,
    UnknownJob,
    job,
    state,
)
from jobkit.interfaces import Completed, Failed
from jobkit.store import SqlStore
from tests.runtime.kit import (
    DEADLINE_S,
    REGISTRY,
    Count,
    CountInThread,
    Echo,
    Once,
    OtherProcess,
    Raise,
    Steps,
    make,
    store_at,
    stored,
    until,
    until_true,
)

pytestmark = pytest.mark.anyio


# ── starting and stopping ──


async def test_started_and_stopped_by_hand(path):
    """start() and stop() do what the context manager does; a stopped manager can be started again."""
    manager = make(path)
    for n in range(3):
        await manager.start()
        assert await (await manager.dispatch(Echo(n=n))).result(DEADLINE_S) == n
        await manager.stop()
    await manager.stop()  # nothing to do
    async with manager:
        assert (await manager.stats()).completed == 3


def test_one_manager_on_one_loop_after_another(path):
    """A manager that was stopped can be started on another event loop, of either kind."""
    manager = make(path)

    async def work():
        async with manager:
            await (await manager.dispatch(Echo(n=1))).result(DEADLINE_S)
            await manager.run_until_idle(DEADLINE_S)
            return (await manager.stats()).completed

    assert [anyio.run(work, backend=one) for one in ("asyncio", "trio", "asyncio")] == [1, 2, 3]


async def test_starting_twice_is_an_error(path):
    """A started manager can't be started again, nor one that is being started; it goes on as it was."""
    manager = make(path)
    refused = []

    async def start():
        try:
            await manager.start()
        except ManagerNotRunning:
            refused.append(True)

    async with anyio.create_task_group() as group:
        group.start_soon(start)
        group.start_soon(start)
    assert refused == [True]
    assert await (await manager.dispatch(Echo(n=1))).result(DEADLINE_S) == 1
    await manager.stop()


async def test_stopping_twice_at_once(path):
    """Whoever stops a manager that is being stopped waits until it is."""
    manager = make(path)
    await manager.start()
    other = store_at(path)
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(manager.stop)
    assert other.lives() == []
    other.close()


async def test_started_in_one_task_and_stopped_in_another(path):
    """A manager belongs to no task: the one that started it may end, and be cancelled, before another stops it."""
    manager = make(path)
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(manager.start)
        scope.cancel()
        await anyio.lowlevel.checkpoint()
    assert await (await manager.dispatch(Echo(n=1))).result(DEADLINE_S) == 1
    async with anyio.create_task_group() as group:
        group.start_soon(manager.stop)
    with pytest.raises(ManagerNotRunning):
        await manager.stats()


async def test_who_loses_patience_with_stop_has_it_stopped(path, gate):
    """G16: cancelling stop() ends the grace, not the stopping: the job is given back and the database closed."""
    manager = make(path, resources={"gate": gate}, grace_s=1_000.0)
    await manager.start()
    handle = await manager.dispatch(Steps(n=1))
    await gate.reached(1)
    with anyio.fail_after(DEADLINE_S), anyio.move_on_after(0.05):
        await manager.stop()
    store = store_at(path)
    assert stored(store, handle.id).status is JobStatus.PAUSED
    assert store.lives() == []
    store.close()
    with pytest.raises(ManagerNotRunning):
        await manager.stats()


async def test_a_manager_that_can_not_start_can_be_mended(tmp_path):
    """A database that can't be opened is a clear error, and no reason to make another manager."""
    folder = tmp_path / "later"
    manager = make(folder / "jobs.db")
    with pytest.raises(StoreUnavailable, match="later"):
        await manager.start()
    await manager.stop()
    folder.mkdir()
    async with manager:
        assert await (await manager.dispatch(Echo(n=1))).result(DEADLINE_S) == 1


async def test_one_database_by_many_names(tmp_path):
    """A path, its text, a URL, a directory, a Store and the settings lead to the same database."""
    path = tmp_path / "jobs.db"
    url = f"sqlite:///{path}"
    places = [
        path, str(path), url, tmp_path, str(tmp_path), SqlStore(url), None,
    ]  # fmt: skip
    for n, place in enumerate(places):
        settings = Settings(sqlite_path=path) if place is None else Settings()
        async with JobManager(place, registry=REGISTRY, settings=settings) as manager:
            assert (await manager.stats()).total == n
            await (await manager.dispatch(Echo(n=n))).result(DEADLINE_S)


async def test_a_path_is_taken_as_it_is(tmp_path):
    """What means something in a URL is but a letter in a path."""
    path = tmp_path / "jobs 100%20 ?a=b#c.db"
    async with make(path) as manager:
        await (await manager.dispatch(Echo(n=1))).result(DEADLINE_S)
    assert path.exists()


async def test_a_database_in_memory():
    """`sqlite://` works like any other, for as long as its manager runs."""
    async with make("sqlite://") as manager:
        assert await (await manager.dispatch(Count(n=3))).result(DEADLINE_S) == 3
        assert await (await manager.dispatch(CountInThread(n=3))).result(DEADLINE_S) == 3


@pytest.mark.parametrize(
    ("given", "name"),
    [*(({"concurrency": bad}, "concurrency") for bad in (0, -1, "3", 2.5, True)), ({"queues": "a"}, "queues")],
)
async def test_what_can_not_be_meant_is_refused(path, given, name):
    """A manager that could run nothing, or everything at once, is refused when it is made."""
    with pytest.raises(InvalidSettings) as raised:
        make(path, **given)
    assert name in raised.value.fields


# ── who runs what ──


async def test_a_client_runs_nothing(path):
    """`work=False` dispatches and watches, and neither runs, nor resumes, nor counts as a living owner."""
    other = OtherProcess(path)
    other.put(Count(n=1))
    other.claim()
    other.die()
    async with make(path, work=False, sweep_s=0.01) as client:
        handle = await client.dispatch(Echo(n=1))
        with pytest.raises(TimeoutError):
            await handle.result(0.1)
        with pytest.raises(ManagerNotRunning):
            await client.run_until_idle()
        counts = (await client.stats()).counts
        assert (counts["queued"], counts["running"]) == (1, 1)
        async with make(path):
            assert await handle.result(DEADLINE_S) == 1


async def test_two_managers_share_the_work(path, gate):
    """Two managers on one database both work, and no job is run twice."""
    ran = []

    def note(name):
        async def call(attempt, call_next):
            ran.append((name, attempt.job_id))
            return await call_next()

        return call

    settings = {"resources": {"gate": gate}, "concurrency": 1}
    async with (
        make(path, middleware=[note("a")], **settings) as a,
        make(path, middleware=[note("b")], **settings) as b,
    ):
        handles = await a.dispatch_many([Steps(n=1) for _ in range(6)])
        await gate.reached(2)  # each has one
        gate.open()
        for handle in handles:
            await b.handle(handle.id).result(DEADLINE_S)
    assert len(ran) == len({job_id for _, job_id in ran}) == 6
    assert {name for name, _ in ran} == {"a", "b"}


async def test_concurrency_is_never_exceeded(path):
    """No more handlers run at once than were allowed: they count themselves."""
    registry = Registry()
    now = [0, 0]

    @job("counts_itself", registry=registry)
    class CountsItself(Job[int]):
        async def run(self, ctx: JobContext) -> int:
            now[0] += 1
            now[1] = max(now)
            for _ in range(3):
                await ctx.checkpoint()
            now[0] -= 1
            return now[1]

    async with make(path, registry=registry, concurrency=3) as manager:
        handles = await manager.dispatch_many([CountsItself() for _ in range(40)])
        await manager.run_until_idle(DEADLINE_S)
        assert [await one.status() for one in handles] == ["completed"] * 40
    assert now == [0, 3]


async def test_queues_are_served_as_told(path):
    """A manager with queues serves those alone; what waits in others is not its work."""
    async with make(path, queues=["fast", "none yet"]) as manager:
        slow = await manager.dispatch(Echo(n=1), queue="slow")
        fast = await manager.dispatch(Echo(n=2), queue="fast")
        assert await fast.result(DEADLINE_S) == 2
        await manager.run_until_idle(DEADLINE_S)
        assert await slow.status() is JobStatus.QUEUED
        async with make(path):
            assert await slow.result(DEADLINE_S) == 1


async def test_resources_and_the_nodes_name_reach_handlers(path):
    """What the application gives its manager is found in the context, the very objects; so is the node's name."""
    registry = Registry()
    library = object()
    found = []

    @job("looks", registry=registry)
    class Looks(Job[str]):
        async def run(self, ctx: JobContext) -> str:
            found.append(ctx.resources["library"])
            (ctx.data_dir / "a").write_text("kept")
            (ctx.output_dir / "b").write_text("kept")
            return ctx.node

    async with make(path, registry=registry, resources={"library": library}, node_name="left") as manager:
        handle = await manager.dispatch(Looks())
        assert await handle.result(DEADLINE_S) == "left"
        assert (await handle.record()).node == "left"
    assert found == [library]
    folder = Path(f"{path}.data") / "jobs" / str(handle.id)
    assert (folder / "a").read_text() == (folder / "1" / "b").read_text() == "kept"
    for made in (folder.parent.parent, folder.parent, folder, folder / "1"):
        assert made.stat().st_mode & 0o777 == 0o700


async def test_run_until_idle_works_until_nothing_is_left(path):
    """run_until_idle returns once nothing is claimable and nothing runs, jobs dispatched by jobs included."""
    registry = Registry()

    @job("begets", registry=registry)
    class Begets(Job[int]):
        left: int

        async def run(self, ctx: JobContext) -> int:
            if self.left:
                await ctx.resources["manager"].dispatch(Begets(left=self.left - 1))
            return self.left

    resources: dict[str, object] = {}
    async with make(path, registry=registry, resources=resources) as manager:
        resources["manager"] = manager
        await manager.run_until_idle(DEADLINE_S)  # nothing to do
        await manager.dispatch(Begets(left=5))
        await manager.run_until_idle(DEADLINE_S)
        assert (await manager.stats()).completed == 6


async def test_run_until_idle_gives_up_in_time(path, gate):
    """run_until_idle raises TimeoutError while there still is work, which goes on."""
    async with make(path, resources={"gate": gate}) as manager:
        handle = await manager.dispatch(Steps(n=1))
        with pytest.raises(TimeoutError):
            await manager.run_until_idle(0.05)
        gate.open()
        await manager.run_until_idle(DEADLINE_S)
        assert await handle.status() is JobStatus.COMPLETED


# ── asking ──


async def test_bad_ids_and_missing_jobs(path):
    """What is no UUID raises InvalidJobId; an id without a job JobNotFound, in every way of asking."""
    async with make(path, work=False) as client:
        bad: Any
        for bad in ("x", "", 5, None, b"01890a5d-ac96-774b-bcce-b302099a8057"):
            with pytest.raises(InvalidJobId):
                client.handle(bad)
            if bad is not None:
                with pytest.raises(InvalidJobId):
                    client.events(bad)
            with pytest.raises(InvalidJobId):
                await client.get(bad)
        missing = client.handle(uuid4())
        with anyio.fail_after(DEADLINE_S):
            asks: list[Any] = [missing.record, missing.status, missing.result, lambda: client.get(str(missing.id))]
            for ask in asks:
                with pytest.raises(JobNotFound) as raised:
                    await ask()
                assert raised.value.job_id == str(missing.id)
            with pytest.raises(JobNotFound):
                await anext(missing.events())
            with pytest.raises(JobNotFound):
                await anext(missing.progress())
        handle = await client.dispatch(Echo(n=1))
        assert (await client.get(str(handle.id).upper())).id == handle.id


async def test_listing(path):
    """Jobs are listed newest first, page by page, filtered in any of the ways a filter can be given."""
    async with make(path) as manager:
        handles = await manager.dispatch_many([Echo(n=n) for n in range(7)], user="ann")
        await manager.dispatch(Count(n=1), user="bob", queue="nobody's")
        await manager.run_until_idle(DEADLINE_S)
        ids, cursor = [], None
        while True:
            page = await manager.list_jobs(name="echo", limit=3, cursor=cursor)
            ids += [record.id for record in page]
            if (cursor := page.next_cursor) is None:
                break
        assert ids == [one.id for one in reversed(handles)]
        for given in (("completed",), (JobStatus.COMPLETED,), (JobFilter(status="succeeded"),)):
            assert len(await manager.list_jobs(*given)) == 8
        assert len(await manager.list_jobs(user=["ann", "bob"], text=str(handles[0].id)[:20])) >= 1
        wrong: list[dict[str, Any]] = [
            {"limit": 0}, {"limit": 1_001}, {"limit": "5"}, {"limit": 2.5}, {"limit": True}, {"limit": None},
            {"cursor": "x"}, {"cursor": 5}, {"colour": "red"}, {"status": "odd"}, {"status": []}, {"tag": 5},
            {"filter": 5}, {"filter": []},
        ]  # fmt: skip
        for bad in wrong:
            with pytest.raises(InvalidFilter):
                await manager.list_jobs(**bad)
        stats = await manager.stats(user="ann")
        assert (stats.total, stats.completed, stats.success_rate) == (7, 7, 1.0)
        unknown: Any = {"colour": "red"}
        with pytest.raises(InvalidFilter):
            await manager.stats(**unknown)


async def test_metadata_finds_equal_numbers(path):
    """A number in metadata is found by any that equals it, as 1 by 1.0; True is not 1."""
    async with make(path, work=False) as client:
        ids = [(await client.dispatch(Echo(), metadata={"f": value})).id for value in (1, 1.0, True, "1.0", 1.5)]
        for value, found in ((1, ids[:2]), (1.0, ids[:2]), (True, ids[2:3]), ("1.0", ids[3:4]), (1.5, ids[4:])):
            assert {one.id for one in await client.list_jobs(metadata={"f": value})} == set(found)


async def test_introspection(path):
    """job_types and schema tell what can be run; they need no database."""
    manager = make(path)
    assert [one.name for one in manager.job_types()] == REGISTRY.names()
    assert list(manager.schema("count")["properties"]) == ["n"]
    with pytest.raises(UnknownJob):
        manager.schema("coutn")


# ── results ──


async def test_result_of_each_end(path, gate):
    """result() gives the typed output, or raises the error that fits how the job ended."""
    async with make(path, resources={"gate": gate}) as manager:
        assert await (await manager.dispatch(Echo(n=3))).result(DEADLINE_S) == 3
        failing = await manager.dispatch(Raise(text="a\0b"))
        with pytest.raises(JobFailed) as raised:
            await failing.result(DEADLINE_S)
        failure = raised.value.failure
        assert isinstance(failure, Failure)
        assert (failure.type, failure.message) == ("ValueError", "a\ufffdb")
        assert "in run" in failure.traceback
        assert (await failing.record()).error == failure
        slow = await manager.dispatch(Steps(n=1))
        for timeout in (0, 0.05):
            with pytest.raises(TimeoutError):
                await slow.result(timeout)
        gate.open()
        assert await slow.result(DEADLINE_S) == [1]
        assert await slow.result(0) == [1]


async def test_result_of_a_held_and_of_a_lost_job(path):
    """A job that needs a person, or can't be resumed, is told at once, not waited for."""
    other = OtherProcess(path)
    other.put(Once())
    other.claim()
    other.die()
    broken = store_at(path)
    async with make(path, work=False) as client:
        held = await client.dispatch(Echo(n=1))
        with broken._database.writing() as connection:  # damage it
            connection.exec_driver_sql("UPDATE jobs SET params_data = X'C1' WHERE id = ?", (str(held.id),))
    broken.close()
    async with make(path) as manager:
        with pytest.raises(JobHeld) as raised:
            await manager.handle(held.id).result(DEADLINE_S)
        assert raised.value.reason == "corrupt_state"
        lost = (await manager.list_jobs(name="once")).items[0]
        with pytest.raises(JobLost):
            await manager.handle(lost.id).result(DEADLINE_S)


async def test_result_of_a_type_that_is_unknown_here(path):
    """A process that doesn't know a job's class gets its output as JSON."""
    registry = Registry()

    @job("tells", registry=registry)
    class Tells(Job[dict[str, tuple[int, ...]]]):
        async def run(self, ctx: JobContext) -> dict[str, tuple[int, ...]]:
            return {"a": (1, 2)}

    async with make(path, registry=registry) as manager, make(path, work=False, registry=Registry()) as client:
        handle = await manager.dispatch(Tells())
        assert await handle.result(DEADLINE_S) == {"a": (1, 2)}
        assert await client.handle(handle.id).result(DEADLINE_S) == {"a": [1, 2]}


async def test_a_result_is_heard_of_across_managers(path):
    """Who waits in another manager than the one that runs the job finds its end by looking."""
    async with make(path, work=False) as client:
        handle = await client.dispatch(Echo(n=4))
        results = []

        async def wait():
            results.append(await handle.result(DEADLINE_S))

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            async with make(path) as manager:
                await manager.run_until_idle(DEADLINE_S)
    assert results == [4]


async def test_waiting_ends_with_the_manager(path):
    """Who waits for a job while the manager is stopped is told at once."""
    manager = make(path, work=False)
    await manager.start()
    handle = await manager.dispatch(Echo(n=1))
    told = []

    async def wait():
        try:
            await handle.result(DEADLINE_S)
        except ManagerNotRunning:
            told.append(True)

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        await manager.stop()
    assert told == [True]


# ── events and progress ──


async def test_events_of_one_job(path):
    """G11: a job's events are numbered 1, 2, 3… and end with it; they can be read again, in part, and by type."""
    async with make(path) as manager:
        handle = await manager.dispatch(Echo(n=1))
        with anyio.fail_after(DEADLINE_S):
            followed = [
                (one.seq, one.type) async for one in handle.events() if one.type not in {"progress", "checkpoint"}
            ]
            assert followed == [(1, "created"), (2, "started"), (3, "completed")]
            assert [one.seq async for one in handle.events()] == [1, 2, 3]
            assert [one.seq async for one in handle.events(after=1)] == [2, 3]
            assert [one.seq async for one in manager.events(handle.id, after=2)] == [3]
            assert [one async for one in handle.events(after=3)] == []
            assert [one.type async for one in handle.events(types=["started"])] == ["started"]
            assert [one.type async for one in handle.events(types=["job.completed"])] == ["completed"]
            first = await anext(handle.events())
            assert [one.seq async for one in manager.events(handle.id, after=first.cursor)] == [2, 3]
        with pytest.raises(InvalidFilter):
            handle.events(types=["odd"])
        with pytest.raises(InvalidFilter):
            await anext(handle.events(after=-1))


async def test_events_of_a_job_that_was_never_heard_of_again(path):
    """A stream of a finished job ends, even one that starts beyond its last event."""
    async with make(path) as manager:
        handle = await manager.dispatch(Echo(n=1))
        await handle.result(DEADLINE_S)
        with anyio.fail_after(DEADLINE_S):
            assert [one async for one in handle.events(after=99)] == []


async def test_what_comes_live_while_the_end_is_read_is_kept(path, monkeypatch):
    """A live event that arrives while the job's last stored event is being read still stands before it."""
    async with make(path) as manager:
        handle = await manager.dispatch(Echo(n=1))
        await handle.result(DEADLINE_S)
        read = manager._watch.events

        async def overtaken(job_id: UUID | None, after: str | None, limit: int) -> list[Event]:
            stored = await read(job_id, after, limit)
            checkpoint = Event(handle.id, 2, "checkpoint", JobStatus.RUNNING, None, None, datetime.now(UTC))
            manager._feed.happened(checkpoint)
            return stored

        monkeypatch.setattr(manager._watch, "events", overtaken)
        with anyio.fail_after(DEADLINE_S):
            kinds = [one.type async for one in handle.events()]
    assert kinds == ["created", "started", "checkpoint", "completed"]


async def test_live_events_stand_where_they_happened(path, gate):
    """Progress and checkpoints come live, with the number of the last stored event, before the job's end."""
    registry = Registry()

    @job("goes", registry=registry)
    class Goes(Job[int]):
        done: int = state(0)

        async def run(self, ctx: JobContext) -> int:
            await gate.pass_async([])
            for _ in range(3):
                self.done += 1
                ctx.progress(completed=self.done, total=3, message=f"step {self.done}")
                await ctx.checkpoint()
            ctx.progress(1.0, message="the last")
            return self.done

    async with make(path, registry=registry) as manager:
        handle = await manager.dispatch(Goes())
        stream = handle.events()
        with anyio.fail_after(DEADLINE_S):
            seen = [await anext(stream), await anext(stream)]
            gate.open()
            seen += [one async for one in stream]
        kinds = [one.type for one in seen]
        assert kinds[:2] == ["created", "started"]
        assert kinds[-1] == "completed"
        data: dict[str, list[Any]] = {kind: [one.data for one in seen if one.type == kind] for kind in kinds}
        assert [one["seq"] for one in data["checkpoint"]] == [1, 2, 3]
        assert data["progress"][-1]["message"] == "the last"
        assert {one.seq for one in seen[2:-1]} == {2}
        assert {one.cursor for one in seen[2:-1]} == {""}
        assert [one.type async for one in handle.events(types=["checkpoint"])] == []  # live only


async def test_events_of_all_jobs(path):
    """G11: a reader of all jobs has a cursor that loses nothing and repeats nothing, across managers and restarts."""
    seen: list[Event] = []
    async with make(path) as manager:
        await manager.dispatch_many([Echo(n=n) for n in range(5)])
        stream = manager.events()
        with anyio.fail_after(DEADLINE_S):
            while sum(one.type == "completed" for one in seen) < 5:
                seen.append(await anext(stream))
        cursor = seen[-1].cursor
    async with make(path) as manager:
        await manager.dispatch(Echo(n=9))
        stream = manager.events(after=cursor, types=["created", "completed"])
        with anyio.fail_after(DEADLINE_S):
            more = [await anext(stream), await anext(stream)]
    assert [one.type for one in more] == ["created", "completed"]
    stored = [(one.job_id, one.seq) for one in [*seen, *more]]
    assert len(set(stored)) == len(stored)


async def test_a_long_history_is_read_in_pages(path):
    """A stream reads any number of stored events, in order."""
    async with make(path, work=False) as client:
        handles = await client.dispatch_many([Echo(n=n) for n in range(1_200)])
        stream = client.events()
        with anyio.fail_after(DEADLINE_S):
            ids = [(await anext(stream)).job_id for _ in handles]
    assert ids == [one.id for one in handles]


async def test_a_stream_may_be_left_anywhere(path):
    """Breaking out of a stream leaves nothing behind: nobody listens any more."""
    async with make(path) as manager:
        handle = await manager.dispatch(Count(n=3))
        with anyio.fail_after(DEADLINE_S):
            async for _ in handle.events():
                break
            async for _ in handle.progress():
                break
        await handle.result(DEADLINE_S)
        await manager.run_until_idle(DEADLINE_S)
        manager._feed.heard([])
        await until(lambda: not manager._feed._listeners(str(handle.id)))


async def test_progress_is_followed_to_its_end(path, gate):
    """handle.progress() gives the job's progress as it changes, the last always, and ends when the job does."""
    async with make(path, resources={"gate": gate}) as manager:
        handle = await manager.dispatch(Count(n=50))
        with anyio.fail_after(DEADLINE_S):
            seen = [one async for one in handle.progress()]
        assert seen[-1] == Progress(1.0, 50, 50)
        steps = [one.completed or 0 for one in seen]
        assert steps == sorted(steps)
        assert (await handle.record()).progress == seen[-1]
        silent = await manager.dispatch(Echo(n=1))
        with anyio.fail_after(DEADLINE_S):
            assert [one async for one in silent.progress()] == []


async def test_progress_without_checkpoints_is_stored_too(path, gate):
    """Progress that no checkpoint takes along is stored after a moment, and what was throttled is stored at the end."""
    registry = Registry()

    @job("talks", registry=registry)
    class Talks(Job[int]):
        async def run(self, ctx: JobContext) -> int:
            ctx.progress(0.25)
            ctx.progress(0.5, data={"list": [1]})
            await gate.pass_async([])
            for n in range(1_000):
                ctx.progress(n / 1_000)
            return 1

    async with make(path, registry=registry) as manager:
        handle = await manager.dispatch(Talks())

        async def stored() -> bool:
            return (await handle.record()).progress == Progress(0.5, data={"list": [1]})

        await until_true(stored)
        gate.open()
        await handle.result(DEADLINE_S)
        assert (await handle.record()).progress == Progress(0.999)


# ── observers and middleware ──


async def test_observers_hear_what_was_committed(path, listener):
    """Observers hear each job's transitions in order, after their commit and before the caller is answered."""
    seen = []
    looking = store_at(path)

    def look(transition):
        stored = looking.get(transition.after.id)
        seen.append(stored is not None and stored.attempt >= transition.after.attempt)

    async with make(path, observers=[listener, look]) as manager:
        handles = await manager.dispatch_many([Count(n=2) for _ in range(5)])
        for handle in handles:
            await handle.result(DEADLINE_S)
            assert listener.told(handle.id) == ["started", "completed"]
            statuses = [one.after.checkpoint_seq for one in listener.heard if one.after.id == str(handle.id)]
            assert statuses == sorted(statuses)
    looking.close()
    assert all(seen)


async def test_an_observer_changes_nothing(path, listener):
    """An observer that raises stops neither the job nor the other observers."""

    def broken(transition):
        raise RuntimeError("not listening")

    async with make(path, observers=[broken, listener, broken]) as manager:
        handle = await manager.dispatch(Count(n=2))
        assert await handle.result(DEADLINE_S) == 2
        assert listener.told(handle.id) == ["started", "completed"]


async def test_middleware_wraps_an_attempt(path):
    """Middleware is called around each attempt, the first outermost, knows what it wraps, may change the outcome."""
    calls = []

    def around(name):
        async def call(attempt, call_next):
            calls.append(f"{name} in")
            outcome = await call_next()
            calls.append(f"{name} out")
            assert (attempt.name, attempt.attempt, attempt.resuming, attempt.metadata) == ("echo", 1, False, {"a": 1})
            return outcome

        return call

    async def refuse(attempt, call_next):
        outcome = await call_next()
        assert isinstance(outcome, Completed)
        return Failed(Failure("Refused", "by the middleware"))

    async with make(path, middleware=[around("outer"), around("inner")]) as manager:
        await (await manager.dispatch(Echo(n=1), metadata={"a": 1})).result(DEADLINE_S)
    assert calls == ["outer in", "inner in", "inner out", "outer out"]
    async with make(path, middleware=[refuse]) as manager:
        with pytest.raises(JobFailed, match="Refused: by the middleware"):
            await (await manager.dispatch(Echo(n=1))).result(DEADLINE_S)


@pytest.mark.parametrize("answer", [None, "text", ValueError("broken")])
async def test_broken_middleware_fails_the_job(path, answer):
    """Middleware that raises, or forgets to return the outcome, fails the job: it is not left running for ever."""

    async def broken(attempt, call_next):
        await call_next()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with make(path, middleware=[broken]) as manager:
        handle = await manager.dispatch(Echo(n=1))
        with pytest.raises(JobFailed):
            await handle.result(DEADLINE_S)


# ── handlers that misbehave ──


class OwnBaseError(BaseException):
    pass


async def test_a_bad_handler_is_its_own_trouble(path):
    """BaseExceptions, sys.exit() in a thread, unstorable outputs and progress fail their job; all others go on."""
    registry = Registry()

    @job("base", registry=registry)
    class Base(Job[int]):
        async def run(self, ctx: JobContext) -> int:
            raise OwnBaseError("a base")

    @job("base_in_thread", registry=registry)
    class BaseInThread(Job[int]):
        def run(self, ctx) -> int:
            raise OwnBaseError("a base")

    @job("exits_in_thread", registry=registry)
    class ExitsInThread(Job[int]):
        def run(self, ctx) -> int:
            sys.exit("out of here")

    @job("odd_output", registry=registry)
    class OddOutput(Job):
        async def run(self, ctx: JobContext):
            return object()

    @job("odd_progress", registry=registry)
    class OddProgress(Job[int]):
        async def run(self, ctx: JobContext) -> int:
            odd: Any = object()
            ctx.progress(10**5_000, data={"x": odd}, message="\ud800")
            ctx.progress(Progress(float("nan"), odd, odd, odd, odd, odd, {"x": odd}))
            await ctx.checkpoint()
            return 1

    @job("fine", registry=registry)
    class Fine(Job[int]):
        async def run(self, ctx: JobContext) -> int:
            await ctx.checkpoint()
            return 1

    async with make(path, registry=registry) as manager:
        kinds = (Base, BaseInThread, ExitsInThread, OddOutput, OddProgress, Fine)
        handles = await manager.dispatch_many([kind() for _ in range(5) for kind in kinds])
        await manager.run_until_idle(DEADLINE_S)
        records = [await one.record() for one in handles]
        errors = [None if one.error is None else one.error.type for one in records]
        assert errors == ["OwnBaseError", "OwnBaseError", "SystemExit", "SerializationError", None, None] * 5


async def test_a_blocked_event_loop_stops_no_other_writer(path):
    """Rule 5: while one handler blocks the loop, a thread's checkpoints are committed."""
    registry = Registry()
    blocked, unblock = threading.Event(), threading.Event()

    @job("blocks", registry=registry)
    class Blocks(Job[bool]):
        async def run(self, ctx: JobContext) -> bool:
            blocked.set()
            return unblock.wait(DEADLINE_S)

    @job("works", registry=registry)
    class Works(Job[int]):
        done: int = state(0)

        def run(self, ctx) -> int:
            blocked.wait(DEADLINE_S)
            for _ in range(10):
                self.done += 1
                ctx.checkpoint()
            unblock.set()
            return self.done

    async with make(path, registry=registry) as manager:
        works, blocks = await manager.dispatch(Works()), await manager.dispatch(Blocks())
        assert await blocks.result(DEADLINE_S) is True
        assert await works.result(DEADLINE_S) == 10


EXITS = """
import sys, anyio
from jobkit import Job, JobManager, job

@job("exits")
class Exits(Job[int]):
    async def run(self, ctx):
        sys.exit(3)

async def main():
    async with JobManager(sys.argv[1]) as manager:
        await (await manager.dispatch(Exits())).result(20)

anyio.run(main, backend=sys.argv[2])
"""


def test_sys_exit_on_the_event_loop_ends_the_process(path, anyio_backend):
    """SystemExit on the loop is the process's: it ends, and the job, which has not failed, is resumed by the next."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(
        [sys.executable, "-c", EXITS, path, anyio_backend],
        env=environment,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode != 0
    assert b"SystemExit: 3" in ended.stderr or ended.returncode == 3
    registry = Registry()

    @job("exits", registry=registry)
    class Exits(Job[int]):
        async def run(self, ctx: JobContext) -> int:
            return ctx.attempt

    async def resume():
        async with make(path, registry=registry) as manager:
            record = (await manager.list_jobs()).items[0]
            return await manager.handle(record.id).result(DEADLINE_S)

    assert anyio.run(resume) == 2


def locks(path: Path) -> list[str]:
    """The locks of lives beside a database."""
    return [lock.name for lock in Path(f"{path}.lives").glob("*-*.lock")]


async def test_a_life_tells_who_it_is(path):
    """A working manager is found among the lives, with its node and what it can run; a stopped one is not."""
    looking = store_at(path)
    async with make(path, node_name="left"):
        (life,) = looking.lives()
        assert (life.node, life.pid, life.working) == ("left", os.getpid(), True)
        assert life.versions == REGISTRY.versions()
        UUID(life.id)
        assert locks(path) == [f"{life.id}.lock"]
    assert looking.lives() == []
    assert locks(path) == []
    looking.close()


async def test_stored_json_is_json(path):
    """What a record shows as JSON can be written as JSON again."""
    async with make(path) as manager:
        handle = await manager.dispatch(Count(n=1), metadata={"a": [1, {"b": None}]}, tags=["x"])
        await handle.result(DEADLINE_S)
        record = await handle.record()
        assert json.loads(json.dumps([record.params, record.output, record.metadata])) == [
            {"n": 1}, 1, {"a": [1, {"b": None}]},
        ]  # fmt: skip
