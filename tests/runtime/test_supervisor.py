"""Handlers that don't listen: their grace, and what is done to them after it."""

from __future__ import annotations

from typing import Any, Final

import anyio
import pytest
from anyio.lowlevel import checkpoint

from jobkit import (
    BlockingJobContext,
    Job,
    JobContext,
    JobStatus,
    job,
    state,
)
from jobkit.testing import FakeClock, FakeThreads
from tests.runtime.kit import (
    DEADLINE_S,
    REGISTRY,
    WAITING,
    Steps,
    StepsInThread,
    make,
    node_of,
    pass_until,
    until,
)

pytestmark = pytest.mark.anyio

STOPPABLE: Final = pytest.mark.parametrize("kind", [Steps, StepsInThread])


@job(registry=REGISTRY)
class Deaf(Job[int]):
    """Save once, then never ask whether to stop."""

    shielded: bool = False
    done: int = state(0)

    async def run(self, ctx: JobContext) -> int:
        if self.done == 0:
            self.done = 1
            await ctx.checkpoint()
        WAITING.arrived += 1
        try:
            with anyio.CancelScope(shield=self.shielded):
                while not WAITING.go.is_set():
                    await checkpoint()
        finally:
            WAITING.cleaned += 1
        return self.done


@job(registry=REGISTRY)
class DeafInThread(Job[int]):
    """The same in a thread; a checkpoint comes when it is let go."""

    done: int = state(0)

    def run(self, ctx: BlockingJobContext) -> int:
        WAITING.arrived += 1
        WAITING.go.wait(DEADLINE_S)
        self.done += 1
        try:
            ctx.checkpoint()
        finally:
            WAITING.cleaned += 1
        return self.done


GRACE_S: Final = 7.0


def _patiently(path, clock: FakeClock, **given: Any) -> Any:
    return make(path, clock=clock, threads=FakeThreads(clock), grace_s=GRACE_S, lease_s=10_000.0, **given)


@pytest.mark.parametrize("wish", ["pause", "cancel"])
async def test_a_deaf_coroutine_is_stopped_after_the_grace(path, clock, listener, wish):
    """G7, G8: its scope is cancelled when the grace is over and not before; its job is at its last checkpoint."""
    async with _patiently(path, clock, observers=[listener]) as manager:
        handle = await manager.dispatch(Deaf())
        await until(lambda: WAITING.arrived)
        await getattr(handle, wish)()
        asked_at = clock.monotonic()
        await pass_until(clock, lambda: WAITING.cleaned)
        assert GRACE_S <= clock.monotonic() - asked_at <= GRACE_S + 1
        ended = {"pause": JobStatus.PAUSED, "cancel": JobStatus.CANCELLED}[wish]
        await listener.until(ended)
        assert (await handle.record()).checkpoint_seq == 1
        if wish == "pause":
            WAITING.go.set()
            await handle.resume()
            assert await handle.result(DEADLINE_S) == 1


async def test_a_coroutine_that_can_not_be_stopped_is_left_behind_when_cancelled(path, clock, listener, caplog):
    """G7: even a shielded handler can't keep its job from being cancelled, and what it does then counts for nothing."""
    async with _patiently(path, clock, observers=[listener]) as manager:
        handle = await manager.dispatch(Deaf(shielded=True))
        await until(lambda: WAITING.arrived)
        await handle.cancel()
        await pass_until(clock, lambda: "cancelled" in listener.told(handle.id))
        assert WAITING.cleaned == 0
        assert "can't be stopped" in caplog.text
        WAITING.go.set()
        await until(lambda: WAITING.cleaned)
        assert await handle.status() is JobStatus.CANCELLED


async def test_a_deaf_thread_is_left_behind_when_cancelled(path, clock, listener, caplog):
    """G7: a thread can't be stopped: it is fenced off after the grace, its job ends cancelled, and its end is told."""
    caplog.set_level("INFO")
    async with _patiently(path, clock, observers=[listener]) as manager:
        handle = await manager.dispatch(DeafInThread())
        await until(lambda: WAITING.arrived)
        await handle.cancel()
        asked_at = clock.monotonic()
        await pass_until(clock, lambda: "cancelled" in listener.told(handle.id))
        assert clock.monotonic() - asked_at >= GRACE_S
        assert "can't be stopped" in caplog.text
        WAITING.go.set()
        await until(lambda: "has ended" in caplog.text)
        assert WAITING.cleaned == 1
        record = await handle.record()
        assert (record.status, record.checkpoint_seq, record.output) == (JobStatus.CANCELLED, 0, None)
        assert not node_of(manager).worker.running


async def test_a_deaf_thread_is_paused_whenever_it_comes_to_a_checkpoint(path, clock, listener, caplog):
    """G8: a pause stays wanted of a thread that doesn't listen, for as long as it takes, and is told once."""
    async with _patiently(path, clock, observers=[listener]) as manager:
        handle = await manager.dispatch(DeafInThread())
        await until(lambda: WAITING.arrived)
        await handle.pause()
        await pass_until(clock, lambda: clock.monotonic() > 10 * GRACE_S)
        assert ((await handle.record()).status, (await handle.record()).wanted) == (JobStatus.RUNNING, "pause")
        assert caplog.text.count("ignores the pause") == 1
        WAITING.go.set()
        await listener.until(JobStatus.PAUSED)
        assert (await handle.record()).checkpoint_seq == 1


async def test_a_cancel_has_a_grace_of_its_own(path, clock, listener):
    """G7: a handler that was asked to pause, and is then cancelled, gets the whole grace to do that."""
    async with _patiently(path, clock, observers=[listener]) as manager:
        handle = await manager.dispatch(Deaf())
        await until(lambda: WAITING.arrived)
        await handle.pause()
        await pass_until(clock, lambda: clock.monotonic() > GRACE_S - 1)
        await handle.cancel()
        asked_at = clock.monotonic()
        await pass_until(clock, lambda: "cancelled" in listener.told(handle.id))
        assert clock.monotonic() - asked_at >= GRACE_S


async def test_a_pause_that_was_taken_back_forces_nobody(path, clock, listener):
    """G8: the grace of a pause that is no longer wanted never ends a handler."""
    async with _patiently(path, clock, observers=[listener]) as manager:
        handle = await manager.dispatch(Deaf())
        await until(lambda: WAITING.arrived)
        await handle.pause()
        await pass_until(clock, lambda: clock.monotonic() > GRACE_S - 1)
        await handle.resume()
        await pass_until(clock, lambda: clock.monotonic() > 3 * GRACE_S)
        assert WAITING.cleaned == 0
        WAITING.go.set()
        assert await handle.result(DEADLINE_S) == 1
        assert (await handle.record()).attempt == 1
