"""The thread executor: sync handlers, each in a thread of its own."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from jobkit import BlockingJobContext, Job, Registry, job, state
from jobkit.executors.thread import ThreadExecutor
from jobkit.interfaces import Completed, Failed, Outcome
from jobkit.runtime.clock import SystemThreads
from jobkit.testing.executor_contract import DEADLINE_S, ExecutorContract, RecordingLink
from tests.executors.kit import work_for


class TestThreadExecutor(ExecutorContract):
    """The thread executor keeps the contract."""

    handlers = "sync"
    stops = False

    @pytest.fixture
    def executor(self, contract_jobs):
        return ThreadExecutor(contract_jobs, SystemThreads())


@pytest.fixture
def registry():
    """Give each test a registry of its own."""
    return Registry()


@pytest.fixture
def run(registry, tmp_path):
    """Run a job's first attempt."""

    async def play(made: Job[Any]) -> tuple[Outcome, RecordingLink]:
        job_type = registry.type_of(made)
        link = RecordingLink(job_type, tmp_path, {})
        with anyio.fail_after(DEADLINE_S):
            outcome = await ThreadExecutor(registry, SystemThreads()).run(work_for(job_type, made), link)
        return outcome, link

    return play


@pytest.mark.anyio
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
async def test_a_sync_handler_may_run_a_loop_of_its_own(registry, run, backend):
    """A sync handler's thread runs no loop as far as anybody can tell, so the handler may run one there."""

    async def inner() -> int:
        await checkpoint()
        return 7

    @job(registry=registry)
    class Runs(Job[int]):
        def run(self, ctx: BlockingJobContext) -> int:
            return anyio.run(inner, backend=backend)

    outcome, _ = await run(Runs())
    assert isinstance(outcome, Completed), outcome


@pytest.mark.anyio
@pytest.mark.parametrize("stop", [SystemExit, KeyboardInterrupt, GeneratorExit])
async def test_what_would_end_a_process_ends_a_thread_alone(registry, run, stop):
    """sys.exit() in a sync handler fails its job and nothing else."""

    @job(registry=registry)
    class Exits(Job[int]):
        def run(self, ctx: BlockingJobContext) -> int:
            if stop is SystemExit:
                sys.exit(3)
            raise stop

    outcome, _ = await run(Exits())
    assert isinstance(outcome, Failed)
    assert outcome.failure.type == stop.__name__


@pytest.mark.anyio
async def test_each_handler_has_a_thread_of_its_own(registry, run):
    """Sync handlers are not queued behind a pool: a hundred of them can wait for each other."""
    barrier = threading.Barrier(100)

    @job(registry=registry)
    class Meets(Job[bool]):
        def run(self, ctx: BlockingJobContext) -> bool:
            barrier.wait(DEADLINE_S)
            return threading.current_thread().daemon

    outcomes = []

    async def one() -> None:
        outcomes.append((await run(Meets()))[0])

    async with anyio.create_task_group() as group:
        for _ in range(100):
            group.start_soon(one)
    assert [one.shown for one in outcomes if isinstance(one, Completed)] == [True] * 100


@pytest.mark.anyio
async def test_a_coroutine_that_nobody_awaits_is_told(registry, run):
    """A plain def that returns a coroutine is a mistake with a clear message, not a silent loss."""

    @job(registry=registry)
    class Forgot(Job[int]):
        def run(self, ctx: BlockingJobContext) -> Any:
            return self._work()

        async def _work(self) -> int:
            return 1

    outcome, _ = await run(Forgot())
    assert isinstance(outcome, Failed)
    assert outcome.failure.type == "TypeError"
    assert "async def" in outcome.failure.message


@pytest.mark.anyio
async def test_threads_of_one_handler_take_turns_at_checkpoints(registry, tmp_path):
    """G3: of two threads of one handler, a state that was packed later is never saved earlier."""

    @job(registry=registry)
    class Crowd(Job[int]):
        done: int = state(0)

        def run(self, ctx: BlockingJobContext) -> int:
            lock = threading.Lock()

            def work(_: int) -> None:
                for _ in range(50):
                    with lock:
                        self.done += 1
                    ctx.checkpoint()

            with ThreadPoolExecutor(8) as pool:
                list(pool.map(work, range(8)))
            return self.done

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        job_type = registry.get("crowd")
        link = RecordingLink(job_type, tmp_path, {})
        with anyio.fail_after(DEADLINE_S):
            await ThreadExecutor(registry, SystemThreads()).run(work_for(job_type, Crowd()), link)
    finally:
        sys.setswitchinterval(interval)
    params = job_type.pack_params(Crowd())
    from jobkit.envelope import unseal

    saved = [job_type.restore(params, unseal(one).state).done for one in link.sealed]
    assert len(saved) == 400
    assert saved == sorted(saved)
    assert saved[-1] == 400
