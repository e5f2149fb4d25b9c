"""Handlers that do what no handler should: end their process again and again, or fork it.

A poison job does at each of its steps what the file `mood` says at that moment: `die` (the default), `die resuming` (in
`on_resume` alone), `save and die`, `wait` at the gate, or `behave`.
"""

from __future__ import annotations

import os
import traceback
import warnings

import anyio
from pydantic import PrivateAttr

from jobkit import BlockingJobContext, JobContext, JobManager, StoreUnavailable, job
from tests.crash.children import KINDS, TRAPS, Count, Counting
from tests.crash.record import client, place


def mood() -> str:
    """What poison is to do."""
    path = place.folder / "mood"
    return path.read_text() if path.exists() else "die"


class Poisonous(Counting):
    """Counts as others do, unless it dies of its trap before or after a step."""

    def _falls(self, when: str) -> None:
        if mood() == when:
            TRAPS[self.trap]()


@job
class Poison(Poisonous):
    """Poison on the event loop."""

    async def on_resume(self, ctx: JobContext) -> None:
        self._falls("die resuming")

    async def run(self, ctx: JobContext, /) -> list[int]:
        self._begin(ctx)
        while self.done < self.steps:
            self._falls("die")
            if mood() == "wait":
                await anyio.to_thread.run_sync(place.pass_gate, abandon_on_cancel=True)
            self._step(ctx)
            await ctx.checkpoint()
            self._saved(ctx)
            self._falls("save and die")
        return self._end(ctx)


@job
class PoisonInThread(Poisonous):
    """Poison in a thread."""

    def on_resume(self, ctx: BlockingJobContext) -> None:
        self._falls("die resuming")

    def run(self, ctx: BlockingJobContext, /) -> list[int]:
        self._begin(ctx)
        while self.done < self.steps:
            self._falls("die")
            self._step(ctx)
            ctx.checkpoint()
            self._saved(ctx)
            self._falls("save and die")
        return self._end(ctx)


def _fallen() -> bool:
    TRAPS["SIGKILL"]() if mood() == "die loading" else None
    return False


@job
class PoisonedAtLoading(Count):
    """Counts on the event loop; in a bad mood it ends its process before any code of its own handler is reached."""

    _fallen: bool = PrivateAttr(default_factory=_fallen)


def _fork() -> None:
    """Fork beside a working manager; what the child comes to is written to the client's log."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from 3.12 on: it forks beside threads, which is the point
        child = os.fork()
    if child == 0:
        code = 1
        try:
            anyio.run(_in_child)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    client("forked", code=os.waitstatus_to_exitcode(status))


async def _in_child() -> None:
    """Try to work on the parent's database: with a manager of its own, since the other one can't have crossed."""
    try:
        async with JobManager(place.folder / "jobs.db"):
            client("child", told="nothing")
    except StoreUnavailable as refused:
        client("child", told=str(refused))


TRAPS["fork"] = _fork
KINDS |= {"Poison": Poison, "PoisonInThread": PoisonInThread, "PoisonedAtLoading": PoisonedAtLoading}
