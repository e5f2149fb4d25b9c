"""The tables.

People query this schema with plain `sqlite3`, so it is made to be read: ids are text, times are ISO 8601 text in UTC
that SQLite's `datetime()` understands and that sorts as time does, and whatever is structured is JSON. What must come
back exact in value and type stands beside its JSON as MessagePack (`params_data`, `output_data`, `state`).

Why each index: `ix_jobs_claim` holds claimable rows alone (`rank` is NULL otherwise), so a claim costs the same beside
a million finished jobs, and `ix_jobs_alarm` those alone that time will move; the others serve one list filter each,
newest first, without a sort. Most rows are in few of them.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from jobkit.model import JobStatus

HEAD: Final = "0001"
"""The revision that `metadata` describes; migrations lead up to it."""

VERSION_TABLE: Final = "jobkit_version"
"""Where a database says its revision; not alembic's default, which the application may use for its own tables."""

metadata: Final = MetaData()

Id: Final = String(36)
Time: Final = String(27)
Name: Final = String(200)
Serial: Final = BigInteger().with_variant(Integer, "sqlite")


def _one_of(column: str, words: list[str]) -> str:
    return f"{column} IN ({', '.join(repr(str(word)) for word in words)})"


jobs: Final = Table(
    "jobs",
    metadata,
    Column("num", Serial, primary_key=True, autoincrement=True),
    Column("id", Id, nullable=False, unique=True),
    # what it is
    Column("name", Name, nullable=False),
    Column("version", Integer, nullable=False),
    Column("label", Text),
    Column("description", Text),
    Column("user", Text),
    Column("tags", Text, nullable=False, server_default="[]"),
    Column("metadata", Text, nullable=False, server_default="{}"),
    Column("key", Text),
    Column("params", Text, nullable=False),
    Column("params_data", LargeBinary, nullable=False),
    Column("resumable", Integer, nullable=False),
    # where it stands
    Column("status", String(16), nullable=False),
    Column("reason", Text),
    Column("wanted", String(8)),
    Column("queue", Name, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("rank", BigInteger),
    Column("parked", Text),
    Column("blockers", Integer, nullable=False, server_default="0"),
    Column("attempt", Integer, nullable=False, server_default="0"),
    Column("retry_count", Integer, nullable=False, server_default="0"),
    Column("max_retries", Integer, nullable=False, server_default="0"),
    Column("retry_policy", Text),
    Column("crash_count", Integer, nullable=False, server_default="0"),
    Column("suspect", Integer, nullable=False, server_default="0"),
    Column("across_restarts", Integer, nullable=False, server_default="0"),
    Column("event_seq", Integer, nullable=False),
    Column("timeout_s", Float),
    # who has it
    Column("life", Id),
    Column("node", Text),
    # when
    Column("created_at", Time, nullable=False),
    Column("scheduled_at", Time),
    Column("alarm", Time),
    Column("started_at", Time),
    Column("running_since", Time),
    Column("run_s", Float, nullable=False, server_default="0"),
    Column("completed_at", Time),
    # how far, and what came of it
    Column("progress", Float),
    Column("progress_data", Text),
    Column("output", Text),
    Column("output_data", LargeBinary),
    Column("error", Text),
    Column("error_message", Text),
    Column("warnings", Integer, nullable=False, server_default="0"),
    Column("log_bytes", Integer, nullable=False, server_default="0"),
    # its state
    Column("checkpoint_seq", Integer, nullable=False, server_default="0"),
    Column("last_checkpoint_at", Time),
    Column("state_seq", Integer, nullable=False, server_default="0"),
    Column("state", LargeBinary),
    # its relatives
    Column("parent_id", Id),
    Column("depends_on", Text, nullable=False, server_default="[]"),
    Column("retry_of", Id),
    Column("forked_from", Id),
    Column("traceparent", Text),
    CheckConstraint(_one_of("status", list(JobStatus)), name="ck_jobs_status"),
    CheckConstraint(_one_of("wanted", ["pause", "cancel"]), name="ck_jobs_wanted"),
    CheckConstraint("attempt >= 0", name="ck_jobs_attempt"),
    # SQLite stores any value in any column, and takes a text to be more than every number
    CheckConstraint("typeof(attempt) = 'integer'", name="ck_jobs_attempt_type").ddl_if(dialect="sqlite"),
)

Index("ix_jobs_claim", jobs.c.queue, jobs.c.suspect, jobs.c.rank, sqlite_where=jobs.c.rank.is_not(None))
Index("ix_jobs_alarm", jobs.c.alarm, sqlite_where=jobs.c.alarm.is_not(None))
Index("ix_jobs_life", jobs.c.life, sqlite_where=jobs.c.life.is_not(None))
Index("ix_jobs_key", jobs.c.name, jobs.c.key, unique=True, sqlite_where=jobs.c.key.is_not(None))
Index("ix_jobs_created", jobs.c.created_at)
Index("ix_jobs_status", jobs.c.status, jobs.c.created_at)
Index("ix_jobs_name", jobs.c.name, jobs.c.created_at)
Index("ix_jobs_queue", jobs.c.queue, jobs.c.created_at)
Index("ix_jobs_user", jobs.c.user, jobs.c.created_at, sqlite_where=jobs.c.user.is_not(None))
Index("ix_jobs_parent", jobs.c.parent_id, jobs.c.created_at, sqlite_where=jobs.c.parent_id.is_not(None))

job_checkpoints: Final = Table(
    "job_checkpoints",
    metadata,
    Column("job_id", Id, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("slot", Integer, primary_key=True),
    Column("seq", Integer, nullable=False),
    Column("state", LargeBinary, nullable=False),
    Column("pieces", LargeBinary),
    Column("at", Time, nullable=False),
)
"""A ring of each job's latest checkpoints: `slot` is `seq` modulo its length. `pieces`: how to join a large one."""

job_events: Final = Table(
    "job_events",
    metadata,
    Column("pos", Serial, primary_key=True, autoincrement=True),
    Column("job_id", Id, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("seq", Integer, nullable=False),
    Column("type", String(16), nullable=False),
    Column("status", String(16), nullable=False),
    Column("message", Text),
    Column("data", Text),
    Column("at", Time, nullable=False),
    UniqueConstraint("job_id", "seq", name="uq_job_events_seq"),
    sqlite_autoincrement=True,
)
"""What happened; `seq` counts 1, 2, 3… per job, `pos` orders the events of all jobs as they were committed.

A line of a job's log is an event of type `log`: `message` is the line, and `data` has its `level`, the `attempt` that
told it, and its `fields`.
"""

job_blockers: Final = Table(
    "job_blockers",
    metadata,
    Column("job_id", Id, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("kind", String(8), primary_key=True),
    Column("on", Name, primary_key=True),
    Index("ix_job_blockers_on", "kind", "on"),
    sqlite_with_rowid=False,
)
"""What jobs wait for: `kind` is `job`, the end of the job `on`, or `signal`, one of that name."""

job_signals: Final = Table(
    "job_signals",
    metadata,
    Column("job_id", Id, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("name", Name, primary_key=True),
    Column("payload", LargeBinary, nullable=False),
    Column("at", Time, nullable=False),
)
"""Signals that were sent to jobs, whether or not they wait for them yet; the first of each name counts."""

labels: Final = Table(
    "labels",
    metadata,
    Column("key", Name, primary_key=True),
    Column("value", Name, primary_key=True),
    Column("created_at", Time, primary_key=True),
    Column("job_id", Id, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True, index=True),
    sqlite_with_rowid=False,
)
"""Tags (key `tag`) and the scalars of metadata (key `metadata.<name>`), to find jobs by."""

queues: Final = Table(
    "queues",
    metadata,
    Column("name", Name, primary_key=True),
    Column("paused", Integer, nullable=False, server_default="0"),
    Column("concurrency", Integer),
)
"""Every queue that a job was ever put in."""

lives: Final = Table(
    "lives",
    metadata,
    Column("id", Id, primary_key=True),
    Column("node", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("boot_id", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("working", Integer, nullable=False),
    Column("versions", Text, nullable=False),
    Column("started_at", Time, nullable=False),
    Column("lease_until", Time, nullable=False),
    Column("ended_at", Time),
    Column("ended_how", String(8)),
    Column("blamed", Id),
)
"""One row for each run of a manager; `blamed` is the job that its crash counts against."""

jobkit_version: Final = Table(VERSION_TABLE, metadata, Column("version_num", String(32), primary_key=True))
