"""The writer: order, groups, and who hears of what went wrong. Its store is a double that a test holds up."""

from __future__ import annotations

import threading
from typing import Any

import anyio
import pytest

from jobkit import Job, JobContext, JobStatus, LeaseLost, Registry, SerializationError, StoreUnavailable, job, state
from jobkit.interfaces import Change, Insert, Renew, Retire
from jobkit.lifecycle import Cause, Standing, Transition, Trigger
from jobkit.runtime import writer as module
from jobkit.runtime.clock import SystemClock, SystemThreads
from jobkit.runtime.loops import Loop
from jobkit.runtime.writer import COMPLAIN_EVERY_S, Writer
from jobkit.store import SqlStore
from jobkit.testing import FakeClock
from tests.runtime.kit import DEADLINE_S, Count, CountInThread, Echo, make, node_of, until

pytestmark = pytest.mark.anyio


class HeldStore:
    """A store whose commits wait until the test lets them."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.entered = 0
        self.fail: Exception | None = None
        self.culprit: object = None
        self._gate = threading.Semaphore(0)

    def commit(self, batch):
        self.entered += 1
        self._gate.acquire(timeout=DEADLINE_S)
        if self.fail is not None:
            raise self.fail
        if self.culprit in batch:
            raise ZeroDivisionError("a bug")
        self.batches.append(list(batch))
        return [
            LeaseLost(write.job_id, 1) if isinstance(write, Change) and write.job_id == "lost" else ("done", write)
            for write in batch
        ]

    def hurry(self) -> None:
        """Nobody else writes here."""

    def let(self, number: int = 1) -> None:
        for _ in range(number):
            self._gate.release()


def change(job_id: str, seq: int = 0) -> Change:
    """An attempt's write."""
    return Change(job_id, Cause(Trigger.CHECKPOINT), Standing(job_id, JobStatus.RUNNING, 1), state=bytes([seq]))


@pytest.fixture
def store():
    """A store that waits."""
    held = HeldStore()
    yield held
    held.let(100_000)


class Asked:
    """Writes that were submitted, and what came of them."""

    def __init__(self, writer: Writer, group: Any) -> None:
        self._writer, self._group = writer, group
        self.answers: dict[Any, Any] = {}

    async def submit(self, write: Any) -> None:
        """Submit, and go on once the write waits."""
        self._group.start_soon(self._one, write)
        await anyio.wait_all_tasks_blocked()

    async def _one(self, write: Any) -> None:
        try:
            self.answers[write] = await self._writer.submit(write)
        except Exception as error:
            self.answers[write] = error


@pytest.fixture
def heard():
    """What the feed is told."""
    return []


def writer_on(store, heard=None, clock=None) -> Writer:
    """Start a writer on the running loop."""
    made = Writer(store, Loop(), clock or SystemClock(), SystemThreads(), (heard if heard is not None else []).extend)
    made.start()
    return made


async def test_writes_that_wait_are_committed_together(store):
    """While one commit runs, what comes in gathers, and shares the next one."""
    async with anyio.create_task_group() as group:
        writer = writer_on(store)
        asked = Asked(writer, group)
        await asked.submit(Renew("a", 1))
        await until(lambda: store.entered == 1)
        for n in range(5):
            await asked.submit(Renew(str(n), 1))
        assert asked.answers == {}
        store.let(2)
        await until(lambda: len(asked.answers) == 6)
        await writer.close()
    assert [len(batch) for batch in store.batches] == [1, 5]


async def test_a_jobs_writes_keep_their_order(store):
    """Two writes for one job never share a batch, and are committed in the order in which they came."""
    async with anyio.create_task_group() as group:
        writer = writer_on(store)
        asked = Asked(writer, group)
        await asked.submit(Renew("first", 1))
        await until(lambda: store.entered == 1)
        for seq in range(3):
            for job_id in ("a", "b"):
                await asked.submit(change(job_id, seq))
        await asked.submit(change("c"))
        store.let(10)
        await until(lambda: len(asked.answers) == 8)
        await writer.close()
    batches = [[(one.job_id, one.state[0]) for one in batch] for batch in store.batches[1:]]
    assert batches == [[("a", 0), ("b", 0), ("c", 0)], [("a", 1), ("b", 1)], [("a", 2), ("b", 2)]]


