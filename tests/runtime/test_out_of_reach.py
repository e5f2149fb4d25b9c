"""A database that others keep from a manager, or that fails under it: it says so, waits, and goes on by itself."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import anyio
import pytest

from jobkit import JobStatus, StoreUnavailable
from jobkit.store import SqlStore
from jobkit.store.locks import Patience
from tests.crash.harness import LONG
from tests.runtime.kit import DEADLINE_S, Count, CountInThread, Echo, Steps, make, node_of, store_at, stored, until
from tests.store.children import Child
from tests.store.driver import Trouble, with_trouble

T = TypeVar("T")

GRACE_S = 0.05

SOON_S = 5.0
"""A stop of so little grace that takes longer has waited for another process, on however slow a machine."""

# ── locked ──

TRANSACTION = """
import sqlite3
connection = sqlite3.connect(args[0], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
say("locked")
hear()
"""

WRITER = """
import fcntl
queue = open(f"{args[0]}.lives/writer.lock", "r+")
fcntl.flock(queue, fcntl.LOCK_EX)
say("locked")
hear()
"""
"""What a process does that writes: it takes its place in the queue of all."""


class Holder:
    """Another process that keeps all others from writing."""

    def __init__(self, how: str, path: Path) -> None:
        self._child = Child(TRANSACTION if how == "a transaction" else WRITER, path)
        assert self._child.says() == "locked"
        self.pid = self._child.process.pid
        if how == "a stopped process":
            os.kill(self.pid, signal.SIGSTOP)

    def let_go(self) -> None:
        """Have it end, as somebody does who was told of it."""
        self._child.kill()


LOCKED = pytest.mark.parametrize("how", ["a transaction", "a stopped process"])


def store_with(path: Path, busy_s: float) -> SqlStore:
    """A store that waits for so long."""
    return SqlStore(f"sqlite:///{path}", busy_s=busy_s)


def watched(store: SqlStore) -> list[float]:
    """Have an open store note each time that it waits for another process."""
    waited: list[float] = []

    class Watched(Patience):
        def slices(self, within_s: float | None = None) -> Iterator[float]:
            for seconds in super().slices(within_s):
                waited.append(seconds)
                yield seconds

    store._database._patience = Watched(DEADLINE_S)  # type: ignore[attr-defined]
    return waited


@pytest.mark.anyio
@LOCKED
async def test_locked_for_longer_than_anybody_waits(path, gate, caplog, how):
    """G20: a dispatch is told who holds the database; jobs and their life outlast it, and go on once it is let go."""
    manager = make(store_with(path, 0.1), resources={"gate": gate}, lease_s=0.3)
    looking = store_at(path)
    async with manager:
        handle = await manager.dispatch(Steps(n=2))
        await gate.reached(1)
        life = node_of(manager).life
        holder = Holder(how, path)
        gate.let(1)
        with pytest.raises(StoreUnavailable, match=rf"process {holder.pid} \(python") as told:
            await manager.dispatch(Echo(n=1))
        assert re.search(r"jobs\.db: .*; jobs go on by themselves", str(told.value))
        (lease,) = (one.lease_until for one in looking.lives())
        await until(lambda: lease is not None and looking.now() > lease)
        assert (await handle.record()).checkpoint_seq == 0
        holder.let_go()
        gate.open()
        assert await handle.result(DEADLINE_S) == [1, 1]
        assert await (await manager.dispatch(Echo(n=2))).result(DEADLINE_S) == 2
        assert (await manager.stats()).total == 2
        assert node_of(manager).life == life
    said = [record.levelname for record in caplog.records if record.name == "jobkit.writer"]
    assert said == ["ERROR", "WARNING"]
    looking.close()


@pytest.mark.anyio
@LOCKED
async def test_locked_for_a_moment(path, caplog, how):
    """G20: who is let in while it still waits is not told anything; it was only slow."""
    store = store_with(path, DEADLINE_S)
    async with make(store, work=False) as manager:
        waited = watched(store)
        holder = Holder(how, path)
        async with anyio.create_task_group() as group:
            group.start_soon(manager.dispatch, Echo(n=1))
            await until(lambda: waited)
            assert (await manager.stats()).total == 0
            holder.let_go()
        assert (await manager.stats()).total == 1
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.anyio
@LOCKED
@pytest.mark.parametrize("busy", [True, False])
async def test_a_stop_does_not_wait_for_who_holds_the_database(path, gate, monkeypatch, how, busy):
    """G16, G20: a stop takes its grace and a moment, whoever holds the database; the next manager goes on."""
    monkeypatch.setattr("jobkit.store.dialects.HURRY_S", 0.1)
    store = store_with(path, DEADLINE_S)
    manager = make(store, resources={"gate": gate}, lease_s=3_600 if busy else 0.3)
    await manager.start()
    handle = await manager.dispatch(Steps(n=2))
    await gate.reached(1)
    gate.let(1)
    await gate.reached(2)
    if not busy:
        gate.open()
        await handle.result(DEADLINE_S)
    waited = watched(store)
    holder = Holder(how, path)
    if busy:
        gate.let(1)
    await until(lambda: waited)
    began = time.monotonic()
    await manager.stop(GRACE_S)
    assert time.monotonic() - began < SOON_S
    holder.let_go()
    gate.open()
    looking = store_at(path)
    assert stored(looking, handle.id).status is (JobStatus.RUNNING if busy else JobStatus.COMPLETED)
    async with make(path, resources={"gate": gate}) as manager:
        await manager.run_until_idle(DEADLINE_S)
        assert await manager.handle(handle.id).result(DEADLINE_S) == ([1, 2] if busy else [1, 1])
    assert looking.lives() == []
    looking.close()


# ── read-only ──

UNPRIVILEGED = """
import os, anyio
from jobkit import Job, JobContext, JobManager, StoreUnavailable, job

@job
class Twice(Job[int]):
    n: int

    async def run(self, ctx: JobContext) -> int:
        return 2 * self.n

async def warm():
    async with JobManager("sqlite://") as manager:  # imports all that it needs
        await (await manager.dispatch(Twice(n=1))).result(20)

async def main():
    async with JobManager(args[0]) as running:
        word = "begin"
        while word != "end":
            try:
                say(await (await running.dispatch(Twice(n=1))).result(20))
                async with JobManager(args[0]) as other:
                    say(await (await other.dispatch(Twice(n=2))).result(20))
            except StoreUnavailable as error:
                say(error)
            word = await anyio.to_thread.run_sync(hear)

anyio.run(warm)
if os.geteuid() == 0:
    os.seteuid(65534)
os.chdir(os.path.dirname(args[0]))
anyio.run(main)
"""


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that any user can come to."""
    folder = Path(tempfile.mkdtemp(prefix="jobkit-test-"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def test_made_read_only_under_a_running_manager(shared):
    """G20: permissions taken away under a running manager don't stop it; a second one is told which to give."""
    path = shared / "jobs.db"
    child = Child(UNPRIVILEGED, path)
    assert [child.says(), child.says()] == ["2", "4"]
    for spoil, mend, told in (
        (lambda: path.chmod(0o444), lambda: path.chmod(0o600), r"jobs\.db can't be written: give this user permission"),
        (lambda: shared.chmod(0o555), lambda: shared.chmod(0o777), None),
        (
            lambda: Path(f"{path}.lives").chmod(0o555),
            lambda: Path(f"{path}.lives").chmod(0o700),
            r"jobs\.db\.lives/.*\.lock can't be used \(Permission denied\): give this user write permission",
        ),
    ):
        spoil()
        assert child.hears("again").says() == "2"
        said = child.says()
        assert re.search(told or "4", said), said
        mend()
        child.hears("again")
        assert [child.says(), child.says()] == ["2", "4"]
    child.hears("end").ends()


# ── failing ──


@pytest.mark.anyio
@pytest.mark.parametrize("undoes", [True, False])
async def test_the_disk_fails_at_any_call(tmp_path, empty, monkeypatch, anyio_backend, undoes):
    """G20: wherever in a manager's work the disk fails for a while, callers are told, and all goes on by itself."""
    monkeypatch.setattr("jobkit.runtime.writer.BACK_OFF_S", (0.001,))
    trouble = Trouble("SQLITE_FULL" if undoes else "SQLITE_IOERR_WRITE", undoes=undoes)
    with_trouble(monkeypatch, trouble)

    async def again(call: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await call()
            except StoreUnavailable as error:
                assert "jobs.db" in str(error)  # noqa: PT017  what else it says is another test's

    offset = 10 * undoes + 5 * (anyio_backend == "trio")
    for at in range(1, 150) if LONG else range(3 + offset, 150, 20):
        path = Path(shutil.copy(empty, tmp_path / "jobs.db"))
        manager = make(path)
        trouble.plan(at, 4)
        await again(manager.start)
        handles = [await again(partial(manager.dispatch, job)) for job in (Count(n=3), CountInThread(n=2))]
        assert [await again(handle.result) for handle in handles] == [3, 2]
        await until(lambda: trouble.over)
        assert [(await again(handle.record)).attempt for handle in handles] == [1, 1]
        assert (await again(manager.stats)).total == len(handles)
        await manager.stop()
