"""The database's own trouble: at every call of the driver it is told, leaves nothing half-written, and passes."""

from __future__ import annotations

import errno
import os
import re
import sqlite3
import sys
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from jobkit.errors import StoreUnavailable
from jobkit.filters import JobFilter
from jobkit.interfaces import Change, Claim, Insert, Life, Register, Renew, Retire, Write
from jobkit.lifecycle import Cause, Trigger
from jobkit.model import Failure, Progress
from jobkit.store import SqlStore, disk
from jobkit.store.locks import holders
from jobkit.store.trouble import unavailable
from jobkit.testing.store_contract import CANCEL, CHECKPOINT, COMPLETE, LEASE_S, NAME, Bench, new_job
from tests.store.children import Child
from tests.store.driver import Trouble, with_trouble

AT_EVERY_CALL = pytest.mark.parametrize(
    "trouble",
    [
        Trouble("SQLITE_FULL", undoes=True),
        Trouble("SQLITE_IOERR_WRITE"),
        Trouble("SQLITE_IOERR_READ", undoes=True),
        Trouble("SQLITE_READONLY"),
    ],
    ids=lambda trouble: trouble.name,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the test's database is to be."""
    return tmp_path / "jobs.db"


def content(path: Path) -> dict[str, list[Any]]:
    """All that a database holds."""
    with closing(sqlite3.connect(path)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {table: connection.execute(f"SELECT * FROM {table}").fetchall() for table in tables}


def one_of_each(bench: Bench) -> list[Write]:
    """A batch with all that can be written."""
    started = [bench.start() for _ in range(5)]
    other, waiting = bench.new_life(), bench.add()
    return [
        Insert((new_job(), new_job(tags=("a", "b"), metadata={"size": 1}, queue="another"))),
        Insert((new_job(key="key"),)),
        Change(started[0].id, CHECKPOINT, started[0], state=b"state", progress=Progress(0.5)),
        Change(started[1].id, Cause(Trigger.REPORT), started[1], progress=Progress(0.5)),
        Change(started[2].id, COMPLETE, started[2], output=(b"\xa3end", "end")),
        Change(started[3].id, Cause(Trigger.FAIL), started[3], failure=Failure("OSError", "bad")),
        Change(started[4].id, Cause(Trigger.STOPPED), started[4]),
        Change(waiting, CANCEL),
        Register(Life("new", "node", "host", "boot", 1, True, {NAME: 1}), LEASE_S),
        Renew(bench.life, LEASE_S),
        Claim(bench.life, "node", 10, {NAME: 1}),
        Retire(other),
    ]


@AT_EVERY_CALL
def test_at_every_call_of_a_batch(path: Path, monkeypatch: pytest.MonkeyPatch, trouble: Trouble):
    """G20: wherever in a batch the disk fails, nothing of it shows, it is told clearly, and the next try goes well."""
    with_trouble(monkeypatch, trouble)
    store = SqlStore(f"sqlite:///{path}")
    trouble.plan(0, 0)
    store.open()
    batch = one_of_each(Bench(store))
    before = content(path)
    for call in count(1):
        trouble.plan(call)
        try:
            answers = store.commit(batch)
        except StoreUnavailable as error:
            assert "jobs.db" in str(error)  # noqa: PT017  each try either raises, or is the last
            assert content(path) == before
            trouble.plan(0, 0)
            assert store.commit([]) == []  # nothing of the failed transaction is left open
        else:
            break
    assert call > 20
    assert not [answer for answer in answers if isinstance(answer, Exception)]
    assert content(path) != before
    trouble.plan(0, 0)
    assert store.stats(JobFilter()).total == 9
    store.close()


@AT_EVERY_CALL
def test_at_every_call_of_opening(path: Path, monkeypatch: pytest.MonkeyPatch, trouble: Trouble):
    """G20: wherever in making the schema the disk fails, none or all of it is there; the same store opens later."""
    whole = path.with_name("whole.db")
    reference = SqlStore(f"sqlite:///{whole}")
    reference.open()
    reference.close()
    with_trouble(monkeypatch, trouble)
    store = SqlStore(f"sqlite:///{path}")
    for call in count(1):
        trouble.plan(call)
        try:
            store.open()
        except StoreUnavailable as error:
            assert "jobs.db" in str(error)  # noqa: PT017  each try either raises, or is the last
            assert content(path) in ({}, content(whole))
        else:
            break
    assert call > 20
    Bench(store).add()
    store.close()


def test_at_every_call_of_a_question(path: Path, monkeypatch: pytest.MonkeyPatch):
    """G20: wherever in answering a question the disk fails, it is told clearly, and the next try is answered."""
    trouble = Trouble("SQLITE_IOERR_READ")
    with_trouble(monkeypatch, trouble)
    store = SqlStore(f"sqlite:///{path}")
    trouble.plan(0, 0)
    store.open()
    job_id = Bench(store).add()
    for ask in (
        lambda: store.get(job_id),
        lambda: store.ended(job_id),
        lambda: store.page(JobFilter(), 10, None),
        lambda: store.stats(JobFilter()),
        lambda: store.events(job_id, None, None, 10),
        store.lives,
        store.now,
        lambda: store.claimable({NAME: 1}, None),
    ):
        expected = ask()
        for call in count(1):
            trouble.plan(call)
            try:
                found = ask()
            except StoreUnavailable as error:
                assert "jobs.db" in str(error)  # noqa: PT017  each try either raises, or is the last
            else:
                break
        trouble.plan(0, 0)
        assert call > 1
        assert type(found) is type(expected)
    store.close()


# ── in words ──


def sqlite_error(name: str, text: str = "as SQLite says it") -> sqlite3.OperationalError:
    """An error of the driver's."""
    error = sqlite3.OperationalError(text)
    error.sqlite_errorname = name
    return error


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("SQLITE_FULL", "the disk is full .*free some space"),
        ("SQLITE_READONLY_DBMOVED", "it can't be written .*give this user write permission"),
        ("SQLITE_IOERR_WRITE", "the disk reports an error .*quota"),
        ("SQLITE_IOERR_FSYNC", "the disk did not confirm .*may be stored all the same, so repeat it with a key"),
        ("SQLITE_BUSY", "it is locked by another program .*end that transaction"),
        ("SQLITE_CORRUPT", "it is damaged .*restore a backup"),
        ("SQLITE_ERROR", "the database reports an error .*try again"),
    ],
)
def test_an_error_is_said_with_what_to_do(path: Path, name: str, told: str):
    """G20: whatever SQLite reports is said in words, with the database, SQLite's own text, and what to do about it."""
    said = str(unavailable(sqlite_error(name), f"sqlite:///{path}", path))
    assert re.search(told, said)
    assert f"sqlite:///{path}: " in said
    assert "(as SQLite says it)" in said


