"""Dispatching: what is stored of a job, when, and what is refused before anything is."""

from __future__ import annotations

import threading
from typing import Any

import anyio
import pytest

from jobkit import (
    FrozenParameter,
    InvalidJob,
    InvalidOption,
    InvalidParams,
    Job,
    JobContext,
    JobStatus,
    KeyConflict,
    ManagerNotRunning,
    Priority,
    Registry,
    StoreUnavailable,
    UnknownJob,
    job,
    state,
)
from tests.runtime.kit import DEADLINE_S, Count, Echo, make, store_at, stored

pytestmark = pytest.mark.anyio


@pytest.fixture
def client(path):
    """A manager that runs nothing, so that jobs stay as they were stored."""
    return make(path, work=False)


DEEP = {"provider": "vsphere", "n": 3, "deep": {"list": [1, None, 2.5]}}

GOOD: dict[str, list[tuple[Any, Any]]] = {
    "priority": [(Priority.HIGH, int(Priority.HIGH)), (-1_000_000, -1_000_000)],
    "queue": [("slow", "slow"), ("ü" * 200, "ü" * 200)],
    "key": [("k", "k"), (None, None)],
    "label": [("A label – ü", "A label – ü"), ("", ""), (None, None)],
    "description": [("Mine", "Mine"), (None, "Give back a number.")],
    "tags": [(["b", "a", "b"], ("b", "a", "b")), ({"one"}, ("one",)), (["", "x"], ("x",)), ((), ())],
    "user": [("ann", "ann"), (None, None)],
    "metadata": [(DEEP, DEEP), ({}, {}), ({1: "one"}, {"1": "one"}), ({"inf": float("inf")}, {"inf": "Infinity"})],
}


@pytest.mark.parametrize("option", GOOD)
async def test_each_option_is_stored(client, option):
    """What is said of a job at dispatch is found on its record."""
    async with client:
        for value, expected in GOOD[option]:
            given: Any = {option: value}
            record = await (await client.dispatch(Echo(n=1), **given)).record()
            assert getattr(record, option) == expected
            assert record.status is JobStatus.QUEUED
            assert (record.attempt, record.checkpoint_seq, record.params) == (0, 0, {"n": 1})


CIRCLE: dict[str, object] = {}
CIRCLE["self"] = CIRCLE


BAD: dict[str, list[Any]] = {
    "priority": ["high", True, 1.5, None, 1_000_001],
    "queue": ["", None, 3, "a\0b", "x" * 201],
    "key": [7, "\ud800", "x" * 10_001],
    "label": [b"bytes", "a\0b"],
    "description": [["no"]],
    "user": [1],
    "tags": ["nightly", 3, [1], ["a\0"], None, ["x" * 201]],
    "metadata": [[1], {"at": object()}, {"x": "\ud800"}, CIRCLE, "{}"],
    "prioritty": [3],
    "delay": [5],
}


@pytest.mark.parametrize("option", BAD)
async def test_a_bad_option_is_refused_before_anything_is_stored(client, option):
    """A value that can't be stored, and an option that doesn't exist, raise InvalidOption; nothing is stored."""
    echo = Echo(n=1)
    async with client:
        for value in BAD[option]:
            given: Any = {option: value}
            for dispatch in (
                client.dispatch(echo, **given),
                client.dispatch_by_name("echo", {}, **given),
                client.dispatch_many([echo, echo], **given),
            ):
                with pytest.raises(InvalidOption) as raised:
                    await dispatch
                assert raised.value.option == option
                assert option in str(raised.value)
        assert (await client.stats()).total == 0
    echo.n = 2  # a job that was not dispatched is not frozen


async def test_a_misspelt_option_is_told_its_neighbour(client):
    """An unknown option names the one that was meant."""
    async with client:
        with pytest.raises(InvalidOption, match="did you mean priority"):
            await client.dispatch(Echo(), prioritty=3)


async def test_returned_means_committed(client, path):
    """G1: when dispatch has returned, another connection finds the job and its first event."""
    async with client:
        handle = await client.dispatch(Echo(n=5))
        other = store_at(path)
        try:
            record = stored(other, handle.id)
            events = other.events(str(handle.id), None, None, 10)
        finally:
            other.close()
    assert record is not None
    assert record.params == {"n": 5}
    assert [(event.seq, event.type) for event in events] == [(1, "created")]


