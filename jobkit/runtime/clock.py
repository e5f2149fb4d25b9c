"""The system's own time, ids and threads."""

from __future__ import annotations

import contextlib
import contextvars
import os
import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import anyio

from jobkit.runtime.loops import Loop

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobkit.interfaces import Signal, ThreadSignal

T = TypeVar("T")


class SystemClock:
    """The machine's time; due times and leases go by the database's clock."""

    def now(self) -> datetime | None:
        """None: the database is to use its own time."""
        return None

    def monotonic(self) -> float:
        """Seconds from an arbitrary start."""
        return time.monotonic()

    def wall(self) -> datetime:
        """This node's own time (aware), for what is shown."""
        return datetime.now(UTC)

    async def wait(self, signal: Signal, seconds: float) -> bool:
        """Wait until a signal is set or the time is over."""
        with anyio.move_on_after(seconds):
            await signal.wait()
        return signal.is_set()


class SystemIds:
    """UUIDs of version 7 (RFC 9562, section 5.7): milliseconds, then a counter, then chance.

    The 12 bits after the version count within a millisecond (method 1 of section 6.2), so that ids made by one process
    sort in the order in which they were made.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0

    def new(self) -> UUID:
        """Make an id that sorts after all that were made here before."""
        with self._lock:
            tick = max((time.time_ns() // 1_000_000) << 12, self._last + 1)
            self._last = tick
        milliseconds, count = tick >> 12, tick & 0xFFF
        chance = int.from_bytes(os.urandom(8)) & 0x3FFF_FFFF_FFFF_FFFF
        return UUID(int=milliseconds << 80 | 0x7 << 76 | count << 64 | 0b10 << 62 | chance)


class SystemThreads:
    """Daemon threads: none of them keeps the process alive."""

    def start(self, run: Callable[[], None], name: str) -> None:
        """Run a function in a thread of its own, in a copy of the caller's context."""
        context = contextvars.copy_context()
        context.run(_leave_loop)
        threading.Thread(target=context.run, args=(run,), name=name, daemon=True).start()

    async def run(self, call: Callable[[], T], name: str) -> T:
        """Run a function in a thread of its own and wait for its result; if cancelled, leave it behind."""
        loop = Loop()
        reply = loop.reply()

        def answer() -> None:
            result: Any
            try:
                result = call()
            except BaseException as error:  # noqa: BLE001  raised where it is waited for
                result = error
            loop.post(reply.set, result)

        self.start(answer, name)
        result: T = await reply.wait()
        return result

    def wait(self, signal: ThreadSignal, seconds: float) -> bool:
        """Wait in a thread until a signal is set or the time is over."""
        return signal.wait(seconds)


def _leave_loop() -> None:
    """Forget in this context that a loop runs: else no function in the thread could run one of its own, by anyio."""
    with contextlib.suppress(ImportError):  # there is no trace of the loop without it
        from sniffio import current_async_library_cvar  # noqa: PLC0415  it comes with trio

        current_async_library_cvar.set(None)
