"""Jobs that play a script which the test has written: what a handler may tell, and when, said line by line."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jobkit import (
    BlockingJobContext,
    Job,
    JobContext,
    JobManager,
    Registry,
    SerializationError,
    StoreUnavailable,
    job,
    state,
)
from jobkit.interfaces import Change, Write
from jobkit.store import SqlStore
from tests.runtime.kit import Gate, make

SCRIPTS = Registry()

Script = Callable[[Any], Iterator[str]]
"""What a handler does: it tells what it likes, and yields what it can't do by itself.

That is `"save"`, `"try"` (to save), `"gate"` or `"stop"`.
"""


@job(registry=SCRIPTS)
class Play(Job[int]):
    """Play a script on the event loop."""

    saved: int = state(0)

    async def run(self, ctx: JobContext) -> int:
        for wish in ctx.resources["script"](ctx):
            match wish:
                case "save":
                    self.saved += 1
                    await ctx.checkpoint()
                case "try":
                    with contextlib.suppress(SerializationError):
                        await ctx.checkpoint()
                case "gate":
                    await ctx.resources["gate"].pass_async([])
                case "stop":
                    while True:
                        await ctx.check_interrupt()
        return self.saved


@job(registry=SCRIPTS)
class PlayInThread(Job[int]):
    """Play a script in a thread."""

    saved: int = state(0)

    def run(self, ctx: BlockingJobContext) -> int:
        for wish in ctx.resources["script"](ctx):
            match wish:
                case "save":
                    self.saved += 1
                    ctx.checkpoint()
                case "try":
                    with contextlib.suppress(SerializationError):
                        ctx.checkpoint()
                case "gate":
                    ctx.resources["gate"].pass_blocking([])
                case "stop":
                    while True:
                        ctx.check_interrupt()
        return self.saved


class Watched(SqlStore):
    """A database that remembers what was written, and is away when the test says so."""

    def __init__(self, path: Path, now: Any = lambda: None) -> None:
        super().__init__(f"sqlite:///{path}", now=now)
        self.away = False
        self.written: list[Change] = []

    def commit(self, batch: Sequence[Write]) -> list[Any]:
        """Commit, and remember."""
        if self.away and any(isinstance(write, Change) for write in batch):
            raise StoreUnavailable("it is away", "wait")
        answers = super().commit(batch)
        self.written += [write for write in batch if isinstance(write, Change)]
        return answers


def play(place: Any, script: Script, gate: Gate | None = None, **given: Any) -> JobManager:
    """Make a manager whose jobs play a script."""
    return make(place, registry=SCRIPTS, resources={"script": script, "gate": gate}, **given)


@contextlib.asynccontextmanager
async def playing(place: Any, script: Script, gate: Gate | None = None, **given: Any) -> AsyncIterator[JobManager]:
    """Have a manager work whose jobs play a script; none of them keeps its stop, for time may stand still."""
    async with play(place, script, gate, **given) as manager:
        try:
            yield manager
        finally:
            if gate is not None:
                gate.open()