async def test_a_batch_is_committed_when_it_returns(client, path):
    """G1: so is every job of dispatch_many."""
    async with client:
        handles = await client.dispatch_many([Echo(n=n) for n in range(2_500)])
        other = store_at(path)
        try:
            assert [stored(other, one.id).params["n"] for one in handles[::500]] == [0, 500, 1000, 1500, 2000]
        finally:
            other.close()
    assert len({one.id for one in handles}) == 2_500


async def test_the_same_key_gives_the_same_job(client):
    """G12: dispatching again under a key gives the job that has it, whatever its other options; also a finished one."""
    async with client:
        first = await client.dispatch(Echo(n=1), key="k")
        again = await client.dispatch(Echo(n=1), key="k", label="another")
        by_name = await client.dispatch_by_name("echo", {"n": 1}, key="k")
        many = await client.dispatch_many([Echo(n=1), ("echo", {"n": 1})], key="k")
        assert {first.id, again.id, by_name.id, *(one.id for one in many)} == {first.id}
        other_job = await client.dispatch(Count(n=1), key="k")
        assert other_job.id != first.id
        assert (await client.stats()).total == 2


async def test_a_key_outlives_its_jobs_end(path):
    """G12: a key holds for as long as its job is stored, finished or not."""
    async with make(path) as manager:
        first = await manager.dispatch(Echo(n=1), key="k")
        await first.result(DEADLINE_S)
        assert (await manager.dispatch(Echo(n=1), key="k")).id == first.id
    async with make(path) as manager:
        assert (await manager.dispatch(Echo(n=1), key="k")).id == first.id


async def test_dispatches_at_once_under_one_key_give_one_job(path):
    """G12: however dispatches under one key are interleaved, within a manager and among several, there is one job."""
    ids = set()
    async with make(path, work=False) as one, make(path, work=False) as two:

        async def put(manager):
            ids.add((await manager.dispatch(Echo(n=1), key="k")).id)

        with anyio.fail_after(DEADLINE_S):
            async with anyio.create_task_group() as group:
                for _ in range(25):
                    group.start_soon(put, one)
                    group.start_soon(put, two)
        assert len(ids) == 1
        assert (await one.stats()).total == 1


async def test_other_parameters_under_a_key_conflict(client):
    """G12: a key stands for its parameters: others raise KeyConflict, which names the job that has it."""
    async with client:
        first = await client.dispatch(Echo(n=1), key="k")
        with pytest.raises(KeyConflict) as raised:
            await client.dispatch(Echo(n=2), key="k")
        assert (raised.value.name, raised.value.key, raised.value.job_id) == ("echo", "k", str(first.id))
        assert (await client.stats()).total == 1


async def test_a_conflict_among_many_stores_none(path):
    """dispatch_many is all or none: a key conflict within it leaves nothing behind, and its queue still works."""
    async with make(path) as manager:
        with pytest.raises(KeyConflict):
            await manager.dispatch_many([Echo(n=1), Echo(n=2)], key="k", queue="fresh")
        assert (await manager.stats()).total == 0
        handle = await manager.dispatch(Echo(n=3), queue="fresh")
        assert await handle.result(DEADLINE_S) == 3


async def test_one_bad_item_among_many_stores_none(client):
    """dispatch_many is all or none: an item that can't be dispatched is told before anything is stored."""
    echo = Echo(n=1)
    async with client:
        for bad, error in (
            (("echo", {"n": "x"}), InvalidParams),
            (("ecko", {}), UnknownJob),
            ("echo", InvalidJob),
            (("echo",), InvalidJob),
            (None, InvalidJob),
            (("echo", None), InvalidParams),
        ):
            with pytest.raises(error):
                await client.dispatch_many([echo, bad])
        assert (await client.stats()).total == 0
    echo.n = 2  # it was not dispatched, so it is not frozen


