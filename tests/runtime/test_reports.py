"""What a running attempt tells: its log is kept, its last progress arrives, and neither costs it anything."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from jobkit import (
    Event,
    InvalidFilter,
    InvalidJobId,
    Job,
    JobContext,
    JobManager,
    JobNotFound,
    JobStatus,
    Progress,
    Registry,
    job,
)
from jobkit.interfaces import Change, Write
from jobkit.lifecycle import Cause, Trigger
from jobkit.model import LOG_LEVELS
from jobkit.runtime import reports
from jobkit.runtime.worker import FLUSH_S
from jobkit.store import SqlStore
from jobkit.store.writes import Batch
from tests.runtime.kit import DEADLINE_S, make, node_of, one, pass_until, store_at, stored, until, until_true
from tests.runtime.scripts import Play, PlayInThread, Script, Watched, play, playing

pytestmark = pytest.mark.anyio

KINDS = pytest.mark.parametrize("kind", [Play, PlayInThread])


@pytest.fixture
def alone_each(monkeypatch):
    """How many batches had to be done one by one."""
    found: list[int] = []
    honest = Batch.singly

    def singly(self: Batch, writes: Sequence[Write]) -> list[Any]:
        found.append(len(writes))
        return honest(self, writes)

    monkeypatch.setattr(Batch, "singly", singly)
    return found


def texts(events: Sequence[Event]) -> list[str | None]:
    """The lines of a log."""
    return [event.message for event in events]


def lines_in(store: SqlStore, job_id: object) -> list[str | None]:
    """The lines that are stored, as another process sees them."""
    return texts(store.events(str(job_id), None, ("log",), 10_000))


def numbered(events: Sequence[Event]) -> bool:
    """Whether stored events are numbered without gaps."""
    return [event.seq for event in events] == list(range(1, len(events) + 1))


async def all_stored(manager: JobManager, job_id: Any) -> list[Event]:
    """All stored events of a finished job."""
    with anyio.fail_after(DEADLINE_S):
        return [event async for event in manager.events(job_id) if event.cursor]


# ── lines ──


@KINDS
async def test_a_jobs_log_is_kept_with_it(path, caplog, kind):
    """Every line is stored once, in order, with its level, attempt and fields; streamed; and sent to `logging`."""
    caplog.set_level(logging.DEBUG, "jobkit.job")

    def script(ctx: Any) -> Iterator[str]:
        ctx.log("one")
        ctx.log("two", level="debug", path=Path("/tmp/x"), numbers=[1, 2.5], nested={"a": None})
        yield "save"
        ctx.warn("three", left=3)
        ctx.log("four", level="error")
        ctx.log("five", level="odd")

    async with play(path, script) as manager:
        handle = await manager.dispatch(kind())
        await handle.result(DEADLINE_S)
        logs = await manager.logs(handle.id)
        assert [(line.message, line.data) for line in logs] == [
            ("one", {"level": "info", "attempt": 1, "fields": {}}),
            ("two", {"level": "debug", "attempt": 1,
                     "fields": {"path": "/tmp/x", "numbers": [1, 2.5], "nested": {"a": None}}}),
            ("three", {"level": "warning", "attempt": 1, "fields": {"left": 3}}),
            ("four", {"level": "error", "attempt": 1, "fields": {}}),
            ("five", {"level": "info", "attempt": 1, "fields": {}}),
        ]  # fmt: skip
        assert {line.status for line in logs} == {JobStatus.RUNNING}
        events = await all_stored(manager, handle.id)
        assert numbered(events)
        assert [event.type for event in events] == ["created", "started", *["log"] * 5, "completed"]
        assert [event for event in events if event.type == "log"] == logs
        assert (await handle.record()).warnings == 2
    mine = [record for record in caplog.records if record.name == "jobkit.job"]
    assert [(record.levelname, record.getMessage().split(": ")[1]) for record in mine] == [
        ("INFO", "one"), ("DEBUG", "two"), ("WARNING", "three"), ("ERROR", "four"), ("INFO", "five")
    ]  # fmt: skip
    assert mine[2].__dict__["fields"] == {"left": 3}
    assert mine[2].__dict__["job_id"] == str(handle.id)


def _has_lines(store: Any, job_id: Any, lines: list[str]) -> bool:
    return lines_in(store, job_id) == lines


@KINDS
async def test_a_line_is_stored_within_a_second(path, timed, gate, pass_looks, kind):
    """A line that no checkpoint takes along is there for everybody a second later at most, and so is progress."""

    def script(ctx: Any) -> Iterator[str]:
        for number in range(3):
            yield "gate"
            ctx.log(f"line {number}")
            ctx.progress(completed=number)
        yield "gate"

    other = store_at(path)
    async with playing(path, script, gate, **timed) as manager:
        handle = await manager.dispatch(kind())
        for number in range(3):
            await gate.reached(number + 1)
            gate.let(1)
            await gate.reached(number + 2)
            await pass_looks(int(1 / FLUSH_S))  # and then time stands still
            await until(partial(_has_lines, other, handle.id, [f"line {at}" for at in range(number + 1)]))
            assert stored(other, handle.id).progress == Progress(completed=number)
        gate.open()
        await handle.result(DEADLINE_S)
    other.close()


@KINDS
async def test_a_line_has_the_time_of_its_telling(path, clock, timed, kind):
    """A line that was stored late says when it was told, by the database's clock."""

    def script(ctx: Any) -> Iterator[str]:
        for number in range(4):
            ctx.log(str(number))
            clock.advance(0.125)
        yield "save"

    async with play(path, script, **timed) as manager:
        began = clock.now()
        handle = await manager.dispatch(kind())
        await handle.result(DEADLINE_S)
        logs = await manager.logs(handle.id)
    assert [(line.at - began).total_seconds() for line in logs] == [0, 0.125, 0.25, 0.375]


