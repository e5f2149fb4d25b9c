"""The inline executor: an async handler on the manager's own event loop.

The cheapest place and the usual one. A sync hook of an async job runs in a thread, with the blocking view.
"""

from __future__ import annotations

import asyncio
import math
import threading
from typing import TYPE_CHECKING, Any, Final

from anyio import current_effective_deadline, move_on_after
from anyio.lowlevel import checkpoint

from jobkit.checks import is_async
from jobkit.context import BlockingJobContext, JobContext
from jobkit.executors.handler import perform

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from jobkit.flow import JobSide
    from jobkit.interfaces import InterruptKind, Link, NewJob, Outcome, Question, Suspension, Threads, Transaction, Work
    from jobkit.model import Json, Progress
    from jobkit.registration import Registry


LAST_WORDS_S: Final = 2.0
"""How long the hook of a handler that was stopped by force may take."""


class LoopPort:
    """A context's way out on the event loop: it suspends."""

    __slots__ = ("_link",)

    def __init__(self, link: Link) -> None:
        self._link = link

    async def save(self, state: bytes, spawns: Sequence[NewJob] = ()) -> None:
        """Save a sealed state; see `Port`."""
        await self._link.save(state, spawns)

    async def ask(self, question: Question) -> Any:
        """Look something up."""
        return await self._link.ask(question)

    def now(self) -> datetime:
        """The database's time."""
        return self._link.now()

    def new_id(self) -> str:
        """An id for a new job."""
        return self._link.new_id()

    def handle(self, job_id: str, name: str) -> Any:
        """A handle of a job."""
        return self._link.handle(job_id, name)

    def save_within(self, transaction: Transaction, state: bytes) -> None:
        """Save a sealed state in the user's transaction."""
        self._link.save_within(transaction, state)

    def suspend(self, suspension: Suspension) -> None:
        """Pass a suspension on."""
        self._link.suspend(suspension)

    async def breathe(self) -> None:
        """Let the loop go round once."""
        await checkpoint()

    def due(self) -> InterruptKind | None:
        """Why the handler should stop, if it should."""
        return self._link.due()

    def report(self, progress: Progress) -> None:
        """Pass progress on."""
        self._link.report(progress)

    def log(self, message: str, level: str, fields: Mapping[str, Json]) -> None:
        """Pass a line for the job's log on."""
        self._link.log(message, level, fields)

    def folder(self, *, of_attempt: bool) -> Path:
        """Make a folder."""
        return self._link.folder(of_attempt=of_attempt)

    @property
    def resources(self) -> Mapping[str, Any]:
        """What the application gave its manager."""
        return self._link.resources


class ThreadPort(LoopPort):
    """A context's way out in a thread: it blocks, and its coroutines never suspend."""

    __slots__ = ()

    async def save(self, state: bytes, spawns: Sequence[NewJob] = ()) -> None:
        """Save a sealed state, and block until that is done."""
        self._link.save_blocking(state, spawns)

    async def ask(self, question: Question) -> Any:
        """Look something up, and block until it is found."""
        return self._link.ask_blocking(question)

    async def breathe(self) -> None:
        """A thread shares its processor by itself."""


class InlineExecutor:
    """Runs handlers on the event loop of whoever calls `run`."""

    stoppable = True

    def __init__(self, registry: Registry, threads: Threads) -> None:
        self._registry, self._threads = registry, threads

    async def run(self, work: Work, link: Link) -> Outcome:
        """Run one attempt to its end; cancelling the call cancels the handler."""
        turns = threading.Lock()

        async def call(method: Callable[..., Any], side: JobSide, rest: tuple[Any, ...]) -> Any:
            if is_async(method):
                return await method(JobContext(work, LoopPort(link), side), *rest)
            view = BlockingJobContext(work, ThreadPort(link), side, turns)
            return await self._threads.run(lambda: method(view, *rest), f"jobkit {work.name} {work.job_id}")

        async def invoke(method: Callable[..., Any], side: JobSide, rest: tuple[Any, ...]) -> Any:
            if not _stopped():
                return await call(method, side, rest)
            with move_on_after(LAST_WORDS_S, shield=True):  # a hook of a handler that was stopped by force
                return await call(method, side, rest)

        return await perform(self._registry, work, link, invoke, _stopped)


def _stopped() -> bool:
    """Whether this task is being cancelled: by a scope around it or, on asyncio, from outside."""
    if current_effective_deadline() == -math.inf:
        return True
    try:
        task = asyncio.current_task()
    except RuntimeError:  # another loop, which knows scopes alone
        return False
    return task is not None and task.cancelling() > 0
