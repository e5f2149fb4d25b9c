"""What SIGINT and SIGTERM mean to a worker: first stop, then hurry, then die as any program does.

The signal handlers are Python's, not the event loop's: a job that blocks the loop can't keep a signal from being
counted, so the third one always ends the process. They do no more than count, and wake whoever waits on the loop.
"""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from collections.abc import Iterator

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)

PATIENCE: Final = 2
"""How many requests to stop are taken as such; one more kills."""

ECHO_S: Final = 0.3
"""Signals that come closer than this are one request: Ctrl-C reaches a whole process group, and a process manager in it
passes it on once more."""


class Stop:
    """Counts the requests to stop. A context manager: after it signals mean what they meant before.

    Attributes:
        requests: How many there were.
    """

    def __init__(self) -> None:
        self.requests: int = 0
        self._heard_at = float("-inf")
        self._abrupt = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._came = asyncio.Event()

    def __enter__(self) -> Self:
        heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # nohup, `worker &`
        self._before = {number: signal.signal(number, self._hear) for number in heeded}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def abrupt(self) -> Iterator[None]:
        """Let a signal break off what is done in this block, by KeyboardInterrupt: there is nothing to save yet."""
        self._abrupt = True
        try:
            yield
        finally:
            self._abrupt = False

    async def requested(self, times: int) -> None:
        """Wait until there were as many requests to stop; on one event loop only."""
        self._loop = asyncio.get_running_loop()
        while self.requests < times:
            await self._came.wait()

    def _hear(self, number: int, _: Any) -> None:
        now = time.monotonic()
        if now - self._heard_at < ECHO_S:
            return
        self._heard_at = now
        self.requests += 1
        if self.requests > PATIENCE:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        elif self._loop is not None:
            with suppress(RuntimeError):  # the loop has ended, and so will the process
                self._loop.call_soon_threadsafe(self._tell)
        elif self._abrupt:
            raise KeyboardInterrupt

    def _tell(self) -> None:
        self._came.set()
        self._came = asyncio.Event()
