"""State through the whole of it: a checkpoint in a database, the end of a life, and the handler of the next one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, FilePath, create_model

from jobkit import (
    BlockingJobContext,
    Job,
    JobContext,
    JobFailed,
    JobHeld,
    JobStatus,
    Registry,
    SerializationError,
    job,
    state,
)
from tests.rules.kinds import KINDS, same
from tests.runtime.kit import DEADLINE_S, make, until

pytestmark = pytest.mark.anyio

EXPECTED = {f"kind_{number}": values for number, (_, _, values) in enumerate(KINDS)}


def keeper(run: Any) -> Registry:
    """Make a job with a state field for every kind of the catalogue."""
    registry = Registry()
    hints = {f"kind_{number}": hint for number, (_, hint, _) in enumerate(KINDS)}
    body = {
        "__annotations__": {f"{name}_values": list[hint] for name, hint in hints.items()},  # type: ignore[valid-type]
        **{f"{name}_values": state(default_factory=list) for name in hints},
        "model_config": {"arbitrary_types_allowed": True},
        "__module__": __name__,
        "run": run,
    }
    job("keeper", registry=registry)(type("Keeper", (Job,), body))
    return registry


def fill(keeping: Any) -> None:
    """Put every value of every kind into the state."""
    for name, values in EXPECTED.items():
        setattr(keeping, f"{name}_values", values)


def changed(keeping: Any) -> list[str]:
    """Name the fields that are not what they were."""
    return [name for name, values in EXPECTED.items() if not same(getattr(keeping, f"{name}_values"), values)]


@pytest.mark.parametrize("blocking", [False, True], ids=["async", "thread"])
async def test_every_kind_survives_the_end_of_a_life(path, blocking):
    """G3: what a handler leaves in its state the next life's handler finds, equal, of the same type at every level."""
    begun: list[int] = []

    async def run(self: Any, ctx: JobContext) -> Any:
        if ctx.attempt > 1:
            return changed(self)
        fill(self)
        begun.append(ctx.attempt)
        while True:
            await ctx.checkpoint()

    def run_in_thread(self: Any, ctx: BlockingJobContext) -> Any:
        if ctx.attempt > 1:
            return changed(self)
        fill(self)
        begun.append(ctx.attempt)
        while True:
            ctx.checkpoint()

    registry = keeper(run_in_thread if blocking else run)
    async with make(path, registry=registry) as manager:
        handle = await manager.dispatch(registry.create("keeper", {}))
        await until(lambda: begun)
    async with make(path, registry=registry) as manager:
        again = manager.handle(handle.id)
        assert await again.result(DEADLINE_S) == []
        assert (await again.record()).attempt == 2


async def test_what_cannot_be_kept_is_refused_at_the_checkpoint(path):
    """The handler hears where it stands and may go on; if it doesn't, the job fails, with its last state as it was."""
    registry = Registry()

    @job("careless", registry=registry)
    class Careless(Job[int]):
        catch: bool
        files: list[Any] = state(default_factory=list)

        async def run(self, ctx: JobContext) -> int:
            self.files = [1, 2]
            await ctx.checkpoint()
            self.files.append({"open": [object()]})
            if self.catch:
                with pytest.raises(SerializationError, match=r"state\.files\.2\.open\.0 can't be stored"):
                    await ctx.checkpoint()
                self.files.pop()
            await ctx.checkpoint()
            return len(self.files)

    async with make(path, registry=registry) as manager:
        assert await (await manager.dispatch(Careless(catch=True))).result(DEADLINE_S) == 2
        handle = await manager.dispatch(Careless(catch=False))
        with pytest.raises(JobFailed, match=r"state\.files\.2\.open\.0") as raised:
            await handle.result(DEADLINE_S)
        assert raised.value.failure.type == "SerializationError"
        assert "make it in the handler" in raised.value.failure.message
        assert (await handle.record()).checkpoint_seq == 1


# ── a release later ──


def release(item: Any, begun: list[Any], **fields: Any) -> Registry:
    """Make a release of a job whose state holds an `Item`: the first attempt saves, and waits for the next life."""
    registry = Registry()

    async def run(self: Any, ctx: JobContext) -> Any:
        if ctx.attempt == 1:
            self.item = item(size=1, path=__file__)
            begun.append(self.item)
            while True:
                await ctx.checkpoint()
        await ctx.checkpoint()
        begun.append(self.item)
        return self.item.size

    body: dict[str, Any] = {
        "__annotations__": {"item": item | None, **{name: hint for name, (hint, _) in fields.items()}},
        "item": state(None),
        **{name: default for name, (_, default) in fields.items()},
        "__module__": __name__,
        "run": run,
    }
    job("release", registry=registry)(type("Release", (Job,), body))
    return registry


async def first_life(path: Path, registry: Registry, begun: list[Any]) -> Any:
    """Run a job to its first checkpoints, and end this life."""
    async with make(path, registry=registry) as manager:
        handle = await manager.dispatch(registry.create("release", {}))
        await until(lambda: begun)
    return handle.id


async def test_lost_fields_are_told_once(path, caplog):
    """A field that the class no longer has is dropped with a word in the log, by name; the others are left alone."""
    begun: list[Any] = []
    old = create_model("Item", size=(int, ...), path=(FilePath, ...), gone=(int, 3))
    new = create_model("Item", size=(int, ...), path=(FilePath, ...), more=(str, "new"))
    id_ = await first_life(path, release(old, begun, dropped=(int, state(0))), begun)
    caplog.set_level("WARNING")
    async with make(path, registry=release(new, begun)) as manager:
        assert await manager.handle(id_).result(DEADLINE_S) == 1
    (told,) = [one.getMessage() for one in caplog.records if "dropped" in one.getMessage()]
    assert str(id_) in told
    assert told.endswith("what is stored of fields that the class no longer has was dropped: Item.gone, dropped")
    assert begun[-1].more == "new"


async def test_what_no_longer_fits_is_held_until_a_build_comes_that_it_fits(path):
    """G10: the job waits as `needs_migration`, told by field, its bytes kept; a build that it fits goes on with it."""
    begun: list[Any] = []
    old, new = (create_model("Item", size=(hint, ...), path=(Path, ...)) for hint in (int, list[int]))
    id_ = await first_life(path, release(old, begun), begun)
    async with make(path, registry=release(new, begun)) as manager:
        handle = manager.handle(id_)
        with pytest.raises(JobHeld, match="needs_migration"):
            await handle.result(DEADLINE_S)
        record = await handle.record()
        assert (record.status, record.reason) == (JobStatus.HELD, "needs_migration")
        assert record.error is not None
        assert "Item has changed since" in record.error.message
        assert "size: Input should be a valid list" in record.error.message
    async with make(path, registry=release(old, begun)) as manager:
        await manager.release(id_)
        assert await manager.handle(id_).result(DEADLINE_S) == 1
    assert isinstance(begun[-1], BaseModel)
