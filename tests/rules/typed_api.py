"""What type checkers must see of a job. Not run: `test_definition.py` gives it to mypy; every ignore must be needed.

Without pydantic's mypy plugin, which would put a constructor of all fields in the place of the one without state.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Generic, TypeVar, assert_type

from pydantic import BaseModel, Field, PrivateAttr

from jobkit.context import BlockingJobContext, JobContext
from jobkit.definition import Job, state
from jobkit.errors import InvalidSettings
from jobkit.jobtype import JobType
from jobkit.model import Failure, Priority
from jobkit.registration import Registry, discover, job, registry
from jobkit.settings import Settings

T = TypeVar("T")
Out = TypeVar("Out")


class Handle(Generic[Out]):
    """Stands for the handle that dispatch returns."""

    async def result(self) -> Out:
        """Wait for the output."""
        raise NotImplementedError


async def dispatch(work: Job[Out]) -> Handle[Out]:
    """Stand for the manager's method."""
    raise NotImplementedError(work)


class CopyReport(BaseModel):
    """An output."""

    copied: int


@job("file_copy", version=2, aliases=("copy_files",), priority=Priority.HIGH, executor="inline")
class FileCopy(Job[CopyReport]):
    """A job as the manual shows it."""

    sources: list[Path]
    destination: Path
    mode: int = Field(default=0o644, ge=0)
    done: int = state(0)
    failed: list[Path] = state(default_factory=list)
    last: str | None = state(None)
    _buffer: bytearray = PrivateAttr(default_factory=bytearray)

    async def on_resume(self, ctx: JobContext) -> None:
        """Come back."""

    def on_failure(self, ctx: JobContext, failure: Failure) -> None:
        """Clean up."""

    async def run(self, ctx: JobContext) -> CopyReport:
        """Copy."""
        self.done += 1
        self.last = str(self.sources[0])
        await ctx.checkpoint()
        return CopyReport(copied=self.done)


@job
class Count(Job[int]):
    """A sync handler, decorated without arguments; its context may have any name."""

    upto: int = 10
    reached: int = state(0)

    def run(self, context: BlockingJobContext) -> int:
        """Count."""
        context.checkpoint()
        return self.reached


@job(queue="slow", registry=Registry())
class Anything(Job):
    """A plain job."""

    async def run(self, ctx: JobContext) -> dict[str, int]:
        """Return what one likes."""
        return {}


class Batch(Job[list[T]], Generic[T]):
    """A generic job, whose subclasses say of what."""

    items: list[T]
    cursor: int = state(0)

    async def run(self, ctx: JobContext) -> list[T]:
        """Return the items."""
        return self.items


@job("float_batch")
class FloatBatch(Batch[float]):
    """One of its subclasses."""


async def use() -> None:
    """Use them."""
    copying = FileCopy(sources=[Path("a")], destination=Path("b"))
    assert_type(copying, FileCopy)
    assert_type(copying.done, int)
    assert_type(copying.failed, list[Path])
    assert_type(copying.last, str | None)
    assert_type(FileCopy, type[FileCopy])

    handle = await dispatch(copying)
    assert_type(handle, Handle[CopyReport])
    assert_type(await handle.result(), CopyReport)
    assert_type(await dispatch(Count()), Handle[int])
    assert_type(await dispatch(Count(upto=3)), Handle[int])
    assert_type(await dispatch(FloatBatch(items=[1.0])), Handle[list[float]])
    assert_type(await dispatch(Anything()), Handle[Any])

    assert_type(registry.get("file_copy"), JobType)
    assert_type(registry.create("file_copy", {}), Job[Any])
    assert_type(registry.type_of(copying).pack_params(copying), bytes)
    assert_type(discover("somewhere"), list[str])
    assert_type(Settings(concurrency=3).concurrency, int)
    decorate: Callable[[type[Count]], type[Count]] = job("other")
    assert_type(decorate(Count), type[Count])


async def misuse() -> None:
    """Each line is an error that a checker is to find."""
    FileCopy(sources=[], destination=Path(), done=3)  # type: ignore[call-arg]
    Count(upto=1, reached=3)  # type: ignore[call-arg]
    FileCopy(sources=[])  # type: ignore[call-arg]
    FileCopy(sources=[], destination=Path(), destinaton=Path())  # type: ignore[call-arg]
    FileCopy(sources=[], destination=3)  # type: ignore[arg-type]
    copying = FileCopy(sources=[], destination=Path())
    copying.done = "three"  # type: ignore[assignment]
    copying.doen = 3  # type: ignore[attr-defined]
    result: str = await (await dispatch(copying)).result()  # type: ignore[assignment]
    raise InvalidSettings({"result": result})


class Wrong(Job[int]):
    """Its handler does not return what it declares, and its state is not of its type."""

    reached: int = state("zero")  # type: ignore[assignment]
    nowhere: int = state()  # type: ignore[call-overload]

    async def run(self, ctx: JobContext) -> str:  # type: ignore[override]
        """Return another type."""
        return "3"


def either(work: Job[int], ctx: Any) -> Awaitable[int] | int:
    """Call a handler without knowing whether it is async."""
    return work.run(ctx)


@job("not_a_job")
class NotAJob:  # type: ignore[type-var]
    """Not derived from Job."""


@job("bad_option", executor="process")  # type: ignore[call-overload]
class BadOption(Job[None]):
    """Asks for an executor that is not there."""
