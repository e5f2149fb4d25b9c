"""Interrupts and hooks: how a handler takes it that its job is to stop, and what it may do then."""

from __future__ import annotations

import threading
from typing import Any, Final

import anyio
import pytest
from anyio.lowlevel import checkpoint

from jobkit import (
    BlockingJobContext,
    Job,
    JobContext,
    JobStatus,
    Registry,
    job,
    state,
)
from jobkit.testing import FakeThreads
from tests.runtime.kit import (
    DEADLINE_S,
    WAITING,
    Steps,
    StepsInThread,
    make,
    node_of,
    pass_until,
    until,
    until_true,
)

pytestmark = pytest.mark.anyio

STOPPABLE: Final = pytest.mark.parametrize("kind", [Steps, StepsInThread])


async def _ended(handle: Any) -> bool:
    return bool((await handle.status()).terminal)


# ── interrupts ──


async def test_an_interrupt_is_sticky_and_keeps_its_kind(path, gate):
    """A handler that catches an interrupt and goes on meets it again at every checkpoint, of the same kind."""
    registry = Registry()
    kinds: list[str] = []

    @job(registry=registry)
    class Clings(Job[None]):
        done: int = state(0)

        async def run(self, ctx: JobContext) -> None:
            await ctx.resources["gate"].pass_async([])
            for _ in range(3):
                try:
                    self.done += 1
                    await ctx.checkpoint()
                except BaseException as interrupt:
                    kinds.append(getattr(interrupt, "kind", "?"))
            await ctx.check_interrupt()

    async with make(path, registry=registry, resources={"gate": gate}) as manager:
        handle = await manager.dispatch(Clings())
        await gate.reached(1)
        await handle.pause()
        gate.open()
        await until_true(lambda: _is(handle, JobStatus.PAUSED))
        assert kinds == ["pause"] * 3
        assert (await handle.record()).checkpoint_seq == 4


async def _is(handle: Any, status: JobStatus) -> bool:
    return await handle.status() is status


@pytest.mark.parametrize(("wish", "ended"), [("pause", "completed"), ("cancel", "cancelled")])
async def test_a_handler_that_swallows_its_interrupt_and_returns(path, gate, wish, ended):
    """G7: what returns although it was to pause has completed; what was to be cancelled is cancelled all the same."""
    registry = Registry()

    @job(registry=registry)
    class Swallows(Job[int]):
        async def run(self, ctx: JobContext) -> int:
            await ctx.resources["gate"].pass_async([])
            try:
                await ctx.checkpoint()
            except BaseException:
                return 7
            return 1

    async with make(path, registry=registry, resources={"gate": gate}) as manager:
        handle = await manager.dispatch(Swallows())
        await gate.reached(1)
        await getattr(handle, wish)()
        gate.open()
        await until_true(lambda: _ended(handle))
        record = await handle.record()
        assert (record.status, record.output) == (ended, 7 if ended == "completed" else None)


async def test_an_interrupt_in_a_task_group_stops_the_whole_handler(path, gate):
    """Pause works from inside task groups: siblings are cancelled, and what they raise beside it does not win."""
    registry = Registry()
    seen: list[str] = []

    @job(registry=registry)
    class Grouped(Job[None]):
        done: int = state(0)

        async def run(self, ctx: JobContext) -> None:
            await ctx.resources["gate"].pass_async([])

            async def sibling() -> None:
                try:
                    while True:
                        await checkpoint()
                finally:
                    seen.append("cleaned")
                    raise ValueError("beside the interrupt")

            async with anyio.create_task_group() as group:
                group.start_soon(sibling)
                await checkpoint()
                self.done += 1
                await ctx.checkpoint()

    async with make(path, registry=registry, resources={"gate": gate}) as manager:
        handle = await manager.dispatch(Grouped())
        await gate.reached(1)
        await handle.pause()
        gate.open()
        await until_true(lambda: _is(handle, JobStatus.PAUSED))
        assert seen == ["cleaned"]
        assert (await handle.record()).error is None


# ── hooks ──


class _Called:
    def __init__(self) -> None:
        self.hooks: list[Any] = []
        self.raises = False

    def note(self, *what: Any) -> None:
        """Remember a call, and raise if that is wanted."""
        self.hooks.append(what[0] if len(what) == 1 else what)
        if self.raises:
            raise ValueError("a hook")


def _hooked(registry: Registry, *, in_thread: bool, fails: bool = False) -> tuple[Any, _Called]:
    called = _Called()
    if in_thread:

        @job("hooked", registry=registry)
        class InThread(Job[int]):
            def run(self, ctx: BlockingJobContext) -> int:
                ctx.resources["gate"].pass_blocking([])
                ctx.checkpoint()
                if fails:
                    raise ValueError("the handler")
                return 1

            def on_resume(self, ctx: BlockingJobContext) -> None:
                called.note("on_resume")

            def on_pause(self, ctx: BlockingJobContext) -> None:
                called.note("on_pause")

            def on_cancel(self, ctx: BlockingJobContext) -> None:
                called.note("on_cancel")

            def on_failure(self, ctx: BlockingJobContext, failure: Any) -> None:
                called.note("on_failure", failure.message)

        return InThread(), called

    @job("hooked", registry=registry)
    class OnLoop(Job[int]):
        async def run(self, ctx: JobContext) -> int:
            await ctx.resources["gate"].pass_async([])
            await ctx.checkpoint()
            if fails:
                raise ValueError("the handler")
            return 1

        async def on_resume(self, ctx: JobContext) -> None:
            called.note("on_resume")

        async def on_pause(self, ctx: JobContext) -> None:
            called.note("on_pause")

        def on_cancel(self, ctx: BlockingJobContext) -> None:  # a sync hook of an async job runs in a thread
            called.note("on_cancel", threading.current_thread() is threading.main_thread())

        async def on_failure(self, ctx: JobContext, failure: Any) -> None:
            called.note("on_failure", failure.message)

    return OnLoop(), called


