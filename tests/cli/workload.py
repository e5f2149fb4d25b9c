"""The jobs of the application that the tests' workers import. None of them does anything but wait and count."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

from jobkit import BlockingJobContext, Job, JobContext, job, state


@job("cli_steps")
class Steps(Job[list[int]]):
    """Save one checkpoint after another until a file is there; answer where each attempt began."""

    gate: Path
    done: int = state(0)
    begun: list[int] = state(default_factory=list)

    async def run(self, ctx: JobContext) -> list[int]:
        self.begun.append(self.done)
        while not self.gate.exists():
            self.done += 1
            ctx.progress(completed=self.done, unit="steps", message=f"step {self.done}")
            await ctx.checkpoint()
        return self.begun


@job("cli_steps_in_thread")
class StepsInThread(Job[list[int]]):
    """The same in a thread."""

    gate: Path
    done: int = state(0)
    begun: list[int] = state(default_factory=list)

    def run(self, ctx: BlockingJobContext) -> list[int]:
        self.begun.append(self.done)
        while not self.gate.exists():
            self.done += 1
            ctx.progress(completed=self.done, unit="steps", message=f"step {self.done}")
            ctx.checkpoint()
        return self.begun


@job("cli_stuck_thread")
class StuckThread(Job[None]):
    """Never come to a checkpoint, in a thread that can't be stopped."""

    def run(self, ctx: BlockingJobContext) -> None:
        threading.Event().wait()


@job("cli_stuck_behind")
class StuckBehind(Job[None]):
    """Never come to a checkpoint; what is cancelled leaves a thread behind that Python waits for when it ends."""

    async def run(self, ctx: JobContext) -> None:
        await asyncio.to_thread(threading.Event().wait)


@job("cli_stuck_loop")
class StuckLoop(Job[None]):
    """Block the event loop for good."""

    async def run(self, ctx: JobContext) -> None:
        threading.Event().wait()


@job("cli_echo")
class Echo(Job[str]):
    """Give back a word."""

    word: str = ""

    async def run(self, ctx: JobContext) -> str:
        return self.word


@job("cli_fail")
class Fail(Job[None]):
    """Fail."""

    async def run(self, ctx: JobContext) -> None:
        raise LookupError("no such street")