@KINDS
async def test_lines_cost_a_checkpoint_nothing_more(path, monkeypatch, alone_each, kind):
    """However lines are stored, by checkpoints or by writes of their own, no batch has to be done one by one.

    What an attempt knows of its job is right after each of its writes, also those whose answer it does not wait for.
    """
    monkeypatch.setattr(reports, "REPORT_EVERY_S", 0.0)

    def script(ctx: Any) -> Iterator[str]:
        for number in range(200):
            ctx.log(str(number))
            ctx.progress(completed=number)
            if number % 3 == 0:
                yield "save"

    async with play(path, script) as manager:
        handles = await manager.dispatch_many([kind() for _ in range(5)])
        for handle in handles:
            assert await handle.result(DEADLINE_S) == 67
            assert texts(await manager.logs(handle.id)) == [str(number) for number in range(200)]
            assert numbered(await all_stored(manager, handle.id))
            record = await handle.record()
            assert (record.checkpoint_seq, record.progress) == (67, Progress(completed=199))
    assert alone_each == []


@KINDS
async def test_a_request_in_between_is_met_once(path, timed, gate, pass_looks, alone_each, kind):  # noqa: PLR0917  fixtures
    """A request by another process costs one batch its speed, and the attempt hears of it though it did not ask."""

    def script(ctx: Any) -> Iterator[str]:
        yield "gate"
        ctx.log("before")
        yield "gate"
        ctx.log("after")
        yield "save"

    other = store_at(path)
    async with playing(path, script, gate, **timed) as manager:
        handle = await manager.dispatch(kind())
        await gate.reached(1)
        one(other.commit([Change(str(handle.id), Cause(Trigger.PAUSE))]))
        alone_each.clear()
        gate.let(1)
        await gate.reached(2)
        await pass_looks(4)
        gate.open()
        await until(lambda: stored(other, handle.id).status is JobStatus.PAUSED)
    assert len(alone_each) == 1
    assert lines_in(other, handle.id) == ["before", "after"]
    events = other.events(str(handle.id), None, None, 100)
    assert numbered(events)
    assert [event.type for event in events] == ["created", "started", "pause_requested", "log", "log", "paused"]
    other.close()


