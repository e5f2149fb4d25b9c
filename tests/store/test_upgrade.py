"""From any database to this release's schema: fresh, older, newer, somebody else's, or left half-way."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from jobkit import points
from jobkit.errors import SchemaMismatch, StoreUnavailable
from jobkit.filters import JobFilter
from jobkit.store import SqlStore, sqlstore, upgrade
from jobkit.store.schema import HEAD, VERSION_TABLE, metadata
from jobkit.store.upgrade import MIGRATIONS, check_schema, prepare_schema
from jobkit.testing.store_contract import CHECKPOINT, Bench
from tests.store.children import Child

Schema = list[tuple[str, str, str]]

NEXT = '''
"""A second revision: a new column, and the table of jobs made anew around it."""
import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade():
    with op.batch_alter_table("jobs", recreate="always") as batch:
        batch.add_column(sa.Column("colour", sa.Text, server_default="grey"))
    op.create_index("ix_jobs_colour", "jobs", ["colour"])
    op.execute("UPDATE jobs SET colour = 'red' WHERE name = 'work'")
'''

BROKEN = f"{NEXT}    raise RuntimeError('half-way')\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the test's database is to be."""
    return tmp_path / "jobs.db"


@pytest.fixture(autouse=True)
def _disarm() -> Iterator[None]:
    yield
    points.arm(None)


def open_store(path: Path) -> SqlStore:
    """Open a store there."""
    store = SqlStore(f"sqlite:///{path}", busy_s=5)
    store.open()
    return store


def ask(path: Path, query: str) -> list[Any]:
    """Ask the file with plain `sqlite3`."""
    connection = sqlite3.connect(path)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def schema(path: Path) -> Schema:
    """All tables, columns, keys and indexes, as SQLite has them; constraints' names and spaces don't matter."""
    connection = sqlite3.connect(path)
    found = []
    for kind, name, sql in connection.execute("SELECT type, name, sql FROM sqlite_schema ORDER BY 1, 2"):
        text = " ".join((sql or "").replace(f"CONSTRAINT {VERSION_TABLE}_pkc ", "").split())
        found.append((kind, name, text))
        if kind == "table" and not name.startswith("sqlite_"):
            found += [(kind, name, str(row)) for row in connection.execute(f"PRAGMA table_xinfo({name})")]
            found += [(kind, name, str(row)) for row in connection.execute(f"PRAGMA foreign_key_list({name})")]
    connection.close()
    return found


def migrations(tmp_path: Path, text: str) -> Path:
    """The migrations, with one more."""
    folder = tmp_path / "migrations"
    shutil.copytree(MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "versions" / "0002_next.py").write_text(text)
    return folder


