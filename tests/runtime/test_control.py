"""Pause, resume, cancel, release and delete: what they do in every status, and whoever asks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any, Final
from uuid import UUID, uuid4

import anyio
import pytest
import trio
from anyio.lowlevel import checkpoint

from jobkit import (
    ControlOutcome,
    IllegalTransition,
    InvalidJobId,
    Job,
    JobCancelled,
    JobContext,
    JobNotFound,
    JobStatus,
    Registry,
    job,
)
from jobkit.interfaces import Change
from jobkit.lifecycle import Cause, Trigger
from jobkit.testing import FakeClock, FakeThreads
from tests.runtime.kit import (
    DEADLINE_S,
    WAITING,
    Count,
    Echo,
    Once,
    OtherProcess,
    Steps,
    StepsInThread,
    Waits,
    WaitsInThread,
    make,
    node_of,
    one,
    pass_until,
    store_at,
    until,
    until_true,
)

pytestmark = pytest.mark.anyio

STOPPABLE: Final = pytest.mark.parametrize("kind", [Steps, StepsInThread])


# ── every loop ──


@pytest.mark.parametrize("run", [lambda main: asyncio.run(main()), trio.run], ids=["asyncio", "trio"])
@pytest.mark.parametrize("kind", [Waits, WaitsInThread])
def test_a_program_that_runs_its_own_loop(path, kind, run):
    """G8: whoever started the loop, anyio or not, a request of a job that runs in the same process is answered."""

    async def main() -> JobStatus:
        async with make(path) as manager:
            handle = await manager.dispatch(kind())
            await until(lambda: WAITING.arrived)
            with anyio.fail_after(DEADLINE_S):
                await handle.pause(wait=True)
            return await handle.status()

    assert run(main) is JobStatus.PAUSED


# ── every status, every request ──

BROUGHT: Final[dict[str, list[Callable[[FakeClock], Cause]]]] = {
    "queued": [],
    "assigned": [lambda _: Cause(Trigger.ASSIGN)],
    "running": [lambda _: Cause(Trigger.CLAIM)],
    "running, to pause": [lambda _: Cause(Trigger.CLAIM), lambda _: Cause(Trigger.PAUSE)],
    "running, to cancel": [lambda _: Cause(Trigger.CLAIM), lambda _: Cause(Trigger.CANCEL)],
    "scheduled": [
        lambda _: Cause(Trigger.CLAIM),
        lambda clock: Cause(Trigger.FAIL, due_at=clock.now() + timedelta(hours=1)),
    ],
    "waiting": [lambda _: Cause(Trigger.CLAIM), lambda _: Cause(Trigger.SUSPEND, blockers=1)],
    "paused": [lambda _: Cause(Trigger.PAUSE)],
    "paused by shutdown": [lambda _: Cause(Trigger.CLAIM), lambda _: Cause(Trigger.STOPPED)],
    "paused, blocked": [
        lambda _: Cause(Trigger.CLAIM),
        lambda _: Cause(Trigger.SUSPEND, blockers=1),
        lambda _: Cause(Trigger.PAUSE),
    ],
    "paused, early": [
        lambda _: Cause(Trigger.CLAIM),
        lambda clock: Cause(Trigger.FAIL, due_at=clock.now() + timedelta(hours=1)),
        lambda _: Cause(Trigger.PAUSE),
    ],
    "held": [lambda _: Cause(Trigger.UNLOADABLE, reason="corrupt_state")],
    "completed": [lambda _: Cause(Trigger.CLAIM), lambda _: Cause(Trigger.COMPLETE)],
    "failed": [lambda _: Cause(Trigger.CLAIM), lambda _: Cause(Trigger.FAIL)],
    "cancelled": [lambda _: Cause(Trigger.CANCEL)],
    "timed_out": [lambda _: Cause(Trigger.CLAIM), lambda _: Cause(Trigger.TIME_OUT)],
    "lost": [lambda _: Cause(Trigger.CLAIM), lambda _: Cause(Trigger.STOPPED)],  # of a job that is not resumable
}
"""How a job comes to each standing that a request may meet."""

FINISHED: Final = {"pause": None, "resume": None, "cancel": "already_finished", "release": None, "delete": "gone"}

EXPECTED: Final[dict[str, dict[str, str | None]]] = {
    "queued": {"pause": "paused", "resume": None, "cancel": "cancelled", "release": None, "delete": None},
    "assigned": {"pause": "paused", "resume": None, "cancel": "cancelled", "release": None, "delete": None},
    "running": {
        "pause": "running, to pause", "resume": None, "cancel": "running, to cancel", "release": None, "delete": None,
    },
    "running, to pause": {
        "pause": "running, to pause", "resume": "running", "cancel": "running, to cancel", "release": None,
        "delete": None,
    },
    "running, to cancel": {
        "pause": None, "resume": None, "cancel": "running, to cancel", "release": None, "delete": None,
    },
    "scheduled": {"pause": "paused", "resume": None, "cancel": "cancelled", "release": None, "delete": None},
    "waiting": {"pause": "paused", "resume": None, "cancel": "cancelled", "release": None, "delete": None},
    "paused": {"pause": "paused", "resume": "queued", "cancel": "cancelled", "release": None, "delete": None},
    "paused by shutdown": {
        "pause": "paused", "resume": "queued", "cancel": "cancelled", "release": None, "delete": None,
    },
    "paused, blocked": {"pause": "paused", "resume": "waiting", "cancel": "cancelled", "release": None, "delete": None},
    "paused, early": {"pause": "paused", "resume": "scheduled", "cancel": "cancelled", "release": None, "delete": None},
    "held": {"pause": None, "resume": None, "cancel": "cancelled", "release": "queued", "delete": None},
    "completed": FINISHED, "failed": FINISHED, "cancelled": FINISHED, "timed_out": FINISHED, "lost": FINISHED,
}  # fmt: skip
"""What each request makes of each standing; None: it is refused, and nothing changes."""

PAIRS: Final = [(status, request) for status, row in EXPECTED.items() for request in row]


def _brought(other: OtherProcess, clock: FakeClock, way: str) -> str:
    """Bring a job to a standing, as the other process would, and answer its id."""
    (job_id,) = other.put(Once() if way == "lost" else Echo())
    for cause in BROUGHT[way]:
        made = cause(clock)
        if made.trigger in {Trigger.CLAIM, Trigger.ASSIGN}:
            made = Cause(made.trigger, life=other.life.id)
        one(other.store.commit([Change(job_id, made)]))
    return job_id


@pytest.mark.parametrize(("status", "request_"), PAIRS)
async def test_every_request_in_every_status(path, clock, status: str, request_: str):
    """G2, G7, G8: each request does in each status what the table promises, for a client as for anybody.

    An accepted one is stored when it is answered, with its event; a refused one names both statuses, and changes
    nothing.
    """
    other = OtherProcess(path, now=clock.now)
    job_id = _brought(other, clock, status)
    expected = EXPECTED[status][request_]
    async with make(path, work=False, clock=clock, threads=FakeThreads(clock)) as client:
        before = await client.get(job_id)
        events = other.store.events(job_id, None, None, 99)
        call = getattr(client, request_)
        if expected is None:
            with pytest.raises(IllegalTransition) as refused:
                await call(job_id)
            assert f"is {before.status.value}" in str(refused.value)
            assert refused.value.status == before.status
            assert refused.value.target
        elif expected == "gone":
            assert await call(job_id) is None
            with pytest.raises(JobNotFound):
                await client.get(job_id)
            with pytest.raises(JobNotFound):
                await call(job_id)
        else:
            told = ControlOutcome.ALREADY_FINISHED if expected == "already_finished" else ControlOutcome.ACCEPTED
            assert await call(job_id) is told
            assert await call(job_id) is told if request_ in {"pause", "cancel"} and expected != "cancelled" else True
        if expected in {None, "already_finished"}:
            assert await client.get(job_id) == before
            assert other.store.events(job_id, None, None, 99) == events
        elif expected != "gone":
            record = await client.get(job_id)
            word, _, wish = expected.partition(", to ")
            assert record.status.value == word
            assert record.wanted == (wish or None)
            assert record.reason == ("user" if word == "paused" else None)
            assert record.attempt == before.attempt + (status == "assigned" and request_ == "pause")
            new = other.store.events(job_id, None, None, 99)[len(events) :]
            changed = (record.status, record.reason, record.wanted) != (before.status, before.reason, before.wanted)
            assert [event.seq for event in new] == ([len(events) + 1] if changed else [])
    other.leave()


async def test_what_is_no_job_is_said_clearly(path):
    """A request for what isn't an id, or for a job that isn't there, says so."""
    async with make(path, work=False) as client:
        for name in ("pause", "resume", "cancel", "release", "delete"):
            with pytest.raises(InvalidJobId):
                await getattr(client, name)("7")
            with pytest.raises(JobNotFound):
                await getattr(client, name)(uuid4())


async def test_a_job_that_is_not_resumable_can_not_be_paused_while_running(path, gate):
    """G8: `resumable=False` is never entered twice, so pausing it is refused with what to do instead."""
    async with make(path, resources={"gate": gate}) as manager:
        handle = await manager.dispatch(Once())
        await gate.reached(1)
        with pytest.raises(IllegalTransition, match="cancel it instead"):
            await handle.pause()
        gate.open()
        assert await handle.result(DEADLINE_S) == 1


# ── in one process ──


@STOPPABLE
async def test_pause_and_resume_in_one_process(path, gate, listener, kind):
    """G8: a running job is paused once its state is saved; resumed, it goes on from there as a new attempt."""
    async with make(path, resources={"gate": gate}, observers=[listener]) as manager:
        handle = await manager.dispatch(kind(n=4))
        await gate.reached(1)
        gate.let(1)
        await gate.reached(2)
        assert await handle.pause() == "accepted"
        record = await handle.record()
        assert (record.status, record.wanted) == ("running", "pause")
        gate.let(1)
        await listener.until(JobStatus.PAUSED)
        record = await handle.record()
        assert (record.status, record.reason, record.wanted, record.checkpoint_seq) == ("paused", "user", None, 2)
        assert await handle.resume() == "accepted"
        gate.open()
        assert await handle.result(DEADLINE_S) == [1, 1, 2, 2]
    assert listener.told(handle.id) == [
        "started", "pause_requested", "paused", "resumed", "started", "completed",
    ]  # fmt: skip


@STOPPABLE
async def test_cancel_of_a_running_job(path, gate, kind):
    """G7: a running handler stops at its next checkpoint, and its job ends cancelled."""
    async with make(path, resources={"gate": gate}) as manager:
        handle = await manager.dispatch(kind(n=4))
        await gate.reached(1)
        assert await handle.cancel() == "accepted"
        gate.let(1)
        with pytest.raises(JobCancelled):
            await handle.result(DEADLINE_S)
        gate.open()
        record = await handle.record()
        assert (record.checkpoint_seq, record.wanted, record.output) == (1, None, None)
        assert await handle.cancel() == "already_finished"


@STOPPABLE
async def test_a_pause_can_be_taken_back(path, gate, listener, kind):
    """G8: a job that is resumed before its handler has stopped runs on, or is claimed again at once."""
    async with make(path, resources={"gate": gate}, observers=[listener]) as manager:
        handle = await manager.dispatch(kind(n=2))
        await gate.reached(1)
        await handle.pause()
        await handle.resume()
        gate.open()
        assert await handle.result(DEADLINE_S) == [1, 1]


async def test_cancel_outranks_pause(path, gate):
    """G7: a cancel that comes after a pause wins; a pause that comes after a cancel is refused."""
    async with make(path, resources={"gate": gate}) as manager:
        handle = await manager.dispatch(Steps(n=4))
        await gate.reached(1)
        await handle.pause()
        await handle.cancel()
        with pytest.raises(IllegalTransition, match="being cancelled"):
            await handle.pause()
        gate.let(1)
        with pytest.raises(JobCancelled):
            await handle.result(DEADLINE_S)


@STOPPABLE
async def test_wait_waits_for_the_handler(path, gate, kind):
    """`wait=True` returns once a running handler has stopped, and at once where none runs."""
    async with make(path, resources={"gate": gate}) as manager:
        handle = await manager.dispatch(kind(n=4))
        await gate.reached(1)
        async with anyio.create_task_group() as group:
            answers: list[Any] = []

            async def pause() -> None:
                answers.append(await handle.pause(wait=True))

            group.start_soon(pause)
            await until_true(lambda: _wanted(handle))
            assert answers == []
            gate.let(1)
        assert answers == ["accepted"]
        assert await handle.status() is JobStatus.PAUSED
        assert await handle.cancel(wait=True) == "accepted"
        assert await handle.status() is JobStatus.CANCELLED


async def _wanted(handle: Any) -> bool:
    return (await handle.record()).wanted is not None


# ── from elsewhere ──


@pytest.mark.parametrize("kind", ["Waits", "WaitsInThread"])
@pytest.mark.parametrize("wish", ["pause", "cancel"])
async def test_a_request_from_elsewhere_is_heard_within_two_seconds(path, clock, listener, kind, wish):
    """G7, G8: a running handler is told of what another process asked, with no notification between the two."""
    given: dict[str, Any] = {"clock": clock, "threads": FakeThreads(clock)}
    async with make(path, observers=[listener], grace_s=1_000.0, **given) as manager:
        handle = await manager.dispatch(Waits() if kind == "Waits" else WaitsInThread())
        await until(lambda: WAITING.arrived)
        async with make(path, work=False, **given) as client:
            assert await getattr(client, wish)(handle.id) == "accepted"
        clock.advance(2.0)
        await until(lambda: listener.told(handle.id)[-1] in {"paused", "cancelled"})
        assert await handle.status() == {"pause": "paused", "cancel": "cancelled"}[wish]


@STOPPABLE
async def test_a_pause_that_is_taken_back_elsewhere_is_forgotten(path, clock, gate, kind):
    """G8: a handler that has heard of a pause from elsewhere, and not stopped yet, hears that it is resumed too."""
    given: dict[str, Any] = {"clock": clock, "threads": FakeThreads(clock)}
    async with make(path, resources={"gate": gate}, grace_s=1_000.0, **given) as manager:
        handle = await manager.dispatch(kind(n=2))
        await gate.reached(1)
        running = node_of(manager).worker.running[str(handle.id)]
        async with make(path, work=False, **given) as client:
            await client.pause(handle.id)
            await pass_until(clock, lambda: running.due() == "pause")
            await client.resume(handle.id)
            await pass_until(clock, lambda: running.due() is None)
        gate.open()
        assert await handle.result(DEADLINE_S) == [1, 1]


async def test_cancel_with_all_workers_down(path):
    """G7: a cancel needs nobody to run the job: queued, running there, or interrupted, it never runs again."""
    other = OtherProcess(path)
    queued, running = other.put(Count(n=2), 2)
    assert [claimed.transition.after.id for claimed in other.claim()] == [queued]
    other.die()
    async with make(path, work=False) as client:
        assert await client.cancel(queued) == "accepted"
        assert await client.cancel(running) == "accepted"
        assert [(await client.get(one)).status for one in (queued, running)] == ["running", "cancelled"]
    async with make(path) as manager:
        await manager.run_until_idle(DEADLINE_S)
        assert [(await manager.get(one)).status for one in (queued, running)] == ["cancelled", "cancelled"]
        assert [(await manager.get(one)).attempt for one in (queued, running)] == [1, 0]


async def test_150_cancels_race_completion(path):
    """G7: of 150 cancels that race a job's end, from here and from elsewhere, each accepted one ends cancelled."""
    ended = {"accepted": 0, "already_finished": 0}
    async with make(path, concurrency=20) as manager, make(path, work=False) as client:
        handles = await manager.dispatch_many([Count(n=number % 4) for number in range(150)])

        async def race(number: int) -> None:
            for _ in range(number % 7):
                await checkpoint()
            outcome = await (client if number % 2 else manager).cancel(handles[number].id)
            ended[outcome] += 1
            if outcome == "accepted":
                with pytest.raises(JobCancelled):
                    await handles[number].result(DEADLINE_S)
            else:
                assert await handles[number].status() is JobStatus.COMPLETED

        async with anyio.create_task_group() as group:
            for number in range(150):
                group.start_soon(race, number)
        assert sum(ended.values()) == 150