async def test_only_the_culprit_hears_of_it(store):
    """Of a batch in which one write is refused, its caller alone is told; the others have their answers."""
    async with anyio.create_task_group() as group:
        writer = writer_on(store)
        asked = Asked(writer, group)
        writes = [change("a"), change("lost"), change("b")]
        for write in writes:
            await asked.submit(write)
        store.let(10)
        await until(lambda: len(asked.answers) == 3)
        await writer.close()
    assert isinstance(asked.answers[writes[1]], LeaseLost)
    assert [asked.answers[one][0] for one in (writes[0], writes[2])] == ["done", "done"]


async def test_an_unexpected_error_is_its_writers_alone(store):
    """A write at which the store breaks is told to its caller alone, even an attempt; it is not tried for ever."""
    async with anyio.create_task_group() as group:
        writer = writer_on(store)
        asked = Asked(writer, group)
        store.culprit = change("culprit")
        await asked.submit(Renew("first", 1))
        await until(lambda: store.entered == 1)
        writes = [change("a"), store.culprit, Renew("b", 1)]
        for write in writes:
            await asked.submit(write)
        store.let(100)
        await until(lambda: len(asked.answers) == 4)
        await writer.close()
    error = asked.answers[store.culprit]
    assert isinstance(error, SerializationError)
    assert isinstance(error.__cause__, ZeroDivisionError)
    assert [asked.answers[one][0] for one in (writes[0], writes[2])] == ["done", "done"]


async def test_the_backlog_is_bounded(store, monkeypatch):
    """Callers wait while too much waits already, what nobody asks for is left out; all come through in the end."""
    monkeypatch.setattr(module, "BACKLOG", 3)
    async with anyio.create_task_group() as group:
        writer = writer_on(store)
        asked = Asked(writer, group)
        await asked.submit(Renew("first", 1))
        await until(lambda: store.entered == 1)
        for n in range(10):
            await asked.submit(Renew(str(n), 1))
        assert len(writer._pending) == 3
        writer.post(change("progress"))
        assert len(writer._pending) == 3
        store.let(100)
        await until(lambda: len(asked.answers) == 11)
        await writer.close()
    assert all(isinstance(answer, tuple) for answer in asked.answers.values())


async def test_many_writes_are_committed_in_portions(store, monkeypatch):
    """A batch has a size, so that nobody waits for long behind many rows; a large insert is still one transaction."""
    monkeypatch.setattr(module, "BATCH_ROWS", 4)
    async with anyio.create_task_group() as group:
        writer = writer_on(store)
        asked = Asked(writer, group)
        await asked.submit(Renew("first", 1))
        await until(lambda: store.entered == 1)
        await asked.submit(Insert((None,) * 10))  # type: ignore[arg-type]
        for n in range(6):
            await asked.submit(Renew(str(n), 1))
        store.let(100)
        await until(lambda: len(asked.answers) == 8)
        await writer.close()
    assert [len(batch) for batch in store.batches] == [1, 1, 4, 2]


async def test_while_the_database_is_away(store, monkeypatch):
    """G20: callers are told at once; an attempt's writes wait for the database, and are then applied once, in order."""
    monkeypatch.setattr(module, "BACK_OFF_S", (0.001,))
    async with anyio.create_task_group() as group:
        writer = writer_on(store)
        asked = Asked(writer, group)
        store.fail = StoreUnavailable("the disk is full", "free some")
        dispatch, request = Renew("dispatch", 1), Change("a", Cause(Trigger.CANCEL))
        await asked.submit(dispatch)
        await asked.submit(request)
        await asked.submit(change("a", 1))
        store.let(1_000)
        await until(lambda: {dispatch, request} <= asked.answers.keys())
        await asked.submit(change("a", 2))
        await until(lambda: store.entered > 5)
        assert set(asked.answers) == {dispatch, request}
        assert all(one is store.fail for one in asked.answers.values())
        store.fail = None
        store.let(1_000)
        await until(lambda: len(asked.answers) == 4)
        await writer.close()
    assert [one.state[0] for batch in store.batches for one in batch] == [1, 2]


