"""The inline executor: async handlers on the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from typing import Any

import anyio
import pytest

from jobkit import Job, JobContext, Registry, job
from jobkit.executors.inline import InlineExecutor
from jobkit.interfaces import Completed, Failed, Interrupted, Outcome
from jobkit.runtime.clock import SystemThreads
from jobkit.testing.executor_contract import DEADLINE_S, ExecutorContract, RecordingLink
from tests.executors.kit import work_for


class TestInlineExecutor(ExecutorContract):
    """The inline executor keeps the contract."""

    handlers = "async"

    @pytest.fixture
    def executor(self, contract_jobs):
        return InlineExecutor(contract_jobs, SystemThreads())


@pytest.fixture
def registry():
    """Give each test a registry of its own."""
    return Registry()


@pytest.fixture
def run(registry, tmp_path):
    """Run a job's first attempt."""

    async def play(made: Job[Any], want: Any = None) -> tuple[Outcome, RecordingLink]:
        job_type = registry.type_of(made)
        link = RecordingLink(job_type, tmp_path, {})
        link.want = want
        with anyio.fail_after(DEADLINE_S):
            outcome = await InlineExecutor(registry, SystemThreads()).run(work_for(job_type, made), link)
        return outcome, link

    return play


@pytest.mark.anyio
async def test_an_interrupt_in_a_task_group_ends_the_handler(registry, run):
    """An interrupt is found inside the groups that task groups make, and its siblings are cancelled."""
    ended = []

    @job(registry=registry)
    class Grouped(Job[int]):
        async def run(self, ctx: JobContext) -> int:
            async with anyio.create_task_group() as outer, anyio.create_task_group() as inner:
                outer.start_soon(self._wait)
                inner.start_soon(ctx.checkpoint)
            return 1

        async def _wait(self) -> None:
            try:
                await anyio.Event().wait()
            finally:
                ended.append(True)

    outcome, link = await run(Grouped(), "pause")
    assert outcome == Interrupted("pause")
    assert len(link.sealed) == 1
    assert ended == [True]


@pytest.mark.anyio
async def test_siblings_errors_beside_an_interrupt_are_logged(registry, run):
    """A sibling task that fails while it is cancelled for an interrupt does not hide the interrupt."""

    @job(registry=registry)
    class Quarrel(Job[int]):
        async def run(self, ctx: JobContext) -> int:
            async with anyio.create_task_group() as group:
                group.start_soon(self._quarrel)
                await anyio.lowlevel.checkpoint()
                await ctx.checkpoint()
            return 1

        async def _quarrel(self) -> None:
            try:
                await anyio.Event().wait()
            finally:
                raise ValueError("in cleaning up")

    outcome, link = await run(Quarrel(), "cancel")
    assert outcome == Interrupted("cancel")
    assert any("in cleaning up" in message for level, message in link.logs if level == "error")


@pytest.mark.anyio
async def test_an_interrupt_passes_shields_and_exit_stacks(registry, run):
    """Shielded scopes, nested exit stacks and `finally` let an interrupt through."""

    @job(registry=registry)
    class Nested(Job[int]):
        async def run(self, ctx: JobContext) -> int:
            async with contextlib.AsyncExitStack() as stack:
                stack.enter_context(contextlib.suppress(Exception))
                with anyio.CancelScope(shield=True), anyio.move_on_after(DEADLINE_S):
                    try:
                        await ctx.checkpoint()
                    finally:
                        await anyio.lowlevel.checkpoint()
            return 1

    outcome, _ = await run(Nested(), "shutdown")
    assert outcome == Interrupted("shutdown")


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_an_interrupt_passes_asyncios_own_task_group(registry, run):
    """On asyncio an interrupt is found in asyncio.TaskGroup too."""

    @job(registry=registry)
    class Own(Job[int]):
        async def run(self, ctx: JobContext) -> int:
            async with asyncio.TaskGroup() as group:
                group.create_task(ctx.checkpoint())
            return 1

    outcome, _ = await run(Own(), "pause")
    assert outcome == Interrupted("pause")


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_cancellation_of_the_handlers_own_is_a_failure(registry, run):
    """A handler that awaits a cancelled task has failed: its job must not stay running for ever."""

    @job(registry=registry)
    class Awaits(Job[int]):
        async def run(self, ctx: JobContext) -> int:
            task = asyncio.ensure_future(anyio.Event().wait())
            task.cancel()
            await task
            return 1

    outcome, _ = await run(Awaits())
    assert isinstance(outcome, Failed)
    assert outcome.failure.type == "CancelledError"


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_cancellation_from_outside_passes(registry, tmp_path):
    """When asyncio itself cancels the attempt's task, as a loop does that ends, the job has not failed."""
    started = asyncio.Event()

    @job(registry=registry)
    class Waits(Job[int]):
        async def run(self, ctx: JobContext) -> int:
            started.set()
            await asyncio.Event().wait()
            return 1

    job_type = registry.get("waits")
    link = RecordingLink(job_type, tmp_path, {})
    attempt = asyncio.create_task(InlineExecutor(registry, SystemThreads()).run(work_for(job_type, Waits()), link))
    with anyio.fail_after(DEADLINE_S):
        await started.wait()
        attempt.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attempt


@pytest.mark.anyio
async def test_a_time_limit_of_the_handlers_own_is_its_own(registry, run):
    """A handler's own cancel scopes and time limits mean nothing to the attempt."""

    @job(registry=registry)
    class Limited(Job[str]):
        async def run(self, ctx: JobContext) -> str:
            with anyio.move_on_after(0):
                await anyio.Event().wait()
            with anyio.fail_after(0):
                await anyio.Event().wait()
            return "not reached"

    outcome, _ = await run(Limited())
    assert isinstance(outcome, Failed)
    assert outcome.failure.type == "TimeoutError"


@pytest.mark.anyio
async def test_a_decorated_handler_is_still_async(registry, run):
    """A decorator that wraps `run` in a plain function leaves it what it is: a handler on the event loop."""

    def traced(method):
        @functools.wraps(method)
        def call(*args):
            return method(*args)

        return call

    @job(registry=registry)
    class Decorated(Job[bool]):
        @traced
        async def run(self, ctx: JobContext) -> bool:
            await ctx.checkpoint()
            return threading.current_thread() is threading.main_thread()

    outcome, _ = await run(Decorated())
    assert isinstance(outcome, Completed)
    assert outcome.shown is True


@pytest.mark.anyio
async def test_an_error_while_the_job_is_made_is_a_failure(registry, run):
    """A class whose own `model_post_init` raises fails its job: an executor always answers."""
    raising: list[bool] = []

    @job(registry=registry)
    class Brittle(Job[int]):
        def model_post_init(self, context: Any, /) -> None:
            if raising:
                raise OSError("no such device")

        async def run(self, ctx: JobContext) -> int:
            return 1

    made = Brittle()
    raising.append(True)
    outcome, _ = await run(made)
    assert isinstance(outcome, Failed)
    assert (outcome.failure.type, outcome.failure.message) == ("OSError", "no such device")


@pytest.mark.anyio
@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
async def test_what_ends_the_process_passes(registry, run, stop):
    """KeyboardInterrupt and SystemExit on the event loop are the process's: they are no outcome of a job."""

    @job(registry=registry)
    class Stops(Job[int]):
        async def run(self, ctx: JobContext) -> int:
            raise stop

    with pytest.raises(stop):
        await run(Stops())