@pytest.mark.parametrize("when", range(8))
async def test_a_cancel_between_any_two_commits_is_kept(path, when):
    """G7: whichever commit of the job's owner a cancel from elsewhere follows, accepted means cancelled."""
    looking = store_at(path)
    outcomes: list[Any] = []
    count = 0

    async with make(path) as manager:
        commit = manager._store.commit

        def interrupted(batch: Any) -> list[Any]:
            nonlocal count
            answers = commit(batch)
            ours = [write for write in batch if isinstance(write, Change)] or any(
                type(write).__name__ in {"Insert", "Claim"} for write in batch
            )
            if ours and known:
                if count == when:
                    outcomes.extend(looking.commit([Change(str(known[0]), Cause(Trigger.CANCEL))]))
                count += 1
            return answers

        known: list[UUID] = []
        manager._store.commit = interrupted  # type: ignore[method-assign]
        handle = await manager.dispatch(Count(n=5))
        known.append(handle.id)
        await until_true(lambda: _ended(handle))
        status = await handle.status()
    if outcomes:
        accepted = not outcomes[0].before.status.terminal
        assert status == ("cancelled" if accepted else "completed")
    else:
        assert status == "completed"
    looking.close()


async def _ended(handle: Any) -> bool:
    return bool((await handle.status()).terminal)


