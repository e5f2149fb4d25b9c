"""What type checkers must see of the blocking twins. Not run: `test_blocking.py` gives it to mypy.

Every line stands for a way of being typed: arguments kept, options checked, outputs typed, overloads told apart. Each
ignore must be needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, assert_type
from uuid import UUID

from jobkit import (
    BlockingJobHandle,
    BlockingJobManager,
    Event,
    Job,
    JobContext,
    JobRecord,
    JobStats,
    JobStatus,
    JobType,
    Page,
    Priority,
    Progress,
    job,
)
from jobkit.interfaces import Transaction


@job
class Count(Job[int]):
    """A job."""

    n: int

    async def run(self, ctx: JobContext) -> int:
        """Count."""
        return self.n


@job
class Say(Job[str]):
    """Another."""

    async def run(self, ctx: JobContext) -> str:
        """Say."""
        return ""


def use(manager: BlockingJobManager, transaction: Transaction) -> None:
    """Use them."""
    with manager as entered:
        assert_type(entered, BlockingJobManager)
    assert_type(manager.node_name, str)
    assert_type(manager.start(), None)
    assert_type(manager.stop(1.5), bool)
    assert_type(manager.run_until_idle(timeout=3), None)

    handle = manager.dispatch(Count(n=3), priority=Priority.HIGH, key="k", tags=["a"])
    assert_type(handle, BlockingJobHandle[int])
    assert_type(handle.id, UUID)
    assert_type(handle.name, str | None)
    assert_type(handle.result(timeout=5), int)
    assert_type(handle.status(), JobStatus)
    assert_type(handle.record(), JobRecord)
    assert_type(list(handle.progress()), list[Progress])
    assert_type(next(handle.events(after=3, types=["completed"])), Event)
    assert_type(manager.dispatch_by_name("count", {"n": 3}, label="one"), BlockingJobHandle[Any])
    assert_type(manager.dispatch_many([Count(n=1), Count(n=2)], user="me"), list[BlockingJobHandle[int]])
    assert_type(manager.dispatch_within(transaction, Count(n=1), key="k"), BlockingJobHandle[int])
    assert_type(manager.signal(handle.id, "go", {"by": "me"}), None)
    assert_type(manager.explain(handle.id).reasons[0].code, str)
    assert_type(manager.dispatch_many([Count(n=1), ("say", {})]), list[BlockingJobHandle[Any]])

    assert_type(manager.handle(handle.id), BlockingJobHandle[Any])
    assert_type(manager.get(str(handle.id)), JobRecord)
    assert_type(manager.list_jobs("completed", limit=3, name="count"), Page[JobRecord])
    assert_type(manager.stats(queue="default"), JobStats)
    assert_type(manager.job_types(), list[JobType])
    assert_type(manager.schema("count"), dict[str, Any])
    events: Iterator[Event] = manager.events(handle.id)
    assert_type([event.type for event in events], list[str])


def widen(handle: BlockingJobHandle[bool]) -> BlockingJobHandle[int]:
    """A handle of a narrower output is one of a wider."""
    return handle


def misuse(manager: BlockingJobManager) -> None:
    """Each line is an error that a checker is to find."""
    manager.dispatch(Count(n=1), priorty=3)  # type: ignore[call-arg]
    manager.dispatch(Count(n=1), priority="high")  # type: ignore[arg-type]
    manager.dispatch(3)  # type: ignore[arg-type]
    manager.get()  # type: ignore[call-arg]
    manager.list_jobs(limit="3")  # type: ignore[arg-type]
    manager.list_jobs(nam="count")  # type: ignore[call-arg]
    manager.dispatch(Count(n=1)).result(timout=3)  # type: ignore[call-arg]
    wrong: str = manager.dispatch(Count(n=1)).result()  # type: ignore[assignment]
    BlockingJobManager("jobs.db", concurency=3)  # type: ignore[call-arg]
    manager.schema(wrong).cancel()  # type: ignore[attr-defined]
