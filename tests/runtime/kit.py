"""What the tests of the runtime share: jobs that a test steers, a listener, and other processes played by hand."""

from __future__ import annotations

import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import anyio
from anyio.lowlevel import checkpoint

from jobkit import BlockingJobContext, Job, JobContext, JobManager, JobRecord, JobStatus, Registry, Settings, job, state
from jobkit.dispatching import check_options, new_job
from jobkit.interfaces import Change, Claim, Claimed, Insert, Life, Register, Retire
from jobkit.lifecycle import Cause, Standing, Transition, Trigger
from jobkit.model import DispatchOptions
from jobkit.runtime.node import Node
from jobkit.store import SqlStore
from jobkit.store.dialects import boot_id
from jobkit.testing import FakeClock

DEADLINE_S = 20.0
"""How long anything here may take before it counts as hanging."""

LOOK_S = 0.002
"""How often a test looks for what no event tells of."""

REGISTRY = Registry()


def node_of(manager: JobManager) -> Node:
    """What works in a manager."""
    assert manager._node is not None
    return manager._node


@job(registry=REGISTRY)
class Echo(Job[int]):
    """Give back a number."""

    n: int = 0

    async def run(self, ctx: JobContext) -> int:
        return self.n


@job(registry=REGISTRY)
class Count(Job[int]):
    """Count, saving each step."""

    n: int
    done: int = state(0)

    async def run(self, ctx: JobContext) -> int:
        while self.done < self.n:
            self.done += 1
            ctx.progress(completed=self.done, total=self.n)
            await ctx.checkpoint()
        return self.done


@job(registry=REGISTRY)
class CountInThread(Job[int]):
    """Count in a thread."""

    n: int
    done: int = state(0)

    def run(self, ctx: BlockingJobContext) -> int:
        while self.done < self.n:
            self.done += 1
            ctx.checkpoint()
        return self.done


@job(registry=REGISTRY)
class Raise(Job[int]):
    """Fail."""

    text: str = "it went wrong"

    async def run(self, ctx: JobContext) -> int:
        raise ValueError(self.text)


@job(registry=REGISTRY)
class Steps(Job[list[int]]):
    """Go one step, each saved, whenever the test says so; give back the attempts that made the steps."""

    n: int
    attempts: list[int] = state(default_factory=list)

    async def run(self, ctx: JobContext) -> list[int]:
        gate: Gate = ctx.resources["gate"]
        while len(self.attempts) < self.n:
            await gate.pass_async(self.attempts)
            self.attempts.append(ctx.attempt)
            await ctx.checkpoint()
        return self.attempts


@job(registry=REGISTRY)
class StepsInThread(Job[list[int]]):
    """The same in a thread."""

    n: int
    attempts: list[int] = state(default_factory=list)

    def run(self, ctx: BlockingJobContext) -> list[int]:
        gate: Gate = ctx.resources["gate"]
        while len(self.attempts) < self.n:
            gate.pass_blocking(self.attempts)
            self.attempts.append(ctx.attempt)
            ctx.checkpoint()
        return self.attempts


@job(registry=REGISTRY, resumable=False)
class Once(Job[int]):
    """Wait at the gate; never to be entered twice."""

    async def run(self, ctx: JobContext) -> int:
        await ctx.resources["gate"].pass_async([])
        return 1


class Gate:
    """Where handlers wait until the test lets so many of them pass. For handlers on a loop and in threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._allowed = 0
        self.arrived = 0
        self.seen: list[list[int]] = []

    def _arrive(self, state: list[int]) -> int:
        with self._changed:
            self.arrived += 1
            self.seen.append(list(state))
            return self.arrived

    async def pass_async(self, state: list[int]) -> None:
        """Wait for one's turn, on a loop."""
        turn = self._arrive(state)
        while self._allowed < turn:
            await breathe()

    def pass_blocking(self, state: list[int]) -> None:
        """Wait for one's turn, in a thread."""
        turn = self._arrive(state)
        with self._changed:
            self._changed.wait_for(lambda: self._allowed >= turn, DEADLINE_S)

    def let(self, number: int) -> None:
        """Let so many more pass."""
        with self._changed:
            self._allowed += number
            self._changed.notify_all()

    def open(self) -> None:
        """Let everybody pass from now on."""
        self.let(1_000_000)

    async def reached(self, number: int) -> None:
        """Wait until so many have come here in all."""
        await until(lambda: self.arrived >= number)


class Waiting:
    """Where handlers say that they wait, until they are told to stop or let go."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.arrived = self.cleaned = 0
        self.go = threading.Event()


WAITING = Waiting()
"""Where `Waits`, `WaitsInThread` and the deaf handlers wait."""


@job(registry=REGISTRY)
class Waits(Job[int]):
    """Ask again and again whether to stop."""

    async def run(self, ctx: JobContext) -> int:
        WAITING.arrived += 1
        while not WAITING.go.is_set():
            await ctx.check_interrupt()
        return 1


@job(registry=REGISTRY)
class WaitsInThread(Job[int]):
    """The same in a thread."""

    def run(self, ctx: BlockingJobContext) -> int:
        WAITING.arrived += 1
        while not WAITING.go.wait(0.002):
            ctx.check_interrupt()
        return 1


async def breathe() -> None:
    """Let threads have the processor for a moment."""
    with anyio.move_on_after(LOOK_S):
        await anyio.Event().wait()


async def until(condition: Callable[[], object]) -> None:
    """Wait for something that no event tells of, such as what a thread does."""
    await checkpoint()
    with anyio.fail_after(DEADLINE_S):
        while not condition():
            await breathe()


async def until_true(question: Callable[[], Any]) -> None:
    """Wait until an async question is answered with yes."""
    with anyio.fail_after(DEADLINE_S):
        while not await question():
            await breathe()


async def pass_until(clock: FakeClock, condition: Callable[[], object], step_s: float = 0.25) -> None:
    """Let fake time pass, slowly enough for threads to notice, until something has come."""

    def moved() -> object:
        if found := condition():
            return found
        clock.advance(step_s)
        return None

    await until(moved)


def until_so(condition: Callable[[], object]) -> None:
    """Do what `until` does, in a thread that may block."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(LOOK_S)