# ── deleting ──


async def test_deleting_a_job_removes_its_folder(path, tmp_path):
    """A deleted job leaves nothing behind: no row, no event, no folder; others keep theirs."""
    registry = Registry()

    @job(registry=registry)
    class Writes(Job[str]):
        async def run(self, ctx: JobContext) -> str:
            (ctx.output_dir / "file").write_text("text")
            return str(ctx.data_dir)

    async with make(path, registry=registry) as manager:
        handles = await manager.dispatch_many([Writes(), Writes()])
        folders = [anyio.Path(await handle.result(DEADLINE_S)) for handle in handles]
        await manager.delete(handles[0].id)
        assert [await folder.exists() for folder in folders] == [False, True]
        with pytest.raises(JobNotFound):
            await handles[0].record()
        assert [str(item.id) for item in await manager.list_jobs()] == [str(handles[1].id)]
        with pytest.raises(JobNotFound):
            await manager.delete(handles[0].id)


# ── restarts ──


async def _paused(path, *, across: bool) -> UUID:
    """A job that its owner paused for a person before it ended."""
    async with make(path) as manager:
        handle = await manager.dispatch(Waits())
        await until(lambda: WAITING.arrived)
        await handle.pause(across_restarts=across, wait=True)
        return handle.id


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("resume", ["all", "interrupted", None])
async def test_a_start_resumes_what_people_have_paused(path, across, resume):
    """G8: Running and Paused jobs go on at a start, but for pauses across restarts and with `resume="interrupted"`."""
    job_id = await _paused(path, across=across)
    WAITING.go.set()
    async with make(path, resume=resume) as manager:
        await manager.run_until_idle(DEADLINE_S)
        goes_on = not across and resume != "interrupted"
        assert await manager.handle(job_id).status() == ("completed" if goes_on else "paused")
        if not goes_on:
            await manager.resume(job_id)
            assert await manager.handle(job_id).result(DEADLINE_S) == 1


