"""The processes that the crash tests kill.

Run as a script, this is a nursery: it imports jobkit once, then forks a new process for every plan that it is told,
so that a thousand deaths cost no more than a thousand forks. It starts no thread and opens no database itself, so a
fork of it is as fresh as a new interpreter. Its language is JSON, a line each way: `{"plan": {...}}` is answered by
`{"pid": 123}`, and `{"wait": 123, "within_s": 5}` by `{"status": -9}`, or by null if it still runs then. A child is not
reaped until it has been asked for, so its number can't be another's; `{"stopped": 123, "within_s": 5}` waits until it
has been stopped. With `--plan JSON` there is no nursery: one plan is carried out in this very process.

What happens is written outside the database; see `record.py`.
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
from contextlib import AsyncExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import anyio

from jobkit import BlockingJobContext, IllegalTransition, Job, JobContext, JobManager, Settings, job, state
from jobkit.points import arm
from jobkit.runtime import node, reports
from jobkit.runtime.clock import SystemClock, SystemThreads
from jobkit.store import dialects
from jobkit.store.sqlstore import SqlStore
from jobkit.testing import kill_at
from tests.crash.plans import Ask, Order, Plan
from tests.crash.record import client, effects, place

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from jobkit.interfaces import Attempt, Outcome, ThreadSignal
    from jobkit.lifecycle import Transition

sys.modules.setdefault(
    "tests.crash.children", sys.modules[__name__]
)  # to those who import it, the script is the module

PATIENCE_S = 60.0
"""After how long anything here gives up; nothing takes nearly as long unless it is broken."""

HOUR_S = 3600.0

LOOK_S = 0.001
"""How often is looked for what no event tells of."""

lingering = threading.Event()
overtaken = threading.Event()
blocked = threading.Event()
at_gate: list[str] = []
managers: list[JobManager] = []


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

    def _waits(self, ctx: Any) -> bool:
        waits = self.trap == "gate" and ctx.attempt == 1 and self.done == 2
        if waits:
            at_gate.append(self.nonce)
        return waits

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
            if self._waits(ctx):
                await anyio.to_thread.run_sync(place.pass_gate, abandon_on_cancel=True)
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
            if self._waits(ctx):
                place.pass_gate()
            while self._lingers(ctx):
                ctx.check_interrupt()
        return self._end(ctx)


KINDS: dict[str, type[Counting]] = {"Count": Count, "CountInThread": CountInThread}


def _segfault() -> None:
    ctypes.string_at(0)


def _orphans() -> None:
    """Be killed, and leave two processes behind, a program and a fork, which end when `orphans` is written."""
    left = place.folder / "orphans"
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


def _block() -> None:
    """Block the event loop for as long as the gate is shut."""
    blocked.set()
    place.pass_gate()


TRAPS: dict[str, Callable[[], object]] = {
    "linger": lambda: None,  # until it is stopped
    "stall": lambda: None,  # until another attempt has begun beside it
    "gate": lambda: None,  # until the gate is open
    "block": _block,
    "beside": partial(blocked.wait, PATIENCE_S),  # until the loop is blocked, as a thread can see
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "os._exit": partial(os._exit, 7),
    "sys.exit": partial(sys.exit, 7),
    "os.abort": os.abort,
    "segfault": _segfault,
    "orphans": _orphans,
}
"""What a handler does in its first attempt, once its second checkpoint is acknowledged."""


# ── clients ──


async def _dispatch(manager: JobManager, order: Order) -> Any:
    key = order.get("key")
    made = KINDS[order.get("kind", "Count")](
        nonce=order["nonce"], steps=order["steps"], size=order.get("size", 0), trap=order.get("trap", "")
    )
    client("intent", nonce=order["nonce"], key=key, order=order)
    handle = await manager.dispatch(made, key=key)
    client("dispatched", nonce=order["nonce"], key=key, job=str(handle.id))
    return handle


async def _ask(manager: JobManager, ask: Ask) -> None:
    """Ask something of a job, and note what was answered."""
    client("ask", **ask)
    options = {"across_restarts": True} if ask.get("across") else {}
    try:
        outcome = str(await getattr(manager, ask["request"])(ask["job"], **options))
    except IllegalTransition:
        outcome = "refused"
    told = manager._store.events(ask["job"], None, None, sys.maxsize)  # at least up to this request's own event
    client("told", **ask, outcome=outcome, seq=len(told))


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
            (place.folder / "here").write_bytes(b".")
            (place.folder / "go").read_bytes()
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


async def _left(attempt: Attempt, call_next: Callable[[], Awaitable[Outcome]]) -> Outcome:
    """Wrap each attempt: note that its handler is over, whichever way; a death alone leaves no line."""
    how = "forced"
    try:
        outcome = await call_next()
        how = type(outcome).__name__
        return outcome
    finally:
        effects("left", job=str(attempt.job_id), attempt=attempt.attempt, how=how)


def _stop_at(point: str, nth: int, waiting: int, behind: int) -> None:
    """Have this process stop itself, all its threads, when it comes to a crash point."""
    seen = 0

    def pending() -> int:
        return sum(entry.reply is not None for entry in tuple(managers[0]._writer._pending))

    def reached(name: str) -> None:
        nonlocal seen
        seen += name == point and len(at_gate) >= waiting
        if name != point or seen != nth:
            return
        if behind:
            client("holding")
            until, look = time.monotonic() + PATIENCE_S, threading.Event()
            while pending() < behind and time.monotonic() < until:
                look.wait(LOOK_S)
        # to this thread: sent to the process it would take effect when another one gets round to it
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)

    arm(reached)


async def _live(plan: Plan) -> None:
    """Do what the plan says, and stop in good order."""
    settings = Settings(
        lease_s=plan.get("lease_s", HOUR_S),
        sweep_s=plan.get("sweep_s", 5.0),
        grace_s=plan.get("grace_s", PATIENCE_S),
        durability="full" if plan.get("full") else "normal",
    )
    make = partial(
        JobManager,
        place.folder / "jobs.db",
        settings=settings,
        concurrency=plan.get("concurrency", 100),
        observers=[_finished],
        middleware=[_left],
    )
    if "dispatch" in plan or "ask" in plan:
        async with make(work=False) as manager:
            for order in plan.get("dispatch", []):
                await _dispatch(manager, order)
            for ask in plan.get("ask", []):
                await _ask(manager, ask)
    if not plan.get("work", True):
        return
    threads = Eager() if plan.get("eager") else SystemThreads()
    if plan.get("eager"):
        reports.REPORT_EVERY_S = 0.0  # type: ignore[misc]
    with anyio.open_signal_receiver(signal.SIGTERM) as told:
        async with AsyncExitStack() as stack:
            if plan.get("beside"):
                await stack.enter_async_context(make())
            manager = await stack.enter_async_context(make(threads=threads))
            managers.append(manager)
            group = await stack.enter_async_context(anyio.create_task_group())
            for number in range(plan.get("streams", 0)):
                group.start_soon(_stream, manager, number, plan.get("seed", 0))
            match plan.get("until", "idle"):
                case "idle":
                    await manager.run_until_idle(PATIENCE_S)
                case "lingering":
                    await anyio.to_thread.run_sync(lingering.wait)
                case "overtaken":
                    await anyio.to_thread.run_sync(lingering.wait)
                    async with make() as second:
                        await second.run_until_idle(PATIENCE_S)
                        await manager.run_until_idle(PATIENCE_S)
                case "told":
                    await anext(told)
                    if plan.get("beside"):
                        await manager.stop()
                        client("stopped")
                        await anext(told)
            group.cancel_scope.cancel()


def carry_out(plan: Plan) -> None:
    """Live as planned."""
    import tests.crash.hostile  # noqa: F401  more kinds of jobs, which need those here

    place.begin(Path(plan["folder"]), plan.get("pipe"), plan.get("weight", 1))
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
    if "stop" in plan:
        point, nth = plan["stop"]
        _stop_at(point, nth, plan.get("waiting", 0), plan.get("behind", 0))
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


def _stopped(pid: int, within_s: float, deaths: int) -> bool | None:
    """Wait until a child is stopped; answer False if it has ended instead."""
    until = time.monotonic() + within_s
    while True:
        found = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is not None:
            return found.si_code == os.CLD_STOPPED and os.waitid(os.P_PID, pid, os.WSTOPPED) is not None
        if not select.select([deaths], [], [], max(0.0, until - time.monotonic()))[0]:
            return None
        os.read(deaths, 4096)


async def _nothing() -> None:
    """Have an event loop loaded, for all forks to come."""


def serve() -> None:
    """Fork and wait, as told."""
    import tests.crash.hostile  # noqa: F401  loaded for all forks to come

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
            elif "stopped" in told:
                answer = {"stopped": _stopped(told["stopped"], told["within_s"], deaths)}
            else:
                answer = {"status": _wait(told["wait"], told["within_s"], deaths)}
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--plan"]:
        carry_out(json.loads(sys.argv[2]))
    else:
        serve()