def in_thread(run: Callable[..., object], *args: Any) -> threading.Thread:
    """Run a function in a thread."""
    thread = threading.Thread(target=run, args=args, daemon=True)
    thread.start()
    return thread


def interrupt_when(condition: Callable[[], object]) -> threading.Thread:
    """Have another thread press Ctrl-C for the main one, as soon as something has come."""

    def press() -> None:
        until_so(condition)
        os.kill(os.getpid(), signal.SIGINT)

    return in_thread(press)


class Listener:
    """An observer that remembers, and can be waited for."""

    def __init__(self) -> None:
        self.heard: list[Transition] = []

    def __call__(self, transition: Transition) -> None:
        self.heard.append(transition)

    def told(self, job_id: object) -> list[str]:
        """The stored events of one job, in order."""
        return [one.event for one in self.heard if one.after.id == str(job_id) and one.event is not None]

    async def until(self, status: JobStatus, number: int = 1) -> None:
        """Wait until so many jobs came to a status."""
        await until(
            lambda: sum(one.after.status is status and one.before.status is not status for one in self.heard) >= number
        )


def make(place: Any, **given: Any) -> JobManager:
    """Make a manager with the kit's jobs and short times."""
    times = {
        name: given.pop(name)
        for name in ("lease_s", "sweep_s", "grace_s", "max_state_bytes", "max_log_bytes", "keep_checkpoints")
        if name in given
    }
    settings = Settings(**{"sweep_s": 0.1, "grace_s": 5.0, **times})
    return JobManager(place, **{"registry": REGISTRY, "settings": settings, **given})


class SeenFromAfar(SqlStore):
    """A database that is also used from other machines, where nobody can see the locks of this one's lives."""

    def hold(self, life: str) -> Any:
        """Take hold of a life's lock, which is not proof enough."""
        lock: Any = super().hold(life)
        lock.suffices = False
        return lock


def store_at(path: Path, now: Callable[[], datetime | None] = lambda: None) -> SqlStore:
    """Open the database as another process would."""
    store = SqlStore(f"sqlite:///{path}", now=now)
    store.open()
    return store


def stored(store: SqlStore, job_id: object) -> JobRecord:
    """A job as it is stored."""
    found = store.get(str(job_id))
    assert found is not None
    return found


def saved(store: SqlStore, job_id: object) -> tuple[int, bytes]:
    """A job's latest checkpoint."""
    found = store.state(str(job_id))
    assert found is not None
    return found


def one(answers: Sequence[Any]) -> Any:
    """The only answer of a batch; an error is raised."""
    (answer,) = answers
    if isinstance(answer, Exception):
        raise answer
    return answer


class OtherProcess:
    """Another process that works on the same database, played by hand, so that a test can have it die at any point."""

    def __init__(
        self,
        path: Path,
        *,
        now: Callable[[], datetime | None] = lambda: None,
        lease_s: float = 30.0,
        host: str | None = None,
        registry: Registry = REGISTRY,
    ) -> None:
        """Begin a life.

        Args:
            path: The database.
            now: The time.
            lease_s: How long its lease holds.
            host: Another machine's name, from which nothing can be proven; this one by default.
            registry: The jobs that it knows.
        """
        self.registry = registry
        self._standings: dict[str, Standing] = {}
        self.store = store_at(path, now)
        boot = boot_id() if host is None else "another boot"
        self.life = Life(str(uuid4()), "other", host or platform.node(), boot, os.getpid(), True, registry.versions())
        self._hold: Any = self.store.hold(self.life.id) if host is None else None
        one(self.store.commit([Register(self.life, lease_s)]))

    def put(self, made: Job[Any], number: int = 1, **options: Any) -> list[str]:
        """Dispatch a job several times."""
        checked = check_options(cast("DispatchOptions", options))
        new = [new_job(self.registry.type_of(made), made, str(uuid4()), checked) for _ in range(number)]
        one(self.store.commit([Insert(tuple(new))]))
        return [job.id for job in new]

    def claim(self, room: int = 1) -> list[Claimed]:
        """Start jobs."""
        found: list[Claimed] = one(
            self.store.commit([Claim(self.life.id, "other", room, self.registry.versions(), None)])
        )
        return found

    def save(self, claimed: Claimed, sealed: bytes) -> Transition:
        """Save a checkpoint."""
        expected = self._standings.get(claimed.transition.after.id, claimed.transition.after)
        found: Transition = one(
            self.store.commit([Change(expected.id, Cause(Trigger.CHECKPOINT), expected, state=sealed)])
        )
        self._standings[expected.id] = found.after
        return found

    def die(self) -> None:
        """Die as a killed process does: the kernel drops its lock, and nobody says a word."""
        if self._hold is not None:
            self._hold.close()
            self._hold = None
        self.store.close()

    def leave(self) -> None:
        """End in order."""
        one(self.store.commit([Retire(self.life.id)]))
        self.die()
