"""What is particular to SQLite: query plans, pragmas, files, and every way in which a file can be out of reach."""

from __future__ import annotations

import itertools
import logging
import os
import re
import shutil
import sqlite3
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Select, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.schema import CreateTable
from sqlalchemy.sql.compiler import SQLCompiler

from jobkit import points
from jobkit.errors import InvalidSettings, LeaseLost, StoreUnavailable
from jobkit.filters import JobFilter
from jobkit.interfaces import Change, Claim, Insert, Store, Write
from jobkit.lifecycle import Cause, Trigger
from jobkit.model import Failure
from jobkit.store import SqlStore, dialects, disk, queries
from jobkit.store.locks import SLICE_S, Patience
from jobkit.store.queries import orphan_query, page_query
from jobkit.store.schema import jobs
from jobkit.testing.store_contract import CANCEL, CHECKPOINT, COMPLETE, NAME, OWNER_GONE, Bench, new_job
from tests.store.children import Child

ROWS = 50_000
START = datetime(2024, 1, 1, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the test's database is to be."""
    return tmp_path / "jobs.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqlStore]:
    """An open store that doesn't wait for long."""
    store = SqlStore(f"sqlite:///{path}", busy_s=0.05)
    store.open()
    yield store
    points.arm(None)
    store.close()


@pytest.fixture
def plain(store: SqlStore, path: Path) -> Iterator[sqlite3.Connection]:
    """The same database as anybody sees it who has `sqlite3`."""
    connection = sqlite3.connect(path, isolation_level=None)
    yield connection
    connection.close()


# ── how questions are answered ──


@pytest.fixture(scope="module", params=["fresh", "analysed"])
def large(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    """A database of 50,000 finished jobs and an empty queue, before and after ANALYZE."""
    path = tmp_path_factory.mktemp("large") / "jobs.db"
    store = SqlStore(f"sqlite:///{path}", durability="normal")
    store.open()
    connection = sqlite3.connect(path, isolation_level=None)
    times = [f"{(START + timedelta(seconds=at)).isoformat(timespec='microseconds')[:26]}Z" for at in range(ROWS)]
    connection.execute("BEGIN")
    connection.executemany(
        "INSERT INTO jobs (id, name, version, params, params_data, resumable, status, queue, priority, event_seq,"
        " created_at, \"user\", parent_id) VALUES (?, ?, 1, '{}', x'80', 1, 'completed', ?, 5, 3, ?, ?, ?)",
        [(f"id {n}", f"job{n % 5}", f"q{n % 2}", times[n], f"u{n % 50}", f"id {n % 100}") for n in range(ROWS)],
    )
    for key, values in (("tag", 20), ("metadata.provider", 3)):
        labels = [(key, f"v{n % values}", times[n], f"id {n}") for n in range(ROWS)]
        connection.executemany("INSERT INTO labels VALUES (?, ?, ?, ?)", labels)
    connection.execute("INSERT INTO queues (name) VALUES ('q0'), ('q1')")
    connection.execute("COMMIT")
    if request.param == "analysed":
        connection.execute("ANALYZE")
    yield connection
    connection.close()
    store.close()


def plan(connection: sqlite3.Connection, query: str | Select[Any], values: tuple[object, ...] = ()) -> list[str]:
    """How SQLite would answer."""
    if isinstance(query, Select):
        compiled = query.compile(
            dialect=sqlite.dialect(paramstyle="qmark"), compile_kwargs={"render_postcompile": True}
        )
        assert isinstance(compiled, SQLCompiler)
        query, values = str(compiled), tuple(compiled.params[name] for name in compiled.positiontup or ())
    return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {query}", values)]


@pytest.mark.parametrize("names", [1, 20, 1_500])
def test_a_claim_is_one_index_read(large: sqlite3.Connection, names: int):
    """A claim reads its own index in order, without a scan or a sort, whatever else is stored."""
    statement = SqlStore("sqlite://")._statements.claim(names).text
    known = tuple(part for number in range(names) for part in (f"job{number}", 1))
    for suspect in (0, 1):
        steps = plan(large, statement, ("q0", suspect, *known, 10, 0))
        assert steps == ["SEARCH jobs USING INDEX ix_jobs_claim (queue=? AND suspect=? AND rank>?)"]


SWEEPS: dict[str, tuple[Callable[[SqlStore], object], str]] = {
    "asked": (lambda store: store.asked("life"), "ix_jobs_life"),
    "orphans": (lambda store: store.orphans(10), "ix_jobs_life"),
    "paused": (lambda store: store.paused(store.now(), 10), "ix_jobs_status"),
    "due": (lambda store: store.due(10), "ix_jobs_alarm"),
    "next due": (lambda store: store.next_due(), "ix_jobs_alarm"),
    "unknown": (lambda store: store.unknown({"job1": 1}, 10), "ix_jobs_claim"),
    "known again": (lambda store: store.known_again({"job1": 1}, 10), "ix_jobs_status"),
    "claimable": (lambda store: store.claimable({"job1": 1}, None), "ix_jobs_claim"),
}


@pytest.mark.parametrize("question", SWEEPS)
def test_what_is_asked_again_and_again_is_an_index_read(large: sqlite3.Connection, question: str):
    """What a sweep, a supervisor or an idle worker asks costs the same beside any number of finished jobs."""
    ask, index = SWEEPS[question]
    (_, _, file) = large.execute("PRAGMA database_list").fetchone()
    store = SqlStore(f"sqlite:///{file}", durability="normal")
    store.open()
    asked: list[tuple[str, Any]] = []

    def heard(_c: object, _k: object, statement: str, values: Any, _x: object, _m: object) -> None:
        asked.append((statement, values))

    reader = store._database._engines[1]  # type: ignore[attr-defined]
    event.listen(reader, "before_cursor_execute", heard)
    ask(store)
    store.close()
    about_jobs = [plan(large, statement, values) for statement, values in asked if "FROM jobs" in statement]
    assert about_jobs
    for steps in about_jobs:
        reads = [step for step in steps if step.startswith(("SEARCH jobs", "SCAN jobs"))]
        assert any(f"INDEX {index} " in step for step in reads), steps
        assert not any("TEMP B-TREE" in step or step.startswith("SCAN jobs") for step in steps), steps


LISTS = {
    "all": ({}, "ix_jobs_created"),
    "since": ({"since": START}, "ix_jobs_created"),
    "until": ({"until": START + timedelta(hours=9)}, "ix_jobs_created"),
    "between": ({"since": START, "until": START + timedelta(hours=9)}, "ix_jobs_created"),
    "status": ({"status": "completed"}, "ix_jobs_status"),
    "statuses": ({"status": ["completed", "failed", "lost"]}, "ix_jobs_status"),
    "name": ({"name": "job1"}, "ix_jobs_name"),
    "queue": ({"queue": "q1"}, "ix_jobs_queue"),
    "user": ({"user": "u1"}, "ix_jobs_user"),
    "users since": ({"user": ["u1", "u2"], "since": START}, "ix_jobs_user"),
    "parent": ({"parent": "00000000-0000-7000-8000-000000000001"}, "ix_jobs_parent"),
    "tag": ({"tag": "v1"}, "labels USING PRIMARY KEY"),
    "tags": ({"tag": ["v1", "v2"]}, "labels USING PRIMARY KEY"),
    "metadata": ({"metadata": {"provider": "v1"}}, "labels USING PRIMARY KEY"),
    "all of it": (
        {"name": "job1", "status": "completed", "tag": "v1", "metadata": {"provider": "v1"}},
        "USING INDEX ix_jobs_",
    ),
}


@pytest.mark.parametrize("after", [None, ("2024-01-01T08:00:00.000000Z", 28_800)], ids=["first", "next"])
@pytest.mark.parametrize("what", LISTS)
def test_a_list_is_an_index_read(large: sqlite3.Connection, what: str, after: tuple[str, int] | None):
    """Every page of every filter is read from an index, in order: no scan of all jobs, no sort but of the page."""
    where, index = LISTS[what]
    steps = plan(large, page_query(JobFilter(**where), 51, after))  # type: ignore[arg-type]
    assert any(index in step for step in steps), steps
    # only all jobs may be read from one end of an index: then it is left after a page
    scans = [step for step in steps if step.startswith("SCAN jobs")]
    assert scans in ([], ["SCAN jobs USING COVERING INDEX ix_jobs_created"] if what == "all" else [])
    # the last step sorts the page alone; a tag's jobs of one moment are sorted among themselves
    assert steps[0] == "SEARCH jobs USING INTEGER PRIMARY KEY (rowid=?)", steps
    sorts = [step for step in steps[:-1] if step == "USE TEMP B-TREE FOR ORDER BY"]
    assert sorts == [] or what == "parent", steps  # of few


def test_a_text_is_looked_for_among_the_newest(
    large: sqlite3.Connection, store: SqlStore, monkeypatch: pytest.MonkeyPatch
):
    """A text is looked for within the newest jobs alone, with any other filter; no page reads more than those."""
    steps = plan(large, page_query(JobFilter(text="x", name="job1", tag="v1"), 51))
    assert "CO-ROUTINE newest" in steps or "MATERIALIZE newest" in steps
    monkeypatch.setattr(queries, "TEXT_WINDOW", 5)
    bench = Bench(store)
    old = bench.add(label="needle", user="u")
    new = [bench.add(label=label, user="u") for label in ("needle 1", "hay", "needle 2", "hay", "hay")]
    for where in (JobFilter(text="NEEDLE"), JobFilter(text="need", user="u")):
        assert [str(one.id) for one in store.page(where, 10, None)] == [new[2], new[0]]
        assert store.stats(where).queued == 2
    assert [str(one.id) for one in store.page(JobFilter(text=old), 10, None)] == []


def test_recovery_and_keys_are_index_reads(large: sqlite3.Connection):
    """Sweeps cost what they find, not what is stored."""
    steps = plan(large, orphan_query(500))
    assert steps[0].startswith("SEARCH jobs USING INDEX ix_jobs_life (life>?)")
    assert not [step for step in steps if step.startswith("SCAN") or "B-TREE" in step]
    key = SqlStore("sqlite://")._statements.by_key.text
    assert plan(large, key, ("a", "b")) == ["SEARCH jobs USING INDEX ix_jobs_key (name=? AND key=?)"]


def test_children_are_found_by_their_parent(store: SqlStore, plain: sqlite3.Connection):
    """A filter by parent finds a job's children, newest first, page by page."""
    bench = Bench(store)
    parent = bench.add()
    children = [bench.add() for _ in range(5)]
    bench.add()
    plain.execute(f"UPDATE jobs SET parent_id = ? WHERE id IN ({', '.join('?' * 5)})", (parent, *children))
    page = store.page(JobFilter(parent=parent), 3, None)
    rest = store.page(JobFilter(parent=[parent, parent]), 3, page.next_cursor)
    assert [str(one.id) for one in (*page, *rest)] == children[::-1]
    assert {str(one.parent_id) for one in page} == {parent}


# ── how the file is kept ──


def test_the_write_path_is_as_safe_as_it_says(store: SqlStore, tmp_path: Path):
    """G1: WAL, synchronous FULL (NORMAL where that is asked for), foreign keys on, checkpoints under our lock alone."""

    def pragma(of: SqlStore, name: str) -> object:
        with of._database.writing() as connection:
            return connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()

    names = ("journal_mode", "synchronous", "foreign_keys", "wal_autocheckpoint", "busy_timeout")
    assert [pragma(store, name) for name in names] == ["wal", 2, 1, 0, 50]
    with store._database.reading() as connection:
        assert connection.exec_driver_sql("PRAGMA query_only").scalar_one() == 1
    normal = SqlStore(f"sqlite:///{tmp_path / 'normal.db'}", durability="normal")
    normal.open()
    assert [pragma(normal, name) for name in names] == ["wal", 1, 1, 0, SLICE_S * 1_000]
    normal.close()


def test_a_write_takes_the_lock_before_it_reads(store: SqlStore, plain: sqlite3.Connection):
    """G4: every write is a BEGIN IMMEDIATE: it never finds out half-way that another has written since it read."""
    seen: list[str] = []
    with store._database.writing() as connection:
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            plain.execute("PRAGMA busy_timeout=0").execute("BEGIN IMMEDIATE")
        driver: Any = connection.connection.driver_connection
        driver.set_trace_callback(seen.append)
    driver.set_trace_callback(None)
    store.commit([Insert((new_job(),))])
    plain.execute("BEGIN IMMEDIATE").execute("ROLLBACK")
    assert seen == ["COMMIT"]


def test_a_read_is_one_state_of_the_database(store: SqlStore):
    """What one call answers is of one moment, though others write between its statements."""
    bench = Bench(store)
    with store._database.reading() as connection:
        count = "SELECT count(*) FROM jobs"
        assert connection.exec_driver_sql(count).scalar_one() == 0
        bench.add()
        assert connection.exec_driver_sql(count).scalar_one() == 0
    assert store.stats(JobFilter()).total == 1


@pytest.mark.parametrize("can", [True, False], ids=["made by us", "made by SQLite"])
def test_files_are_for_their_owner_alone(tmp_path: Path, can: bool, monkeypatch: pytest.MonkeyPatch):
    """Database, write-ahead log and locks are readable by their owner alone, and so is the folder of locks."""

    def refuse(*_: object) -> None:
        raise PermissionError

    if not can:  # as on macOS, for all but root
        monkeypatch.setattr(os, "mknod", refuse)
    before = os.umask(0o022)
    try:
        store = SqlStore(f"sqlite:///{tmp_path / 'jobs.db'}")
        store.open()
        bench = Bench(store)
        hold = store.hold(bench.life)
        bench.add()
        store.page(JobFilter(), 1, None)
        modes = {str(file.relative_to(tmp_path)): stat.S_IMODE(file.stat().st_mode) for file in tmp_path.rglob("*")}
        assert modes == {
            "jobs.db": 0o600,
            "jobs.db-wal": 0o600,
            "jobs.db-shm": 0o600,
            "jobs.db.lives": 0o700,
            "jobs.db.lives/writer.lock": 0o600,
            f"jobs.db.lives/{bench.life}.lock": 0o600,
        }
        assert hold is not None
        hold.release()
        store.close()
        assert sorted(file.name for file in tmp_path.rglob("*")) == ["jobs.db", "jobs.db.lives", "writer.lock"]
        (tmp_path / "jobs.db").chmod(0o640)
        store.open()
        store.close()
        assert stat.S_IMODE((tmp_path / "jobs.db").stat().st_mode) == 0o640  # somebody's choice
    finally:
        os.umask(before)


WATCHED = """
opened = []
sys.addaudithook(lambda event, what: opened.append(what[0]) if event in {"open", "os.open"} else None)
from jobkit.store import SqlStore
from jobkit.testing.store_contract import Bench, CHECKPOINT
from jobkit.filters import JobFilter
store = SqlStore(f"sqlite:///{args[0]}")
for _ in range(2):
    store.open()
    bench = Bench(store)
    hold = store.hold(bench.life)
    job = bench.start()
    bench.complete(bench.after(job, CHECKPOINT, state=b"x"))
    [store.fate(life) for life in store.lives()]
    store.page(JobFilter(), 10, None)
    hold.release()
    store.close()
say([name for name in opened if str(name).startswith(args[0]) and ".lives/" not in str(name)])
say(any(".lives/" in str(name) for name in opened))
"""


def test_the_database_file_is_never_opened_but_by_sqlite(path: Path):
    """Nothing here opens the database's files: closing one would drop SQLite's locks, and let a second writer in."""
    assert Child(WATCHED, path).ends() == ["[]", "True"]


def test_two_names_of_one_file_share_its_locks(store: SqlStore, path: Path, tmp_path: Path):
    """G4: processes that come to the file by other paths queue at the same lock and see the same lives."""
    (tmp_path / "folder").mkdir()
    link = tmp_path / "folder" / "link.db"
    link.symlink_to(path)
    other = SqlStore(f"sqlite:///{link}")
    other.open()
    hold = store.hold("life")
    assert (other.location, other.path) == (store.location, path)
    assert not (tmp_path / "folder" / "link.db.lives").exists()
    assert hold is not None
    hold.release()
    other.close()


def test_the_log_is_moved_into_the_database(path: Path, monkeypatch: pytest.MonkeyPatch):
    """The write-ahead log stays small under load; a reader that stays is not waited for."""
    monkeypatch.setattr(dialects, "WAL_CHECKPOINT_ROWS", 1)
    monkeypatch.setattr(dialects, "WAL_TRUNCATE_BYTES", 0)
    monkeypatch.setattr(dialects, "WAL_TRUNCATE_MS", 1)
    store = SqlStore(f"sqlite:///{path}", busy_s=60)
    store.open()
    wal = Path(f"{path}-wal")
    bench = Bench(store)
    bench.add()
    assert wal.stat().st_size == 0
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM jobs").fetchone()
    began = time.monotonic()
    bench.add()
    assert time.monotonic() - began < 30
    assert wal.stat().st_size > 0
    assert store.stats(JobFilter()).total == 2
    with store._database.writing() as connection:
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one() == SLICE_S * 1_000
    reader.execute("ROLLBACK")
    reader.close()
    bench.add()
    assert wal.stat().st_size == 0
    store.close()


def test_upkeep_that_fails_costs_no_write_its_answer(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """G1: once it is committed, a write is answered so, though tidying up after it failed; which is said once."""

    def fail(*_: object) -> None:
        raise OSError("it does not tell")

    monkeypatch.setattr(disk, "room", fail)
    with caplog.at_level(logging.WARNING, "jobkit.store"):
        ids = [Bench(store).add() for _ in range(3)]
    assert caplog.text.count("can't be moved") == 1
    assert all(store.get(job_id) is not None for job_id in ids)


def test_a_person_can_read_it(store: SqlStore, plain: sqlite3.Connection):
    """The tables answer a person's questions in plain SQL, with SQLite's own functions for time and JSON."""
    bench = Bench(store)
    for seconds, provider in ((1, "vsphere"), (3, "proxmox")):
        job = bench.start(params={"vm": f"vm-{seconds}", "sizes": [seconds, 2]}, metadata={"provider": provider})
        plain.execute(
            "UPDATE jobs SET running_since = strftime('%Y-%m-%dT%H:%M:%f000Z', running_since, ?)",
            (f"-{seconds} seconds",),
        )
        job = bench.after(job, CHECKPOINT, state=b"x")
        bench.after(job, OWNER_GONE)
        (claimed,) = bench.claim()
        bench.complete(claimed.transition.after, {"bytes": seconds * 10})
    bench.add()

    def ask(query: str) -> list[tuple[Any, ...]]:
        return plain.execute(query).fetchall()

    assert ask("SELECT status, count(*) FROM jobs GROUP BY status ORDER BY 1") == [("completed", 2), ("queued", 1)]
    assert ask("SELECT name, round(avg(run_s)) >= 0 FROM jobs WHERE status = 'completed' GROUP BY name") == [(NAME, 1)]
    assert ask("SELECT count(*) FROM jobs WHERE datetime(created_at) > datetime('now', '-1 hour')") == [(3,)]
    assert ask("SELECT params ->> '$.vm', output ->> '$.bytes' FROM jobs WHERE status = 'completed' ORDER BY num") == [
        ("vm-1", 10),
        ("vm-3", 30),
    ]
    assert ask("SELECT type, status FROM job_events ORDER BY pos DESC LIMIT 2") == [
        ("created", "queued"),
        ("completed", "completed"),
    ]
    assert ask("SELECT value FROM labels WHERE key = 'metadata.provider' ORDER BY 1") == [("proxmox",), ("vsphere",)]
    assert ask("SELECT count(*) FROM job_checkpoints JOIN jobs ON jobs.id = job_id WHERE seq = checkpoint_seq") == [
        (2,)
    ]
    wrong = ("status = 'nonsense'", "attempt = -1", "attempt = 'x'", "attempt = 1.5", "attempt = X'01'")
    for statement in (f"UPDATE jobs SET {one}" for one in wrong):
        with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
            plain.execute(statement)


def test_the_schema_is_not_sqlites_alone():
    """What only SQLite can check is in no other database's schema."""
    create = CreateTable(jobs)
    assert "typeof(attempt)" in str(create.compile(dialect=sqlite.dialect()))
    assert "typeof" not in str(create.compile(dialect=postgresql.dialect()))


# ── what it refuses ──


def test_network_file_systems_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch):
    """A network file system is refused, with the way out, unless the risk is taken; nothing is created there."""
    monkeypatch.setattr(disk, "file_system", lambda _: "nfs4")
    store = SqlStore(f"sqlite:///{path}")
    with pytest.raises(StoreUnavailable, match=r"nfs4.*allow_network_fs"):
        store.open()
    assert list(path.parent.iterdir()) == []
    store = SqlStore(f"sqlite:///{path}", allow_network_fs=True)
    store.open()
    store.close()


def test_file_systems_are_read_from_the_mounts(monkeypatch: pytest.MonkeyPatch):
    """The innermost mount counts, the latest of one place; where there is no list of mounts nothing is known."""
    mounts = r"""/dev/a / ext4 rw 0 0
server:/x /mnt nfs4 rw 0 0
/dev/b /mnt/local\040disk xfs rw 0 0
/dev/c /home ext4 rw 0 0
server:/y /home cifs rw 0 0
"""
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: mounts)
    for folder, kind in (("/", "ext4"), ("/mnt", "nfs4"), ("/mnt/a", "nfs4"), ("/mntx", "ext4"), ("/home/me", "cifs")):
        assert disk.file_system(Path(folder)) == kind
    assert disk.file_system(Path("/mnt/local disk/a")) == "xfs"

    def missing(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert disk.file_system(Path("/mnt")) == ""


@pytest.mark.parametrize(
    "url", ["postgresql://localhost/x", "sqlitex:///a.db", "jobs.db", "", "sqlite:jobs.db", "sqlite"]
)
def test_a_url_that_is_none_of_ours(url: str):
    """What names no database of ours is refused at once, with an example of one that does."""
    with pytest.raises(StoreUnavailable, match="sqlite:///"):
        SqlStore(url)


def test_a_durability_that_is_none():
    """G1: a word that SQLite would take for less than it seems is refused."""
    with pytest.raises(InvalidSettings, match="durability"):
        SqlStore("sqlite://", durability="FULLL")
    with pytest.raises(InvalidSettings, match="keep_checkpoints"):
        SqlStore("sqlite://", keep_checkpoints=-1)


# ── out of reach: each says what to do, leaves nothing half-written, and goes on by itself ──


def check(store: Store) -> None:
    """All is as it should be."""
    bench = Bench(store)
    job = bench.start(queue="check")
    bench.complete(bench.after(job, CHECKPOINT, state=b"x"))
    assert [event.seq for event in bench.events(job.id)] == [1, 2, 3]


def refused(store: SqlStore) -> str:
    """Try to open it; answer what it said."""
    with pytest.raises(StoreUnavailable) as caught:
        store.open()
    assert caught.value.problem
    assert caught.value.advice
    with pytest.raises(StoreUnavailable, match="not open"):
        store.commit([])
    return str(caught.value)


def test_a_folder_instead_of_a_file(path: Path):
    """G20: a folder is not a database; once the path is free, the same store opens."""
    path.mkdir()
    store = SqlStore(f"sqlite:///{path}")
    assert "is a folder" in refused(store)
    assert list(path.parent.rglob("*")) == [path]
    path.rmdir()
    store.open()
    check(store)
    store.close()


def test_a_folder_that_is_not_there(tmp_path: Path):
    """G20: a missing folder is named, and not made by mistake; once it is there, the same store opens."""
    folder = tmp_path / "not" / "there"
    store = SqlStore(f"sqlite:///{folder / 'jobs.db'}")
    assert f"{folder} does not exist" in refused(store)
    assert list(tmp_path.iterdir()) == []
    folder.mkdir(parents=True)
    store.open()
    check(store)
    store.close()


def test_a_file_that_is_no_database(path: Path):
    """G20: somebody's file is left as it is, byte for byte."""
    data = b"My diary, 2024. Dear diary, today I \x00\xff " * 100
    path.write_bytes(data)
    store = SqlStore(f"sqlite:///{path}")
    assert "not a SQLite database" in refused(store)
    assert path.read_bytes() == data
    assert not Path(f"{path}-wal").exists()
    path.unlink()
    store.open()
    check(store)
    store.close()


def test_failing_to_open_leaves_nothing_open(path: Path):
    """However often opening fails, no descriptor is left behind."""
    path.write_bytes(b"x" * 5_000)
    store = SqlStore(f"sqlite:///{path}")
    refused(store)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(10):
        refused(store)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


UNPRIVILEGED = """
import os
from jobkit.errors import StoreUnavailable
from jobkit.store import SqlStore
from jobkit.testing.store_contract import Bench
warm = SqlStore("sqlite://")  # import all that it needs
warm.open()
Bench(warm).start()
warm.close()
if os.geteuid() == 0:
    os.seteuid(65534)
store = SqlStore(f"sqlite:///{args[0]}")
while True:
    try:
        store.open()
        Bench(store).add()
        said = "works"
    except StoreUnavailable as error:
        said = error
    store.close()
    say(said)
    if hear() == "end":
        break
"""


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that any user can come to."""
    folder = Path(tempfile.mkdtemp(prefix="jobkit-test-"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def test_what_may_not_be_written(shared: Path):
    """G20: a read-only file, folder or lock is named, with who needs to be let in; once it is, the same store opens."""
    path = shared / "jobs.db"
    child = Child(UNPRIVILEGED, path)
    assert child.says() == "works"
    locks = shared / "jobs.db.lives"
    for spoil, mend, told in (
        (lambda: shared.chmod(0o555), lambda: shared.chmod(0o777), "give this user write permission"),
        (lambda: path.chmod(0o444), lambda: path.chmod(0o600), "jobs.db can't be written"),
        (lambda: path.chmod(0o000), lambda: path.chmod(0o600), "permission to read and write"),
        (lambda: (locks / "writer.lock").chmod(0o400), lambda: (locks / "writer.lock").chmod(0o600), "writer.lock"),
    ):
        spoil()
        said = child.hears("again").says()
        mend()
        assert told in said
        assert str(path) in said
        assert child.hears("again").says() == "works"
    child.hears("end").ends()


def test_a_folder_that_may_not_be_written_at_first(shared: Path):
    """G20: in a read-only folder nothing is made, and the message names it."""
    shared.chmod(0o555)
    child = Child(UNPRIVILEGED, shared / "jobs.db")
    assert re.search(r"jobs.db.lives can't be used .*give this user write permission", child.says())
    assert list(shared.iterdir()) == []
    shared.chmod(0o777)
    assert child.hears("again").says() == "works"
    child.hears("end").ends()


def test_a_file_that_another_program_has_locked(store: SqlStore, plain: sqlite3.Connection, path: Path):
    """G20: while another program holds the database, reading goes on and writing says so; then it works again."""
    bench = Bench(store)
    job = bench.start()
    plain.execute("BEGIN IMMEDIATE")
    batch: list[Write] = [
        Insert((new_job(),)),
        Change(job.id, CHECKPOINT, job, state=b"x"),
        Claim(bench.life, "n", 1, {NAME: 1}),
    ]
    for _ in range(3):
        with pytest.raises(StoreUnavailable, match=r"locked by this very process.*end that transaction"):
            store.commit(batch)
        assert store.stats(JobFilter()).total == 1
        assert store.state(job.id) is None
    other = SqlStore(f"sqlite:///{path}", busy_s=0.05)
    assert "locked" in refused(other)
    plain.execute("ROLLBACK")
    answers = store.commit(batch)
    assert not [answer for answer in answers if isinstance(answer, Exception)]
    assert store.state(job.id) == (1, b"x")
    other.open()
    check(other)
    other.close()


def test_a_process_that_stopped_while_it_wrote(store: SqlStore, path: Path):
    """G20: a process that is stopped in the middle of a commit doesn't silently stop the others: they are told why."""
    from jobkit.store.locks import FileLock

    stopped = FileLock(Path(f"{path}.lives") / "writer.lock")
    job_id = Bench(store).add()
    other = SqlStore(f"sqlite:///{path}", busy_s=0.05)
    with stopped.held([60]):
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match="this very process keeps all others from writing"):
                Bench(store).add()
        assert store.get(job_id) is not None
        assert "keeps all others from writing" in refused(other)
    stopped.close()
    other.open()
    check(other)
    other.close()
    check(store)


def test_closing_while_another_process_is_stopped(path: Path):
    """A store can be closed though another process holds the writers' lock."""
    from jobkit.store.locks import FileLock

    store = SqlStore(f"sqlite:///{path}", busy_s=0.05)
    store.open()
    stopped = FileLock(Path(f"{path}.lives") / "writer.lock")
    with stopped.held([60]):
        store.close()
    stopped.close()
    with pytest.raises(StoreUnavailable, match="not open"):
        store.now()


def test_a_store_that_is_told_to_hurry(path: Path):
    """G16: a store that is told to hurry waits for no other process; opened again, it waits as ever."""
    from jobkit.store.locks import FileLock

    store = SqlStore(f"sqlite:///{path}", busy_s=60)
    store.open()
    stopped = FileLock(Path(f"{path}.lives") / "writer.lock")
    with stopped.held([60]):
        began = time.monotonic()
        store.hurry()
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match="keeps all others from writing"):
                Bench(store).add()
        store.close()
        assert time.monotonic() - began < 30
    store.open()
    patience: Patience = store._database._patience  # type: ignore[attr-defined]
    assert len(list(itertools.islice(patience.slices(), 10))) == 10
    check(store)
    store.close()
    stopped.close()