@pytest.mark.parametrize("in_thread", [False, True])
@pytest.mark.parametrize("raises", [False, True])
async def test_hooks_are_called_for_what_happened(path, gate, caplog, in_thread, raises):
    """Each hook is called once, where it belongs; one that raises is logged and changes nothing else."""
    registry = Registry()
    made, called = _hooked(registry, in_thread=in_thread)
    called.raises = raises
    async with make(path, registry=registry, resources={"gate": gate}) as manager:
        handle = await manager.dispatch(made)
        await gate.reached(1)
        await handle.pause()
        gate.let(1)
        await until_true(lambda: _is(handle, JobStatus.PAUSED))
        assert called.hooks == ["on_pause"]
        await handle.resume()
        await gate.reached(2)
        assert called.hooks == ["on_pause", "on_resume"]
        await handle.cancel()
        gate.open()
        await until_true(lambda: _is(handle, JobStatus.CANCELLED))
        assert called.hooks[2:] == ["on_cancel" if in_thread else ("on_cancel", False)]
    assert caplog.text.count("raised ValueError: a hook") == (3 if raises else 0)


@pytest.mark.parametrize("in_thread", [False, True])
@pytest.mark.parametrize("raises", [False, True])
async def test_on_failure_hears_of_the_failure(path, gate, in_thread, raises):
    """`on_failure` gets the failure that is stored, and its own exception does not take that one's place."""
    registry = Registry()
    made, called = _hooked(registry, in_thread=in_thread, fails=True)
    called.raises = raises
    gate.open()
    async with make(path, registry=registry, resources={"gate": gate}) as manager:
        handle = await manager.dispatch(made)
        await until_true(lambda: _is(handle, JobStatus.FAILED))
        assert called.hooks == [("on_failure", "the handler")]
        error = (await handle.record()).error
        assert error is not None
        assert error.message == "the handler"


async def test_on_pause_is_called_at_a_shutdown(path, gate):
    """A job that a shutdown stops is paused like any other, and hears of it."""
    registry = Registry()
    made, called = _hooked(registry, in_thread=False)
    async with make(path, registry=registry, resources={"gate": gate}) as manager:
        await manager.dispatch(made)
        await gate.reached(1)
        async with anyio.create_task_group() as group:
            group.start_soon(manager.stop)
            worker = node_of(manager).worker
            await until(lambda: any(one.stopping for one in worker.running.values()))
            gate.open()
    assert called.hooks == ["on_pause"]


async def test_on_cancel_is_called_for_a_handler_stopped_by_force(path, clock, listener):
    """A cancelled handler that had to be stopped by force still gets to clean up, with awaits, for a while."""
    registry = Registry()
    called: list[str] = []

    @job(registry=registry)
    class Forced(Job[None]):
        async def run(self, ctx: JobContext) -> None:
            WAITING.arrived += 1
            await anyio.Event().wait()

        async def on_cancel(self, ctx: JobContext) -> None:
            await checkpoint()
            called.append("on_cancel")

    given: dict[str, Any] = {"clock": clock, "threads": FakeThreads(clock)}
    async with make(path, registry=registry, observers=[listener], lease_s=10_000.0, **given) as manager:
        handle = await manager.dispatch(Forced())
        await until(lambda: WAITING.arrived)
        await handle.cancel()
        await pass_until(clock, lambda: "cancelled" in listener.told(handle.id))
    assert called == ["on_cancel"]


async def test_a_hook_may_save(path, gate):
    """G3: what `on_pause` saves is what the next attempt starts from; the interrupt it meets ends the hook alone."""
    registry = Registry()

    @job(registry=registry)
    class Saves(Job[list[str]]):
        told: list[str] = state(default_factory=list)

        async def run(self, ctx: JobContext) -> list[str]:
            await ctx.resources["gate"].pass_async([])
            await ctx.checkpoint()
            return self.told

        async def on_pause(self, ctx: JobContext) -> None:
            self.told.append("saved by on_pause")
            await ctx.checkpoint()

    async with make(path, registry=registry, resources={"gate": gate}) as manager:
        handle = await manager.dispatch(Saves())
        await gate.reached(1)
        await handle.pause()
        gate.let(1)
        await until_true(lambda: _is(handle, JobStatus.PAUSED))
        await handle.resume()
        gate.open()
        assert await handle.result(DEADLINE_S) == ["saved by on_pause"]