def release(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Be the next release, which has two revisions."""

    def prepare(connection: Connection) -> None:
        prepare_schema(connection, folder, "0002")

    def look(connection: Connection) -> None:
        check_schema(connection, "0002")

    monkeypatch.setattr(sqlstore, "prepare_schema", prepare)
    monkeypatch.setattr(sqlstore, "check_schema", look)


def test_a_fresh_database_is_created_and_stamped(path: Path):
    """A fresh database has every table, and says which revision it is; opening it again changes nothing."""
    open_store(path).close()
    assert ask(path, f"SELECT version_num FROM {VERSION_TABLE}") == [(HEAD,)]
    assert {name for (name,) in ask(path, "SELECT name FROM sqlite_schema WHERE type = 'table'")} == {
        *metadata.tables,
        "sqlite_sequence",
    }
    before = schema(path)
    open_store(path).close()
    assert schema(path) == before


FRESH = """
from jobkit.store import SqlStore
for _ in range(2):
    store = SqlStore(f"sqlite:///{args[0]}")
    store.open()
    store.close()
say([name for name in sys.modules if name.partition(".")[0] in {"alembic", "mako"}])
"""


def test_a_current_database_needs_no_alembic(path: Path):
    """Neither a fresh nor a current database costs a worker the import of alembic."""
    assert Child(FRESH, path).ends() == ["[]"]


def test_migrations_lead_to_the_same_schema(path: Path, tmp_path: Path):
    """G19: the migrations, run from nothing, give the very tables that a fresh database is created with."""
    open_store(path).close()
    other = tmp_path / "other.db"
    store = SqlStore(f"sqlite:///{other}")
    store._database.open()
    with store._database.preparing() as connection:
        upgrade._upgrade(connection, MIGRATIONS, HEAD)
    store.close()
    assert schema(other) == schema(path)
    assert ask(other, f"SELECT version_num FROM {VERSION_TABLE}") == [(HEAD,)]
    check = Bench(open_store(other))
    check.start()
    check.store.close()


def test_an_older_database_is_upgraded(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """G19: a database of an older release is upgraded when it is opened; all that it holds is there, and works on."""
    store = open_store(path)
    bench = Bench(store)
    job = bench.after(bench.start(tags=("t",), metadata={"m": 1}), CHECKPOINT, state=b"state")
    bench.complete(bench.start(key="key"))
    tables = ("job_events", "job_checkpoints", "labels", "queues", "lives")
    held = [ask(path, f"SELECT * FROM {table} ORDER BY 1, 2") for table in tables]
    record, state = bench.record(job.id), store.state(job.id)
    store.close()

    release(monkeypatch, migrations(tmp_path, NEXT))
    store = open_store(path)
    bench = Bench(store)
    assert ask(path, f"SELECT version_num FROM {VERSION_TABLE}") == [("0002",)]
    assert ask(path, "SELECT DISTINCT colour FROM jobs") == [("red",)]
    assert [ask(path, f"SELECT * FROM {table} ORDER BY 1, 2") for table in tables] == held
    assert (bench.record(job.id).__class__, bench.record(job.id).label, store.state(job.id)) == (
        record.__class__,
        record.label,
        state,
    )
    assert ask(path, "PRAGMA foreign_key_check") == []
    with store._database.writing() as connection:
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar_one() == 1
    assert [str(one.id) for one in store.page(JobFilter(tag="t"), 9, None)] == [job.id]
    bench.complete(bench.after(job, CHECKPOINT, state=b"next"))
    assert [event.seq for event in bench.events(job.id)] == [1, 2, 3]
    store.close()
    open_store(path).close()


def test_an_upgrade_that_fails_changes_nothing(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """G19, G20: an upgrade that fails half-way leaves the database as it was, for the older release to go on with."""
    store = open_store(path)
    job_id = Bench(store).add()
    store.close()
    before = schema(path), ask(path, "SELECT * FROM jobs"), ask(path, "SELECT * FROM job_events")
    with monkeypatch.context() as later:
        release(later, migrations(tmp_path, BROKEN))
        with pytest.raises(RuntimeError, match="half-way"):
            open_store(path)
    assert before == (schema(path), ask(path, "SELECT * FROM jobs"), ask(path, "SELECT * FROM job_events"))
    store = open_store(path)
    assert Bench(store).claim_ids() == [job_id]
    store.close()


@pytest.mark.parametrize("found", ["0002", "9999", "abc", "", None])
def test_a_newer_database_is_left_alone(path: Path, found: str | None):
    """G19: a database of a newer release, or of an unknown revision, is refused, and not a byte is changed."""
    open_store(path).close()
    connection = sqlite3.connect(path)
    connection.execute(f"DELETE FROM {VERSION_TABLE}")
    if found is not None:
        connection.execute(f"INSERT INTO {VERSION_TABLE} VALUES (?)", (found,))
    connection.commit()
    connection.close()
    before = path.read_bytes()
    store = SqlStore(f"sqlite:///{path}")
    for _ in range(2):
        with pytest.raises(SchemaMismatch, match=rf"{found or 'none'}.*install the release"):
            store.open()
    assert path.read_bytes() == before
    assert not Path(f"{path}-wal").exists()


def test_two_revisions_at_once_are_refused(path: Path):
    """A database that says two revisions is one that no release wrote."""
    open_store(path).close()
    connection = sqlite3.connect(path)
    connection.execute(f"INSERT INTO {VERSION_TABLE} VALUES ('0000')")
    connection.commit()
    connection.close()
    with pytest.raises(SchemaMismatch):
        open_store(path)


@pytest.mark.parametrize("table", ["jobs", "queues", "lives"])
def test_somebody_else_s_tables_are_left_alone(path: Path, table: str):
    """A database with a table of one of our names that we did not make is refused, named, and not changed at all."""
    connection = sqlite3.connect(path)
    connection.execute(f"CREATE TABLE {table} (mine TEXT)")
    connection.execute(f"INSERT INTO {table} VALUES ('x')")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    store = SqlStore(f"sqlite:///{path}")
    with pytest.raises(StoreUnavailable, match=rf"{table}.*database of its own"):
        store.open()
    assert path.read_bytes() == before
    assert ask(path, "PRAGMA journal_mode") == [("delete",)]


def test_an_application_s_own_database_can_be_shared(path: Path):
    """Our tables may stand beside an application's, which are not touched; alembic's own may be among those."""
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
    connection.execute("INSERT INTO alembic_version VALUES ('theirs')")
    connection.commit()
    connection.close()
    store = open_store(path)
    Bench(store).start()
    store.close()
    assert ask(path, "SELECT * FROM alembic_version") == [("theirs",)]


CREATE = """
from jobkit.store import SqlStore
from jobkit.testing.store_contract import Bench
store = SqlStore(f"sqlite:///{args[0]}")
say("ready")
hear()
store.open()
Bench(store).add()
store.close()
"""


def test_processes_that_create_it_at_once(path: Path):
    """Several processes that find no database and start at once share one, and none is shown an error."""
    children = [Child(CREATE, path) for _ in range(4)]
    for child in children:
        assert child.says() == "ready"
    for child in children:
        child.hears("go")
    assert [child.ends() for child in children] == [[]] * 4
    assert ask(path, f"SELECT version_num FROM {VERSION_TABLE}") == [(HEAD,)]
    assert ask(path, "SELECT count(*) FROM jobs") == [(4,)]


CRASH = """
from jobkit.testing.crash import kill_at
from jobkit.store import SqlStore
kill_at(args[1])
store = SqlStore(f"sqlite:///{args[0]}")
say("on its way")
store.open()
say("not killed")
"""


@pytest.mark.parametrize("point", ["schema.before_commit", "schema.after_commit"])
def test_a_crash_leaves_no_half_schema(path: Path, point: str):
    """A process killed while it creates the schema leaves none or the whole, and the next one starts as ever."""
    child = Child(CRASH, path, point)
    assert child.says() == "on its way"
    assert child.process.wait(60) == -9
    child.kill()
    tables = ask(path, "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
    assert tables == [(0 if point == "schema.before_commit" else len(metadata.tables),)]
    store = open_store(path)
    Bench(store).start()
    store.close()


def test_a_failure_while_creating_is_told_and_undone(path: Path):
    """An error while the schema is created leaves nothing behind, and the same store can be opened again."""

    def fail(name: str) -> None:
        if name == "schema.before_commit":
            raise RuntimeError("cut")

    store = SqlStore(f"sqlite:///{path}")
    points.arm(fail)
    with pytest.raises(RuntimeError, match="cut"):
        store.open()
    points.arm(None)
    assert ask(path, "SELECT count(*) FROM sqlite_schema") == [(0,)]
    store.open()
    Bench(store).start()
    store.close()