FULL = """
import os, signal
from jobkit.errors import StoreUnavailable
from jobkit.filters import JobFilter
from jobkit.interfaces import Change, Insert
from jobkit.store import SqlStore
from jobkit.testing.store_contract import Bench, CHECKPOINT, new_job
kind, folder = args
if kind == "disk":
    with open(f"{folder}/filler", "wb") as filler:
        filler.write(bytes(2_000_000))
store = SqlStore(f"sqlite:///{folder}/jobs.db")
store.open()
bench = Bench(store)
job = bench.start()
if kind == "limit":
    import resource
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
saved = refused = 0
while refused < 5:
    state = bytes([saved % 256]) * 50_000
    try:
        answers = store.commit([
            Change(job.id, CHECKPOINT, job, state=state), Insert((new_job("other"), new_job("other"))),
        ])
    except StoreUnavailable as error:
        if not refused:
            say(error)
        refused += 1
    else:
        if any(isinstance(answer, Exception) for answer in answers):
            raise SystemExit(repr(answers))
        job = answers[0].after
        saved += 1
        last = state
    found = store.state(job.id), store.stats(JobFilter()).total, store.get(job.id).checkpoint_seq
    if found != ((saved, last), 1 + 2 * saved, saved):
        raise SystemExit(f"{found[1:]} of {saved}")
if kind == "disk":
    os.unlink(f"{folder}/filler")
else:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
job = bench.after(job, CHECKPOINT, state=b"on")
bench.complete(job)
say(saved > 0)
say([event.seq for event in bench.events(job.id)])
import sqlite3
say(sqlite3.connect(f"{folder}/jobs.db").execute("PRAGMA integrity_check").fetchone()[0])
store.close()
"""


