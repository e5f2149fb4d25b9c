"""The portal: an event loop in a thread of its own, on which threads that block have coroutines run.

anyio has a portal too. This one takes a single turn of the loop for each call instead of two, takes a call back when
its caller leaves at any moment (Ctrl-C), and knows the three places from which a call could never be answered: the
loop's own thread, a process that was forked meanwhile, and a loop that has ended. There it is refused.

Invariants: a call is answered, refused or taken back, whatever becomes of the loop; in a forked child nothing of the
parent's is touched, not even a lock.
"""

from __future__ import annotations

import logging
import os
import threading
from concurrent.futures import CancelledError, Future
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio

from jobkit.errors import ManagerNotRunning
from jobkit.runtime.loops import Loop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

R = TypeVar("R")

log: logging.Logger = logging.getLogger("jobkit")

LEFT_BEHIND_S: Final = 1.0
"""How long to wait for the thread to end; only what can't be stopped keeps it longer, and it is left behind."""


class Portal:
    """One loop, from `open` to `close`; asyncio, since that is what handlers of sync programs are written for."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._calls: set[Future[Any]] = set()
        self._open = False
        # In an empty context: what the loop has set in its own is told from what its callers have set in theirs.
        self._thread = threading.Thread(target=Context().run, args=(self._run,), name="jobkit", daemon=True)
        self._opened: Future[None] = Future()

    @property
    def here(self) -> bool:
        """Whether this is the loop's own thread."""
        return self._thread.ident == threading.get_ident() and not self.inherited

    @property
    def inherited(self) -> bool:
        """Whether this process was forked from the one whose loop it is: there is no such thread here."""
        return self._pid != os.getpid()

    def check(self) -> None:
        """Raise an error where a call could not be answered.

        Raises:
            ManagerNotRunning: This process was forked after the portal had been opened.
            RuntimeError: This is the loop's own thread.
        """
        if self.inherited:
            raise ManagerNotRunning(
                f"the manager was started in process {self._pid}, before this one was forked from it",
                "start one in each worker, after the fork: in gunicorn's post_fork, in a function under uWSGI's "
                "@postfork, or at the first request; it may be made before, as long as it is not started",
            )
        if self.here:
            message = (
                "this call was made on the manager's own event loop, by an async handler or an observer, and would "
                "wait for itself: make the handler `def run`, which runs in a thread, or call from a thread, as in "
                "`await anyio.to_thread.run_sync(manager.dispatch, job)`"
            )
            raise RuntimeError(message)

    def open(self) -> None:
        """Start the thread and its loop."""
        self._thread.start()
        self._opened.result()

    def close(self) -> None:
        """End the loop once its calls are answered, and wait for its thread, though not for what can't be stopped."""
        if self._thread.ident is None or self._opened.exception() is not None:
            return
        self._loop.post(self._over.set)
        self._thread.join(LEFT_BEHIND_S)

    def call(self, work: Callable[[], Awaitable[R]]) -> R:
        """Have a coroutine run on the loop, in this thread's context, and wait for it; cancelled if the caller leaves.

        Args:
            work: Makes the coroutine; called on the loop.

        Returns:
            Its result.

        Raises:
            ManagerNotRunning: The loop has ended, or belongs to the process from which this one was forked.
            RuntimeError: This is the loop's own thread.
            Exception: What the coroutine raised.
        """
        self.check()
        future: Future[R] = Future()
        try:
            self._calls.add(future)
            if not self._open or not self._loop.post(self._begin, work, future):
                future.cancel()
            return future.result()
        except CancelledError:
            raise ManagerNotRunning from None
        finally:
            future.cancel()  # does nothing unless the caller leaves without the answer
            self._calls.discard(future)

    # ── the loop's side ──

    def _run(self) -> None:
        try:
            anyio.run(self._live)
        except SystemExit as error:
            log.critical("an async handler called sys.exit(%r), which ends the manager's event loop", error.code)
        except BaseException as error:
            if self._opened.done():
                raise
            self._opened.set_exception(error)
        finally:
            self._open = False
            for call in tuple(self._calls):
                call.cancel()

    async def _live(self) -> None:
        self._loop, self._over, self._own = Loop(), anyio.Event(), copy_context()
        async with anyio.create_task_group() as self._group:
            self._open = True
            self._opened.set_result(None)
            try:
                await self._over.wait()
            finally:
                self._over.set()  # also when the loop is being ended: from here on the group takes nothing more

    def _begin(self, work: Callable[[], Awaitable[R]], future: Future[R]) -> None:
        """On the loop, in a copy of the caller's context."""
        for variable, value in self._own.items():  # the caller may be on another loop, and its context says so
            variable.set(value)
        if self._over.is_set():
            future.cancel()
        else:
            self._group.start_soon(self._carry, work, future)

    async def _carry(self, work: Callable[[], Awaitable[R]], future: Future[R]) -> None:
        with anyio.CancelScope() as scope:
            future.add_done_callback(lambda call: call.cancelled() and self._loop.post(scope.cancel))
            try:
                answer = await work()
            except Exception as error:  # noqa: BLE001  raised where it is waited for
                if future.set_running_or_notify_cancel():
                    future.set_exception(error)
            else:
                if future.set_running_or_notify_cancel():
                    future.set_result(answer)
