"""The event loop, reached from a thread, on asyncio or trio.

`post` never waits for the loop: a thread that commits must not stop because a handler blocks.
"""

from __future__ import annotations

import asyncio
import contextvars
from typing import TYPE_CHECKING, Any, Protocol, TypeVarTuple, Unpack

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

Args = TypeVarTuple("Args")


class Loop:
    """The loop that is running where this is made."""

    def __init__(self) -> None:
        try:
            self._asyncio: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            import trio  # noqa: PLC0415  only where it is the loop

            self._asyncio = None
            self._trio = trio.lowlevel.current_trio_token()
        self._tasks: set[asyncio.Task[None]] = set()

    def post(self, call: Callable[[Unpack[Args]], object], *args: *Args) -> bool:
        """Have the loop call a function soon; from any thread.

        Returns:
            False if the loop has ended.
        """
        try:
            if self._asyncio is not None:
                self._asyncio.call_soon_threadsafe(call, *args)
            else:
                self._trio.run_sync_soon(call, *args)
        except RuntimeError:  # closed, or trio's RunFinishedError
            return False
        return True

    def spawn(self, run: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        """Start a task that belongs to no one's task group; the caller sees to its end."""
        if self._asyncio is not None:
            task = self._asyncio.create_task(run(), name=name)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            import trio  # noqa: PLC0415

            trio.lowlevel.spawn_system_task(run, name=name, context=contextvars.copy_context())

    def reply(self) -> Reply:
        """Make an answer to wait for on this loop."""
        return FutureReply(self._asyncio) if self._asyncio is not None else EventReply()


class Reply(Protocol):
    """An answer that one task waits for."""

    def set(self, answer: object) -> None:
        """Give the answer; on the loop."""
        ...

    async def wait(self) -> Any:
        """Wait for the answer; an exception is raised."""
        ...


class FutureReply:
    """An answer on asyncio: a bare future, since there is one for each write."""

    __slots__ = ("_future",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._future: asyncio.Future[Any] = loop.create_future()

    def set(self, answer: object) -> None:
        """Give the answer, unless who waited for it was cancelled."""
        if not self._future.done():
            self._future.set_result(answer)

    async def wait(self) -> Any:
        """Wait for the answer."""
        answer = await self._future
        if isinstance(answer, BaseException):
            raise answer
        return answer


class EventReply:
    """An answer on any loop that anyio knows."""

    __slots__ = ("_answer", "_event")

    def __init__(self) -> None:
        self._event = anyio.Event()
        self._answer: Any = None

    def set(self, answer: object) -> None:
        """Give the answer."""
        self._answer = answer
        self._event.set()

    async def wait(self) -> Any:
        """Wait for the answer."""
        await self._event.wait()
        if isinstance(self._answer, BaseException):
            raise self._answer
        return self._answer
