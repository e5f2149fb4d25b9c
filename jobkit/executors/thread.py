"""The thread executor: a sync handler in a thread of its own.

The whole attempt happens there, unpacking and packing included, so a blocking handler never stops the event loop. Its
checkpoints go straight from the thread to the writer: they work even while the loop is blocked. A thread can't be
stopped: when the call is cancelled it is left behind, and the link that the runner has closed keeps its word from
counting.
"""

from __future__ import annotations

import inspect
import threading
from typing import TYPE_CHECKING, Any

from anyio import from_thread
from anyio.lowlevel import current_token

from jobkit.checks import is_async
from jobkit.context import BlockingJobContext, JobContext, drive
from jobkit.executors.handler import failure_of, perform
from jobkit.executors.inline import LoopPort, ThreadPort
from jobkit.interfaces import Failed

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobkit.interfaces import Link, Outcome, Threads, Work
    from jobkit.registration import Registry


class ThreadExecutor:
    """Runs each handler in a new thread that does not keep the process alive."""

    stoppable = False

    def __init__(self, registry: Registry, threads: Threads) -> None:
        self._registry, self._threads = registry, threads

    async def run(self, work: Work, link: Link) -> Outcome:
        """Run one attempt to its end; cancelling the call leaves its thread behind."""
        token = current_token()
        turns = threading.Lock()

        async def invoke(method: Callable[..., Any], pack: Callable[[], bytes], rest: tuple[Any, ...]) -> Any:
            if is_async(method):
                return from_thread.run(method, JobContext(work, LoopPort(link), pack), *rest, token=token)
            return _plain(method(BlockingJobContext(work, ThreadPort(link), pack, turns), *rest))

        ended = left_behind = False

        def attempt() -> Outcome:
            nonlocal ended
            try:
                return drive(perform(self._registry, work, link, invoke))
            except BaseException as error:  # noqa: BLE001  the wall around a handler: sys.exit() ends a thread, no more
                return Failed(failure_of(error))
            finally:
                ended = True
                if left_behind:
                    link.log("the thread that was left behind has ended", "info", {})

        try:
            return await self._threads.run(attempt, f"jobkit {work.name} {work.job_id}")
        finally:
            if not ended:
                left_behind = True
                link.log("its thread can't be stopped and goes on; what it does now counts for nothing", "warning", {})


def _plain(result: Any) -> Any:
    """Refuse a coroutine that nobody would await."""
    if inspect.iscoroutine(result):
        result.close()
        message = f"a plain def returned the coroutine {result.__qualname__}(): make it async def"
        raise TypeError(message)
    return result
