"""Progress: told as often as a handler likes, shown and stored in moderation, and with a rate of running time alone."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import anyio
import pytest

from jobkit import Event, JobNotFound, JobStatus, Progress
from jobkit.interfaces import Change
from jobkit.lifecycle import Cause, Trigger
from jobkit.runtime.feed import LIVE_EVENTS
from tests.runtime.kit import DEADLINE_S, make, node_of, one, store_at, stored, until
from tests.runtime.scripts import Play, PlayInThread, Watched, playing

pytestmark = pytest.mark.anyio

KINDS = pytest.mark.parametrize("kind", [Play, PlayInThread])


# ── in moderation ──


@KINDS
async def test_progress_is_shown_and_stored_in_moderation(path, clock, timed, kind):
    """Of a thousand reports a second at most 20 are shown live and 2 stored, the last of all among them."""

    def script(ctx: Any) -> Iterator[str]:
        for number in range(3_000):
            ctx.progress(completed=number)
            clock.advance(0.001)
        yield from ()

    store = Watched(path, now=clock.now)
    async with playing(store, script, **timed) as manager:
        everything = manager.events(types=["progress"])
        handle = await manager.dispatch(kind())
        await handle.result(DEADLINE_S)
        with anyio.fail_after(DEADLINE_S):
            shown = [event async for event in handle.events(types=["progress"])]
        await until(lambda: everything._ear.live)
        live = [event for event in everything._ear.take() if event.type == "progress"]
    assert shown == []  # to who comes too late
    assert len(live) <= 3 * 20 + 2
    gaps = [(after.at - before.at).total_seconds() for before, after in pairwise(live)]
    assert all(gap >= 0.0499 for gap in gaps[:-1])
    assert isinstance(live[-1].data, dict)
    assert live[-1].data["completed"] == 2_999
    reports = [write for write in store.written if write.cause.trigger is Trigger.REPORT]
    assert 1 <= len(reports) <= 3 * 2
    assert stored(store_at(path), handle.id).progress == Progress(completed=2_999)


@KINDS
async def test_progress_told_once_is_shown_at_once(path, timed, gate, kind):
    """What is told after a while of silence reaches live readers without waiting for anything."""

    def script(ctx: Any) -> Iterator[str]:
        yield "gate"
        ctx.progress(0.5, message="half", data={"n": [1]})
        yield "gate"

    async with playing(path, script, gate, **timed) as manager:
        handle = await manager.dispatch(kind())
        stream = handle.events(types=["progress"])
        await gate.reached(1)
        gate.let(1)
        with anyio.fail_after(DEADLINE_S):
            event = await anext(stream)
    told = {"attempt": 1, "fraction": 0.5, "message": "half", "data": {"n": [1]}}
    assert (event.type, event.seq, event.status, event.data) == ("progress", 2, JobStatus.RUNNING, told)


@KINDS
async def test_what_was_throttled_is_shown_soon(path, timed, gate, pass_looks, kind):
    """The last report of a handler that falls silent is shown and stored by itself, within a second."""

    def script(ctx: Any) -> Iterator[str]:
        for number in range(10):
            ctx.progress(completed=number)
        yield "gate"

    other = store_at(path)
    async with playing(path, script, gate, **timed) as manager:
        handle = await manager.dispatch(kind())
        stream = handle.events(types=["progress"])
        await gate.reached(1)
        await pass_looks(4)
        with anyio.fail_after(DEADLINE_S):
            shown = [await anext(stream), await anext(stream)]
        assert [one.data for one in shown] == [{"attempt": 1, "completed": number} for number in (0, 9)]
        assert stored(other, handle.id).progress == Progress(completed=9)
    other.close()


# ── rate and estimate ──


@KINDS
async def test_rate_and_estimate_are_of_running_time(path, clock, timed, kind):
    """The row and live readers are told how fast a job goes and for how long still; a break of an hour adds nothing."""

    def script(ctx: Any) -> Iterator[str]:
        for number in range(11) if ctx.attempt == 1 else range(8, 21):
            ctx.progress(completed=10 * number, total=200, unit="files")
            if ctx.attempt == 1 and number == 10:
                yield "save"
                yield "stop"
            if ctx.attempt > 1 and number == 8:
                yield "save"
                seen.append(stored(other, ctx.id).progress)
            clock.advance(2)

    seen: list[Progress | None] = []
    other = store_at(path)
    async with playing(path, script, **timed) as manager:
        handle = await manager.dispatch(kind())
        live = handle.events(types=["progress"])
        await until(lambda: stored(other, handle.id).checkpoint_seq)
        with anyio.fail_after(DEADLINE_S):
            shown = [await anext(live) for _ in range(11)]
    assert isinstance(shown[-1].data, dict)
    told: Any = shown[-1].data
    assert (told["rate"], told["eta_s"]) == (pytest.approx(5), pytest.approx(20))
    first = stored(other, handle.id)
    assert (first.status, first.reason) == (JobStatus.PAUSED, "shutdown")
    assert first.progress is not None
    assert first.progress.rate == pytest.approx(5)
    assert first.progress.eta_s == pytest.approx(20)
    clock.advance(3_600)
    async with playing(path, script, **timed) as manager:
        await manager.handle(handle.id).result(DEADLINE_S)
        last = (await manager.get(handle.id)).progress
    (resumed,) = seen
    assert resumed == Progress(0.4, 80, 200, "files")
    assert resumed.rate == pytest.approx(5)
    assert resumed.eta_s == pytest.approx(24)
    assert last == Progress(1.0, 200, 200, "files")
    assert last.rate == pytest.approx(5)
    assert last.eta_s == 0
    other.close()


async def test_a_rate_of_ones_own_is_not_taken(path):
    """Rate and estimate are worked out; a handler that gives its own in a Progress is not believed."""

    def script(ctx: Any) -> Iterator[str]:
        ctx.progress(Progress(0.5, rate=7.0, eta_s=7.0))
        yield "save"

    async with playing(path, script) as manager:
        handle = await manager.dispatch(Play())
        await handle.result(DEADLINE_S)
        progress = (await handle.record()).progress
    assert progress == Progress(0.5)
    assert (progress.rate, progress.eta_s) == (None, None)


# ── following it ──


@KINDS
async def test_each_change_is_followed_where_the_job_runs(path, timed, gate, pass_looks, kind):
    """In the process that runs the job handle.progress() has each change that is shown, long before it is stored."""

    def script(ctx: Any) -> Iterator[str]:
        for number in range(5):
            ctx.progress(completed=number)
            yield "gate"

    async with playing(path, script, gate, **timed) as manager:
        handle = await manager.dispatch(kind())
        stream = handle.progress()
        seen: list[Progress] = []
        with anyio.fail_after(DEADLINE_S):
            for number in range(5):
                await gate.reached(number + 1)
                if number == 0:  # it was told before anybody followed, so it is read from the row
                    await pass_looks(3)
                else:
                    await until(lambda: stream._ear.live)
                seen.append(await anext(stream))
                timed["clock"].advance(0.06)
                gate.let(1)
            seen += [one async for one in stream]
    assert [one.completed for one in seen] == [0, 1, 2, 3, 4]


@KINDS
async def test_progress_never_goes_back(path, kind):
    """Live changes and the row, which comes after, are one stream: no change comes twice, none after a later one."""

    def script(ctx: Any) -> Iterator[str]:
        for number in range(300):
            ctx.progress(completed=number, total=299)
            if number % 7 == 0:
                yield "save"

    async with playing(path, script) as manager, make(path, work=False) as client:
        handle = await manager.dispatch(kind())
        seen: dict[str, list[Any]] = {"here": [], "elsewhere": []}

        async def follow(who: str, stream: Any) -> None:
            async for progress in stream:
                seen[who].append(progress.completed)

        with anyio.fail_after(DEADLINE_S):
            async with anyio.create_task_group() as group:
                group.start_soon(follow, "here", handle.progress())
                group.start_soon(follow, "elsewhere", client.handle(handle.id).progress())
    for numbers in seen.values():
        assert numbers == sorted(set(numbers))
        assert numbers[-1] == 299


async def test_progress_is_followed_from_attempt_to_attempt(path, gate):
    """A reader follows a job through another attempt, which may begin further back, in this process or another."""

    def script(ctx: Any) -> Iterator[str]:
        ctx.progress(completed=10 if ctx.attempt == 1 else 5, message=f"attempt {ctx.attempt}")
        yield "save"
        if ctx.attempt == 1:
            yield "gate"
            yield "save"
        ctx.progress(completed=20, message=f"attempt {ctx.attempt}")

    async with playing(path, script, gate, concurrency=1) as manager, make(path, work=False) as client:
        handle = await manager.dispatch(Play())
        streams = [handle.progress(), client.handle(handle.id).progress()]
        seen: list[list[Any]] = []
        with anyio.fail_after(DEADLINE_S):
            await gate.reached(1)
            seen = [[await anext(stream)] for stream in streams]
            (running,) = node_of(manager).worker.running.values()
            other = store_at(path)
            one(other.commit([Change(str(handle.id), Cause(Trigger.OWNER_GONE), running.standing)]))
            other.close()
            gate.open()
            for told, stream in zip(seen, streams, strict=True):
                told += [progress async for progress in stream]
    for told in seen:
        assert told[0] == Progress(completed=10, message="attempt 1")
        assert told[-1] == Progress(completed=20, message="attempt 2")
        assert {progress.message for progress in told} == {"attempt 1", "attempt 2"}


async def test_following_a_job_that_is_deleted(path):
    """The progress of a job that is deleted meanwhile ends; that of a job which never was is an error."""
    async with playing(path, lambda _: iter(()), work=False) as client:
        handle = await client.dispatch(Play())
        stream = handle.progress()
        other = store_at(path)
        over: list[Progress] = []

        async def follow() -> None:
            over.extend([one async for one in stream])

        with anyio.fail_after(DEADLINE_S):
            async with anyio.create_task_group() as group:
                group.start_soon(follow)
                await until(lambda: stream._found)
                one(other.commit([Change(str(handle.id), Cause(Trigger.CANCEL))]))
                one(other.commit([Change(str(handle.id), Cause(Trigger.DELETE), None)]))
            assert over == []
            with pytest.raises(JobNotFound):
                await anext(handle.progress())
        other.close()


async def test_a_reader_who_does_not_read(path, gate):
    """A hundred thousand live events hold no more than a bounded number for a reader who is slow, and no stored one.

    Stored events are never lost for it, and the last progress is not either.
    """

    def script(ctx: Any) -> Iterator[str]:
        ctx.log("before")
        yield "gate"
        ctx.log("after")
        ctx.progress(1.0)

    async with playing(path, script, gate) as manager:
        handle = await manager.dispatch(Play())
        everything, stream, progress = manager.events(), handle.events(), handle.progress()
        with anyio.fail_after(DEADLINE_S):
            await gate.reached(1)
            seen = [await anext(stream)]
            (running,) = node_of(manager).worker.running.values()
            for number in range(100_000):
                running.reports.tell("progress", {"completed": number})
                if number % 10_000 == 0:
                    await anyio.lowlevel.checkpoint()
            await until(lambda: [one.data for one in stream._ear.live][-1:] == [{"attempt": 1, "completed": 99_999}])
            for one in (everything, stream, progress):
                assert len(one._ear.live) <= LIVE_EVENTS
            gate.open()
            seen += [event async for event in stream]
            followed = [one async for one in progress]
            others: list[Event] = []
            while not (others and others[-1].type == "completed"):
                others.append(await anext(everything))
    for events in (seen, others):
        told = [event.type if event.type != "log" else event.message for event in events if event.type != "progress"]
        assert told == ["created", "started", "before", "after", "completed"]
        assert len(events) <= LIVE_EVENTS + 6
    assert followed[-1] == Progress(1.0)


# ── events ──


@KINDS
async def test_live_events_stand_among_many_lines(path, timed, gate, kind):
    """However many lines are stored, a reader from the beginning gets each live event after what it came after."""

    def script(ctx: Any) -> Iterator[str]:
        for number in range(3):
            for _ in range(700):
                ctx.log(f"part {number}")
            yield "save"
            ctx.progress(completed=number)
            yield "gate"
            timed["clock"].advance(1)

    async with playing(path, script, gate, **timed) as manager:
        handle = await manager.dispatch(kind())
        streams = [handle.events(), manager.events()]
        for number in range(3):
            await gate.reached(number + 1)
            gate.let(1)
        await handle.result(DEADLINE_S)
        for stream in streams:
            seen: list[Event] = []
            with anyio.fail_after(DEADLINE_S):
                while not (seen and seen[-1].type == "completed"):
                    seen.append(await anext(stream))
            kept = [event for event in seen if event.cursor]
            assert [event.seq for event in kept] == list(range(1, 2 + 2_100 + 2))
            last = 0
            for event in seen:
                assert event.seq == last + bool(event.cursor)
                last = event.seq
            told = [
                event.data["completed"] for event in seen if event.type == "progress" and isinstance(event.data, dict)
            ]
            assert told == [0, 1, 2]
            assert sum(event.type == "checkpoint" for event in seen) == 3


async def test_another_process_sees_the_same_events(path, gate):
    """A reader in another process, which nobody tells, has the same stored events, lines of the log among them."""

    def script(ctx: Any) -> Iterator[str]:
        for number in range(3):
            ctx.log(f"line {number}")
            yield "save"
            yield "gate"

    async with playing(path, script, gate) as manager, make(path, work=False) as client:
        handle = await manager.dispatch(Play())
        stream = client.events(handle.id)
        seen: list[Event] = []
        with anyio.fail_after(DEADLINE_S):
            for number in range(3):
                while not (seen and seen[-1].message == f"line {number}"):
                    seen.append(await anext(stream))
                gate.let(1)
            seen += [event async for event in stream]
            here = [event async for event in handle.events() if event.cursor]
            lines = [event.message async for event in client.events(handle.id, types=["job.log"])]
    assert seen == here
    assert lines == ["line 0", "line 1", "line 2"]


async def test_events_of_a_job_that_is_deleted(path):
    """Who follows a job that is deleted is told so; who has read its end has read all; others are not disturbed."""
    async with playing(path, lambda _: iter(())) as manager:
        done, deleted = await manager.dispatch(Play()), await manager.dispatch(Play())
        for handle in (done, deleted):
            await handle.result(DEADLINE_S)
        everything, begun, unread = manager.events(), deleted.events(after=1), deleted.events()
        with anyio.fail_after(DEADLINE_S):
            ended = [event async for event in deleted.events()]
            before = await anext(everything)
            other = store_at(path)
            one(other.commit([Change(str(deleted.id), Cause(Trigger.DELETE))]))
            other.close()
            for stream in (begun, unread, manager.events(deleted.id)):
                for _ in range(2):
                    with pytest.raises(JobNotFound):
                        await anext(stream)
            assert [event.type for event in ended] == ["created", "started", "completed"]
            after = [await anext(everything) for _ in range(2)]
            more = await manager.dispatch(Play())
            while after[-1].job_id != more.id:
                after.append(await anext(everything))
    assert before.job_id == done.id
    assert {event.job_id for event in after} >= {done.id, more.id}
