"""The user's own transaction: a job, or a checkpoint, and the user's data are committed together or not at all."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from sqlalchemy import Column, Engine, Integer, MetaData, Table, create_engine, func, insert, select
from sqlalchemy.orm import Session

import jobkit
from jobkit import (
    BlockingJobContext,
    BlockingJobManager,
    InvalidOption,
    Job,
    JobContext,
    JobNotFound,
    JobStatus,
    Registry,
    job,
    state,
)
from jobkit.interfaces import Change
from jobkit.lifecycle import Cause, Trigger
from tests.runtime.kit import DEADLINE_S, REGISTRY, Echo, OtherProcess, make, until, until_true

pytestmark = pytest.mark.anyio

ROWS = Table("user_rows", MetaData(), Column("n", Integer, primary_key=True), Column("job", Integer))

SESSIONS = Registry()


@contextmanager
def _begun(engine: Engine, kind: str) -> Any:
    if kind == "session":
        with Session(engine) as session:
            yield session
    else:
        with engine.connect() as connection:
            yield connection


@job(registry=SESSIONS)
class Writes(Job[int]):
    """Write a row and save, in one transaction, several times."""

    number: int
    kind: str = "session"
    done: int = state(0)

    async def run(self, ctx: JobContext) -> int:
        while self.done < self.number:
            with _begun(ctx.resources["engine"], self.kind) as transaction:
                transaction.execute(insert(ROWS).values(n=self.done))
                self.done += 1
                await ctx.checkpoint(session=transaction)
        return self.done


@job(registry=SESSIONS)
class WritesInThread(Job[int]):
    """The same in a thread."""

    number: int
    kind: str = "session"
    done: int = state(0)

    def run(self, ctx: BlockingJobContext) -> int:
        while self.done < self.number:
            with _begun(ctx.resources["engine"], self.kind) as transaction:
                transaction.execute(insert(ROWS).values(n=self.done))
                self.done += 1
                ctx.checkpoint(session=transaction)
        return self.done


@pytest.fixture
def engine(path):
    """The application's own engine, on jobkit's database."""
    engine = create_engine(f"sqlite:///{path}")
    ROWS.create(engine)
    yield engine
    engine.dispose()


def _count(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(ROWS)).scalar_one()


@pytest.mark.parametrize("kind", ["session", "connection"])
@pytest.mark.parametrize("commits", [True, False])
async def test_a_dispatch_is_the_callers_to_commit(path, engine, kind, commits):
    """The job exists if and only if the caller commits, and so does what was written beside it."""
    async with make(path) as manager:
        with _begun(engine, kind) as transaction:
            transaction.execute(insert(ROWS).values(n=1))
            handle = await manager.dispatch(Echo(n=7), session=transaction)
            with pytest.raises(JobNotFound):
                await handle.record()
            transaction.commit() if commits else transaction.rollback()
        assert _count(engine) == int(commits)
        if commits:
            assert await handle.result(DEADLINE_S) == 7
        else:
            with pytest.raises(JobNotFound):
                await handle.record()


@pytest.mark.parametrize("within", [False, True])
def test_a_blocking_dispatch_is_the_callers_to_commit(path, engine, within):
    """The blocking manager writes on the caller's connection in the caller's thread, while its loop goes on."""
    with BlockingJobManager(path, registry=REGISTRY) as manager, Session(engine) as session:
        session.execute(insert(ROWS).values(n=1))
        made = Echo(n=7)
        handle = manager.dispatch_within(session, made) if within else manager.dispatch(made, session=session)
        with pytest.raises(JobNotFound):
            handle.record()
        session.commit()
        assert handle.result(DEADLINE_S) == 7
        assert _count(engine) == 1


async def test_keys_hold_in_a_session_too(path, engine):
    """G12: a key that is taken gives the job that has it, also from inside a transaction."""
    async with make(path, work=False) as manager:
        first = await manager.dispatch(Echo(n=7), key="once")
        with Session(engine) as session:
            again = await manager.dispatch(Echo(n=7), key="once", session=session)
            other = await manager.dispatch(Echo(n=7), key="other", session=session)
            session.commit()
        assert again.id == first.id
        assert (await other.record()).key == "other"


async def test_what_can_not_be_joined_is_refused_with_what_to_do(path, engine, tmp_path):
    """Another database, one in memory, statements that commit by themselves, an async session: nothing is stored."""
    elsewhere = create_engine(f"sqlite:///{tmp_path / 'elsewhere.db'}")
    by_itself = create_engine(f"sqlite:///{path}", isolation_level="AUTOCOMMIT")
    raw = create_engine(f"sqlite:///{path}", connect_args={"isolation_level": None})

    class Asynchronous:
        def run_sync(self) -> None: ...

    async with make(path, work=False) as manager:
        for refused, problem in (
            (Session(elsewhere), "elsewhere.db"),
            (Session(create_engine("sqlite://")), "in memory"),
            (by_itself.connect(), "commits each statement"),
            (raw.connect(), "commits each statement"),
            (Asynchronous(), "run_sync"),
            (42, "Session or Connection"),
        ):
            with pytest.raises(InvalidOption, match=problem):
                await manager.dispatch(Echo(n=7), session=refused)
            getattr(refused, "close", int)()
        assert (await manager.stats()).total == 0
        with Session(engine) as session:
            assert manager.dispatch_within(session, Echo(n=8)).name == "echo"
            session.commit()
        assert (await manager.stats()).total == 1
    for one in (elsewhere, by_itself, raw):
        one.dispose()


@pytest.mark.parametrize("kind", ["session", "connection"])
@pytest.mark.parametrize("handler", [Writes, WritesInThread])
async def test_a_checkpoint_commits_the_users_data_with_it(path, engine, kind, handler):
    """G5: each row and each checkpoint are one commit, made by the checkpoint."""
    async with make(path, registry=SESSIONS, resources={"engine": engine}) as manager:
        handle = await manager.dispatch(handler(number=5, kind=kind))
        assert await handle.result(DEADLINE_S) == 5
        assert (await handle.record()).checkpoint_seq == 5
    assert _count(engine) == 5


async def test_a_checkpoint_under_way_is_never_overtaken(path, engine):
    """G3: a state that was packed earlier can't be stored after one that the user's transaction has committed."""
    registry, refused = Registry(), list[str]()

    @job(registry=registry)
    class Overtakes(Job[int]):
        done: int = state(0)

        async def run(self, ctx: JobContext) -> int:
            self.done += 1
            async with anyio.create_task_group() as group:
                group.start_soon(ctx.checkpoint)
                await until(writing.is_set)
                self.done += 1
                with Session(engine) as session:
                    session.execute(insert(ROWS).values(n=1))
                    try:
                        await ctx.checkpoint(session=session)
                    except InvalidOption as error:
                        refused.append(str(error))
                go.set()
            return self.done

    writing, go = threading.Event(), threading.Event()
    async with make(path, registry=registry) as manager:
        commit = manager._store.commit

        def slow(batch: Any) -> list[Any]:
            if any(isinstance(write, Change) and write.state for write in batch):
                writing.set()
                assert go.wait(DEADLINE_S)
            return commit(batch)

        manager._store.commit = slow  # type: ignore[method-assign]
        assert await (await manager.dispatch(Overtakes())).result(DEADLINE_S) == 2
    assert "under way" in refused[0]
    assert _count(engine) == 0


@pytest.mark.parametrize("handler", [Writes, WritesInThread])
async def test_a_pause_comes_with_the_commit(path, engine, handler):
    """G8: the interrupt is raised after both are committed, so the next attempt does nothing again."""
    async with make(path, registry=SESSIONS, resources={"engine": engine}) as manager:
        handle = await manager.dispatch(handler(number=100_000))
        await until_true(lambda: _begun_writing(engine))
        await handle.pause(wait=True)
        record = await handle.record()
        assert record.status is JobStatus.PAUSED
        assert record.checkpoint_seq == _count(engine)
        await handle.cancel()


async def _begun_writing(engine: Engine) -> bool:
    return _count(engine) > 0


async def test_a_fenced_attempt_commits_nothing_of_the_users(path, engine):
    """G4: an attempt that lost its job can't commit the user's data either: its transaction is rolled back."""
    registry = Registry()
    lost: list[str] = []

    @job(registry=registry)
    class Overtaken(Job[None]):
        done: int = state(0)

        async def run(self, ctx: JobContext) -> None:
            with Session(engine) as session:
                if ctx.attempt == 1:
                    await ctx.resources["steal"](ctx.id)
                    session.execute(insert(ROWS).values(n=1))
                    try:
                        await ctx.checkpoint(session=session)
                    except Exception as error:
                        lost.append(type(error).__name__)
                        session.commit()
                        raise

    async def steal(job_id: Any) -> None:
        other.store.commit([Change(str(job_id), Cause(Trigger.OWNER_GONE))])

    other = OtherProcess(path, registry=REGISTRY)
    async with make(path, registry=registry, resources={"steal": steal}) as manager:
        handle = await manager.dispatch(Overtaken())
        await handle.result(DEADLINE_S)
    assert lost == ["LeaseLost"]
    assert _count(engine) == 0
    other.leave()


CHILD = """
import json, os, signal, sys
import anyio
from sqlalchemy import create_engine, event
from jobkit import JobManager
from jobkit.testing import kill_at
from tests.runtime.test_sessions import ROWS, SESSIONS, Writes, WritesInThread