async def test_many_jobs_of_many_kinds(client):
    """dispatch_many takes jobs and pairs of name and parameters together, from any iterable, and answers in order."""
    async with client:
        assert await client.dispatch_many([]) == []
        items = iter([Echo(n=1), ("count", {"n": 2}), Count(n=3)])
        handles = await client.dispatch_many(items, tags=(tag for tag in ["x"]), metadata={"a": 1})
        records = [await one.record() for one in handles]
        assert [(one.name, one.params["n"]) for one in records] == [("echo", 1), ("count", 2), ("count", 3)]
        assert [(one.tags, one.metadata) for one in records] == [(("x",), {"a": 1})] * 3


async def test_state_is_never_taken_from_a_caller(client):
    """Untrusted input can't set state, nor what the job does not know; the error names the fields."""
    async with client:
        for params, path in (({"n": 1, "done": 5}, "done"), ({"n": 1, "m": 5}, "m"), ({"n": "x"}, "n"), ({}, "n")):
            with pytest.raises(InvalidParams) as raised:
                await client.dispatch_by_name("count", params)
            assert path in raised.value.fields
        assert (await client.stats()).total == 0


async def test_an_unknown_name_is_told_its_neighbours(client):
    """UnknownJob lists near names."""
    async with client:
        with pytest.raises(UnknownJob, match="'count'") as raised:
            await client.dispatch_by_name("coutn", {"n": 1})
    assert "count" in raised.value.near


async def test_an_undecorated_subclass_is_no_job(client):
    """A subclass that was not decorated is refused, and does not run as its parent."""

    class Special(Echo):
        pass

    async with client:
        with pytest.raises(InvalidJob, match="Special"):
            await client.dispatch(Special(n=1))
        with pytest.raises(InvalidJob):
            await client.dispatch("echo")


async def test_a_job_of_another_registry_is_no_job_here(path):
    """A manager runs, and takes, the jobs of its own registry alone."""
    async with make(path, registry=Registry()) as manager:
        with pytest.raises(InvalidJob):
            await manager.dispatch(Echo(n=1))


async def test_only_a_running_manager_dispatches(path):
    """Before start and after stop there is a clear error, and the job is not frozen by it."""
    manager = make(path)
    echo = Echo(n=1)
    for _ in range(2):
        for call in (
            lambda: manager.dispatch(echo),
            lambda: manager.dispatch_by_name("echo"),
            lambda: manager.dispatch_many([echo]),
            lambda: manager.get("01890a5d-ac96-774b-bcce-b302099a8057"),
            manager.list_jobs,
            manager.stats,
            manager.run_until_idle,
        ):
            with pytest.raises(ManagerNotRunning, match="start"):
                await call()
        echo.n += 1
        await manager.start()
        await manager.stop()


async def test_parameters_are_frozen_once_dispatched(client):
    """A parameter of a dispatched job can't be assigned: the error points to state()."""
    count, many = Count(n=1), Echo(n=1)
    count.n = 2
    async with client:
        handle = await client.dispatch(count)
        await client.dispatch_many([many])
        with pytest.raises(FrozenParameter, match=r"state\("):
            count.n = 3
        with pytest.raises(FrozenParameter):
            many.n = 3
        count.done = 7  # state is not frozen
        assert (await handle.record()).params == {"n": 2}


async def test_what_was_refused_is_not_frozen(client, monkeypatch):
    """A job that the store refused may be changed and dispatched again; one that was stored before stays frozen."""
    async with client:
        stored_job, echo, other = Echo(n=1), Echo(n=2), Echo(n=3)
        await client.dispatch(stored_job, key="k")
        with pytest.raises(KeyConflict):
            await client.dispatch(echo, key="k")
        with pytest.raises(KeyConflict):
            await client.dispatch_many([stored_job, other], key="k")
        echo.n = other.n = 1
        assert (await client.dispatch(echo, key="k")).id == (await client.dispatch(other, key="k")).id
        for one in (stored_job, echo, other):
            with pytest.raises(FrozenParameter):
                one.n = 4

        async def refuse(_write):
            raise StoreUnavailable("the disk is full", "make room")

        unlucky = Echo(n=1)
        monkeypatch.setattr(client._writer, "submit", refuse)
        with pytest.raises(StoreUnavailable):
            await client.dispatch(unlucky)
        monkeypatch.undo()
        unlucky.n = 2


