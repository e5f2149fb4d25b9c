"""The processes that the crash tests kill.

Run as a script, this is a nursery: it imports jobkit once, then forks a new process for every plan that it is told,
so that a thousand deaths cost no more than a thousand forks. It starts no thread and opens no database itself, so a
fork of it is as fresh as a new interpreter. Its language is JSON, a line each way: `{"plan": {...}}` is answered by
`{"pid": 123}`, and `{"wait": 123, "within_s": 5}` by `{"status": -9}`, or by null if it still runs then. A child is not
reaped until it has been asked for, so its number can't be another's. With `--plan JSON` there is no nursery: one plan
is carried out in this very process.

What happens is written outside the database: handlers write to `effects.log`, dispatchers to `client.log`, each line
with one `os.write` to a file opened with O_APPEND, so that a line is whole or missing and lines stand in the order in
which things happened, over all processes. What jobkit has promised by returning is written after it has returned.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import anyio

from jobkit import BlockingJobContext, Job, JobContext, JobManager, Settings, job, state
from jobkit.runtime import node
from jobkit.runtime.clock import SystemClock, SystemThreads
from jobkit.store import dialects
from jobkit.store.sqlstore import SqlStore
from jobkit.testing import kill_at
from tests.crash.plans import Order, Plan

if TYPE_CHECKING:
    from jobkit.interfaces import ThreadSignal
    from jobkit.lifecycle import Transition

PATIENCE_S = 60.0
"""After how long anything here gives up; nothing takes nearly as long unless it is broken."""

HOUR_S = 3600.0


# ── logs ──


class Log:
    """Lines that outlive the process."""

    def __init__(self, path: Path, pipe: int | None, weight: int) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._pipe, self._told = pipe, b"." * weight

    def __call__(self, what: str, **facts: object) -> None:
        """Write a line."""
        os.write(self._file, json.dumps({"what": what, **facts}).encode() + b"\n")
        if self._pipe is not None:
            try:
                os.write(self._pipe, self._told)
            except BrokenPipeError:  # nobody listens any more
                self._pipe = None


def _open(pipe: str) -> int | None:
    """Open a pipe for writing; None if nobody listens."""
    try:
        opened = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return None
    os.set_blocking(opened, True)
    return opened


folder: Path
effects: Log
client: Log
lingering = threading.Event()
overtaken = threading.Event()


# ── handlers ──


class Counting(Job[list[int]]):
    """Counts to `steps`, and remembers by which attempt each step was done: its output.

    `pad` is what a state of some size looks like after so many steps: a state put together of two would show.
    """

    nonce: str
    steps: int
    size: int = 0
    trap: str = ""

    done: int = state(0)
    trail: list[int] = state(default_factory=list)
    pad: bytes = state(b"")

    def _begin(self, ctx: Any) -> None:
        whole = len(self.trail) == self.done and self.pad == _pad(self.done, self.size)
        effects("begin", job=str(ctx.id), attempt=ctx.attempt, at=self.done, whole=whole)
        if ctx.attempt > 1:
            overtaken.set()

    def _step(self, ctx: Any) -> None:
        effects("step", job=str(ctx.id), attempt=ctx.attempt, step=self.done + 1)
        self.done += 1
        self.trail.append(ctx.attempt)
        self.pad = _pad(self.done, self.size)
        ctx.progress(completed=self.done, total=self.steps)

    def _saved(self, ctx: Any) -> None:
        effects("saved", job=str(ctx.id), attempt=ctx.attempt, step=self.done)
        if self.trap and ctx.attempt == 1 and self.done == 2:
            TRAPS[self.trap]()

    def _lingers(self, ctx: Any) -> bool:
        if self.trap not in {"linger", "stall"} or ctx.attempt > 1 or self.done != 2:
            return False
        lingering.set()
        return not (self.trap == "stall" and overtaken.is_set())

    def _end(self, ctx: Any) -> list[int]:
        effects("end", job=str(ctx.id), attempt=ctx.attempt)
        return self.trail


def _pad(done: int, size: int) -> bytes:
    return bytes([done % 256]) * size if done else b""


@job
class Count(Counting):
    """Counts on the event loop."""

    async def run(self, ctx: JobContext, /) -> list[int]:
        self._begin(ctx)
        while self.done < self.steps:
            self._step(ctx)
            await ctx.checkpoint()
            self._saved(ctx)
            while self._lingers(ctx):
                await ctx.check_interrupt()
        return self._end(ctx)


@job
class CountInThread(Counting):
    """Counts in a thread."""

    def run(self, ctx: BlockingJobContext, /) -> list[int]:
        self._begin(ctx)
        while self.done < self.steps:
            self._step(ctx)
            ctx.checkpoint()
            self._saved(ctx)
            while self._lingers(ctx):
                ctx.check_interrupt()
        return self._end(ctx)


KINDS: dict[str, type[Counting]] = {"Count": Count, "CountInThread": CountInThread}


def _segfault() -> None:
    ctypes.string_at(0)


def _orphans() -> None:
    """Be killed, and leave two processes behind, a program and a fork, which end when `orphans` is written."""
    left = folder / "orphans"
    program = subprocess.Popen(["cat", left])
    readable, writable = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from 3.12 on: it forks beside threads, which is the point
        forked = os.fork()
    if forked == 0:
        os.write(writable, b".")
        left.read_bytes()
        os._exit(0)
    os.read(readable, 1)
    assert program.returncode is None
    os.kill(os.getpid(), signal.SIGKILL)


TRAPS: dict[str, Callable[[], object]] = {
    "linger": lambda: None,  # until it is stopped
    "stall": lambda: None,  # until another attempt has begun beside it
    "os._exit": partial(os._exit, 7),
    "sys.exit": partial(sys.exit, 7),
    "os.abort": os.abort,
    "segfault": _segfault,
    "orphans": _orphans,
}
"""What a handler does in its first attempt, once its second checkpoint is acknowledged."""


# ── dispatchers ──


async def _dispatch(manager: JobManager, order: Order) -> Any:
    key = order.get("key")
    made = KINDS[order.get("kind", "Count")](
        nonce=order["nonce"], steps=order["steps"], size=order.get("size", 0), trap=order.get("trap", "")
    )
    client("intent", nonce=order["nonce"], key=key, order=order)
    handle = await manager.dispatch(made, key=key)
    client("dispatched", nonce=order["nonce"], key=key, job=str(handle.id))
    return handle


async def _stream(manager: JobManager, number: int, seed: int) -> None:
    """Dispatch one job after another; every other one has a key, every other one runs in a thread."""
    count = 0
    while True:
        count += 1
        nonce = f"{seed}-{number}-{count}"
        order = Order(
            nonce=nonce,
            kind=("Count", "CountInThread")[(number + count) % 2],
            key=f"key {nonce}" if count % 2 else None,
            steps=1 + (seed + count) % 5,
            size=(0, 0, 0, 20_000)[(number + count) % 4],
        )
        handle = await _dispatch(manager, order)
        client("result", nonce=nonce, job=str(handle.id), result=await handle.result(PATIENCE_S))


# ── the life of a child ──


class Eager(SystemThreads):
    """Threads for which the time between two renewals of a lease passes at once."""

    def wait(self, signal: ThreadSignal, seconds: float) -> bool:
        """Wait for next to nothing where a lease waits."""
        return signal.wait(0.02 if seconds > HOUR_S / 4 else seconds)


def _held_up(kind: str) -> None:
    """Wait before the first transaction with a write of this kind, as a slow process would: see `Arena.held_up`."""
    honest, waits = SqlStore._apply, True

    def apply(self: SqlStore, batch: Any, points: set[str], how: Any) -> list[Any]:
        nonlocal waits
        if waits and kind in points:
            waits = False
            (folder / "here").write_bytes(b".")
            (folder / "go").read_bytes()
        return honest(self, batch, points, how)

    SqlStore._apply = apply  # type: ignore[method-assign]


def _set_clock(ahead_s: float) -> None:
    """Have this process's own clock go wrong: all of it that jobkit ever looks at."""
    right = time.time_ns
    time.time_ns = lambda: right() + int(ahead_s * 1e9)
    SystemClock.wall = lambda self: datetime.now(UTC) + timedelta(seconds=ahead_s)  # type: ignore[method-assign]  # noqa: ARG005


