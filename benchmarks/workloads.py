"""What a user has jobkit do: dispatching, draining, checkpoints, starting a handler, starting again after a death.

Default settings throughout: every commit is flushed, results and events are stored. Each function is run in a process
of its own and looks into the database afterwards: a figure counts only if the work was done. The end is heard by an
observer rather than awaited with `result()`, so that nobody's waiting is measured beside the work.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import threading
import time
import traceback
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio

from jobkit import Job, JobContext, JobManager, JobStatus, job, state

if TYPE_CHECKING:
    from jobkit.lifecycle import Transition

T = TypeVar("T")

CALLERS: Final = 200
JOBS_AT_ONCE: Final = 100
STATE_BYTES: Final = 1_000
EVERY_S: Final = 0.02
WARM_UP: Final = 10
PATIENCE_S: Final = 100.0


class Meter:
    """What handlers and the observer of a run note; all on one event loop.

    Attributes:
        begun: When each handler began.
        together: Set once all have begun.
        moved: How often the transition that is waited for was committed.
        over: Set once it was, for all.
    """

    def __init__(self, expected: int, before: JobStatus, after: JobStatus) -> None:
        self._expected, self._before, self._after = expected, before, after
        self.begun: dict[int, float] = {}
        self.together = anyio.Event()
        self.moved = 0
        self.over = anyio.Event()
        self.over_at = self.loop_s = 0.0

    def begin(self, number: int) -> None:
        """Note that a handler begins."""
        self.begun[number] = time.perf_counter()
        if len(self.begun) == self._expected:
            self.together.set()

    def hear(self, transition: Transition) -> None:
        """Observe: count what is waited for."""
        if transition.after.status is self._after and transition.before.status is self._before:
            self.moved += 1
            if self.moved == self._expected:
                self.over_at, self.loop_s = time.perf_counter(), time.thread_time()
                self.over.set()


def _completions(expected: int) -> Meter:
    return Meter(expected, JobStatus.RUNNING, JobStatus.COMPLETED)


@job("bench_noop")
class Noop(Job[int]):
    number: int

    async def run(self, _: JobContext, /) -> int:
        return self.number


@job("bench_begin")
class Begin(Job[None]):
    """Says when it begins; the first attempt may be one that never ends."""

    number: int
    hang: bool = False

    async def run(self, ctx: JobContext, /) -> None:
        meter: Meter = ctx.resources["meter"]
        meter.begin(self.number)
        if self.hang and ctx.attempt == 1:
            await anyio.sleep_forever()


@job("bench_steps")
class Steps(Job[None]):
    """Saves a state that is new in every byte, again and again, once all of its kind have begun."""

    number: int
    steps: int

    payload: bytes = state(b"")

    async def run(self, ctx: JobContext, /) -> None:
        meter: Meter = ctx.resources["meter"]
        meter.begin(self.number)
        await meter.together.wait()
        for _ in range(self.steps):
            self.payload = random.randbytes(STATE_BYTES)
            await ctx.checkpoint()


# ── dispatching: by a client, which runs nothing ──


def dispatch_one(folder: Path, size: int) -> dict[str, float]:
    """One after another, each awaited."""

    async def dispatch(manager: JobManager) -> None:
        for number in range(size):
            await manager.dispatch(Noop(number=number))

    return {"dispatch_one": size / _dispatching(folder, size, dispatch)}


def dispatch_callers(folder: Path, size: int) -> dict[str, float]:
    """Two hundred tasks that each dispatch one after another."""

    async def dispatch(manager: JobManager) -> None:
        async def caller() -> None:
            for number in range(size // CALLERS):
                await manager.dispatch(Noop(number=number))

        async with anyio.create_task_group() as group:
            for _ in range(CALLERS):
                group.start_soon(caller)

    return {"dispatch_callers": size / _dispatching(folder, size, dispatch)}


def dispatch_many(folder: Path, size: int) -> dict[str, float]:
    """All in one call; making the jobs counts too."""

    async def dispatch(manager: JobManager) -> None:
        await manager.dispatch_many(Noop(number=number) for number in range(size))

    return {"dispatch_many": size / _dispatching(folder, size, dispatch)}


def _dispatching(folder: Path, size: int, dispatch: Callable[[JobManager], Coroutine[Any, Any, None]]) -> float:
    async def main() -> float:
        async with JobManager(folder / "jobs.db", work=False) as manager:
            began = time.perf_counter()
            await dispatch(manager)
            return time.perf_counter() - began

    took = _run(main)
    _check(folder, queued=size)
    return took


# ── working ──


def drain(folder: Path, size: int) -> dict[str, float]:
    """All that is queued, by one process, from its start to the last commit."""

    async def main() -> dict[str, float]:
        async with JobManager(folder / "jobs.db", work=False) as client:
            await client.dispatch_many(Noop(number=number) for number in range(size))
        meter = _completions(size)
        began, loop_began = time.perf_counter(), time.thread_time()
        async with JobManager(folder / "jobs.db", observers=[meter.hear]):
            await meter.over.wait()
            writer_s = _writer_s()
        return {
            "drain": size / (meter.over_at - began),
            "drain_loop_us": (meter.loop_s - loop_began) / size * 1e6,
            **({} if writer_s is None else {"drain_writer_us": writer_s / size * 1e6}),
        }

    found = _run(main)
    _check(folder, completed=size)
    return found


def checkpoint_one(folder: Path, size: int) -> dict[str, float]:
    """One job that does little else."""
    return {"checkpoint_one": _checkpoints(folder, 1, size)["rate"]}


def checkpoint_hundred(folder: Path, size: int) -> dict[str, float]:
    """A hundred jobs that begin together."""
    found = _checkpoints(folder, JOBS_AT_ONCE, size // JOBS_AT_ONCE)
    return {name.replace("rate", "checkpoint_hundred"): value for name, value in found.items()}


def _checkpoints(folder: Path, jobs: int, steps: int) -> dict[str, float]:
    async def main() -> dict[str, float]:
        meter = _completions(jobs)
        async with JobManager(folder / "jobs.db", observers=[meter.hear], resources={"meter": meter}) as manager:
            await manager.dispatch_many(Steps(number=number, steps=steps) for number in range(jobs))
            await meter.together.wait()
            began, loop_began, writer_began = max(meter.begun.values()), time.thread_time(), _writer_s()
            await meter.over.wait()
            writer_over = _writer_s()
        found = {
            "rate": jobs * steps / (meter.over_at - began),
            "checkpoint_loop_us": (meter.loop_s - loop_began) / jobs / steps * 1e6,
        }
        if writer_began is not None and writer_over is not None:
            found["checkpoint_writer_us"] = (writer_over - writer_began) / jobs / steps * 1e6
        return found

    found = _run(main)
    _check(folder, completed=jobs)
    with _database(folder) as database:
        assert database.execute("SELECT DISTINCT checkpoint_seq FROM jobs").fetchall() == [(steps,)]
    return found


def latency(folder: Path, size: int) -> dict[str, float]:
    """From the call of `dispatch` to the first line of the handler, one every 20 ms."""

    async def main() -> list[float]:
        called: list[float] = []
        meter = _completions(WARM_UP + size)
        async with JobManager(folder / "jobs.db", observers=[meter.hear], resources={"meter": meter}) as manager:
            for number in range(WARM_UP + size):
                called.append(time.perf_counter())
                await manager.dispatch(Begin(number=number))
                await anyio.sleep(max(0.0, called[-1] + EVERY_S - time.perf_counter()))
            await meter.over.wait()
        return sorted(meter.begun[number] - called[number] for number in range(WARM_UP, WARM_UP + size))

    found = _run(main)
    _check(folder, completed=WARM_UP + size)
    return {"latency_p50": found[size // 2] * 1e3, "latency_p99": found[min(size - 1, size * 99 // 100)] * 1e3}


# ── starting again ──


def restart(folder: Path, size: int) -> dict[str, float]:
    """After the death of a process that ran them all: SIGKILL. Resumed, the handlers return at once."""
    _killed_owner(folder, size)
    _check(folder, running=size)

    async def main() -> dict[str, float]:
        meter = Meter(size, JobStatus.RUNNING, JobStatus.QUEUED)
        manager = JobManager(folder / "jobs.db", observers=[meter.hear], resources={"meter": meter})
        began = time.perf_counter()
        await manager.start()
        try:
            await meter.over.wait()
        finally:
            await manager.stop()
        return {"restart_first": min(meter.begun.values()) - began, "restart_all": meter.over_at - began}

    return _run(main)


def _killed_owner(folder: Path, size: int) -> None:
    """Leave behind what a killed process leaves: all jobs claimed and begun, by a life that is gone.

    It is a fork: nothing is open yet, and no thread runs.
    """
    told, tells = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            anyio.run(_own, folder, size, tells)
        finally:  # only an error leads here
            traceback.print_exc()
            os._exit(1)
    os.close(tells)
    try:
        assert os.read(told, 1), "the process that was to be killed ended before"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(told)


async def _own(folder: Path, size: int, tells: int) -> None:
    with anyio.fail_after(PATIENCE_S):
        meter = _completions(size)
        resources = {"meter": meter}
        async with JobManager(folder / "jobs.db", concurrency=size, resources=resources) as manager:
            await manager.dispatch_many(Begin(number=number, hang=True) for number in range(size))
            await meter.together.wait()
            os.write(tells, b"!")
            await anyio.sleep_forever()


# ── around ──


def _run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    async def patient() -> T:
        with anyio.fail_after(PATIENCE_S):
            return await main()

    return anyio.run(patient)


def _writer_s() -> float | None:
    """How much processor time the writer's thread has used; None where that can't be asked."""
    if not hasattr(time, "pthread_getcpuclockid"):
        return None
    (writer,) = (thread for thread in threading.enumerate() if thread.name == "jobkit writer" and thread.is_alive())
    assert writer.ident is not None
    return time.clock_gettime(time.pthread_getcpuclockid(writer.ident))


def _check(folder: Path, **expected: int) -> None:
    """A figure counts only if the work was done."""
    with _database(folder) as database:
        assert dict(database.execute("SELECT status, count(*) FROM jobs GROUP BY status").fetchall()) == expected


def _database(folder: Path) -> contextlib.closing[sqlite3.Connection]:
    return contextlib.closing(sqlite3.connect(folder / "jobs.db"))