async def test_a_start_beside_a_working_manager_leaves_pauses_alone(path):
    """G8: only who is first on a database resumes what people have paused; beside a living worker pauses stay."""
    async with make(path) as first:
        handle = await first.dispatch(Waits())
        await until(lambda: WAITING.arrived)
        await handle.pause(wait=True)
        async with make(path) as second:
            await second.run_until_idle(DEADLINE_S)
            assert await handle.status() is JobStatus.PAUSED


async def test_a_client_resumes_nothing(path):
    """G8: `work=False` leaves paused and interrupted jobs as they are."""
    job_id = await _paused(path, across=False)
    async with make(path, work=False) as client:
        assert await client.handle(job_id).status() is JobStatus.PAUSED


@pytest.mark.parametrize("across", [False, True])
async def test_a_pause_that_a_death_overtook_is_kept(path, across):
    """G8: a wanted pause whose owner dies first is a pause all the same: the next start resumes it unless it stays."""
    other = OtherProcess(path)
    (job_id,) = other.put(Count(n=2))
    other.claim()
    async with make(path, work=False) as client:
        await client.pause(job_id, across_restarts=across)
    other.die()
    async with make(path) as manager:
        await manager.run_until_idle(DEADLINE_S)
        record = await manager.get(job_id)
        assert record.status == ("paused" if across else "completed")
        assert record.reason == ("user" if across else None)


async def test_a_wrong_resume_is_refused(path):
    """A misspelt `resume` is told, with what it may be."""
    with pytest.raises(Exception, match='"all" or "interrupted"'):
        make(path, resume=partial)