async def test_a_database_that_comes_and_goes_is_told_of_now_and_then(store, caplog):
    """G20: on a disk that is all but full, where every other write fails, the log tells of it once a minute at most."""
    clock = FakeClock()
    writer = writer_on(store, clock=clock)
    store.let(1_000)

    async def come_and_go(times: int) -> list[str]:
        caplog.clear()
        for number in range(times):
            store.fail = StoreUnavailable("the disk is full", "free some")
            with pytest.raises(StoreUnavailable):
                await writer.submit(Renew(f"large {number}", 1))
            store.fail = None
            await writer.submit(Renew(f"small {number}", 1))
        return [record.levelname for record in caplog.records]

    assert await come_and_go(20) == ["ERROR", "WARNING"]
    clock.advance(COMPLAIN_EVERY_S)
    assert await come_and_go(20) == ["ERROR", "WARNING"]
    await writer.close()


async def test_closing_commits_what_waits(store):
    """close() commits all that was submitted before it; what comes later is refused, not forgotten."""
    async with anyio.create_task_group() as group:
        writer = writer_on(store)
        asked = Asked(writer, group)
        for n in range(3):
            await asked.submit(Renew(str(n), 1))
        group.start_soon(writer.close)
        await anyio.wait_all_tasks_blocked()
        late = Renew("late", 1)
        await asked.submit(late)
        with pytest.raises(StoreUnavailable, match="stopped"):
            writer.submit_blocking(late)
        store.let(100)
        await until(lambda: len(asked.answers) == 4)
        await writer.close()
    assert isinstance(asked.answers[late], StoreUnavailable)
    assert sum(map(len, store.batches)) == 3


async def test_closing_while_the_database_is_away_ends(store):
    """close() does not wait for a database that is gone: whoever waits is told."""
    async with anyio.create_task_group() as group:
        writer = writer_on(store)
        asked = Asked(writer, group)
        store.fail = StoreUnavailable("gone", "wait")
        store.let(1_000)
        await asked.submit(change("a"))
        await until(lambda: store.entered >= 1)
        with anyio.fail_after(DEADLINE_S):
            await writer.close()
        await until(lambda: asked.answers)
    assert asked.answers[change("a")] is store.fail


async def test_threads_may_wait_for_their_writes(store):
    """submit_blocking answers a thread, with the value or with the error."""
    answers: list[Any] = []

    def ask(write: Any) -> None:
        try:
            answers.append(writer.submit_blocking(write))
        except LeaseLost as error:
            answers.append(error)

    writer = writer_on(store)
    store.let(100)
    for write in (Renew("a", 1), change("lost")):
        threading.Thread(target=ask, args=(write,)).start()
    await until(lambda: len(answers) == 2)
    await writer.close()
    assert {type(one) for one in answers} == {tuple, LeaseLost}


async def test_a_caller_that_is_cancelled_disturbs_nobody(store):
    """A caller may be cancelled while its write is being committed: it is committed, and others are answered."""
    async with anyio.create_task_group() as group:
        writer = writer_on(store)
        asked = Asked(writer, group)
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as inner:
                inner.start_soon(writer.submit, change("a"))
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
        await asked.submit(change("b"))
        store.let(100)
        await until(lambda: asked.answers)
        await writer.close()
    assert [one.job_id for batch in store.batches for one in batch] == ["a", "b"]