def _finished(transition: Transition) -> None:
    """Observe: note each end that was committed."""
    after = transition.after
    if after.status.terminal and not transition.before.status.terminal:
        effects("finished", job=after.id, attempt=after.attempt, status=str(after.status))


async def _live(plan: Plan) -> None:
    """Do what the plan says, and stop in good order."""
    # The lease holds for an hour: only the proof by the lock lets somebody else have this life's jobs in time.
    settings = Settings(
        lease_s=HOUR_S,
        sweep_s=plan.get("sweep_s", 5.0),
        grace_s=PATIENCE_S,
        durability="full" if plan.get("full") else "normal",
    )
    make = partial(JobManager, folder / "jobs.db", settings=settings, concurrency=plan.get("concurrency", 100))
    if orders := plan.get("dispatch"):
        async with make(work=False) as manager:
            for order in orders:
                await _dispatch(manager, order)
    if not plan.get("work", True):
        return
    threads = Eager() if plan.get("eager") else SystemThreads()
    with anyio.open_signal_receiver(signal.SIGTERM) as told:
        async with make(observers=[_finished], threads=threads) as manager, anyio.create_task_group() as group:
            for number in range(plan.get("streams", 0)):
                group.start_soon(_stream, manager, number, plan.get("seed", 0))
            match plan.get("until", "idle"):
                case "idle":
                    await manager.run_until_idle(PATIENCE_S)
                case "lingering":
                    await anyio.to_thread.run_sync(lingering.wait)
                case "overtaken":
                    await anyio.to_thread.run_sync(lingering.wait)
                    async with make(observers=[_finished]) as second:
                        await second.run_until_idle(PATIENCE_S)
                        await manager.run_until_idle(PATIENCE_S)
                case "told":
                    await anext(told)
            group.cancel_scope.cancel()


