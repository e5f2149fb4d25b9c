"""SQLite keeps the contract of stores, in a file and in memory; and what of it only SQL can see."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from jobkit.filters import JobFilter
from jobkit.interfaces import Change, Claim, Insert, Store, Write
from jobkit.lifecycle import Cause, Standing, Trigger
from jobkit.model import JobStatus
from jobkit.store import SqlStore
from jobkit.testing.fakes import FakeClock
from jobkit.testing.store_contract import CHECKPOINT, NAME, Bench, StoreContract, new_job


def rows(store: SqlStore, query: str, **values: object) -> list[tuple[Any, ...]]:
    """Ask the database itself."""
    with store._database.reading() as connection:
        return [tuple(row) for row in connection.execute(text(query), values)]


def run(store: SqlStore, statement: str, **values: object) -> None:
    """Meddle with the database."""
    with store._database.writing() as connection:
        connection.execute(text(statement), values)


class SqlContract(StoreContract):
    """The contract, with every stored column compared, and more."""

    def everything(self, store: Store, job_id: str) -> object:
        assert isinstance(store, SqlStore)
        return (
            super().everything(store, job_id),
            *(
                rows(store, f"SELECT * FROM {table} WHERE {key} = :id ORDER BY 1, 2", id=job_id)
                for table, key in (("jobs", "id"), ("job_checkpoints", "job_id"), ("labels", "job_id"))
            ),
        )

    @pytest.mark.parametrize("keep", [0, 1, 3])
    def test_the_last_checkpoints_are_kept(self, make_store: Callable[..., SqlStore], keep: int):
        """The last N checkpoints are kept whole, under their numbers, and no more; a job's others are not touched."""
        store = make_store(keep_checkpoints=keep)
        store.open()
        bench = Bench(store)
        jobs = [bench.start(), bench.start()]
        for seq in range(1, 9):
            for at, job in enumerate(jobs[: 2 if seq < 3 else 1]):
                jobs[at] = bench.after(job, CHECKPOINT, state=f"{at}.{seq}".encode())
            query = "SELECT seq, state FROM job_checkpoints WHERE job_id = :id ORDER BY seq"
            for at, latest in ((0, seq), (1, min(seq, 2))):
                expected = [(old, f"{at}.{old}".encode()) for old in range(1, latest + 1)][-keep:] if keep else []
                assert rows(store, query, id=jobs[at].id) == expected
                assert store.state(jobs[at].id) == (latest, f"{at}.{latest}".encode())
        store.close()

    def test_a_paused_queue_is_not_claimed(self, bench: Bench, store: SqlStore):
        """G8: jobs of a paused queue stay where they are, until it is resumed; other queues go on."""
        paused, other = bench.add(queue="paused"), bench.add(queue="other")
        run(store, "UPDATE queues SET paused = 1 WHERE name = 'paused'")
        assert not store.claimable({NAME: 1}, ("paused",))
        assert bench.claim_ids() == [other]
        assert not store.claimable({NAME: 1}, None)
        later = bench.add(queue="paused")
        assert bench.claim_ids() == []
        run(store, "UPDATE queues SET paused = 0")
        assert bench.claim_ids() == [paused, later]

    def test_times_are_read_by_sqlite(self, bench: Bench, store: SqlStore, clock: FakeClock):
        """Every stored time is one that SQLite's datetime() reads, and that sorts as time does."""
        job = bench.start()
        clock.advance(1.25)
        job = bench.after(job, CHECKPOINT, state=b"x")
        bench.after(job, Cause(Trigger.FAIL, due_at=clock.now()))
        bench.complete(bench.start())
        for table in ("jobs", "job_events", "job_checkpoints", "labels", "lives"):
            for column, kind in rows(store, f"SELECT name, type FROM pragma_table_info('{table}')"):
                if kind == "VARCHAR(27)":
                    for raw, read in rows(store, f'SELECT "{column}", datetime("{column}") FROM {table}'):
                        assert raw is None or (
                            read == raw[:19].replace("T", " ") and raw[19] == "." and raw[26:] == "Z"
                        )
        (sorted_by_text,) = rows(store, "SELECT group_concat(seq) FROM (SELECT seq FROM job_events ORDER BY at, seq)")
        assert sorted_by_text == ("1,2,1,2,3,3",)
        assert rows(store, "SELECT strftime('%f', last_checkpoint_at) FROM jobs WHERE id = :id", id=job.id) == [
            ("01.250",)
        ]

    def test_the_database_s_own_time(self, make_store: Callable[..., SqlStore]):
        """G14: without a simulated clock, time is SQLite's, in the stored form."""
        store = make_store(now=lambda: None)
        store.open()
        job_id = Bench(store).add()
        (found,) = rows(store, "SELECT abs(julianday(created_at) - julianday('now')) < 1, length(created_at) FROM jobs")
        assert found == (1, 27)
        assert store.now() >= Bench(store).record(job_id).created_at
        store.close()

    def test_one_damaged_row_stops_nobody(self, bench: Bench, store: SqlStore):
        """G10: a row that was damaged is held when it is claimed, shown as far as it can be, and stops no other."""
        good, bad, worse = bench.add(), bench.add(metadata={"a": 1}), bench.add(tags=("t",))
        after = bench.add()
        run(store, "UPDATE jobs SET metadata = '{broken' WHERE id = :id", id=bad)
        run(
            store,
            "UPDATE jobs SET params = 'x', tags = 'null', progress_data = '[]', output = '', error = '3', "
            "scheduled_at = 'soon', completed_at = 7, depends_on = '{}', created_at = 'nonsense' WHERE id = :id",
            id=worse,
        )
        assert {str(one.id) for one in store.page(JobFilter(), 10, None)} == {good, bad, worse, after}
        assert bench.record(worse).tags == ()
        assert store.ended(worse) is not None
        assert bench.claim_ids() == [good, worse, after]
        record = bench.record(bad)
        assert (record.status, record.reason, record.attempt) == (JobStatus.HELD, "corrupt_state", 0)
        assert record.error is not None
        assert record.error.type == "StateCorrupt"
        assert [event.type for event in bench.events(bad)] == ["created", "held"]
        assert rows(store, "SELECT metadata FROM jobs WHERE id = :id", id=bad) == [("{broken",)]
        run(store, "UPDATE jobs SET running_since = 'nonsense' WHERE id = :id", id=good)
        run(store, "UPDATE lives SET versions = 'nonsense', ended_at = lease_until")
        assert {job.id for job in store.orphans(10)} == {good, worse, after}

    def test_a_damaged_key_is_told_to_its_caller_alone(self, bench: Bench, store: SqlStore):
        """G10: damaged parameters of a job with a key are an error for who uses the key, and for nobody else."""
        job = new_job(key="key")
        bench.do(Insert((job,)))
        run(store, "UPDATE jobs SET params_data = x'c1'")
        other = new_job()
        answers = store.commit([Insert((new_job(key="key"),)), Insert((other,))])
        assert isinstance(answers[0], Exception)
        assert bench.store.get(other.id) is not None

    def test_a_failed_commit_leaves_nothing_open(self, bench: Bench, store: SqlStore):
        """G20: after a COMMIT that failed, nothing of the batch shows, and the next one works."""
        job = bench.start()
        batch: list[Write] = [Insert((new_job(queue="new"),)), Change(job.id, CHECKPOINT, job, state=b"x")]
        database: Any = store._database

        def spoil() -> None:  # a broken reference that is not looked at before COMMIT
            database._connection.exec_driver_sql("PRAGMA defer_foreign_keys=ON")
            database._connection.exec_driver_sql("INSERT INTO labels VALUES ('k', 'v', 'at', 'nobody')")

        from jobkit import points

        points.arm(lambda name: spoil() if name == "checkpoint.before_commit" else None)
        with pytest.raises(Exception, match="FOREIGN KEY"):
            store.commit(batch)
        points.arm(None)
        assert not database._driver(database._connection).in_transaction
        assert (store.state(job.id), store.stats(JobFilter()).total) == (None, 1)
        answers = store.commit(batch)
        assert not [answer for answer in answers if isinstance(answer, Exception)]
        assert len(bench.claim()) == 1

    def test_together_and_one_by_one_are_the_same(self, bench: Bench, store: SqlStore):
        """Whether a batch is written at once or one by one, which only an error decides, the same rows come of it."""
        found = []
        culprit = Change("nobody", CHECKPOINT, Standing("nobody", JobStatus.RUNNING, 1), state=b"")
        for culprits in ([], [culprit]):
            jobs = [bench.start(metadata={"n": 1}) for _ in range(5)]
            waiting = bench.add()
            batch: list[Write] = [
                Change(jobs[0].id, CHECKPOINT, jobs[0], state=b"x"),
                Change(jobs[1].id, Cause(Trigger.COMPLETE), jobs[1], output=(b"\xc0", None)),
                Change(jobs[2].id, Cause(Trigger.FAIL), jobs[2]),
                Change(jobs[3].id, Cause(Trigger.OWNER_GONE), jobs[3]),
                Change(jobs[4].id, Cause(Trigger.CANCEL)),
                *culprits,
                Claim(bench.life, "node", 1, {NAME: 1}),
            ]
            store.commit(batch)
            ids = dict.fromkeys([*(job.id for job in jobs), waiting])
            unlike = {"num", "id", "pos", "job_id"}
            seen = []
            for table, key in (
                ("jobs", "id"),
                ("job_events", "job_id"),
                ("job_checkpoints", "job_id"),
                ("labels", "job_id"),
            ):
                names = [name for (name,) in rows(store, f"SELECT name FROM pragma_table_info('{table}')")]
                for job_id in ids:
                    kept = [name for name in names if name not in unlike]
                    columns = ", ".join(f'"{name}"' for name in kept)
                    seen += [
                        (table, *row)
                        for row in rows(store, f"SELECT {columns} FROM {table} WHERE {key} = :id", id=job_id)
                    ]
            found.append(seen)
            for job_id in ids:
                run(store, "DELETE FROM jobs WHERE id = :id", id=job_id)
        assert found[0] == found[1]

    def test_json_is_json(self, bench: Bench, store: SqlStore):
        """Whatever is stored as JSON is read by SQLite's own functions."""
        bench.add(
            params={"x": float("nan"), "y": [float("inf")], "z": 2**70}, metadata={"m": "\N{SNOWMAN}"}, tags=("\0",)
        )
        valid = rows(
            store, "SELECT json_valid(params), json_valid(metadata), json_valid(tags), json_valid(depends_on) FROM jobs"
        )
        assert valid == [(1, 1, 1, 1)]
        ((tags,),) = rows(store, "SELECT tags FROM jobs")
        assert json.loads(tags) == ["\0"]


class TestFile(SqlContract):
    @pytest.fixture
    def make_store(self, clock: FakeClock, tmp_path: Path) -> Callable[..., SqlStore]:
        def make(**options: Any) -> SqlStore:
            return SqlStore(
                f"sqlite:///{tmp_path / 'jobs.db'}", **{"now": clock.now, "durability": "normal", **options}
            )

        return make


class TestMemory(SqlContract):
    persistent = False

    @pytest.fixture
    def make_store(self, clock: FakeClock) -> Callable[..., SqlStore]:
        def make(**options: Any) -> SqlStore:
            return SqlStore("sqlite://", **{"now": clock.now, **options})

        return make