async def test_lines_of_many_threads(path, monkeypatch):
    """Threads of one handler may log at once while it saves: each line is kept once, each thread's in order."""
    monkeypatch.setattr(reports, "REPORT_EVERY_S", 0.001)

    def script(ctx: Any) -> Iterator[str]:
        def talk(who: int) -> None:
            for number in range(150):
                ctx.log("", who=who, number=number)

        threads = [threading.Thread(target=talk, args=(who,)) for who in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            yield "save"
        for thread in threads:
            thread.join()

    async with play(path, script) as manager:
        handle = await manager.dispatch(PlayInThread())
        saved = await handle.result(DEADLINE_S)
        told: list[Any] = [line.data for line in await manager.logs(handle.id)]
        assert numbered(await all_stored(manager, handle.id))
        assert (await handle.record()).checkpoint_seq == saved
    for who in range(4):
        assert [data["fields"]["number"] for data in told if data["fields"]["who"] == who] == list(range(150))


@KINDS
async def test_an_attempt_that_lost_its_job_keeps_no_lines(path, timed, gate, pass_looks, kind):
    """G4: what an attempt tells after its job was given to another is not stored, nor shown as the job's."""

    def script(ctx: Any) -> Iterator[str]:
        ctx.log(f"attempt {ctx.attempt} begins")
        yield "save"
        if ctx.attempt == 1:
            yield "gate"
            ctx.log("the job is not mine any more")
            ctx.progress(0.1)
            yield "gate"
        else:
            ctx.progress(0.9)

    async with playing(path, script, gate, concurrency=1, **timed) as manager:
        handle = await manager.dispatch(kind())
        await gate.reached(1)
        other = store_at(path)
        (running,) = node_of(manager).worker.running.values()
        one(other.commit([Change(str(handle.id), Cause(Trigger.OWNER_GONE), running.standing)]))
        gate.let(1)
        await gate.reached(2)
        await pass_looks(4)
        gate.open()
        await handle.result(DEADLINE_S)
        assert texts(await manager.logs(handle.id)) == ["attempt 1 begins", "attempt 2 begins"]
        assert (await handle.record()).progress == Progress(0.9)
        other.close()


# ── how it ends ──


def _returns(ctx: Any) -> Iterator[str]:
    yield from ()


def _raises(ctx: Any) -> Iterator[str]:
    yield from ()
    raise OSError("no space")


def _saves(ctx: Any) -> Iterator[str]:
    yield "save"


def _stops(ctx: Any) -> Iterator[str]:
    yield "stop"


def _waits(ctx: Any) -> Iterator[str]:
    yield "gate"


ENDS: dict[str, tuple[Script, JobStatus]] = {
    "returns": (_returns, JobStatus.COMPLETED),
    "raises": (_raises, JobStatus.FAILED),
    "cancelled at a checkpoint": (_saves, JobStatus.CANCELLED),
    "paused at a checkpoint": (_saves, JobStatus.PAUSED),
    "interrupted by a shutdown": (_stops, JobStatus.PAUSED),
    "stopped by force": (_waits, JobStatus.PAUSED),
}


@KINDS
@pytest.mark.parametrize("end", ENDS)
async def test_the_last_words_always_arrive(path, gate, monkeypatch, kind, end):
    """However an attempt ends right after it has told something, its last progress and line are stored with its end.

    A thread can't be stopped by force: it is left behind, and what it tells from then on is not kept.
    """
    monkeypatch.setattr("jobkit.runtime.worker.FORCED_S", 0.05)
    monkeypatch.setattr("jobkit.runtime.node.LEFT_BEHIND_S", 0.05)
    rest, status = ENDS[end]
    left: list[Any] = []

    def script(ctx: Any) -> Iterator[str]:
        yield "gate"
        for number in range(1_000):
            ctx.progress(number / 1_000)
        ctx.log("the last but one")
        ctx.progress(0.75, message="the last")
        ctx.log("last words")
        left.append(ctx)
        yield from rest(ctx)

    other = store_at(path)
    manager = play(path, script, gate)
    await manager.start()
    handle = await manager.dispatch(kind())
    live = manager.events(handle.id, types=["progress"])
    await gate.reached(1)
    if end.endswith("at a checkpoint"):
        wanted = Trigger.CANCEL if end.startswith("cancelled") else Trigger.PAUSE
        one(other.commit([Change(str(handle.id), Cause(wanted))]))
    gate.let(1)
    await until(lambda: left)
    if status is JobStatus.PAUSED and not end.startswith("paused"):
        with anyio.fail_after(DEADLINE_S):
            await manager.stop(grace=0.0 if end == "stopped by force" else None)
    else:
        await until(lambda: stored(other, handle.id).status is status)
    await until(
        lambda: any(isinstance(one.data, dict) and one.data.get("message") == "the last" for one in live._ear.live)
    )
    left[0].progress(0.1)
    left[0].log("from beyond")
    await manager.stop()
    record = stored(other, handle.id)
    assert (record.status, record.progress) == (status, Progress(0.75, message="the last"))
    lines = lines_in(other, handle.id)
    if end == "stopped by force" and kind is PlayInThread:
        assert "its thread can't be stopped" in (lines.pop() or "")
    assert lines == ["the last but one", "last words"]
    assert numbered(other.events(str(handle.id), None, None, 100))
    other.close()


async def test_lines_outlive_a_result_that_can_not_be_stored(path):
    """A job that fails since its output can't be stored keeps its log: there it may say why."""
    registry = Registry()

    @job("odd_end", registry=registry)
    class OddEnd(Job[str]):
        async def run(self, ctx: JobContext) -> str:
            ctx.log("something is odd")
            ctx.progress(0.5)
            return "x"

    async def spoil(attempt, call_next):
        outcome = await call_next()
        return outcome._replace(shown=float("nan"))

    async with make(path, registry=registry, middleware=[spoil]) as manager:
        handle = await manager.dispatch(OddEnd())
        await until_true(lambda: _is(handle, JobStatus.FAILED))
        assert texts(await manager.logs(handle.id)) == ["something is odd"]
        assert (await handle.record()).progress == Progress(0.5)


async def _is(handle: Any, status: JobStatus) -> bool:
    return await handle.status() is status


@KINDS
async def test_lines_of_a_checkpoint_that_was_refused_are_kept(path, monkeypatch, kind):
    """What would have travelled with a checkpoint that can't be stored travels with the next write, in order."""
    refused: list[Change] = []
    honest = Batch._plan

    def plan(self: Batch, change: Change, transition: Any) -> Any:
        if change.state is not None and (not refused or change is refused[0]):
            refused.append(change)
            raise ValueError("no")
        return honest(self, change, transition)

    def script(ctx: Any) -> Iterator[str]:
        ctx.log("one")
        ctx.warn("two")
        ctx.progress(0.5)
        yield "try"
        ctx.log("three")
        yield "save"

    monkeypatch.setattr(Batch, "_plan", plan)
    async with play(path, script) as manager:
        handle = await manager.dispatch(kind())
        await handle.result(DEADLINE_S)
        assert refused
        assert texts(await manager.logs(handle.id)) == ["one", "two", "three"]
        record = await handle.record()
        assert (record.checkpoint_seq, record.warnings, record.progress) == (1, 1, Progress(0.5))


# ── bounds ──


async def test_a_long_line_is_cut(path):
    """A line is kept to 8 KiB and its fields to another 8: what does not fit is named, with its size."""

    def script(ctx: Any) -> Iterator[str]:
        ctx.log("ü" * 10_000, small=1, large="x" * 10_000, also=[2])
        ctx.log("\x1b[31mred\0\ud800", **{f"field {number}": "y" * 100 for number in range(1_000)})
        yield from ()

    async with play(path, script) as manager:
        handle = await manager.dispatch(Play())
        await handle.result(DEADLINE_S)
        long, odd = await manager.logs(handle.id)
    assert long.message == "ü" * 4_096
    assert isinstance(long.data, dict)
    assert long.data["fields"] == {"small": 1, "large": "(left out: 10,002 bytes)", "also": [2]}
    assert odd.message == "\ufffd[31mred\ufffd\ufffd"
    assert isinstance(odd.data, dict)
    assert isinstance(odd.data["fields"], dict)
    assert 60 < len(odd.data["fields"]) < 8_192 / 30


@KINDS
async def test_anything_may_be_logged(path, kind):
    """Rule 11: logging never raises, whatever is logged, and the job goes on; what can be shown of it is kept."""

    class Broken(str):
        __slots__ = ()

        def __str__(self) -> str:
            raise RuntimeError("no text")

        __repr__ = __str__

        def lower(self) -> str:
            raise RuntimeError("no level")

    loop: list[Any] = []
    loop.append(loop)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    odd = [None, 7, b"\xff", Broken("x"), object(), loop, deep, 10**5_000, float("nan"), OSError("gone"), "\ud800", {1}]

    def script(ctx: Any) -> Iterator[str]:
        for thing in odd:
            ctx.log(thing, level=thing, thing=thing, **{"\ud800\0": thing})
            ctx.warn(thing, thing=thing)
        yield "save"

    async with play(path, script) as manager:
        handle = await manager.dispatch(kind())
        assert await handle.result(DEADLINE_S) == 1
        logs = await manager.logs(handle.id)
        assert (await handle.record()).warnings == len(odd)
    assert len(logs) == 2 * len(odd)
    fields = [_fields(line)["thing"] for line in logs]
    assert fields[0::2] == fields[1::2]
    assert fields[0:4:2] == [None, 7]
    assert "OSError('gone')" in fields
    assert "(a value that can't be shown)" in fields
    while deep:  # by hand: taking it apart in one go would be as deep
        deep = deep[0]


LIMIT = 20_000


@KINDS
async def test_a_log_has_a_largest_size(path, gate, kind):
    """A job's log is bounded over all its attempts: the first lines are kept, and room for warnings and errors.

    Where lines are left out is said, and at the end how many; warnings are counted all the same.
    """

    def script(ctx: Any) -> Iterator[str]:
        if ctx.attempt == 1:
            for number in range(1_000):
                ctx.log(f"info {number}")
            for number in range(10):
                ctx.warn(f"warning {number}")
            yield "save"
            yield "stop"
        for number in range(1_000):
            ctx.log(f"late {number}")
            ctx.warn(f"warning {number}")

    async def run_until_paused() -> Any:
        async with play(path, script, max_log_bytes=LIMIT) as manager:
            handle = await manager.dispatch(kind())
            await until_true(lambda: _saved(handle))
            return handle.id

    job_id = await run_until_paused()
    other = store_at(path)
    first = lines_in(other, job_id)
    kept = [text for text in first if text and text.startswith("info")]
    assert kept == [f"info {number}" for number in range(len(kept))]
    assert LIMIT * 0.7 < sum(len(text) + 100 for text in kept) <= LIMIT * 0.75
    assert (
        first[len(kept)]
        == f"the log has reached its limit (max_log_bytes is {LIMIT:,}): from here on lines are left out"
    )
    assert first[len(kept) + 1 : -1] == [f"warning {number}" for number in range(10)]
    missing = f"lines of this attempt that were left out, since the log had reached its limit: {1_000 - len(kept)}"
    assert first[-1] == missing
    assert stored(other, job_id).warnings == 10
    async with play(path, script, max_log_bytes=LIMIT) as manager:
        await manager.handle(job_id).result(DEADLINE_S)
        logs = await manager.logs(job_id)
        assert not any(line.message and line.message.startswith("late") for line in logs)
        assert sum(len(line.message or "") + 100 for line in logs) < LIMIT + 1_000
        assert (await manager.get(job_id)).warnings == 1_010
        assert numbered(await all_stored(manager, job_id))
    other.close()


async def _saved(handle: Any) -> bool:
    return bool((await handle.record()).checkpoint_seq > 0)


def _fields(line: Any) -> Any:
    return line.data["fields"]


async def test_what_is_held_back_is_bounded(path, clock, timed, gate, pass_looks):
    """While the database is away an attempt goes on telling; no more is held in memory than its log may hold.

    When the database is back it has what there is room for, in order, and no backlog of reports has gathered.
    """

    def script(ctx: Any) -> Iterator[str]:
        for _ in range(50):
            yield "gate"
            for number in range(500):
                ctx.log("x" * 100, number=number)
                ctx.progress(completed=number)

    store = Watched(path, now=clock.now)
    async with playing(store, script, gate, max_log_bytes=LIMIT, **timed) as manager:
        handle = await manager.dispatch(Play())
        await gate.reached(1)
        store.away = True
        for turn in range(40):
            gate.let(1)
            await gate.reached(turn + 2)
            await pass_looks(1, stored=False)
        (running,) = node_of(manager).worker.running.values()
        held = [line for _, line in running.reports._lines]
        waiting = [entry.write for entry in manager._writer._pending if isinstance(entry.write, Change)]
        assert sum(line.size for line in [*held, *(line for write in waiting for line in write.lines)]) <= LIMIT
        assert len(waiting) <= 1
        store.away = False
        gate.open()
        await pass_until(clock, lambda: any(write.cause.trigger is Trigger.COMPLETE for write in store.written))
        logs = await manager.logs(handle.id)
    numbers = [_fields(line).get("number") for line in logs]
    assert numbers[:-2] == list(range(len(numbers) - 2))
    assert len(numbers) > 60


# ── reading the log ──


async def test_reading_a_log(path):
    """logs() reads all lines or those of a level and graver, on from a number or a cursor, as many as asked for."""

    def script(ctx: Any) -> Iterator[str]:
        for number in range(1_203):
            ctx.log(str(number), level=("debug", "info", "warning", "error")[number % 4])
        yield "save"

    async with play(path, script) as manager:
        handle = await manager.dispatch(Play())
        await handle.result(DEADLINE_S)
        logs = await manager.logs(str(handle.id))
        assert texts(logs) == [str(number) for number in range(1_203)]
        assert await manager.logs(handle.id, limit=3) == logs[:3]
        assert await manager.logs(handle.id, after=logs[700].seq, limit=2) == logs[701:703]
        assert await manager.logs(handle.id, after=logs[700].cursor, limit=600) == logs[701:]
        assert await manager.logs(handle.id, after=10_000) == []
        for least, level in enumerate(LOG_LEVELS):
            graver = [line for number, line in enumerate(logs) if number % 4 >= least]
            assert await manager.logs(handle.id, level=level) == graver
            assert await manager.logs(handle.id, level=level, limit=300) == graver[:300]
        assert (await handle.record()).warnings == sum(number % 4 >= 2 for number in range(1_203))


async def test_reading_a_log_that_is_none(path):
    """A job that said nothing has an empty log; what can't be meant is refused, and so is a job that isn't there."""
    async with play(path, _returns) as manager:
        handle = await manager.dispatch(Play())
        await handle.result(DEADLINE_S)
        assert await manager.logs(handle.id) == []
        odd: Any
        for odd in ({"level": "loud"}, {"limit": 0}, {"limit": True}, {"after": -1}, {"after": "x"}):
            with pytest.raises(InvalidFilter):
                await manager.logs(handle.id, **odd)
        with pytest.raises(InvalidJobId):
            await manager.logs("x")
        with pytest.raises(JobNotFound):
            await manager.logs("00000000-0000-7000-8000-000000000009")