path, handler, fatal = sys.argv[1:]
engine = create_engine(f"sqlite:///{path}")
ROWS.metadata.create_all(engine)
seen = 0

def reached(*_):
    global seen
    seen += 1
    if str(seen) == fatal:
        os.kill(os.getpid(), signal.SIGKILL)

if "." in fatal:
    kill_at(fatal)
for moment in ("before_cursor_execute", "after_cursor_execute", "commit"):
    event.listen(engine, moment, reached)

async def main():
    async with JobManager(path, registry=SESSIONS, resources={"engine": engine}) as manager:
        if not (await manager.list_jobs()).items:
            await manager.dispatch({"Writes": Writes, "WritesInThread": WritesInThread}[handler](number=2))
        await manager.run_until_idle(30)
        print(json.dumps({"seen": seen, "status": [one.status for one in await manager.list_jobs()]}))

anyio.run(main)
"""


def _run(path: Path, handler: str, fatal: object) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": str(Path(jobkit.__file__).parents[1]), "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        [sys.executable, "-c", CHILD, str(path), handler, str(fatal)],
        capture_output=True, text=True, env=environment, check=False, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("handler", ["Writes", "WritesInThread"])
async def test_killed_at_every_statement_it_is_both_or_neither(path, tmp_path, handler, anyio_backend):
    """G5: killed before, after and between any statements of the user's transaction, no row is lost or doubled."""
    whole = _run(Path(shutil.copy(path, tmp_path / "whole.db")), handler, 0)
    total = json.loads(whole.stdout)["seen"]
    assert total >= 10
    statements = range(1, total + 1, 1 if handler == "Writes" else 5)
    for fatal in (*statements, "session.before_commit", "session.after_commit"):
        database = Path(shutil.copy(path, tmp_path / f"killed {fatal}.db"))
        assert _run(database, handler, fatal).returncode == -signal.SIGKILL
        again = _run(database, handler, 0)
        assert json.loads(again.stdout)["status"] == ["completed"], again.stderr
        mine = create_engine(f"sqlite:///{database}")
        assert _count(mine) == 2, fatal
        mine.dispose()