@pytest.mark.parametrize("name", ["SQLITE_IOERR_SHMSIZE", "SQLITE_CANTOPEN", "SQLITE_READONLY_CANTINIT"])
@pytest.mark.parametrize(
    ("how", "told"), [("is_full", "the disk is full"), ("is_read_only", "the disk is read-only .*mount it for writing")]
)
def test_the_disk_is_asked(path: Path, monkeypatch: pytest.MonkeyPatch, name: str, how: str, told: str):
    """G20: what SQLite can't tell apart is told by the disk itself: that it is full, or may not be written."""
    monkeypatch.setattr(f"jobkit.store.trouble.{how}", lambda folder: folder == path.parent)
    assert re.search(told, str(unavailable(sqlite_error(name), "sqlite:///jobs.db", path)))


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EROFS, "mount it for writing"),
        (errno.EACCES, "write permission"),
        (errno.EMFILE, "ulimit -n"),
        (errno.EIO, "check the path and the disk"),
    ],
)
def test_an_error_of_the_system_is_said_with_what_to_do(path: Path, number: int, told: str):
    """G20: a file that can't be made or locked is named, with the system's own words and what to do about it."""
    error = OSError(number, os.strerror(number), f"{path}.lives")
    said = str(unavailable(error, "sqlite:///jobs.db", path))
    assert said.startswith(f"{path}.lives can't be used ({os.strerror(number)}): ")
    assert told in said


def test_a_disk_that_tells_nothing_is_not_taken_for_full(tmp_path: Path):
    """Of a folder that is gone, nothing is made up."""
    assert not disk.is_full(tmp_path / "gone")
    assert not disk.is_read_only(tmp_path / "gone")
    assert not disk.is_full(tmp_path)
    assert not disk.is_read_only(tmp_path)


LOCKED = """
import fcntl, os
fd = os.open(args[0], os.O_RDWR | os.O_CREAT)
fcntl.flock(fd, fcntl.LOCK_EX)
say(os.getpid())
hear()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="no other system tells who holds a lock")
def test_who_holds_a_lock_is_named(tmp_path: Path):
    """G20: a lock's holder is named by its number and its program; nobody is where there is none."""
    path = tmp_path / "lock"
    child = Child(LOCKED, path)
    pid = child.says()
    assert re.fullmatch(rf"process {pid} \(python.*\)", holders(path))
    child.kill()
    assert holders(path) == ""
    assert holders(tmp_path / "missing") == ""