async def test_observers_are_told_before_the_caller(path):
    """Who is answered finds that observers were told already: who waits for a result can look at what they heard."""
    order = []
    async with make(path, observers=[lambda one: order.append(one.event)]) as manager:
        await (await manager.dispatch(Echo(n=1))).result(DEADLINE_S)
        order.append("answered")
    assert order == ["started", "completed", "answered"]


async def test_a_blocked_loop_stops_no_commit(path):
    """Rule 5: the writer's thread never waits for the loop: while it is blocked, threads' writes are committed."""
    manager = make(path)
    await manager.start()
    done = threading.Event()

    def work() -> None:
        for _ in range(20):
            manager._writer.submit_blocking(Renew(node_of(manager).life or "", 30))
        done.set()

    threading.Thread(target=work).start()
    assert done.wait(DEADLINE_S)  # blocks the loop
    await manager.stop()


class Flaky(SqlStore):
    """A database that goes away and comes back."""

    away = False
    commits = 0

    def commit(self, batch):
        self.commits += 1
        if self.away:
            raise StoreUnavailable("the disk is full", "free some space; work goes on by itself")
        return super().commit(batch)


async def test_jobs_outlast_a_database_that_is_away(path, monkeypatch):
    """G20: jobs that run while nothing can be written go on by themselves once it can, and nothing is done twice."""
    monkeypatch.setattr(module, "BACK_OFF_S", (0.01,))
    store = Flaky(f"sqlite:///{path}")
    async with make(store) as manager:
        handles = await manager.dispatch_many([Count(n=5) for _ in range(3)] + [CountInThread(n=5) for _ in range(3)])
        await until(lambda: store.commits > 5)
        store.away = True
        with pytest.raises(StoreUnavailable, match="disk is full"):
            await manager.dispatch(Echo(n=1))
        before = store.commits
        await until(lambda: store.commits > before + 3)
        store.away = False
        for handle in handles:
            assert await handle.result(DEADLINE_S) == 5
            assert (await handle.record()).checkpoint_seq == 5
        assert await (await manager.dispatch(Echo(n=1))).result(DEADLINE_S) == 1
        assert (await manager.stats()).total == 7


async def test_a_result_that_the_database_refuses_fails_its_job(path):
    """A job does not stay running because what came of it can't be stored: it fails, and says so."""

    class Refuses(SqlStore):
        def commit(self, batch):
            for write in batch:
                if isinstance(write, Change) and write.output is not None:
                    raise ZeroDivisionError("a bug in the store")
            return super().commit(batch)

    registry = Registry()

    @job("ends", registry=registry)
    class Ends(Job[int]):
        done: int = state(0)

        async def run(self, ctx: JobContext) -> int:
            return 1

    async with make(Refuses(f"sqlite:///{path}"), registry=registry) as manager:
        handle = await manager.dispatch(Ends())
        await until(lambda: not node_of(manager).worker.busy)
        await manager.run_until_idle(DEADLINE_S)
        record = await handle.record()
    assert record.status is JobStatus.FAILED
    assert record.error is not None
    assert "could not be stored" in record.error.message or "a bug" in record.error.message


async def test_transitions_are_heard(store, heard):
    """The feed hears the transitions of a batch, once each, in their order."""
    standing = Standing("a", JobStatus.RUNNING, 1)
    transition = Transition(
        standing, Cause(Trigger.COMPLETE), standing._replace(status=JobStatus.COMPLETED), "completed"
    )
    store.commit = lambda batch: [transition for _ in batch]
    writer = writer_on(store, heard)
    await writer.submit(change("a"))
    await writer.submit_all([change("b"), change("c")])
    await writer.close()
    assert heard == [transition] * 3


async def test_submit_all_answers_each(store):
    """submit_all answers every write with its value or its error, in order."""
    writer = writer_on(store)
    store.let(100)
    writes: list[Any] = [change("a"), change("lost"), Retire("x")]
    answers = await writer.submit_all(writes)
    await writer.close()
    assert [type(one) for one in answers] == [tuple, LeaseLost, tuple]