def test_a_file_that_may_not_grow(tmp_path: Path):
    """G20: where a write fails, it is told; nothing of its batch shows; and once it can, work goes on by itself."""
    told, *rest = Child(FULL, "limit", tmp_path).ends()
    assert re.search(r"jobs.db: (the disk (reports an error|is full)).*jobs go on by themselves", told)
    assert rest == ["True", "[1, 2, 3]", "ok"]


def test_a_full_disk(tmp_path: Path):
    """G20: on a full disk each write is told so; nothing of its batch shows; with space again work goes on."""
    probe = subprocess.run(
        ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", tmp_path], capture_output=True, check=False
    )
    if probe.returncode:
        pytest.skip("no mount namespaces here")
    mounted = 'mount -t tmpfs -o size=4m tmpfs "$1" && shift && exec "$@"'
    told, *rest = Child(
        FULL, "disk", tmp_path, before=("unshare", "-rm", "sh", "-c", mounted, "sh", str(tmp_path))
    ).ends()
    assert re.search(r"jobs.db: (the disk (reports an error|is full)).*jobs go on by themselves", told)
    assert rest == ["True", "[1, 2, 3]", "ok"]


def test_trouble_in_the_middle_of_a_batch(store: SqlStore):
    """G20: an error that takes SQLite's whole transaction away is told for what it was, and leaves nothing open."""
    bench = Bench(store)
    job = bench.start()
    driver: Any = store._database._driver(store._database._connection)  # type: ignore[attr-defined]
    wanted: list[Write] = [Insert((new_job(key="k"),)), Change(job.id, CHECKPOINT, job, state=b"x")]
    driver.execute("CREATE TEMP TRIGGER full BEFORE INSERT ON main.jobs BEGIN SELECT RAISE(ROLLBACK, 'gone'); END")
    with pytest.raises(StoreUnavailable, match="gone") as caught:
        store.commit(wanted)
    assert "no such savepoint" not in str(caught.value)
    driver.execute("DROP TRIGGER temp.full")
    assert not driver.in_transaction
    assert store.state(job.id) is None
    assert not [answer for answer in store.commit(wanted) if isinstance(answer, Exception)]