async def test_parameters_have_a_largest_size(path):
    """Parameters over the limit are refused before anything is stored, with what to do and the largest of them."""
    registry = Registry()

    @job("takes_much", registry=registry)
    class TakesMuch(Job[int]):
        first: str = "x" * 100
        data: bytes
        last: str = ""

        async def run(self, ctx: JobContext) -> int:
            return 0

    async with make(path, registry=registry, work=False, max_state_bytes=4_000) as client:
        for dispatch in (
            client.dispatch(TakesMuch(data=bytes(5_000))),
            client.dispatch_by_name("takes_much", {"data": "x" * 5_000}),
            client.dispatch_many([TakesMuch(data=b""), TakesMuch(data=bytes(5_000))]),
        ):
            with pytest.raises(InvalidParams, match=r"data: .* the limit is 4,000: .*max_state_bytes") as raised:
                await dispatch
            assert list(raised.value.fields) == ["data"]
        assert (await client.stats()).total == 0
        await client.dispatch(TakesMuch(data=bytes(3_000)))


@pytest.mark.parametrize("params", [["a"], "n", 5, [("n", 1)], [], 0])
async def test_parameters_by_name_are_a_mapping(client, params):
    """Parameters that are no mapping are refused as any that don't fit, and the error says what to give."""
    async with client:
        for dispatch in (client.dispatch_by_name("echo", params), client.dispatch_many([("echo", params)])):
            with pytest.raises(InvalidParams, match="give a mapping of parameter names to values"):
                await dispatch
        assert (await client.stats()).total == 0


async def test_state_assigned_before_dispatch_is_where_it_starts(path):
    """What is assigned to state before the dispatch is stored with the job: its first attempt starts there."""
    async with make(path) as manager:
        count = Count(n=5)
        count.done = 4
        handle = await manager.dispatch(count)
        assert await handle.result(DEADLINE_S) == 5
        assert (await handle.record()).checkpoint_seq == 1


async def test_priorities_are_claimed_first(path):
    """Of jobs that wait, those of higher priority start first; equals in the order of their dispatch."""
    started = []
    async with make(path, work=False) as client:
        for n, priority in enumerate([Priority.LOW, Priority.NORMAL, Priority.HIGH, Priority.NORMAL, Priority.HIGH]):
            await client.dispatch(Echo(n=n), priority=priority)

    async def note(attempt, call_next):
        started.append(attempt.job_id)
        return await call_next()

    async with make(path, concurrency=1, middleware=[note]) as manager:
        await manager.run_until_idle(DEADLINE_S)
        found = [(await manager.get(one)).params["n"] for one in started]
    assert found == [2, 4, 1, 3, 0]


async def test_the_jobs_own_queue_and_priority_hold_unless_told(path):
    """A job type's own queue, priority and description are its jobs' unless an option says otherwise."""
    registry = Registry()

    @job("own", queue="nightly", priority=9, description="Its own", registry=registry)
    class Own(Job[int]):
        done: int = state(0)

        async def run(self, ctx: JobContext) -> int:
            return 0

    async with make(path, registry=registry, work=False) as client:
        record = await (await client.dispatch(Own())).record()
        assert (record.queue, record.priority, record.description) == ("nightly", 9, "Its own")
        record = await (await client.dispatch(Own(), queue="default", priority=0, description="Other")).record()
        assert (record.queue, record.priority, record.description) == ("default", 0, "Other")


async def test_a_dispatch_does_not_wait_for_the_loop_to_be_free(path):
    """Rule 5: a dispatch is committed by the writer's thread, even while the event loop is blocked."""
    async with make(path, work=False) as client:
        other = store_at(path)
        blocked = threading.Event()
        seen = []

        def look():
            pause = threading.Event()
            for _ in range(2_000):
                if other.events(None, None, None, 10):
                    seen.append(True)
                    break
                pause.wait(0.005)
            blocked.set()

        async def block():
            threading.Thread(target=look, daemon=True).start()
            blocked.wait(DEADLINE_S)

        async with anyio.create_task_group() as group:
            group.start_soon(client.dispatch, Echo(n=1))
            await anyio.lowlevel.checkpoint()
            group.start_soon(block)
        other.close()
    assert seen == [True]