def carry_out(plan: Plan) -> None:
    """Live as planned."""
    global folder, effects, client  # noqa: PLW0603  one of each in a process
    folder = Path(plan["folder"])
    pipe = _open(plan["pipe"]) if "pipe" in plan else None
    effects = Log(folder / "effects.log", pipe, plan.get("weight", 1))
    client = Log(folder / "client.log", pipe, plan.get("weight", 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if "upkeep" in plan:
        dialects.WAL_CHECKPOINT_ROWS, dialects.WAL_TRUNCATE_BYTES = plan["upkeep"]  # type: ignore[misc]
    if "boot" in plan:
        dialects.boot_id = node.boot_id = lambda: plan["boot"]  # type: ignore[attr-defined]
    if "held_up" in plan:
        _held_up(plan["held_up"])
    if "ahead_s" in plan:
        _set_clock(plan["ahead_s"])
    if "fault" in plan:
        from tests.crash.faults import FAULTS

        FAULTS[plan["fault"]]()
    if "kill" in plan:
        point, nth = plan["kill"]
        kill_at(point, nth=nth)
    anyio.run(_live, plan, backend=plan.get("backend", "asyncio"))


# ── the nursery ──


def _born(plan: Plan) -> NoReturn:
    """Live in a fork: its own output goes to a file, and it never returns to the nursery."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        said = os.open(Path(plan["folder"]) / "said.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(said, 1)
        os.dup2(said, 2)
        carry_out(plan)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


@contextmanager
def _deaths() -> Iterator[int]:
    """A file descriptor that becomes readable when a child dies."""
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    os.set_blocking(readable, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    yield readable


def _wait(pid: int, within_s: float, deaths: int) -> int | None:
    """Wait for a child's end; answer its exit code, or minus the number of the signal that ended it."""
    until = time.monotonic() + within_s
    while True:
        reaped, status = os.waitpid(pid, os.WNOHANG)
        if reaped:
            return os.waitstatus_to_exitcode(status)
        if not select.select([deaths], [], [], max(0.0, until - time.monotonic()))[0]:
            return None
        os.read(deaths, 4096)


async def _nothing() -> None:
    """Have an event loop loaded, for all forks to come."""


def serve() -> None:
    """Fork and wait, as told."""
    for backend in ("asyncio", "trio"):
        anyio.run(_nothing, backend=backend)
    with _deaths() as deaths:
        while line := sys.stdin.readline():
            told = json.loads(line)
            if "plan" in told:
                pid = os.fork()
                if pid == 0:
                    _born(told["plan"])
                answer: dict[str, Any] = {"pid": pid}
            else:
                answer = {"status": _wait(told["wait"], told["within_s"], deaths)}
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--plan"]:
        carry_out(json.loads(sys.argv[2]))
    else:
        serve()