def test_an_unknown_trouble_is_told_as_one(store: SqlStore, plain: sqlite3.Connection):
    """G20: whatever the database says, the caller gets an error of ours, for reads and for writes."""
    plain.execute("ALTER TABLE jobs RENAME TO gone")
    for call in (lambda: store.page(JobFilter(), 1, None), lambda: store.commit([Insert((new_job(),))])):
        with pytest.raises(StoreUnavailable, match="no such table"):
            call()
    plain.execute("ALTER TABLE gone RENAME TO jobs")
    check(store)


def test_readers_do_not_wait_for_ever(store: SqlStore, monkeypatch: pytest.MonkeyPatch):
    """More readers at once than there are connections wait for each other, and none fails."""
    Bench(store).add()
    start = threading.Barrier(20)
    found: list[int] = []

    def read() -> None:
        start.wait()
        found.extend(store.stats(JobFilter()).total for _ in range(5))

    threads = [threading.Thread(target=read) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [1] * 100


def test_a_cancel_beside_the_end(store: SqlStore):
    """G7: of a cancel and an end that come one right after the other, the first decides."""
    bench = Bench(store)
    for order in (1, -1):
        job = bench.start()
        batch = [Change(job.id, CANCEL), Change(job.id, COMPLETE, job, output=(b"\xc0", None))][::order]
        for write in batch:
            store.commit([write])
        types = [event.type for event in bench.events(job.id)]
        assert types[2:] == (["cancel_requested", "cancelled"] if order == 1 else ["completed"])


def test_a_stale_attempt_among_events(store: SqlStore):
    """G11: an attempt that lost its job leaves no event either, not even in a batch that goes well otherwise."""
    bench = Bench(store)
    job, other = bench.start(), bench.start()
    bench.after(job, OWNER_GONE)
    answers = store.commit(
        [
            Change(job.id, Cause(Trigger.FAIL), job, failure=Failure("Old", "")),
            Change(other.id, Cause(Trigger.FAIL), other, failure=Failure("New", "")),
        ]
    )
    assert [type(answer) for answer in answers] == [LeaseLost, type(answers[1])]
    assert [event.type for event in bench.events(job.id)] == ["created", "started", "queued"]
    assert [event.type for event in bench.events(other.id)] == ["created", "started", "failed"]
